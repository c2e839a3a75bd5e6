"""The house rules that pytest itself enforces: a skip is a failure in CI."""

import os
import subprocess
import sys
from pathlib import Path

RULES = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

def test_skips():
    pytest.skip("no such tool here")

@pytest.mark.gpu
def test_needs_a_gpu():
    pytest.skip("no GPU here")

def test_passes():
    pass
"""


def run(folder: Path, ci: str) -> str:
    (folder / "conftest.py").write_text(RULES.read_text("utf-8"), "utf-8")
    (folder / "test_it.py").write_text(TESTS, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n", "utf-8")
    environment = {**os.environ, "CI": ci}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    ).stdout


def test_in_ci_a_skip_fails_unless_it_needs_a_gpu(tmp_path: Path) -> None:
    said = run(tmp_path, ci="true")
    assert "1 failed, 1 passed, 1 skipped" in said
    assert "no such tool here" in said


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    assert "1 passed, 2 skipped" in run(tmp_path, ci="")


def test_in_ci_a_file_that_skips_itself_fails(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import pytest\npytest.skip('nothing here', allow_module_level=True)\n", "utf-8"
    )
    assert "1 error" in run(tmp_path, ci="true")
