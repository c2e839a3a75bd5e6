"""The documented way to several processes: `accelerate launch` with a shipped configuration, broken off by a
signal to all of them, taken up, and exported by the first; and sharded as it says to its processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_guard.data import write_items
from modint_guard.data.item import FAMILIES
from modint_training.loop.trainer import read_log, whole_steps
from modint_training.models.loading import load_base, loaded
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import accelerate_config, load_recipe
from modint_training.runs import export_run
from modint_training.tinyworld import suite
from modint_training.tune import tune
from tests.training.forked import Run
from tests.training.small import save_small_base

pytestmark = [pytest.mark.slow, pytest.mark.trains]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 900


def settings(folder: Path) -> tuple[str, ...]:
    """Of a small run on data of one's own."""
    return (
        *(f"base={folder / 'base'}", f"data={folder / 'data'}", f"validation={folder / 'data'}"),
        *("name=mine", "letter=null", "rank=2", "batch=8", "warmup_steps=1", "precision=fp32"),
        *("evaluate_steps=100000", "evaluate_items=3"),
    )


def train(folder: Path, *arguments: str) -> tuple[str, ...]:
    """The words after `modint-guard`."""
    return ("train", "robust-lora", *settings(folder), *arguments, "--runs", str(folder / "runs"))


def launch(config: str, *words: str) -> list[str]:
    """`accelerate launch --config_file … WORDS`."""
    program = str(Path(sys.executable).with_name("accelerate"))
    file = str(accelerate_config(config))
    return [program, "launch", "--config_file", file, "--main_process_port", "0", *words]


def launched(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`accelerate launch --config_file … -m modint_guard.cli train robust-lora …` in a process group of its
    own; what it says goes to `folder`/said."""
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            launch("ddp-cpu", "-m", "modint_guard.cli", *train(folder, *arguments)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


def ended(running: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """The exit code, and all that was said."""
    try:
        code = running.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        raise
    return code, (folder / "said").read_text("utf-8")


@pytest.fixture
def folder(processor: Any, tmp_path: Path) -> Path:
    save_small_base(processor, tmp_path / "base")
    write_items([item for family in FAMILIES for item in suite.items(family, "train", 6)], tmp_path / "data")
    return tmp_path


def test_a_launched_run_is_broken_off_taken_up_and_exported_once(folder: Path) -> None:
    run = folder / "runs" / "mine"
    running = launched(folder, "steps=2000")
    deadline = time.monotonic() + PATIENCE_S
    while len(read_log(run / "log.jsonl")) < 3:
        assert running.poll() is None and time.monotonic() < deadline, (folder / "said").read_text("utf-8")
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGTERM)
    code, said = ended(running, folder)
    (step,) = whole_steps(run / "lora")
    assert code != 0 and said.count(f"stopped by SIGTERM after step {step} of 2000") == 2, said
    assert {file.name for file in (run / "lora" / f"checkpoint-{step}").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert (run / "curves.png").is_file() and not (run / "export").exists()

    code, said = ended(launched(folder, f"steps={step + 2}", "--resume", "auto"), folder)
    assert (code, said.count("wrote ")) == (0, 1), said
    record = json.loads((run / "export" / "run.json").read_text("utf-8"))
    assert [figures["step"] for figures in record["validation"]] == [step + 2]
    assert (run / "export" / "adapter_model.safetensors").is_file()


PGD = (
    "{kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span, weight: 1}"
)
FULL = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null")


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `accelerate launch` says to the processes of fsdp2.yaml, in their environment; but not that it
    watches over them, for it only starts others here."""
    folder = Path(tmp_path_factory.mktemp("fsdp2"))
    command = launch("fsdp2", "--no_python", "sh", "-c", f"env > {folder}/$RANK")
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    said = dict(line.partition("=")[::2] for line in (folder / "1").read_text("utf-8").splitlines())
    said = {name: value for name, value in said.items() if name not in os.environ}
    assert (said["RANK"], said["WORLD_SIZE"], said["ACCELERATE_USE_FSDP"]) == ("1", "2", "true")
    return {name: value for name, value in said.items() if not name.startswith("TORCHELASTIC_")}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_sharded_weights_come_to_what_one_process_comes_to_taken_up_and_exported(
    forked: Run, fsdp2: dict[str, str], folder: Path, kind: str
) -> None:
    run = folder / "runs" / "mine"
    method = (f"attack={PGD}", "lr=0.01", "steps=3", *(FULL if kind == "full" else ()))
    recipe = load_recipe("robust-lora", [*settings(folder), *method])
    assert isinstance(recipe, TuneRecipe)
    alone = tune(recipe, folder / "alone").model.state_dict()
    for arguments in (("checkpoint_minutes=1e-9",), ("--resume", "auto")):
        words = train(folder, *method, *arguments)
        said = "".join(map("".join, forked("tests.training.sharded", words, folder, environment=fsdp2)))
        assert (said.count(f"`modint-guard export {run}`"), said.count("wrote ")) == (1, 0), said
        assert whole_steps(run / kind)[-2:] == [2, 3]
        if arguments[0] != "--resume":
            shutil.rmtree(run / kind / "checkpoint-3")  # as if it had been broken off before
    one, several = (read_log(folder / name / "log.jsonl") for name in ("alone", "runs/mine"))
    for line, other in zip(one, several, strict=True):
        assert {**other, "seconds": 0} == pytest.approx({**line, "seconds": 0}, rel=1e-3)
    exported = str(export_run(run))
    model, _ = loaded(str(folder / "base"), exported) if kind == "lora" else load_base(exported)
    learnt = model.state_dict()
    assert learnt.keys() == alone.keys()
    assert all(torch.allclose(learnt[name], alone[name], atol=1e-4) for name in alone)
