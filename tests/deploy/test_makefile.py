"""The Makefile says in one sentence what a machine lacks, and installs nothing twice."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*words: str, path: Path | None = None) -> tuple[int, str, str]:
    """Exit code, output, complaints; `path`: the one folder in which programs are found."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = [shutil.which("make") or "make", "--no-print-directory", *words]
    clean |= {"PATH": str(path)} if path else {}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    return done.returncode, done.stdout, "\n".join(sentences)


def fake_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    fake_program(path, script)
    return f"PYTHON={path}"


def test_a_missing_python_is_one_sentence(tmp_path: Path) -> None:
    code, _, said = make("install", f"VENV={tmp_path}/venv", "PYTHON=no-such-python")
    assert (code, said) == (
        2,
        "no-such-python was not found: install Python 3.11 or newer, or name it with make PYTHON=…",
    )


def test_an_old_python_is_one_sentence(tmp_path: Path) -> None:
    old = fake_python(tmp_path, 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    code, _, said = make("install", f"VENV={tmp_path}/venv", old)
    assert code == 2
    assert said.startswith("Python 3.11 or newer is needed and ")
    assert "Python 3.9.2" in said and len(said.splitlines()) == 1


def test_a_missing_venv_module_is_one_sentence(tmp_path: Path) -> None:
    bare = fake_python(tmp_path, 'case "$2" in *venv*) exit 1;; *) exit 0;; esac')
    code, _, said = make("install", f"VENV={tmp_path}/venv", bare)
    assert code == 2
    assert "apt-get install python3-venv" in said and len(said.splitlines()) == 1


def test_a_second_make_reinstalls_nothing(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    stamp = venv / ".installed-cpu-train-report"
    stamp.touch()
    code, out, _ = make("install", f"VENV={venv}")
    assert code == 0
    assert out.startswith("installed in ") and "[" not in out


def test_what_checks_deployment_lacks_is_one_sentence_before_anything_is_installed(tmp_path: Path) -> None:
    code, _, said = make("deploy-check", path=tmp_path)
    assert (code, said) == (2, "promtool was not found: install it (Debian: apt-get install prometheus)")
    fake_program(tmp_path / "promtool", "exit 0")
    without = make("deploy-check", path=tmp_path)
    fake_program(tmp_path / "kubectl", "exit 1")  # one that knows no `kustomize`
    old = make("deploy-check", path=tmp_path)
    sentence = (
        "kubectl with `kustomize` was not found, and nothing else here renders the overlays: install it "
        "(Debian: apt-get install kubernetes-client)"
    )
    assert without == old == (2, "", sentence)


def test_help_lists_every_target() -> None:
    _, out, _ = make("help")
    for target in ("install", "demo", "serve", "test", "check", "bench-mitigation", "bench-NAME", "clean"):
        assert f"make {target} " in out
