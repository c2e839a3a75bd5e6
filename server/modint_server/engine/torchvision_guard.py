"""Makes a torchvision built for CUDA importable beside a CPU torch, and is inert everywhere else.

Why: vLLM's CPU build needs torch 2.13.0+cpu, but the default index holds only torchvision's CUDA build. The
compiled half of that cannot load beside a CPU torch. Then `import torchvision` fails with `operator
torchvision::nms does not exist`, and with it the import of every vision-language class of transformers and
vLLM. None of them calls the compiled operators, so it is enough to define the two names that torchvision
mentions. That has to happen in every process, vLLM's workers included, before anything imports torchvision.
So a `.pth` file in the environment (a line that Python runs at start) installs a lazy import hook.

`python -m modint_server.engine.torchvision_guard` writes that file, and only if `import torchvision` fails.
It also removes torchaudio and torchcodec if they do not import: they make transformers' processors fail, and
nothing here needs them.

This file is copied into the environment as it is, so it imports the standard library only.
"""

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

COPY = "_modint_torchvision"
_keep: list[object] = []  # a torch Library takes its operators with it when it is collected


class _DefineOperatorsFirst(importlib.abc.MetaPathFinder):
    """Defines the operators when torchvision is first looked for; other finders then find it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            define_missing_operators()
        return None


def hook() -> None:
    """Installs the import hook. The `.pth` line calls it when Python starts; it costs almost nothing."""
    if not any(isinstance(finder, _DefineOperatorsFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DefineOperatorsFirst())


def define_missing_operators() -> None:
    """Defines torchvision's operators, unless its compiled library loads: it would define them again."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
        return
    import torch  # also makes torch's libraries available to the one that is tried below

    if any(_loads(library) for library in Path(spec.origin).parent.glob("_C*.so")):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def repair(site_packages: Path) -> list[str]:
    """Repairs an environment; returns a sentence for each thing that was done.

    site_packages: where the environment's packages are. Raises SystemExit if torchvision still fails.
    """
    done = []
    if _present("torchvision") and not _imports("torchvision"):
        (site_packages / f"{COPY}.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
        (site_packages / f"{COPY}.pth").write_text(f"import {COPY}; {COPY}.hook()\n", "utf-8")
        if not _imports("torchvision"):
            raise SystemExit(
                "torchvision does not import, even with its operators defined: install the build for "
                "this torch"
            )
        done.append("torchvision is a CUDA build and torch is not: its operators are defined at start")
    for package in ("torchaudio", "torchcodec"):
        if _present(package) and not _imports(package):
            subprocess.run(
                [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", package], check=True
            )
            done.append(f"{package} does not import with this torch and is not needed: removed")
    return done


def _present(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _imports(package: str) -> bool:
    """Whether a package imports; in a child process, as an import that failed halfway cannot be repeated."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", f"import {package}"]
    return subprocess.run(command, env=quiet, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    for sentence in repair(Path(sysconfig.get_paths()["purelib"])):
        print(sentence)
