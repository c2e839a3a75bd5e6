"""Finds the LoRA adapters to serve, and refuses those that vLLM would not load, with a remedy.

`NAME` is looked up in `--adapter-dir`, then among the bundled adapters; `NAME=PATH` names a PEFT folder.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modint_guard.errors import AdapterError, ConfigError
from modint_guard.models import BASE, check_servable
from modint_server.adapters.files import is_folder, json_in, regular, shown
from modint_server.adapters.rank_pattern import patterns_of
from modint_server.adapters.tensors import read_header
from modint_server.metrics import Card

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# The first words of content parts' types. vLLM 0.32 answers the base's own requests that hold such a part
# from an adapter of that name (`_get_active_default_mm_loras`), without being asked to.
PART_NAMES = frozenset(
    {"text", "image", "audio", "video", "input", "output", "thinking", "refusal", "prompt", "tool"}
)
TAKES_OVER = "vLLM would answer the base's requests with a content part of this name from it"
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank
RECORD = "doctor.json"
RUN_RECORD = "run.json"
# Parts of the names of weights in vision towers and connectors: LLaVA's, Qwen's.
TOWER_PARTS = ("vision_tower.", "multi_modal_projector.", "visual.")
HEAD_PARTS = ("lm_head.",)
DEFAULT_MAX_RANK = 16  # vLLM's default of --max-lora-rank
# Initialisations after which the base's weights are unchanged; vLLM refuses an adapter made by any other.
PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder that vLLM can load as it is."""

    name: str
    path: Path
    rank: int  # the largest of its modules
    base: str | None  # the model that its card says it was trained for
    tower: bool = False  # whether it has weights for the vision tower or the connector
    head: bool = False  # whether it has weights for the output layer


def resolve_all(wanted: Sequence[str], adapter_dir: Path, bundled: Path) -> tuple[Adapter, ...]:
    """One adapter for each `NAME` or `NAME=PATH`; raises AdapterError."""
    adapters = tuple(resolve(each, adapter_dir, bundled) for each in wanted)
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise AdapterError(f"adapter {name!r} is given twice: give each adapter a name of its own")
    return adapters


def resolve(wanted: str, adapter_dir: Path, bundled: Path) -> Adapter:
    """The adapter that `NAME` or `NAME=PATH` means, checked; raises AdapterError."""
    return read(*locate(wanted, adapter_dir, bundled))


def locate(wanted: str, adapter_dir: Path, bundled: Path) -> tuple[str, Path]:
    """The name and folder that `NAME` or `NAME=PATH` means; raises AdapterError."""
    name, explicit, path = wanted.partition("=")
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"adapter name {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', beginning "
            "with a letter or digit (NAME or NAME=PATH)"
        )
    if name in PART_NAMES:
        raise AdapterError(f"adapter name {name!r} is not allowed: {TAKES_OVER}: give it another")
    return name, _named_folder(name, path) if explicit else _look_up(name, adapter_dir, bundled)


def loadable(adapter_dir: Path) -> tuple[Adapter, ...]:
    """Every adapter below a folder that vLLM could load; the others are left out."""
    adapters = []
    for config in sorted(adapter_dir.glob("*/adapter_config.json")):
        with contextlib.suppress(AdapterError):
            adapters.append(read(config.parent.name, config.parent))
    return tuple(adapters)


def card(adapter: Adapter) -> Card:
    """What the metrics show of an adapter; raises AdapterError for a damaged run record."""
    digest, run = revision(adapter.path), _run_record(adapter)
    return Card(
        rank=adapter.rank,
        revision=digest,
        baseline_flip_ratio=_baseline(adapter, run),
        modules=_recorded_modules(adapter.path, digest),
        recipe=_recipe(run),
    )


def revision(folder: Path) -> str:
    """The fingerprint of an adapter's weights: 12 hexadecimal digits of their SHA-256.

    Raises AdapterError if they cannot be read.
    """
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        try:
            with regular(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise AdapterError(f"{path} cannot be read ({error}): save the adapter again") from error
    return digest.hexdigest()[:12]


def record_modules(folder: Path, counts: Mapping[str, int]) -> Path:
    """Writes the doctor's counts of modules beside the weights, for the metrics. Raises AdapterError.

    counts: modules by status. Returns the file.
    """
    path = folder / RECORD
    try:
        path.write_text(json.dumps({"revision": revision(folder), "modules": dict(counts)}) + "\n", "utf-8")
    except OSError as error:
        raise AdapterError(f"{path} cannot be written: make its folder writable") from error
    return path


def _recorded_modules(folder: Path, digest: str) -> dict[str, int] | None:
    """The doctor's counts by status; None if there are none, or none of the weights with this `digest`."""
    try:
        record = json_in(folder / RECORD)
        counts = {str(status): int(count) for status, count in record["modules"].items()}
        return counts if record["revision"] == digest else None
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None


def _run_record(adapter: Adapter) -> dict[str, Any]:
    """The record that training wrote beside the weights; empty if there is none."""
    path = adapter.path / RUN_RECORD
    try:
        record = json_in(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {adapter.name!r}: cannot read {path}: {error}") from error
    if not isinstance(record, dict):
        raise AdapterError(f"adapter {adapter.name!r}: {path} holds no JSON object: write one, or remove it")
    return record


def _baseline(adapter: Adapter, run: Mapping[str, Any]) -> float | None:
    """`baseline.flip_ratio` of the run record, in [0, 1]; None if it has none."""
    baseline = run.get("baseline") or {}
    ratio = baseline.get("flip_ratio") if isinstance(baseline, dict) else baseline
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise AdapterError(
            f"adapter {adapter.name!r}: baseline.flip_ratio {shown(ratio)} in {adapter.path / RUN_RECORD} "
            "is no share: give 0 to 1"
        )
    return float(ratio)


def _recipe(run: Mapping[str, Any]) -> str | None:
    """The recipe's name; None if there is none, or none that a metric's label may hold."""
    recipe = run.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else None
    return name if isinstance(name, str) and NAME.fullmatch(name) else None


def max_lora_rank(adapters: Sequence[Adapter]) -> int:
    """The smallest of vLLM's choices that holds every adapter's rank."""
    largest = max((adapter.rank for adapter in adapters), default=1)
    allowed = max_rank_flag(largest)
    assert allowed is not None  # `read` refuses larger ones
    return allowed


def max_rank_flag(rank: int) -> int | None:
    """The smallest --max-lora-rank with which vLLM takes an adapter of this rank; None if it takes none."""
    return next((allowed for allowed in ALLOWED_RANKS if allowed >= rank), None)


def read(name: str, folder: Path) -> Adapter:
    """The adapter in a PEFT folder; raises AdapterError if vLLM would refuse it."""
    config = read_config(name, folder)
    if not _weight_files(folder):
        raise AdapterError(
            f"adapter {name!r}: {folder} has no adapter_model.safetensors: save it with "
            "save_pretrained(…, safe_serialization=True)"
        )
    for refusal in refusals(config):
        raise AdapterError(f"adapter {name!r}: {refusal}")
    base = config.get("base_model_name_or_path")
    trained_for = base if isinstance(base, str) and base else None
    names = _weights_of(folder)
    tower, head = (
        any(part in name for name in names for part in parts) for parts in (TOWER_PARTS, HEAD_PARTS)
    )
    return Adapter(name, folder, max(ranks_of(config)), trained_for, tower, head)


def _weight_files(folder: Path) -> list[Path]:
    """The regular files among an adapter's weights."""
    return sorted(path for path in folder.glob("adapter_model*.safetensors") if path.is_file())


def _weights_of(folder: Path) -> list[str]:
    """The names of an adapter's weights; none if a file cannot be read: the engine will say so."""
    try:
        headers = [read_header(path) for path in _weight_files(folder)]
    except AdapterError:
        return []
    return [name for header in headers for name in header.tensors]


def _named_folder(name: str, path: str) -> Path:
    folder = Path(path).expanduser()
    if not path or not is_folder(folder):
        raise AdapterError(f"adapter {name!r}: no folder at {path!r}: give NAME=PATH with PATH a PEFT folder")
    return folder.resolve()


def _look_up(name: str, adapter_dir: Path, bundled: Path) -> Path:
    for root in (adapter_dir, bundled):
        if not is_folder(root / name) or name == BASE:
            continue
        folder = (root / name).resolve()
        if not folder.is_relative_to(root.resolve()):
            raise AdapterError(f"adapter {name!r} leads out of {root}: give its folder as {name}=PATH")
        return folder
    raise AdapterError(
        f"adapter {name!r} is neither in {adapter_dir} nor bundled: give its folder as {name}=PATH or "
        f"another --adapter-dir (bundled: {', '.join(bundled_names(bundled)) or 'none'})"
    )


def bundled_names(bundled: Path) -> list[str]:
    """The adapters that ship with this package."""
    return sorted(folder.parent.name for folder in bundled.glob("*/adapter_config.json"))


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's adapter_config.json; raises AdapterError if it is missing, damaged or not of type LORA."""
    path = folder / "adapter_config.json"
    try:
        config = json_in(path)
    except FileNotFoundError:
        raise AdapterError(
            f"adapter {name!r}: {folder} has no adapter_config.json: it is not a PEFT folder"
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {name!r}: cannot read {path}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(
            f"adapter {name!r}: {path} is of type {shown(kind)}: only PEFT's LORA can be served"
        )
    return config


def refusals(config: dict[str, Any]) -> list[str]:
    """Why vLLM 0.32 would not load an adapter with this configuration: sentences, each with a remedy."""
    start = config.get("init_lora_weights", True)
    whole_modules = config.get("modules_to_save")
    is_present = {
        "it uses DoRA, which vLLM does not load: train with use_dora=False": config.get("use_dora"),
        "it trains biases, which vLLM does not load: train with bias='none'": config.get("bias", "none")
        != "none"
        or config.get("lora_bias"),
        f"it saves whole modules ({shown(whole_modules)}), which vLLM does not load: put them among "
        "target_modules": whole_modules,
        f"it began from {shown(start)}, which changes the base's weights too: train with "
        "init_lora_weights=True or convert it with path_initial_model_for_weight_conversion": (
            isinstance(start, str) and start.lower() not in PLAIN_STARTS
        ),
        "it is an activated LoRA, which vLLM does not load: train a plain LoRA": config.get(
            "alora_invocation_tokens"
        ),
        "it replicates layers, which vLLM does not load: train without layer_replication": config.get(
            "layer_replication"
        ),
        "it is block-diagonal, which vLLM does not load: train without use_bdlora": config.get("use_bdlora"),
        "it uses QALoRA, which vLLM does not load: train with use_qalora=False": config.get("use_qalora"),
    }
    return [*(refusal for refusal, present in is_present.items() if present), *_rank_refusals(config)]


def _rank_refusals(config: dict[str, Any]) -> list[str]:
    ranks = ranks_of(config)
    if config.get("rank_pattern") and not patterns_of(config):
        return ["its rank_pattern is no object of names and ranks: export it again"]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in ranks):
        return [f"its ranks {shown(ranks)} are not all positive whole numbers: export it again"]
    if max_rank_flag(max(ranks)) is None:
        return [f"rank {max(ranks)} is above {ALLOWED_RANKS[-1]}, vLLM's largest: train one below"]
    return []


def ranks_of(config: dict[str, Any]) -> list[Any]:
    """The rank `r`, then those of `rank_pattern` for single modules; as written, unchecked."""
    return [config.get("r"), *patterns_of(config).values()]


def checked_model(model: str) -> str:
    """A model folder as an absolute path, or a hub id as it is.

    Raises ConfigError for a path that does not exist, or a model that vLLM does not serve.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"--model {model}: the folder has no config.json: give a transformers model folder"
            )
        check_servable(_model_type(folder / "config.json"))
        return str(folder.resolve())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith((".", "~")) and not folder.exists():
        return model
    raise ConfigError(
        f"--model {model}: no such folder: give a model folder, or a hub id such as ORGANISATION/NAME"
    )


def _model_type(file: Path) -> str:
    """The `model_type` of a config.json; raises ConfigError if it is no JSON object."""
    try:
        return str(json_in(file).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: give a transformers model folder") from error
