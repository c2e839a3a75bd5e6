"""The processes of a distributed run, forked from one that has imported what they need: importing torch and
transformers takes a process longer than the run itself."""

import multiprocessing
import os
import socket
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

PATIENCE_S = 500
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "modint_training.runs",
        "modint_training.tune",
        "tests.training.apart",
        "tests.training.sharded",
        "tests.training.two_ranks",
    ]
)

Environment = Mapping[str, str]
NOTHING_MORE: Environment = MappingProxyType({})


class Run(Protocol):
    """`run`, as tests are given it."""

    def __call__(
        self,
        program: str,
        arguments: Sequence[object],
        folder: Path,
        ranks: int = 2,
        environment: Environment = NOTHING_MORE,
    ) -> list[tuple[str, str]]: ...


def run(
    program: str,
    arguments: Sequence[object],
    folder: Path,
    ranks: int = 2,
    environment: Environment = NOTHING_MORE,
) -> list[tuple[str, str]]:
    """What each process of `program` prints, out and aside, each as a launcher starts it; its `main` is given
    the arguments as text. All must end well, and none may wait for another for ever."""
    port, words = _free_port(), [str(word) for word in arguments]
    running = [
        _started(program, words, folder / f"rank{rank}", {**environment, **_place(rank, ranks, port)})
        for rank in range(ranks)
    ]
    try:
        for process in running:
            process.join(PATIENCE_S)
    finally:
        for process in running:
            process.kill()
    printed = [
        (_text(folder / f"rank{rank}.out"), _text(folder / f"rank{rank}.err")) for rank in range(ranks)
    ]
    assert [process.exitcode for process in running] == [0] * ranks, printed
    return printed


def _place(rank: int, ranks: int, port: int) -> Mapping[str, str]:
    """A process finds its place in its environment; one that is alone finds nothing there."""
    if ranks == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def _started(program: str, words: list[str], said: Path, environment: Mapping[str, str]) -> BaseProcess:
    process = SERVER.Process(target=_begin, args=(program, words, str(said), dict(environment)))
    process.start()
    return process


def _begin(program: str, words: list[str], said: str, environment: Mapping[str, str]) -> None:
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for readers of batches, as in any other process
    import_module(program).main(*words)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""
