"""Two processes train what one trains: the whole batch is the same, and so are its means."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_training.loop.trainer import read_log
from tests.training.small import save_small_base

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(program: str, arguments: Sequence[object], ranks: int) -> list[subprocess.Popen[str]]:
    """The processes of a run, as a launcher starts them."""
    port = free_port()
    command = [sys.executable, "-m", f"tests.training.{program}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    of_rank = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(ranks)
    ]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, **(own if ranks > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in of_rank
    ]


def ended(running: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """What each process said, out and aside; all must end well, and none may wait for another for ever."""
    try:
        said = [process.communicate(timeout=500) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(processor: Any, tmp_path: Path) -> None:
    base = save_small_base(processor, tmp_path / "base")
    said = {}
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        said[ranks] = ended(started("two_ranks", (base, tmp_path / str(ranks)), ranks))
    alone = torch.load(tmp_path / "1" / "rank0.pt")
    first, second = (torch.load(tmp_path / "2" / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(first[name], alone[name], atol=1e-5) for name in alone)
    one, two = (read_log(tmp_path / ranks / "log.jsonl") for ranks in ("1", "2"))
    assert [line["step"] for line in two] == [1, 2, 2]
    for name in ("loss", "sft", "adv", "cons", "delta_rms"):
        assert [line[name] for line in two[:2]] == pytest.approx([line[name] for line in one[:2]], rel=1e-4)
    # The figures of the validation split: each process looked at a part, and the first says what all saw.
    assert {name.removeprefix("eval_") for name in two[2]} > {"loss", "image-heavy/clean", "vqa/clean"}
    assert two[2] == pytest.approx(one[2], rel=1e-4)
    shown = "image-heavy/clean "
    assert [shown in aside for _, aside in (*said[1], *said[2])] == [True, True, False]
    looked = [int(out.split()[-1]) for out, _ in (*said[1], *said[2])]
    assert looked[0] == looked[1] + looked[2] and looked[1] == looked[2]


def rng_states(folder: Path) -> dict[str, set[str]]:
    """The generators' states in each checkpoint, by the number of the process."""
    return {
        path.name: {file.stem.removeprefix("rng_state_") for file in path.glob("rng_state*")}
        for path in folder.glob("checkpoint-*")
    }


@pytest.mark.slow
def test_where_one_process_wants_to_save_all_do_and_old_checkpoints_are_removed_once(tmp_path: Path) -> None:
    for step in range(100, 400):  # of an earlier run
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    ended(started("apart", (tmp_path, "save"), 2))
    assert rng_states(tmp_path) == {"checkpoint-5": {"0", "1"}, "checkpoint-6": {"0", "1"}}


@pytest.mark.slow
def test_where_one_process_is_told_to_stop_all_do_after_the_same_step(tmp_path: Path) -> None:
    said = ended(started("apart", (tmp_path, "stop"), 2))
    assert all("stopped by SIGTERM after step 2 of 6; the checkpoint is in" in out for out, _ in said)
    assert rng_states(tmp_path) == {"checkpoint-2": {"0", "1"}}
