"""The engine's precision: bf16 where the processor has it, float32 elsewhere, or what the user names."""

from pathlib import Path

import pytest

from modint_server.engine.config import Device, EngineConfig, arguments
from modint_server.engine.dtype import Dtype, cpu_dtype, has_native_bf16


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd", False),
        ("model name\t: avx512_bf16", False),
        ("", False),
    ],
)
def test_bf16_is_native_if_linux_lists_it(tmp_path: Path, flags: str, native: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{flags}\n", "utf-8")
    assert has_native_bf16(file) is native


def test_a_system_without_a_list_has_no_native_bf16(tmp_path: Path) -> None:
    assert not has_native_bf16(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("named", "native", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float32", True, "float32"),
        ("bfloat16", False, "bfloat16"),
    ],
)
def test_auto_follows_the_processor_and_a_name_stands(named: Dtype, native: bool, expected: str) -> None:
    assert cpu_dtype(named, native_bf16=native) == expected


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        (Device.CPU, "float32", ["--dtype", "float32"]),
        (Device.CPU, "bfloat16", ["--dtype", "bfloat16"]),
        (Device.GPU, "float16", ["--dtype", "float16"]),
        (Device.GPU, "auto", []),
    ],
)
def test_the_engine_is_told_unless_it_is_to_choose(device: Device, dtype: Dtype, expected: list[str]) -> None:
    words = arguments(EngineConfig("any", "any", device=device, dtype=dtype), Path("socket"))
    start = words.index("--dtype") if "--dtype" in words else len(words)
    assert words[start : start + 2] == expected


def test_an_option_behind_the_dashes_wins() -> None:
    config = EngineConfig("any", "any", dtype="float32", options=("--dtype", "bfloat16"))
    words = arguments(config, Path("socket"))
    assert [words[place + 1] for place, word in enumerate(words) if word == "--dtype"] == ["bfloat16"]
