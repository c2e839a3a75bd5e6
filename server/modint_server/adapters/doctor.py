"""Whether vLLM would apply each key of an adapter, and the repair of those that it would not find.

    headers → the installed vLLM reads the names (`lora_names`) → compared with the base's → a diagnosis

vLLM loads an adapter none of whose modules exist, and then answers as the base without an error. So the names
are read by vLLM's own code, and compared, sizes included, with the weights of the base. The diagnosis says
what could not be checked on this machine.
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
from modint_server.adapters.files import shown
from modint_server.adapters.folders import (
    DEFAULT_MAX_RANK,
    checked_model,
    max_rank_flag,
    ranks_of,
    read_config,
    refusals,
)
from modint_server.adapters.lora_names import MARK
from modint_server.adapters.rank_pattern import configured_ranks
from modint_server.adapters.tensors import Tensor, TensorFile, read_header, rename

JSON = dict[str, Any]
WRAPPER = "base_model.model."  # PEFT's prefix of every name
WEIGHTS = "adapter_model.safetensors"  # the one file that vLLM opens
ASK_TIMEOUT_S = 900.0
_SIDE = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
_PACKED = frozenset({"qweight", "weight_packed", "W_q"})  # AWQ and GPTQ, compressed-tensors, HQQ
_PACKED_KINDS = frozenset({"U8", "I32", "U32"})  # bitsandbytes, NVFP4, MLX: several weights in one number
# PEFT's `target_parameters` of a mixture of experts: weights of all experts at once, of rank r · experts.
_ALL_EXPERTS = re.compile(r"(?:^|\.)experts(?:\.base_layer)?$")
# Last names of layers that are no linear layers, in the models that vLLM serves.
_EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "word_embeddings", "tok_embeddings", "embed_out"})
_LANGUAGE_ONLY = (
    "vLLM applies adapters to the language model only, unless started with --enable-tower-connector-lora"
)


class Status(StrEnum):
    """What the engine does with one key."""

    MATCHED = "matched"  # applies it, under the name in the file
    RENAMED = "renamed"  # applies it, under a name of vLLM's own
    IGNORED = "ignored"  # leaves it out, by vLLM's rules
    UNMATCHED = "unmatched"  # loads it and never applies it, or refuses the file because of it
    UNCHECKED = "unchecked"  # not known on this machine


@dataclass(frozen=True)
class Key:
    """One tensor of an adapter."""

    name: str
    status: Status
    module: str | None = None  # the engine's name of the module; None if it has none
    why: str = ""
    fix: str | None = None  # the name under which vLLM would apply it; None if no rename would help


@dataclass(frozen=True)
class AdapterDiagnosis:
    """The status of every key, and sentences: faults, notes, and what could not be checked here."""

    name: str
    folder: Path
    keys: tuple[Key, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing was found wrong; `unchecked` says what was not looked at."""
        return not self.faults and not self.of(Status.UNMATCHED)

    @property
    def fixes(self) -> dict[str, str]:
        """Old name -> the name that vLLM applies."""
        return {key.name: key.fix for key in self.keys if key.fix}

    def of(self, status: Status) -> list[Key]:
        """The keys of one status."""
        return [key for key in self.keys if key.status is status]

    def modules(self) -> dict[str, int]:
        """The number of modules of each status; one whose two halves differ counts in both."""
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
    """How the engine reads the names, as `lora_names` prints it."""

    vllm: str  # its version
    adapter: Mapping[str, Mapping[str, str]]  # key -> {"module", "side"}, {"skipped"} or {"refused"}
    base: Mapping[str, str | None]  # name in the base's files -> the engine's name, None: not loaded
    applied: tuple[str, ...] | None  # prefixes of modules that take adapters; None: all do
    with_tower: tuple[str, ...] | None  # the same with --enable-tower-connector-lora
    embeddings: frozenset[str] | None = None  # last names of embeddings that take adapters; None: not known


Size = tuple[int, int]  # out, in
Ask = Callable[[JSON], Rules]  # raises EngineError if the engine's code cannot be asked


@dataclass(frozen=True)
class Base:
    """The layers of the base: the engine's name -> (name in its files, size or None if it is packed)."""

    modules: Mapping[str, tuple[str, Size | None]]

    def fits(self, module: str, key: str, tensor: Tensor) -> bool:
        """Whether A (rank, in) or B (out, rank) fits the module's (out, in); an embedding's is (in, out).
        Anything fits a layer of unknown size.
        """
        if (size := self.modules[module][1]) is None:
            return True
        out, into = size
        if ".lora_embedding_" in key:
            out, into = into, out
        is_a = "_A" in key[key.rindex(".lora_") :]
        return len(tensor.shape) == 2 and (tensor.shape[1] == into if is_a else tensor.shape[0] == out)


def examine(
    name: str, folder: Path, model: str | None, *, tower: bool = False, ask: Ask | None = None
) -> AdapterDiagnosis:
    """Compares the adapter in a PEFT folder with the model that it is served with.

    model: folder or hub id; None: the base that its card names. tower: whether the engine is started with
    --enable-tower-connector-lora. ask: how vLLM reads names, by default the installed vLLM.
    Raises AdapterError if there is no adapter in the folder, ConfigError for a model that does not exist.
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
        except (EngineError, RecursionError) as exc:  # the second of a base's config.json
            unchecked.append(f"names: {exc}")
            keys = tuple(Key(key, Status.UNCHECKED) for key in file.tensors)
    if keys and not any(key.status in (Status.MATCHED, Status.RENAMED, Status.UNCHECKED) for key in keys):
        faults.append("vLLM would apply none of its modules and answer as the base, without a word")
    return AdapterDiagnosis(
        name, folder, keys, tuple(faults), tuple(_notes(config, base_folder)), tuple(unchecked)
    )


def fix(diagnosis: AdapterDiagnosis) -> Path:
    """Renames the keys that vLLM would not find, atomically; returns the path of the original file's copy.

    Raises AdapterError if no rename would help.
    """
    if not diagnosis.fixes:
        raise AdapterError(f"adapter {diagnosis.name!r}: no rename would change what vLLM applies of it")
    return rename(read_header(diagnosis.folder / WEIGHTS), diagnosis.fixes)


def ask_vllm(question: JSON) -> Rules:
    """How the installed vLLM reads the names, asked in a child process; raises EngineError if it cannot."""
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


def rules_of(output: str, errors: str = "") -> Rules:
    """The child's answer, from its standard output. Raises EngineError with the problem that it reports, or
    with the last line of its standard error if it gave no answer.
    """
    line = next((line for line in reversed(output.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the installed vLLM could not be asked: {last[:300]}")
    answer = json.loads(line.removeprefix(MARK))
    if "problem" in answer:
        raise EngineError(f"the installed vLLM could not be asked: {answer['problem'][:300]}")
    tower = (*answer["language"], *(answer["tower"] if answer["tower_lora"] else ()))
    return Rules(
        vllm=answer["vllm"],
        adapter=answer["adapter"],
        base=answer["base"],
        applied=tuple(answer["language"]) if answer["multimodal"] else None,
        with_tower=tower if answer["multimodal"] else None,
        embeddings=None if answer["embeddings"] is None else frozenset(answer["embeddings"]),
    )


# Checks of the file alone


def _weights(name: str, folder: Path) -> TensorFile:
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"adapter {name!r}: {folder} has no {WEIGHTS}: save it with "
            "save_pretrained(…, safe_serialization=True)"
        )
    return read_header(folder / WEIGHTS)


def _pairs(file: TensorFile) -> list[str]:
    """Sentences about modules that do not have both lora_A and lora_B."""
    sides: dict[str, set[str]] = {}
    for key in file.tensors:
        if match := _SIDE.search(_cleaned(key)):
            sides.setdefault(_cleaned(key)[: match.start()], set()).add("A" if "_A" in match[0] else "B")
    return [
        f"{module} has lora_{min(present)} only: save the adapter again"
        for module, present in sides.items()
        if len(present) == 1
    ]


def _ranks(config: JSON, file: TensorFile) -> list[str]:
    """Sentences about ranks that are not as configured: vLLM scales by the configured one."""
    faults = []
    sides = [(cleaned, side) for cleaned in map(_cleaned, file.tensors) if (side := _SIDE.search(cleaned))]
    modules = list(dict.fromkeys(_module_of(cleaned, side.start()) for cleaned, side in sides))
    try:
        rank_of = configured_ranks(config, modules)
    except AdapterError as exc:
        return [str(exc)]
    for key, tensor in file.tensors.items():
        cleaned = _cleaned(key)
        if not (side := _SIDE.search(cleaned)) or len(tensor.shape) != 2:
            continue
        rank = tensor.shape[0] if "_A" in side[0] else tensor.shape[1]
        module = _module_of(cleaned, side.start())
        configured = rank_of[module]
        of_all_experts = _ALL_EXPERTS.search(module) and isinstance(configured, int) and configured > 0
        if configured != rank and not (of_all_experts and rank % configured == 0):
            faults.append(
                f"{key} has rank {rank}, but adapter_config.json says {configured}: correct r or rank_pattern"
            )
    return _first_few(faults)


def _module_of(cleaned: str, end: int) -> str:
    """The module as `rank_pattern` means it, of a weight's cleaned name up to `end`."""
    return cleaned[:end].replace(WRAPPER, "")


def _numbers(file: TensorFile) -> list[str]:
    """Sentences about weights that are infinite, no numbers, or all zero."""
    faults = [
        f"{tensor.name} holds infinite values or no numbers at all: train again with a lower learning rate"
        for tensor in file.tensors.values()
        if not file.is_finite(tensor)
    ]
    lora_b = [
        tensor for tensor in file.tensors.values() if re.search(r"\.lora_(embedding_)?B\b", tensor.name)
    ]
    if lora_b and all(file.is_zero(tensor) for tensor in lora_b):
        faults.append("every lora_B is zero, as before training: the adapter has no effect")
    return _first_few(faults)


def _first_few(sentences: Sequence[str], most: int = 5) -> list[str]:
    rest = len(sentences) - most
    return [*sentences[:most], *([f"and {rest} more of the same kind"] if rest > 0 else [])]


def _notes(config: JSON, base_folder: Path | None) -> Iterable[str]:
    largest = max((rank for rank in ranks_of(config) if isinstance(rank, int)), default=0)
    if largest > DEFAULT_MAX_RANK and (flag := max_rank_flag(largest)) is not None:
        yield f"rank {largest}: vLLM takes it with --max-lora-rank {flag} (`modint-guard serve` sets it)"
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or base_folder is None:
        return
    if Path(base).name not in (base_folder.name, _hub_name(base_folder)):
        yield f"its card names the base {shown(base)}, and it is compared with {base_folder}"


# Comparison with the base


def _keys(file: TensorFile, base_folder: Path, tower: bool, ask: Ask) -> tuple[Key, ...]:
    """Every key with its status; raises EngineError if vLLM or the base's files cannot be asked."""
    shapes = _layers(base_folder)
    wanted = list(dict.fromkeys([*file.tensors, *map(_cleaned, file.tensors)]))
    rules = ask({**_architectures(base_folder), "adapter": wanted, "base": list(shapes)})
    modules = {
        engine.removesuffix(".weight"): (key.removesuffix(".weight"), shape)
        for key, shape in shapes.items()
        if (engine := rules.base.get(key))
    }
    base = Base(modules | _tied_heads(modules, rules))
    applied = rules.with_tower if tower else rules.applied
    return tuple(_key(tensor, rules, base, applied) for tensor in file.tensors.values())


def _tied_heads(
    modules: Mapping[str, tuple[str, Size | None]], rules: Rules
) -> dict[str, tuple[str, Size | None]]:
    """The adapter's `lm_head`, if the base's files leave it out because it is the embedding."""
    tied = [name for name in modules if name.endswith("embed_tokens")]
    heads = {reading["module"] for reading in rules.adapter.values() if "module" in reading}
    heads = {name for name in heads - set(modules) if name.rsplit(".", 1)[-1] == "lm_head"}
    if len(tied) != 1 or "lm_head" not in (rules.embeddings or ()):
        return {}
    return {head: (head, modules[tied[0]][1]) for head in heads}


def _key(tensor: Tensor, rules: Rules, base: Base, applied: tuple[str, ...] | None) -> Key:
    name, reading = tensor.name, rules.adapter[tensor.name]
    if "skipped" in reading:
        return Key(name, Status.IGNORED, why=reading["skipped"])
    better_name = _better_name(tensor, rules.adapter[_cleaned(name)].get("module"), base, applied)
    if "refused" in reading:
        return Key(
            name, Status.UNMATCHED, why=f"vLLM refuses the file: {reading['refused']}", fix=better_name
        )
    module = reading["module"]
    last = module.rsplit(".", 1)[-1]
    if last in _EMBEDDINGS and rules.embeddings is not None and last not in rules.embeddings:
        why = f"vLLM takes no adapters of {last} in this model, and refuses the file: train without it"
        return Key(name, Status.UNMATCHED, module, why)
    if _ALL_EXPERTS.search(module) and any(".experts." in known for known in base.modules):
        why = "all experts at once: whether vLLM applies them depends on how the engine is started"
        return Key(name, Status.UNCHECKED, module, why)
    if module not in base.modules:
        return Key(name, Status.UNMATCHED, module, _missing(module, base), better_name)
    if not _takes(module, applied):
        return Key(name, Status.IGNORED, module, _LANGUAGE_ONLY)
    if not base.fits(module, name, tensor):
        size = " x ".join(map(str, base.modules[module][1] or ()))
        why = f"it does not fit the base's layer of {size}: it is another base's"
        return Key(name, Status.UNMATCHED, module, why)
    return Key(name, Status.MATCHED if module == _written(name) else Status.RENAMED, module)


def _missing(module: str, base: Base) -> str:
    last = module.rsplit(".", 1)[-1]
    if any(known.rsplit(".", 1)[-1] == last for known in base.modules):
        return "the base has no layer of this name: vLLM loads it and never applies it"
    return f"the base has no layer called {last}: vLLM refuses the file"


def _better_name(
    tensor: Tensor, module: str | None, base: Base, applied: tuple[str, ...] | None
) -> str | None:
    """The name under which vLLM would apply the tensor; None if not exactly one layer comes into question.

    A layer does if its size fits, and if its name contains the parts of the written name in order.
    """
    side = _SIDE.search(_cleaned(tensor.name))
    if module is None or side is None:
        return None
    known = base.modules
    similar = [module] if module in known else [name for name in known if _contains(name, module)]
    key = _cleaned(tensor.name)
    candidates = [name for name in similar if _takes(name, applied) and base.fits(name, key, tensor)]
    if len(candidates) != 1:
        return None
    better_name = f"{WRAPPER}{base.modules[candidates[0]][0]}{side[0]}"
    return better_name if better_name != tensor.name else None


def _contains(longer: str, module: str) -> bool:
    """Whether `longer` has the dotted parts of `module` in their order and ends in the same part."""
    parts, rest = module.split("."), iter(longer.split("."))
    return longer.split(".")[-1] == parts[-1] and all(part in rest for part in parts)


def _takes(module: str, applied: tuple[str, ...] | None) -> bool:
    """Whether vLLM applies adapters to a module."""
    return applied is None or module.startswith(applied)


def _written(key: str) -> str:
    """The module's name in the file."""
    return _SIDE.sub("", key).replace(WRAPPER, "")


def _cleaned(key: str) -> str:
    """The key without what torch.compile, distributed training and PEFT's adapter names add to it."""
    key = key.replace("_orig_mod.", "").removeprefix("module.")
    return re.sub(r"\.(lora_(?:embedding_)?[AB])\.[\w-]+\.weight$", r".\1.weight", key)


def _layers(folder: Path) -> dict[str, Size | None]:
    """Every layer in a model's files by the name of its weight, with its size (out, in); None if the weight
    is packed (AWQ, GPTQ, bitsandbytes, compressed-tensors, …) or holds all experts.

    Raises EngineError if there are no such files, AdapterError for a damaged one.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_")]
    if not files:
        raise EngineError(f"the base in {folder} has no safetensors to compare with")
    tensors = (item for path in files for item in read_header(path).tensors.items())
    return dict(layer for name, tensor in tensors if (layer := _layer(name, tensor)) is not None)


def _layer(name: str, tensor: Tensor) -> tuple[str, Size | None] | None:
    """The name and size of the layer of which a tensor is the weight; None if it is something else."""
    stem, _, last = name.rpartition(".")
    if last in _PACKED:
        return f"{stem}.weight", None
    if ".experts." in name and len(tensor.shape) == 3:
        return name, None
    if last != "weight" or len(tensor.shape) != 2:
        return None
    return name, None if tensor.dtype in _PACKED_KINDS else (tensor.shape[0], tensor.shape[1])


def _architectures(folder: Path) -> JSON:
    """What the config says of the model's class, and of the language model's inside a multimodal one."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        names = list(config["architectures"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EngineError(f"{folder / 'config.json'} names no architecture") from exc
    text = config.get("text_config")
    return {"architectures": names, "language": text if isinstance(text, dict) else {}}


def _base_folder(model: str | None, card: Any) -> Path | None:
    """The folder of the base; None if the card's base is not on this machine. Raises ConfigError."""
    if model is not None:
        if (folder := local_folder(checked_model(model))) is None:
            raise ConfigError(f"--model {model}: not on this machine: download it first, or name a folder")
        return folder
    try:
        return local_folder(card) if isinstance(card, str) and card else None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # a name that is too long, an unknown user's home, a zero byte
        return None


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
    snapshots = (cache / f"models--{model.replace('/', '--')}" / "snapshots").glob("*")
    return sorted(snapshots, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _hub_name(folder: Path) -> str:
    """The model's name if the folder is a snapshot in the hub's cache."""
    return folder.parent.parent.name.rpartition("--")[2]
