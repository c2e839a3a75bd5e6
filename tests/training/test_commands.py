"""`modint-guard train`: what is wrong is one sentence and exit code 2, before any work."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modint_guard.cli import main
from modint_guard.errors import AdapterError
from modint_training.models.loading import adapter_folder
from modint_training.recipe_files import recipe_names, recipe_schema


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that a wrong call prints; it must leave with 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "robust-laro"], "no recipe 'robust-laro'; did you mean robust-lora?\n"),
        (
            ["train", "robust-lora", "stepz=3"],
            "robust-lora.yaml: unknown key 'stepz'; did you mean 'steps'?\n",
        ),
        (["train", "robust-lora", "steps"], "override 'steps' is not key=value\n"),
        (
            ["train", "robust-lora", "base=nowhere"],
            "no base model 'nowhere': neither a model folder nor a bundled model; train it first\n",
        ),
        (
            ["train", "robust-lora", "perturbations=[screenshot]"],
            "perturbation 'screenshot' is held out for testing and must not be trained on\n",
        ),
    ],
)
def test_a_wrong_call_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments) == said
    assert not list(tmp_path.iterdir())


def test_resume_is_auto_or_no(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "robust-lora", "--resume", "yes")
    assert "'yes' is not one of 'auto', 'no'" in " ".join(said.replace("│", " ").split())


def test_an_output_folder_of_other_files_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    said = refused(capsys, "train", "robust-lora", "--output", str(tmp_path))
    assert said == f"{tmp_path} holds other files, which an export would replace; name another folder\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_adapter_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match="no adapter 'nobody': neither a PEFT folder nor a bundled adapter"
    ):
        adapter_folder("nobody")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert adapter_folder(str(tmp_path)) == tmp_path


def test_recipes_lists_what_can_be_trained_and_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    point = EntryPoint("recipes", "modint_training.commands:recipes", "modint_guard.commands")
    for arguments in (["recipes"], ["recipes", "--schema"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments, [point])
        assert stop.value.code == 0
    listed, _, schema = capsys.readouterr().out.partition("{")
    assert [line.split()[0] for line in listed.splitlines()] == recipe_names()
    assert all(len(line.split()) > 4 for line in listed.splitlines())
    assert json.loads("{" + schema) == recipe_schema()


def test_recipes_says_where_a_configuration_for_accelerate_lies(capsys: pytest.CaptureFixture[str]) -> None:
    point = EntryPoint("recipes", "modint_training.commands:recipes", "modint_guard.commands")
    for name in ("ddp", "ddp-cpu", "fsdp2"):
        with pytest.raises(SystemExit) as stop:
            main(["recipes", "--accelerate", name], [point])
        assert stop.value.code == 0
        said = Path(capsys.readouterr().out.strip())
        assert (said.name, said.is_file()) == (f"{name}.yaml", True)
