"""A training that kills its own process while it writes the checkpoint of step 3, for test_trainer.py."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from torch import Tensor, nn

from tests.training.test_trainer import ALWAYS, Points, line_batch, line_loss, train, wide


def main(folder: Path) -> None:
    """Train until then."""

    def kill() -> None:
        while not (folder / "checkpoint-3").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    def waiting(net: nn.Module, batch: Points) -> Tensor:
        """On a busy machine the last step could be over before the other thread had its turn."""
        if (folder / "checkpoint-3").exists():
            time.sleep(60)
        return line_loss(net, batch)

    threading.Thread(target=kill, daemon=True).start()
    train(wide(), waiting, line_batch, folder, checkpoint_minutes=ALWAYS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
