"""Base and adapter folders of a few numbers each, and LLaVA's naming rules written out by hand."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modint_guard.errors import EngineError
from modint_server.adapters.doctor import Rules

JSON = dict[str, Any]
KINDS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}
KINDS |= {np.dtype(np.int32): "I32", np.dtype(np.uint8): "U8"}
LANGUAGE = "model.language_model.layers.0.self_attn.q_proj"
TOWER = "model.vision_tower.encoder.layers.0.self_attn.q_proj"  # as transformers 5 names it
PROJECTOR = "model.multi_modal_projector.linear_1"
BASE_WEIGHTS = {
    "model.language_model.layers.0.self_attn.q_proj.weight": (6, 4),
    "model.language_model.layers.1.self_attn.q_proj.weight": (6, 4),
    "model.language_model.embed_tokens.weight": (9, 4),
    "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (3, 3),
    "model.multi_modal_projector.linear_1.weight": (4, 3),
    "model.language_model.norm.weight": (4,),
}


def save(path: Path, tensors: Mapping[str, "np.ndarray[Any, Any]"], metadata: JSON | None = None) -> Path:
    """A safetensors file, by the letter of the format."""
    header: JSON = {"__metadata__": metadata} if metadata else {}
    at, data = 0, b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {
            "dtype": KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(raw)],
        }
        at, data = at + len(raw), data + raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def base(folder: Path, weights: Mapping[str, tuple[int, ...]] = BASE_WEIGHTS) -> Path:
    """A LLaVA as far as the doctor looks: architecture, names and sizes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Llava"]}), "utf-8")
    save(folder / "model.safetensors", {name: np.zeros(shape, np.float32) for name, shape in weights.items()})
    return folder


def pair(module: str, into: int = 4, out: int = 6, rank: int = 2, value: float = 0.5) -> dict[str, Any]:
    """Both halves of one module's LoRA, as PEFT names them."""
    return {
        f"base_model.model.{module}.lora_A.weight": np.full((rank, into), value, np.float32),
        f"base_model.model.{module}.lora_B.weight": np.full((out, rank), value, np.float32),
    }


def adapter(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    """A PEFT folder with these tensors."""
    folder.mkdir(parents=True)
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny", **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole), "utf-8")
    save(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    return folder


def llava(question: JSON) -> Rules:
    """vLLM 0.32's rules for LLaVA as read in its source: the prefixes that it renames, where adapters go."""
    return Rules(
        vllm="0.32.0",
        adapter={key: _reading(key) for key in question["adapter"]},
        base={key: _renamed(key) for key in question["base"]},
        applied=("language_model",),
        with_tower=("language_model", "vision_tower", "multi_modal_projector"),
        embeddings=frozenset({"embed_tokens", "lm_head"}),
    )


def no_engine(question: JSON) -> Rules:
    raise EngineError("no vLLM is installed here")


def _renamed(name: str) -> str:
    renames = {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    }
    old = next((old for old in renames if name.startswith(old)), None)
    return name if old is None else renames[old] + name.removeprefix(old)


def _reading(key: str) -> dict[str, str]:
    if key.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
        return {"skipped": "weights of the base's own embeddings"}
    name = _renamed(key.removeprefix("base_model.model."))
    for side in ("A", "B"):
        if name.endswith(f".lora_{side}.weight"):
            return {"module": name.removesuffix(f".lora_{side}.weight"), "side": side}
    return {"refused": f"{key} is unsupported LoRA weight"}
