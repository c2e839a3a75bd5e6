"""The torchvision guard names missing operators before torchvision is imported, and is inert otherwise.

The packages here are stand-ins: a torchvision that records which operators a stand-in torch was told of.
"""

import _ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modint_server.engine import torchvision_guard

TORCH = """
class _Library:
    def __init__(self, namespace, kind):
        self.namespace = namespace
    def define(self, schema):
        DEFINED.append(self.namespace + "::" + schema.partition("(")[0])
class library:
    Library = _Library
DEFINED = []
"""
TORCHVISION = "import torch\nprint('torchvision sees', torch.DEFINED)\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with a torchvision whose compiled half does not load."""
    for name, source in (("torch", TORCH), ("torchvision", TORCHVISION)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source, "utf-8")
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"built for another torch")
    return tmp_path


def run(site: Path, program: str) -> str:
    """Without the environment's own packages (-S), as the copy that `make install` writes must work."""
    shutil.copy(torchvision_guard.__file__, site / "copied_guard.py")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    start = "from copied_guard import hook; hook(); hook();"
    command = [sys.executable, "-S", "-c", start + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_missing_operators_are_defined_before_torchvision_is_imported(site: Path) -> None:
    assert run(site, "import torchvision") == "torchvision sees ['torchvision::nms', 'torchvision::qnms']"


def test_operators_that_torchvision_brings_itself_are_left_to_it(site: Path) -> None:
    """Its compiled half loads: naming the operators here too would be an error."""
    shutil.copy(_ctypes.__file__, site / "torchvision" / "_C.so")
    assert run(site, "import torchvision") == "torchvision sees []"


def test_nothing_is_imported_before_someone_asks_for_torchvision(site: Path) -> None:
    assert run(site, "import sys, json; print('torch' in sys.modules)") == "False"


def test_an_environment_without_torch_is_left_alone(site: Path) -> None:
    shutil.rmtree(site / "torch")
    (site / "torchvision" / "__init__.py").write_text("print('imported')", "utf-8")
    blocked = "import sys; sys.modules['torch'] = None;"
    assert run(site, f"{blocked} import torchvision") == "imported"


def test_a_repaired_environment_needs_no_second_repair(tmp_path: Path) -> None:
    """`make install` runs it each time: here every package imports, so nothing is written."""
    assert torchvision_guard.repair(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
