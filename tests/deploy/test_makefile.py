"""The Makefile says in one sentence what a machine lacks, and installs nothing twice."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """
case "$*" in
*"sys.exit("*) ;;
*print*) echo python3.11;;
*Python.h*) [ -e "${0%/*}/Python.h" ];;
*ensurepip*) [ -e "${0%/*}/ensurepip" ];;
*ctypes*) [ -e "${0%/*}/libnuma.so.1" ];;
*) echo "python $*";;
esac
"""
PROMETHEUS = "prometheus is missing: it and its promtool test rules, dashboards and metrics"
KUBECTL = "kubernetes-client is missing: its kubectl renders the overlays"
APT_GET = "apt-get install --no-install-recommends"


def make(*words: str, path: Path | None = None, ci: str = "") -> tuple[int, str, str]:
    """Exit code, output, complaints; `path`: the one folder in which programs are found."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = [shutil.which("make") or "make", "--no-print-directory", *words]
    clean |= {"CI": ci} | ({"PATH": str(path)} if path else {})
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


class Machine:
    """A folder of programs, as a PATH: Python, make and git are there, and vLLM needs a GPU."""

    def __init__(self, folder: Path) -> None:
        self.path, self.venv = folder / "bin", folder / "venv"
        self.path.mkdir()
        for name in ("make", "git", "curl", "nginx"):
            self.has(name)
        self.has("python3", PYTHON)
        self.has("ensurepip")
        self.user(0)

    def has(self, name: str, script: str = "exit 0") -> None:
        fake_program(self.path / name, script)

    def lacks(self, name: str) -> None:
        (self.path / name).unlink()

    def user(self, number: int) -> None:
        self.has("id", f"echo {number}")

    def installs(self) -> None:
        """An apt-get whose packages bring programs of their name, promtool and a kubectl."""
        (self.path / "env").symlink_to(shutil.which("env") or "env")
        (self.path / "cp").symlink_to(shutil.which("cp") or "cp")
        new = f'for name in "$@" promtool kubectl ensurepip; do cp {self.path}/git {self.path}/"$name"; done'
        self.has("apt-get", f'echo "apt-get $*" >&2\ncase "$1" in install) shift 4; {new};; esac')

    def installed(self) -> None:
        """An environment in which everything is installed."""
        (self.venv / "bin").mkdir(parents=True)
        for name in ("python", "modint-guard"):
            fake_program(self.venv / "bin" / name, PYTHON)
        (self.venv / "bin" / "ensurepip").touch()
        (self.venv / ".installed-gpu").touch()

    def make(self, *words: str, ci: str = "", extras: str = "gpu") -> tuple[int, str, str]:
        return make(*words, f"VENV={self.venv}", f"EXTRAS={extras}", path=self.path, ci=ci)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


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


@pytest.mark.parametrize("program", ["ensurepip", "python3"])
def test_a_missing_venv_module_is_named_before_anything_is_installed(machine: Machine, program: str) -> None:
    machine.lacks(program)
    package = {"ensurepip": "python3.11-venv", "python3": "python3-venv"}[program]
    assert machine.make("install") == (
        2,
        "",
        f"{package} is missing: it makes the environment\n"
        f"not installed (there is no apt-get here), and make install needs it: {APT_GET} {package}",
    )


def test_a_second_make_reinstalls_nothing(machine: Machine) -> None:
    machine.installed()
    code, out, _ = machine.make("install")
    assert code == 0
    assert out.startswith("installed in ") and "[" not in out


def test_tests_go_on_without_what_is_missing_and_cannot_be_installed(machine: Machine) -> None:
    machine.installed()
    code, out, said = machine.make("test")
    assert (code, said.splitlines()) == (
        0,
        [
            PROMETHEUS,
            KUBECTL,
            "not installed (there is no apt-get here): make test goes on without and leaves out the tests "
            f"that need it; to have it: {APT_GET} prometheus kubernetes-client",
        ],
    )
    assert "python -m pytest" in out.splitlines()[-1]


def test_in_ci_tests_do_not_begin_while_something_is_missing(machine: Machine) -> None:
    machine.installed()
    code, out, said = machine.make("test", ci="true")
    assert (code, out) == (2, "")
    assert said.splitlines()[-1] == (
        "not installed (there is no apt-get here), and make test needs it: "
        f"{APT_GET} prometheus kubernetes-client"
    )


@pytest.mark.parametrize("ci", ["", "true"])
def test_root_installs_what_is_missing_once(machine: Machine, ci: str) -> None:
    machine.installs()
    code, _, said = machine.make("needs-test", ci=ci)
    assert (code, said.splitlines()) == (
        0,
        [
            PROMETHEUS,
            KUBECTL,
            "installing prometheus kubernetes-client",
            "apt-get update -qq",
            f"{APT_GET} -qq -y prometheus kubernetes-client",
        ],
    )
    assert machine.make("needs-test", ci=ci) == (0, "", "")


def test_whoever_may_use_sudo_without_a_password_installs_too(machine: Machine) -> None:
    machine.installs()
    machine.user(1000)
    machine.has("sudo", 'case "$1" in -n) ;; *) echo "sudo $1" >&2; exec "$@";; esac')
    code, _, said = machine.make("needs-deploy-check")
    assert code == 0
    assert said.splitlines()[-2:] == ["sudo env", f"{APT_GET} -qq -y prometheus kubernetes-client"]


def test_nobody_is_asked_for_a_password(machine: Machine) -> None:
    machine.installs()
    machine.user(1000)
    machine.has("sudo", 'echo "sudo: a password is required" >&2; exit 1')
    code, _, said = machine.make("needs-test")
    assert (code, said.splitlines()[-1]) == (
        0,
        "not installed (that takes a password): make test goes on without and leaves out the tests that need "
        f"it; to have it: sudo {APT_GET} prometheus kubernetes-client",
    )


def test_an_installation_that_fails_is_said(machine: Machine) -> None:
    machine.installs()
    machine.has("apt-get", 'echo "Unable to fetch" >&2; exit 100')
    code, _, said = machine.make("needs-test")
    assert code == 0 and "Unable to fetch" in said
    assert said.splitlines()[-1].startswith("not installed (apt-get could not): make test goes on without ")


def test_the_demo_needs_libnuma_and_goes_on_without_a_compiler(machine: Machine) -> None:
    code, _, said = machine.make("needs-demo", extras="cpu,train")
    assert (code, said.splitlines()) == (
        2,
        [
            "libnuma1 is missing: vLLM's CPU build links it",
            "g++ is missing: without it vLLM's CPU build ranks log-probabilities more slowly",
            "python3.11-dev is missing: without it vLLM's CPU build ranks log-probabilities more slowly",
            "not installed (there is no apt-get here), and make demo needs it: "
            f"{APT_GET} libnuma1 g++ python3.11-dev",
        ],
    )
    machine.has("libnuma.so.1")
    code, _, said = machine.make("needs-demo", extras="cpu,train")
    assert (code, said.splitlines()[-1]) == (
        0,
        "not installed (there is no apt-get here): make demo goes on without; "
        f"to have it: {APT_GET} g++ python3.11-dev",
    )
    machine.has("curl")
    machine.has("prometheus")
    machine.has("promtool")
    machine.has("kubectl")
    machine.has("Python.h")
    _, _, said = machine.make("needs-test", extras="cpu,train")
    assert said.splitlines()[-1].endswith(f": make test goes on without; to have it: {APT_GET} g++")
    assert machine.make("needs-demo", extras="gpu,train") == (0, "", "")


def test_client_libraries_for_node_are_left_out_where_it_is_too_old(machine: Machine) -> None:
    machine.has("node", "exit 1")  # not yet version 20
    machine.has("npm")
    code, _, said = machine.make("needs-test-clients")
    assert (code, said.splitlines()) == (
        0,
        [
            "nodejs is missing: client libraries for Node 20 are tested in it",
            "not installed (there is no apt-get here): make test-clients goes on without and leaves out the "
            f"tests that need it; to have it: {APT_GET} nodejs",
        ],
    )
    assert machine.make("needs-test-clients", ci="true")[0] == 2
    machine.has("node")
    assert machine.make("needs-test-clients", ci="true") == (0, "", "")


def test_checks_of_deployment_need_promtool_and_a_kubectl_with_kustomize(machine: Machine) -> None:
    machine.installed()
    machine.has("prometheus")
    without = machine.make("deploy-check")
    machine.has("promtool")
    machine.has("kubectl", "exit 1")  # one that knows no `kustomize`
    old = machine.make("deploy-check")
    refused = "not installed (there is no apt-get here), and make deploy-check needs it:"
    assert without == (
        2,
        "",
        f"{PROMETHEUS}\n{KUBECTL}\n{refused} {APT_GET} prometheus kubernetes-client",
    )
    assert old == (2, "", f"{KUBECTL}\n{refused} {APT_GET} kubernetes-client")


def test_tests_of_a_model_that_cannot_be_fetched_are_left_out_but_not_in_ci(machine: Machine) -> None:
    machine.installed()
    for program in ("prometheus", "promtool", "kubectl"):
        machine.has(program)
    fetched = machine.make("test-picturebook")
    fake_program(machine.venv / "bin" / "modint-guard", "echo no network >&2; exit 2")
    left_out, in_ci = machine.make("test-picturebook"), machine.make("test-picturebook", ci="true")
    assert fetched[0] == 0 and "python -m pytest -m fetched" in fetched[1]
    assert left_out[:2] == (0, "picturebook-base cannot be had here: its tests are left out\n")
    assert in_ci[0] == 2 and "left out" not in in_ci[1]


def test_help_lists_every_target() -> None:
    _, out, _ = make("help")
    for target in ("install", "demo", "serve", "test", "check", "bench-mitigation", "bench-NAME", "clean"):
        assert f"make {target} " in out


def test_ci_runs_what_make_test_leaves_out() -> None:
    recipes = (ROOT / "Makefile").read_text("utf-8")
    (chosen,) = re.findall(r"^test: .*\n.* -m \"(.*)\" ", recipes, re.MULTILINE)
    left_out = re.findall(r"not (\w+)", chosen)
    targets = {
        marker: target
        for target, recipe in re.findall(r"^(test-[a-z]+):.*\n((?:\t.*\n)+)", recipes, re.MULTILINE)
        for marker in re.findall(r"-m pytest .*-m (\w+) ", recipe)
    }
    assert sorted(targets) == sorted(left_out) == ["clients", "fetched", "trains"]
    run = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [target for target in targets.values() if f"make {target}" not in run] == []
