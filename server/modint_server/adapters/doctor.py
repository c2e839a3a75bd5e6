"""What the engine makes of an adapter: every key matched, renamed, ignored or unmatched, and the repair.

    headers → the installed vLLM reads the names (`lora_names`) → compared with the base's own → a diagnosis

vLLM loads an adapter none of whose modules exist and then answers as the base, in silence. So names are read
by vLLM's own code, and compared, with their sizes, to the weights of the base. What cannot be checked on a
machine is said.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modint_guard.errors import AdapterError, ConfigError, EngineError
from modint_guard.models import bundled
from modint_server.adapters.folders import (
    DEFAULT_MAX_RANK,
    checked_model,
    max_rank_flag,
    ranks_of,
    read_config,
    refusals,
)
from modint_server.adapters.lora_names import MARK
from modint_server.adapters.tensors import Tensor, TensorFile, read_header, rename

JSON = dict[str, Any]
WRAPPER = "base_model.model."  # what PEFT puts before every name
WEIGHTS = "adapter_model.safetensors"  # the one file that vLLM opens
ASK_TIMEOUT_S = 900.0
_SIDE = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
_LANGUAGE_ONLY = (
    "vLLM applies adapters to the language model only, unless started with --enable-tower-connector-lora"
)


class Status(StrEnum):
    """What becomes of one key in the engine."""

    MATCHED = "matched"  # applied, under the name it is written with
    RENAMED = "renamed"  # applied, under the name that vLLM itself gives it
    IGNORED = "ignored"  # left out by vLLM's rules
    UNMATCHED = "unmatched"  # loaded and never applied, or a reason for vLLM to refuse the file
    UNCHECKED = "unchecked"  # cannot be told on this machine


@dataclass(frozen=True)
class Key:
    """One tensor of an adapter; `fix` is the name under which vLLM would apply it."""

    name: str
    status: Status
    module: str | None = None
    why: str = ""
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything found; `unchecked` says what this machine cannot tell."""

    name: str
    folder: Path
    keys: tuple[Key, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Nothing was found wrong; see `unchecked` for what was not looked at."""
        return not self.faults and not self.of(Status.UNMATCHED)

    @property
    def fixes(self) -> dict[str, str]:
        """Old name -> the name that vLLM applies."""
        return {key.name: key.fix for key in self.keys if key.fix}

    def of(self, status: Status) -> list[Key]:
        return [key for key in self.keys if key.status is status]

    def modules(self) -> dict[str, int]:
        """How many modules there are of each status; one whose halves differ counts in both."""
        return {
            status.value: len({_written(_cleaned(key.name)) for key in self.of(status)}) for status in Status
        }

    def to_json(self) -> JSON:
        counts = {status.value: len(self.of(status)) for status in Status}
        keys = [{**asdict(key), "status": key.status.value} for key in self.keys]
        return {
            "adapter": self.name,
            "healthy": self.healthy,
            "counts": counts,
            "faults": list(self.faults),
            "notes": list(self.notes),
            "unchecked": list(self.unchecked),
            "keys": keys,
        }


@dataclass(frozen=True)
class Rules:
    """The engine's own reading of the names, as `lora_names` prints it."""

    vllm: str
    adapter: Mapping[str, Mapping[str, str]]
    base: Mapping[str, str | None]
    applied: tuple[str, ...] | None  # prefixes of modules that take adapters; None: all do
    with_tower: tuple[str, ...] | None  # the same with --enable-tower-connector-lora


Ask = Callable[[JSON], Rules]  # raises EngineError where the engine's code cannot be asked


@dataclass(frozen=True)
class Base:
    """The linear layers of the base: the engine's name -> (name in its files, size)."""

    modules: Mapping[str, tuple[str, tuple[int, ...]]]

    def fits(self, module: str, key: str, tensor: Tensor) -> bool:
        """Whether A (rank, in) or B (out, rank) goes with the layer's (out, in); embeddings the other way."""
        out, into = self.modules[module][1]
        if ".lora_embedding_" in key:
            out, into = into, out
        is_a = "_A" in key[key.rindex(".lora_") :]
        return len(tensor.shape) == 2 and (tensor.shape[1] == into if is_a else tensor.shape[0] == out)


def examine(
    name: str, folder: Path, model: str | None, *, tower: bool = False, ask: Ask | None = None
) -> Diagnosis:
    """The diagnosis of a PEFT folder against the model it is served with (by default the one its card names).

    Raises AdapterError where there is no adapter to examine, ConfigError for a model that does not exist.
    """
    config = read_config(name, folder)
    file = _weights(name, folder)
    faults = [*refusals(config), *_pairs(file), *_ranks(config, file), *_numbers(file)]
    unchecked: list[str] = []
    base_folder = _base_folder(model, config.get("base_model_name_or_path"))
    if base_folder is None:
        unchecked.append("names and sizes: the base is not on this machine; name its folder with --model")
        keys = tuple(Key(key, Status.UNCHECKED) for key in file.tensors)
    else:
        try:
            keys = _keys(file, base_folder, tower, ask or ask_vllm)
        except EngineError as exc:
            unchecked.append(f"names: {exc}")
            keys = tuple(Key(key, Status.UNCHECKED) for key in file.tensors)
    if keys and not any(key.status in (Status.MATCHED, Status.RENAMED, Status.UNCHECKED) for key in keys):
        faults.append("vLLM would apply none of its modules and answer as the base, without a word")
    return Diagnosis(name, folder, keys, tuple(faults), tuple(_notes(config, base_folder)), tuple(unchecked))


def fix(diagnosis: Diagnosis) -> Path:
    """Renames what vLLM does not find under its name, atomically; returns where the original is kept.

    Raises AdapterError where there is nothing that a rename would cure.
    """
    if not diagnosis.fixes:
        raise AdapterError(f"adapter {diagnosis.name!r}: no rename would change what vLLM applies of it")
    return rename(read_header(diagnosis.folder / WEIGHTS), diagnosis.fixes)


def ask_vllm(question: JSON) -> Rules:
    """Has the installed vLLM read the names, in a child; raises EngineError where it cannot."""
    if find_spec("vllm") is None:
        raise EngineError(
            "no vLLM is installed here to read them: pip install 'modint-guard[cpu]' (or [gpu]), or look on "
            "the machine that serves"
        )
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modint_server.adapters.lora_names"],
            input=json.dumps(question),
            env={**quiet, **os.environ},
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise EngineError(f"vLLM did not read them within {ASK_TIMEOUT_S:.0f} s: try again") from exc
    return rules_of(done.stdout, done.stderr)


def rules_of(printed: str, complained: str = "") -> Rules:
    """The child's answer; raises EngineError with its problem, or with its last words where there is none."""
    line = next((line for line in reversed(printed.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        last = (complained.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the installed vLLM could not be asked: {last[:300]}")
    found = json.loads(line.removeprefix(MARK))
    if "problem" in found:
        raise EngineError(f"the installed vLLM could not be asked: {found['problem'][:300]}")
    tower = (*found["language"], *(found["tower"] if found["tower_lora"] else ()))
    return Rules(
        vllm=found["vllm"],
        adapter=found["adapter"],
        base=found["base"],
        applied=tuple(found["language"]) if found["multimodal"] else None,
        with_tower=tower if found["multimodal"] else None,
    )


# The file by itself


def _weights(name: str, folder: Path) -> TensorFile:
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"adapter {name!r}: {folder} has no {WEIGHTS}: save it with "
            "save_pretrained(…, safe_serialization=True)"
        )
    return read_header(folder / WEIGHTS)


def _pairs(file: TensorFile) -> list[str]:
    """A module must have both halves."""
    sides: dict[str, set[str]] = {}
    for key in file.tensors:
        if found := _SIDE.search(_cleaned(key)):
            sides.setdefault(_cleaned(key)[: found.start()], set()).add("A" if "_A" in found[0] else "B")
    return [
        f"{module} has lora_{min(found)} only: save the adapter again"
        for module, found in sides.items()
        if len(found) == 1
    ]


def _ranks(config: JSON, file: TensorFile) -> list[str]:
    """vLLM scales by the configured rank: weights of another would be applied too strongly or too weakly."""
    found = []
    for key, tensor in file.tensors.items():
        cleaned = _cleaned(key)
        if not (side := _SIDE.search(cleaned)) or len(tensor.shape) != 2:
            continue
        rank = tensor.shape[0] if "_A" in side[0] else tensor.shape[1]
        said = _configured_rank(config, cleaned[: side.start()].replace(WRAPPER, ""))
        if said != rank:
            found.append(
                f"{key} has rank {rank}, where adapter_config.json says {said}: correct r or rank_pattern"
            )
    return _first_few(found)


def _configured_rank(config: JSON, module: str) -> Any:
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # PEFT's rule, and vLLM's
            return rank
    return config.get("r")


def _numbers(file: TensorFile) -> list[str]:
    found = [
        f"{tensor.name} holds infinite values or no numbers at all: train again with a lower learning rate"
        for tensor in file.tensors.values()
        if not file.is_finite(tensor)
    ]
    lora_b = [one for one in file.tensors.values() if re.search(r"\.lora_(embedding_)?B\b", one.name)]
    if lora_b and all(file.is_zero(one) for one in lora_b):
        found.append("every lora_B is zero, as before training: the adapter has no effect")
    return _first_few(found)


def _first_few(sentences: Sequence[str], most: int = 5) -> list[str]:
    rest = len(sentences) - most
    return [*sentences[:most], *([f"and {rest} more of the same kind"] if rest > 0 else [])]


def _notes(config: JSON, base_folder: Path | None) -> Iterable[str]:
    largest = max((rank for rank in ranks_of(config) if isinstance(rank, int)), default=0)
    if largest > DEFAULT_MAX_RANK and (flag := max_rank_flag(largest)) is not None:
        yield f"rank {largest}: vLLM takes it with --max-lora-rank {flag} (`modint-guard serve` sets it)"
    base = config.get("base_model_name_or_path")
    if base and base_folder is not None and Path(base).name not in (base_folder.name, _hub_name(base_folder)):
        yield f"its card names the base {base!r}, and it is compared with {base_folder}"


# Against the base


def _keys(file: TensorFile, base_folder: Path, tower: bool, ask: Ask) -> tuple[Key, ...]:
    shapes = _layers(base_folder)
    wanted = list(dict.fromkeys([*file.tensors, *map(_cleaned, file.tensors)]))
    architectures = _architectures(base_folder)
    rules = ask({"architectures": architectures, "adapter": wanted, "base": list(shapes)})
    base = Base(
        {
            engine.removesuffix(".weight"): (key.removesuffix(".weight"), shape)
            for key, shape in shapes.items()
            if (engine := rules.base.get(key))
        }
    )
    applied = rules.with_tower if tower else rules.applied
    return tuple(_key(tensor, rules.adapter, base, applied) for tensor in file.tensors.values())


def _key(
    tensor: Tensor,
    readings: Mapping[str, Mapping[str, str]],
    base: Base,
    applied: tuple[str, ...] | None,
) -> Key:
    name, reading = tensor.name, readings[tensor.name]
    if "skipped" in reading:
        return Key(name, Status.IGNORED, why=reading["skipped"])
    cure = _cure(tensor, readings[_cleaned(name)].get("module"), base, applied)
    if "refused" in reading:
        return Key(name, Status.UNMATCHED, why=f"vLLM refuses the file: {reading['refused']}", fix=cure)
    module = reading["module"]
    if module not in base.modules:
        return Key(name, Status.UNMATCHED, module, _missing(module, base), cure)
    if not _takes(module, applied):
        return Key(name, Status.IGNORED, module, _LANGUAGE_ONLY)
    if not base.fits(module, name, tensor):
        size = " x ".join(map(str, base.modules[module][1]))
        why = f"it does not fit the base's layer of {size}: it is another base's"
        return Key(name, Status.UNMATCHED, module, why)
    return Key(name, Status.MATCHED if module == _written(name) else Status.RENAMED, module)


def _missing(module: str, base: Base) -> str:
    last = module.rsplit(".", 1)[-1]
    if any(known.rsplit(".", 1)[-1] == last for known in base.modules):
        return "the base has no layer of this name: vLLM loads it and never applies it"
    return f"the base has no layer called {last}: vLLM refuses the file"


def _cure(tensor: Tensor, module: str | None, base: Base, applied: tuple[str, ...] | None) -> str | None:
    """The name under which vLLM would apply the tensor, where exactly one layer is meant.

    Meant is a layer whose name contains the written one in order (parts were left out) and whose size fits.
    """
    side = _SIDE.search(_cleaned(tensor.name))
    if module is None or side is None:
        return None
    known = [module] if module in base.modules else [one for one in base.modules if _contains(one, module)]
    meant = [one for one in known if _takes(one, applied) and base.fits(one, _cleaned(tensor.name), tensor)]
    if len(meant) != 1:
        return None
    better = f"{WRAPPER}{base.modules[meant[0]][0]}{side[0]}"
    return better if better != tensor.name else None


def _contains(known: str, module: str) -> bool:
    """Whether the parts of `module` stand in `known` in order, layer numbers included, and end together."""
    parts, rest = module.split("."), iter(known.split("."))
    return known.split(".")[-1] == parts[-1] and all(part in rest for part in parts)


def _takes(module: str, applied: tuple[str, ...] | None) -> bool:
    return applied is None or module.startswith(applied)


def _written(key: str) -> str:
    """The module's name as it stands in the file."""
    return _SIDE.sub("", key).replace(WRAPPER, "")


def _cleaned(key: str) -> str:
    """Without what wrappers leave in names: torch.compile, distributed training, PEFT's adapter name."""
    key = key.replace("_orig_mod.", "").removeprefix("module.")
    return re.sub(r"\.(lora_(?:embedding_)?[AB])\.[\w-]+\.weight$", r".\1.weight", key)


def _layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every two-dimensional weight of a model's files, with its size (out, in); raises AdapterError."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_")]
    if not files:
        raise EngineError(f"the base in {folder} has no safetensors to compare with")
    return {
        name: tensor.shape
        for path in files
        for name, tensor in read_header(path).tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def _architectures(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / "config.json").read_text("utf-8"))["architectures"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EngineError(f"{folder / 'config.json'} names no architecture") from exc


def _base_folder(model: str | None, card: Any) -> Path | None:
    """Where the base's files are; None where the card's base is not on this machine."""
    if model is not None:
        if (found := local_folder(checked_model(model))) is None:
            raise ConfigError(f"--model {model}: not on this machine: download it first, or name a folder")
        return found
    return local_folder(card) if isinstance(card, str) and card else None


def local_folder(model: str) -> Path | None:
    """The folder of a model given by path, bundled name or hub id, if it is on this machine."""
    for folder in (
        Path(model).expanduser(),
        bundled(model) if "/" not in model else None,
        *_snapshots(model),
    ):
        if folder is not None and (folder / "config.json").is_file():
            return folder
    return None


def _snapshots(model: str) -> list[Path]:
    """The hub's cache on this machine, newest first."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = (cache / f"models--{model.replace('/', '--')}" / "snapshots").glob("*")
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _hub_name(folder: Path) -> str:
    """The model's name where the folder is a snapshot in the hub's cache."""
    return folder.parent.parent.name.rpartition("--")[2]
