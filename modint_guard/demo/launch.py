"""Starts `modint-guard serve` as a child process and waits until it is ready: for demo, tables and tests."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO

from modint_guard.errors import EngineError

READY_S = 300.0
STOP_S = 30.0


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that is ready: its address, the seconds that its start took, its process."""

    url: str
    ready_s: float
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    """A TCP port of the loopback interface that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    arguments: Sequence[str],
    *,
    output: int | IO[bytes] | None = None,
    ready_s: float = READY_S,
    dtype: str = "float32",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[RunningGateway]:
    """Runs `modint-guard serve ARGUMENTS` on a free port until the block ends.

    Its messages go to `output`, by default to this process's own; it logs warnings only. dtype: the engine's;
    the published figures are of float32, on every processor. environment: more
    settings for it.
    Raises EngineError if it ends, or is not ready within `ready_s` seconds.
    """
    port = free_port()
    serve = [sys.executable, "-m", "modint_guard.cli", "serve", "--dtype", dtype]
    command = [*serve, "--host", "127.0.0.1", "--port", str(port), *arguments]
    began = time.monotonic()
    # Nothing is asked beside what is shown, and verdicts do not depend on how much of a null is measured.
    fixed = {"MODINT_LOG_LEVEL": "warning", "MODINT_NULL_CHECKUP": "off", "MODINT_NULL_EVERY": "0"}
    settings = {**fixed, **os.environ, **environment}
    process = subprocess.Popen(command, stdout=output, stderr=output, env=settings)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, began, ready_s)
        yield RunningGateway(url, time.monotonic() - began, process)
    finally:
        _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, began: float, ready_s: float) -> None:
    while time.monotonic() - began < ready_s:
        if process.poll() is not None:
            code = process.returncode
            raise EngineError(f"the gateway ended with exit code {code}; its last lines say why")
        if _answers(f"{url}/readyz"):
            return
        time.sleep(0.25)
    raise EngineError(f"the gateway was not ready within {ready_s:.0f} s; its last lines say how far it came")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as unready:
        unready.close()
        return False
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
