"""The command line: commands are found by entry point, and errors are one sentence with exit code 2."""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.errors import ConfigError


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def run(
    capsys: pytest.CaptureFixture[str], arguments: list[str], commands: Iterable[EntryPoint] | None = None
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments, commands)
    printed = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), printed.out, printed.err


def greet(name: str) -> None:
    """Says hello."""
    print(f"hello {name}")


def refuse() -> None:
    raise ConfigError("port 80 is in use: choose another with --port")


def need_a_library() -> None:
    import a_library_nobody_has  # type: ignore[import-not-found]  # noqa: F401


def fail_inside_us() -> None:
    import modint_guard.no_such_module  # type: ignore[import-not-found]  # noqa: F401


HERE = __name__


@pytest.fixture(autouse=True)
def this_module_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[HERE])


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, ["--version"])
    assert (code, out) == (0, f"modint-guard {version('modint-guard')}\n")


def test_a_command_is_found_by_its_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, ["greet", "Ada"], [entry("greet", f"{HERE}:greet")])
    assert (code, out) == (0, "hello Ada\n")


def test_only_the_called_command_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    broken = entry("broken", "modint_guard.errors:no_such_attribute")
    code, out, _ = run(capsys, ["greet", "Ada"], [entry("greet", f"{HERE}:greet"), broken])
    assert (code, out) == (0, "hello Ada\n")


def test_a_command_whose_extra_is_missing_stays_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    points = [entry("train", "a_library_nobody_has.commands:train"), entry("greet", f"{HERE}:greet")]
    code, out, _ = run(capsys, ["--help"], points)
    assert code == 0
    assert "train" in out and "Says hello." in out


def test_calling_a_command_whose_extra_is_missing_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = [entry("train", "a_library_nobody_has.commands:train")]
    code, _, err = run(capsys, ["train", "recipe.yaml", "--resume", "auto"], points)
    assert (code, err) == (2, "`train` needs: pip install 'modint-guard[train]'\n")


def test_a_library_missing_only_when_the_command_runs_says_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(capsys, ["fit"], [entry("fit", f"{HERE}:need_a_library")])
    assert (code, err) == (2, "`fit` needs: pip install 'modint-guard[train]'\n")


def test_a_module_of_ours_that_is_missing_is_a_bug_and_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["fit"], [entry("fit", f"{HERE}:fail_inside_us")])


def test_our_errors_are_one_sentence_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, ["serve"], [entry("serve", f"{HERE}:refuse")])
    assert (code, out, err) == (2, "", "port 80 is in use: choose another with --port\n")


def test_an_unknown_command_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, ["fly"], [entry("greet", f"{HERE}:greet")])
    assert code == 2
    assert "fly" in err


def test_the_installed_script_lists_every_command() -> None:
    script = Path(sys.executable).parent / "modint-guard"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    for name in ("serve", "demo", "train", "diagnose"):
        assert name in done.stdout
