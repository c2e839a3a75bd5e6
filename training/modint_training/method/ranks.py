"""The processes of one distributed run (ranks): how many there are, and what they sum, gather or agree on.

`accelerate launch` sets each process's rank in its environment; they can communicate once the Trainer has
joined them in a process group.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def rank() -> int:
    """The number of this process in the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def started_processes() -> int:
    """How many processes were started for the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that writes files and reports progress."""
    return rank() == 0


def joined_processes() -> int:
    """How many processes can communicate: 1 until the process group is set up."""
    is_ready = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if is_ready else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks; all of them must call."""
    if joined_processes() == 1:
        return value
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is set on at least one rank; all of them must call."""
    if joined_processes() == 1:
        return list(flags)
    highest = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in highest.tolist()]


def gather_over_ranks(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks; all of them must call."""
    if joined_processes() == 1:
        return [value]
    values: list[T] = [value] * joined_processes()
    distributed.all_gather_object(values, value)
    return values
