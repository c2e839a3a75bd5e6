"""The precision that the engine computes in, if the user names none: bf16 on a CPU that has it natively."""

from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
CPU_INFO = Path("/proc/cpuinfo")
# What Linux calls bf16 arithmetic on x86 (AVX-512, AMX) and on ARM. Emulated bf16 is slower than float32.
_NATIVE = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def has_native_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor has bf16 arithmetic of its own, by the flags that Linux lists."""
    if not cpu_info.is_file():
        return False
    lines = cpu_info.read_text("utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _NATIVE.isdisjoint(flags.partition(":")[2].split())


def cpu_dtype(named: Dtype, *, native_bf16: bool) -> Dtype:
    """What `auto` means on a CPU; any other name stands as it is."""
    if named != "auto":
        return named
    return "bfloat16" if native_bf16 else "float32"
