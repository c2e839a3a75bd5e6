"""The engine on one core, gateway and generator of the load on another."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from modint_guard.demo.launch import RunningGateway, serving


@contextlib.contextmanager
def served_apart(arguments: Sequence[str], engine: int, others: int) -> Iterator[RunningGateway]:
    """Runs `modint-guard serve ARGUMENTS` until the block ends: its engine on the core `engine`, the gateway
    and this thread on the core `others`. Raises EngineError as `serving` does.

    All start on the engine's core, so that the engine takes as many threads as fit there; the rest moves.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {engine})
    try:
        with serving(arguments) as served:
            move(served.process.pid, others)
            os.sched_setaffinity(0, {others})
            yield served
    finally:
        os.sched_setaffinity(0, before)


def move(process: int, core: int) -> None:
    """Moves all threads of a process to a core, but not its children. Threads that it starts later follow."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), {core})
