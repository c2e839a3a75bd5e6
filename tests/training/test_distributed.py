"""Two processes train what one trains: the whole batch is the same, and so are its means."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modint_training.loop.trainer import read_log
from tests.training.forked import Run
from tests.training.small import save_small_base

pytestmark = [pytest.mark.slow, pytest.mark.trains]

TWO_RANKS, APART = "tests.training.two_ranks", "tests.training.apart"


def test_two_processes_come_to_what_one_comes_to(forked: Run, processor: Any, tmp_path: Path) -> None:
    base = save_small_base(processor, tmp_path / "base")
    said = {}
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        said[ranks] = forked(TWO_RANKS, (base, tmp_path / str(ranks)), tmp_path / str(ranks), ranks)
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


def test_where_one_process_wants_to_save_all_do_and_old_checkpoints_are_removed_once(
    forked: Run, tmp_path: Path
) -> None:
    for step in range(100, 400):  # of an earlier run
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    forked(APART, (tmp_path, "save"), tmp_path)
    assert rng_states(tmp_path) == {"checkpoint-5": {"0", "1"}, "checkpoint-6": {"0", "1"}}


def test_where_one_process_is_told_to_stop_all_do_after_the_same_step(forked: Run, tmp_path: Path) -> None:
    said = forked(APART, (tmp_path, "stop"), tmp_path)
    assert all("stopped by SIGTERM after step 2 of 6; the checkpoint is in" in out for out, _ in said)
    assert rng_states(tmp_path) == {"checkpoint-2": {"0", "1"}}
