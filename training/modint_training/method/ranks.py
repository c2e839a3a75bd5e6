"""What processes that train together know of one another: their number, and what they add up or agree on.

`accelerate launch` tells each its rank before anything is set up; they talk once the Trainer has joined them.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def rank() -> int:
    """The number of this process among those that train together."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes files and says how things go."""
    return rank() == 0


def world() -> int:
    """How many processes have been joined."""
    ready = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if ready else 1


def over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def wanted_by_any(wanted: Sequence[bool], device: torch.device) -> list[bool]:
    """What at least one rank wants, of several things; every rank must ask."""
    if world() == 1:
        return list(wanted)
    asked = torch.tensor(wanted, dtype=torch.int32, device=device)
    distributed.all_reduce(asked, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in asked.tolist()]


def of_all_ranks(mine: Any) -> list[Any]:
    """What every rank brought, in the order of their ranks; every rank must ask."""
    if world() == 1:
        return [mine]
    brought: list[Any] = [None] * world()
    distributed.all_gather_object(brought, mine)
    return brought
