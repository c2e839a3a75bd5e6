"""Two processes train what one trains: the whole batch is the same, and so are its means."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_training.trainer import read_log
from tests.training.small import save_small_base

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(base: Path, folder: Path, rank: int, ranks: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    if ranks > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    command = [sys.executable, "-m", "tests.training.two_ranks"]
    arguments = [str(base), str(folder), str(folder / f"rank{rank}.pt")]
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment)


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(processor: Any, tmp_path: Path) -> None:
    base = save_small_base(processor, tmp_path / "base")
    for ranks in (1, 2):
        folder, port = tmp_path / str(ranks), free_port()
        folder.mkdir()
        running = [started(base, folder, rank, ranks, port) for rank in range(ranks)]
        assert [process.wait(timeout=500) for process in running] == [0] * ranks
    alone = torch.load(tmp_path / "1" / "rank0.pt")
    first, second = (torch.load(tmp_path / "2" / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(first[name], alone[name], atol=1e-5) for name in alone)
    one, two = (read_log(tmp_path / ranks / "log.jsonl") for ranks in ("1", "2"))
    assert [line["step"] for line in two] == [1, 2]
    for name in ("loss", "sft", "adv", "cons", "delta_rms"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4)
