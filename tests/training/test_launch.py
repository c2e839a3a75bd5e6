"""The documented way to several processes: `accelerate launch` with a shipped configuration, broken off by a
signal to all of them, taken up, and exported by the first."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modint_guard.data import write_items
from modint_guard.item import FAMILIES
from modint_training.tinyworld import suite
from modint_training.trainer import read_log, whole_steps
from tests.training.small import save_small_base

ROOT = Path(__file__).parents[2]
PATIENCE_S = 900


def launched(config: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`accelerate launch --config_file … -m modint_guard.cli train robust-lora …`, on a small base and data
    of one's own, in a process group of its own; what it says goes to `folder`/said."""
    settings = (
        *(f"base={folder / 'base'}", f"data={folder / 'data'}", f"validation={folder / 'data'}"),
        *("name=mine", "letter=null", "rank=2", "batch=8", "warmup_steps=1", "precision=fp32"),
        *("evaluate_steps=100000", "evaluate_items=3"),
    )
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("accelerate")), "launch"),
                *("--config_file", str(ROOT / "training" / "accelerate" / config)),
                *("-m", "modint_guard.cli", "train", "robust-lora", *settings, *arguments),
                *("--runs", str(folder / "runs")),
            ],
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


@pytest.mark.slow
def test_a_launched_run_is_broken_off_taken_up_and_exported_once(folder: Path) -> None:
    run = folder / "runs" / "mine"
    running = launched("ddp-cpu.yaml", folder, "steps=2000")
    deadline = time.monotonic() + PATIENCE_S
    while len(read_log(run / "log.jsonl")) < 3:
        assert running.poll() is None and time.monotonic() < deadline, (folder / "said").read_text("utf-8")
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGTERM)
    code, said = ended(running, folder)
    (step,) = whole_steps(run / "lora")
    assert code != 0 and said.count(f"SIGTERM came after step {step} of 2000") == 2, said
    assert {file.name for file in (run / "lora" / f"checkpoint-{step}").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert (run / "curves.png").is_file() and not (run / "export").exists()

    code, said = ended(launched("ddp-cpu.yaml", folder, f"steps={step + 2}", "--resume", "auto"), folder)
    assert (code, said.count("wrote ")) == (0, 1), said
    record = json.loads((run / "export" / "run.json").read_text("utf-8"))
    assert [figures["step"] for figures in record["validation"]] == [step + 2]
    assert (run / "export" / "adapter_model.safetensors").is_file()
