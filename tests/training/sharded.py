"""One process of a run by `fsdp2.yaml` on a machine without a GPU: `modint-guard`, with accelerate told that
its processes, which talk by gloo, are such as it shards over. It would leave FSDP out on a CPU."""

import os
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import distributed

from modint_guard.cli import main as modint_guard


def backend(self: PartialState, *_: Any) -> tuple[str, DistributedType]:
    """What accelerate finds on a machine with GPUs, but for the name of the library they talk by."""
    return "gloo", DistributedType.MULTI_GPU


def main(*words: str) -> None:
    """`modint-guard WORDS`."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    distributed.init_process_group("gloo")
    PartialState._prepare_backend = backend
    modint_guard(words)
