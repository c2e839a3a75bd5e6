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


NEEDY = """
import pytest

@pytest.fixture
def prepared():
    raise AssertionError("nothing is prepared for a test that is left out")

@pytest.mark.needs("abacus")
def test_counts(prepared):
    pass

@pytest.mark.needs("abacus")
def test_counts_on(prepared):
    pass

@pytest.mark.needs("slate")
def test_writes():
    pass
"""


def run(folder: Path, ci: str, tests: str = TESTS) -> str:
    (folder / "conftest.py").write_text(RULES.read_text("utf-8"), "utf-8")
    (folder / "test_it.py").write_text(tests, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: a GPU\n    needs: a package\n", "utf-8")
    # The plugins of other packages take longer to import than these tests to run.
    environment = {**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    ).stdout


def run_without_abacus(folder: Path, ci: str) -> str:
    tests, needs = folder / "tests", folder / ".ci" / "needs"
    tests.mkdir()
    needs.parent.mkdir()
    needs.write_text('#!/bin/sh\n[ "$*" = "missing test" ] && echo abacus\n', "utf-8")
    needs.chmod(0o755)
    return run(tests, ci, NEEDY)


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


def test_what_a_missing_package_leaves_out_is_one_sentence(tmp_path: Path) -> None:
    said = run_without_abacus(tmp_path, ci="")
    assert "1 passed, 2 skipped" in said
    assert said.count("abacus is missing: apt-get install --no-install-recommends abacus") == 1


def test_in_ci_a_missing_package_fails(tmp_path: Path) -> None:
    assert "1 passed, 2 errors" in run_without_abacus(tmp_path, ci="true")
