"""A training that kills its own process while it writes the checkpoint of step 3, for test_trainer.py."""

import os
import signal
import sys
import threading
from pathlib import Path

from tests.training.test_trainer import ALWAYS, line_batch, line_loss, train, wide


def main(folder: Path) -> None:
    """Train until then."""

    def kill() -> None:
        while not (folder / "checkpoint-3").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    train(wide(), line_loss, line_batch, folder, checkpoint_minutes=ALWAYS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
