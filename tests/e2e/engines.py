"""What the engines of these tests are started with, and how to wait for one that does not become ready."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from modint_guard.demo.launch import READY_S, free_port
from modint_guard.errors import EngineError
from modint_guard.models import ADAPTER, bundled
from modint_server.adapters.tensors import read_header, rename

GAIN = 3.0  # of the attention to pictures, in the engine that scales it
STRAY = "stray"


def stray(folder: Path) -> Path:
    """The shipped adapter under names of a language model alone: vLLM loads them, and applies none."""
    shutil.copytree(bundled(ADAPTER), folder)
    weights = folder / "adapter_model.safetensors"
    rename(
        read_header(weights),
        {name: name.replace(".language_model.", ".") for name in read_header(weights).tensors},
    )
    return folder


@contextlib.contextmanager
def serving_whatever_it_tests(
    arguments: Sequence[str], adapters: set[str], folder: Path, output: IO[bytes]
) -> Iterator[str]:
    """The address of a `modint-guard serve`, run in `folder`, that has tested these adapters and need not be
    ready.

    Raises EngineError if it ends before, or has not come so far within five minutes.
    """
    port = free_port()
    command = [sys.executable, "-m", "modint_guard.cli", "serve", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    fixed = {"MODINT_LOG_LEVEL": "warning", "MODINT_NULL_CHECKUP": "off", "MODINT_NULL_EVERY": "0"}
    environment = {**fixed, **os.environ}
    with subprocess.Popen(
        [*command, *arguments], stdout=output, stderr=output, env=environment, cwd=folder
    ) as process:
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
            while not adapters <= readiness(url)[1]["adapters"].keys():
                if process.poll() is not None or time.monotonic() > until:
                    raise EngineError(f"{url} has not tested {', '.join(sorted(adapters))}")
                time.sleep(0.25)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def readiness(url: str) -> tuple[int, dict[str, Any]]:
    """Status and body of /readyz; (0, no adapters) while nothing listens."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, {"adapters": {}}
