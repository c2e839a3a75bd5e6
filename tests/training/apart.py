"""One process of two, of which the second alone wants to save, or is told to stop; started by
test_distributed.py with RANK and WORLD_SIZE in its environment."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from modint_guard.errors import TrainingStopped
from modint_training.method.ranks import rank
from tests.training.test_trainer import ALWAYS, NEVER, line, line_batch, line_loss, train


def main(folder: str, wish: str) -> None:
    """Six steps, of which the second process wants every one saved, or two before it is told to stop."""
    wanting, done = rank() == 1, 0

    def loss(net: Any, batch: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if wanting and wish == "stop" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return line_loss(net, batch)

    minutes = ALWAYS if wanting and wish == "save" else NEVER
    try:
        train(line(), loss, line_batch, Path(folder), checkpoint_minutes=minutes)
    except TrainingStopped as stopped:
        print(stopped)


if __name__ == "__main__":
    main(*sys.argv[1:])
