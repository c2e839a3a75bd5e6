"""Finds the LoRA adapters to serve and refuses, with the remedy, those that vLLM would not load.

`NAME` is looked up in `--adapter-dir` and then among the bundled ones; `NAME=PATH` names a PEFT folder.
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
from modint_server.adapters.tensors import read_header
from modint_server.metrics import Card

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank
RECORD = "doctor.json"
RUN_RECORD = "run.json"
# What stands in the names of vision towers and connectors: LLaVA's, Qwen's.
TOWER_PARTS = ("vision_tower.", "multi_modal_projector.", "visual.")
DEFAULT_MAX_RANK = 16  # what vLLM takes where nobody says otherwise
# How the weights began; any other name means PEFT changed the base's weights too, which vLLM refuses.
PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder that vLLM can load as it is."""

    name: str
    path: Path
    rank: int
    base: str | None  # what its card says it was made for
    tower: bool = False  # whether it has weights for vision tower or connector


def resolve_all(wanted: Sequence[str], adapter_dir: Path, bundled: Path) -> tuple[Adapter, ...]:
    """One adapter for each `NAME` or `NAME=PATH`; raises AdapterError."""
    adapters = tuple(resolve(one, adapter_dir, bundled) for one in wanted)
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise AdapterError(f"adapter {name!r} is given twice: give each adapter a name of its own")
    return adapters


def resolve(wanted: str, adapter_dir: Path, bundled: Path) -> Adapter:
    """Reads `NAME` or `NAME=PATH`; raises AdapterError."""
    return read(*locate(wanted, adapter_dir, bundled))


def locate(wanted: str, adapter_dir: Path, bundled: Path) -> tuple[str, Path]:
    """The name and folder that `NAME` or `NAME=PATH` means; raises AdapterError."""
    name, explicit, path = wanted.partition("=")
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"adapter name {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', beginning "
            "with a letter or digit (NAME or NAME=PATH)"
        )
    return name, _given(name, path) if explicit else _look_up(name, adapter_dir, bundled)


def loadable(adapter_dir: Path) -> tuple[Adapter, ...]:
    """Every adapter of a folder that vLLM could load; what it refuses is not served, so it is left out."""
    found = []
    for config in sorted(adapter_dir.glob("*/adapter_config.json")):
        with contextlib.suppress(AdapterError):
            found.append(read(config.parent.name, config.parent))
    return tuple(found)


def card(adapter: Adapter) -> Card:
    """What metrics say of an adapter; raises AdapterError for a bad run record."""
    known, run = revision(adapter.path), _run_record(adapter)
    return Card(
        adapter.rank, known, _baseline(adapter, run), _recorded(adapter.path, known), recipe=_recipe(run)
    )


def revision(folder: Path) -> str:
    """The fingerprint of an adapter's weights: 12 hexadecimal digits of their SHA-256."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("adapter_model*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def record_modules(folder: Path, counts: Mapping[str, int]) -> Path:
    """Leaves what the doctor found beside the weights, for metrics; raises AdapterError."""
    path = folder / RECORD
    try:
        path.write_text(json.dumps({"revision": revision(folder), "modules": dict(counts)}) + "\n", "utf-8")
    except OSError as error:
        raise AdapterError(f"{path} cannot be written: make its folder writable") from error
    return path


def _recorded(folder: Path, known: str) -> dict[str, int] | None:
    """The doctor's record, unless it is of other weights or none at all: it is shown, never relied on."""
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        return {str(k): int(v) for k, v in found["modules"].items()} if found["revision"] == known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _run_record(adapter: Adapter) -> dict[str, Any]:
    """What its training left beside the weights; nothing where there is no record."""
    path = adapter.path / RUN_RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {adapter.name!r}: cannot read {path}: {error}") from error
    if not isinstance(record, dict):
        raise AdapterError(f"adapter {adapter.name!r}: {path} holds no JSON object: write one, or remove it")
    return record


def _baseline(adapter: Adapter, run: Mapping[str, Any]) -> float | None:
    """`baseline.flip_ratio` of the run record; None where there is none."""
    baseline = run.get("baseline") or {}
    ratio = baseline.get("flip_ratio") if isinstance(baseline, dict) else baseline
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise AdapterError(
            f"adapter {adapter.name!r}: baseline.flip_ratio {ratio!r} in {adapter.path / RUN_RECORD} is no "
            "share: give 0 to 1"
        )
    return float(ratio)


def _recipe(run: Mapping[str, Any]) -> str | None:
    """The name of the recipe, where it is one that a label may hold."""
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
    """The --max-lora-rank with which vLLM takes an adapter of this rank; None: it takes none so large."""
    return next((allowed for allowed in ALLOWED_RANKS if allowed >= rank), None)


def read(name: str, folder: Path) -> Adapter:
    """Checks a PEFT folder as vLLM will; raises AdapterError."""
    config = read_config(name, folder)
    if not any(folder.glob("adapter_model*.safetensors")):
        raise AdapterError(
            f"adapter {name!r}: {folder} has no adapter_model.safetensors: save it with "
            "save_pretrained(…, safe_serialization=True)"
        )
    for refusal in refusals(config):
        raise AdapterError(f"adapter {name!r}: {refusal}")
    base = config.get("base_model_name_or_path")
    made_for = base if isinstance(base, str) and base else None
    return Adapter(name, folder, max(ranks_of(config)), made_for, reaches_tower(folder))


def reaches_tower(folder: Path) -> bool:
    """Whether an adapter has weights for more than the language model, which vLLM leaves out unless it is
    told not to; False where a file cannot be read, which the engine will say."""
    try:
        headers = [read_header(path) for path in folder.glob("adapter_model*.safetensors")]
    except AdapterError:
        return False
    return any(part in name for header in headers for name in header.tensors for part in TOWER_PARTS)


def _given(name: str, path: str) -> Path:
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise AdapterError(f"adapter {name!r}: no folder at {path!r}: give NAME=PATH with PATH a PEFT folder")
    return folder.resolve()


def _look_up(name: str, adapter_dir: Path, bundled: Path) -> Path:
    for root in (adapter_dir, bundled):
        folder = (root / name).resolve()
        if not folder.is_dir() or name == BASE:
            continue
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
    """The folder's adapter_config.json; raises AdapterError where it is none of PEFT's LORA."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AdapterError(
            f"adapter {name!r}: {folder} has no adapter_config.json: it is not a PEFT folder"
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {name!r}: cannot read {path}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"adapter {name!r}: {path} is of type {kind!r}: only PEFT's LORA can be served")
    return config


def refusals(config: dict[str, Any]) -> list[str]:
    """Why vLLM 0.32 does not load such an adapter, each with the way out."""
    start = config.get("init_lora_weights", True)
    found = {
        "it uses DoRA, which vLLM does not load: train with use_dora=False": config.get("use_dora"),
        "it trains biases, which vLLM does not load: train with bias='none'": config.get("bias", "none")
        != "none"
        or config.get("lora_bias"),
        f"it saves whole modules ({config.get('modules_to_save')}), which vLLM does not load: put them among "
        "target_modules": config.get("modules_to_save"),
        f"it began from {start!r}, which changes the base's weights too: train with init_lora_weights=True "
        "or convert it with path_initial_model_for_weight_conversion": isinstance(start, str)
        and start.lower() not in PLAIN_STARTS,
        "it is an activated LoRA, which vLLM does not load: train a plain LoRA": config.get(
            "alora_invocation_tokens"
        ),
        "it replicates layers, which vLLM does not load: train without layer_replication": config.get(
            "layer_replication"
        ),
        "it is block-diagonal, which vLLM does not load: train without use_bdlora": config.get("use_bdlora"),
        "it uses QALoRA, which vLLM does not load: train with use_qalora=False": config.get("use_qalora"),
    }
    return [*(refusal for refusal, present in found.items() if present), *_rank_refusals(config)]


def _rank_refusals(config: dict[str, Any]) -> list[str]:
    ranks = ranks_of(config)
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in ranks):
        return [f"its ranks {ranks} are not all positive whole numbers: export it again"]
    if max_rank_flag(max(ranks)) is None:
        return [f"rank {max(ranks)} is above {ALLOWED_RANKS[-1]}, vLLM's largest: train one below"]
    return []


def ranks_of(config: dict[str, Any]) -> list[Any]:
    """The rank of most modules, then those of modules with their own; as written, unchecked."""
    return [config.get("r"), *(config.get("rank_pattern") or {}).values()]


def checked_model(model: str) -> str:
    """A folder that holds a model, or a hub id; raises ConfigError for a path that does not exist."""
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
    """The `model_type` of a config.json; raises ConfigError where it is no JSON object."""
    try:
        return str(json.loads(file.read_text("utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: give a transformers model folder") from error
