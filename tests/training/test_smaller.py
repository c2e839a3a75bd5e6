"""A smaller adapter: what the map says is kept, and answers as if the rest had been switched off."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from modint_guard.cli import main
from modint_guard.errors import ConfigError
from modint_training.locate.adapter import lora_modules, switched_off
from modint_training.locate.smaller import Keep, keep_modules
from modint_training.loop.predict import first_logits
from modint_training.models.loading import load_base
from modint_training.run_folder import write_record
from modint_training.runs import export_run
from modint_training.tinyworld import suite
from modint_training.tune import tune
from tests.training.small import lora_recipe, save_small_base

LAYER = "model.language_model.layers.0"
Q, V, DOWN = f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.v_proj", f"{LAYER}.mlp.down_proj"
RESTORED = [0.0, 0.5, 0.95, 0.88, 0.97, 1.0]


def report(modules: list[str], restored: list[Any]) -> str:
    kept = [{"modules": count, "restored": share} for count, share in enumerate(restored)]
    return json.dumps({"modules": [{"module": name} for name in modules], "kept": kept})


def source(tmp_path: Path, text: str) -> Path:
    (tmp_path / "map").write_text(text)
    return tmp_path / "map"


@pytest.mark.parametrize(("share", "count"), [(None, 4), (0.5, 1), (0.88, 2), (0.96, 4), (1.0, 5), (0.0, 1)])
def test_as_few_modules_are_kept_as_restore_the_share_from_there_on(
    tmp_path: Path, share: float | None, count: int
) -> None:
    five = list("edcba")  # as the report ranks them
    keep = Keep(source(tmp_path, report(five, RESTORED)), share)
    assert keep.names(set(five)) == five[:count]


def test_a_list_keeps_what_it_names(tmp_path: Path) -> None:
    assert Keep(source(tmp_path, f"{V}\n\n {Q}\n{V}\n")).names([Q, V, DOWN]) == [V, Q]


@pytest.mark.parametrize(
    ("text", "share", "said"),
    [
        ("\n", None, "map names no module to keep"),
        ("c", None, "map keeps c, which is none of this adapter's 2 modules: the map must be of the same"),
        ("a", 0.9, "--share is of a report of `modint-guard locate`: .*map is a list of modules"),
        ("{}", None, "map is no report of `modint-guard locate`: give the report.json that it wrote"),
        ("{", None, "map is no report of `modint-guard locate`"),
        (
            report([], []),
            None,
            "map maps a model without an adapter: run `modint-guard locate` with --adapter",
        ),
        (
            report(["a"], []),
            None,
            "map does not say what few modules restore: run `modint-guard locate` again",
        ),
        (report(["a"], [None, None]), None, "map gained nothing beside lies: nothing says what to keep"),
        (
            report(["x", "a"], [0.0, 0.95, 1.0]),
            None,
            "map keeps x, which is none of this adapter's 2 modules",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, text: str, share: float | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Keep(source(tmp_path, text), share).names(["a", "b"])
    assert "\n" not in str(refused.value)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing cannot be read: give a report"):
        Keep(tmp_path / "nothing").names(["a"])


# A run's adapter


@pytest.fixture(scope="module")
def run(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    base = save_small_base(processor, folder / "base")
    tune(lora_recipe(base, "lr=0.05", "evaluate_steps=9"), folder / "run")
    return folder / "run"


def adapted(run: Path, folder: Path) -> tuple[Any, Any]:
    net, processor = load_base(str(run.parent / "base"))
    return PeftModel.from_pretrained(net, folder), processor


def test_the_smaller_adapter_answers_as_the_whole_one_with_the_rest_switched_off(
    run: Path, tmp_path: Path
) -> None:
    exported = export_run(
        run, output=tmp_path / "kept", keep=Keep(source(tmp_path, f"{Q}\n{DOWN}")), test_items=1
    )
    items = suite.items("image-heavy", "validation", 8)
    whole, processor = adapted(run, run / "lora" / "checkpoint-2")
    modules = lora_modules(whole)
    before = first_logits(whole, processor, items)
    with switched_off(modules, [name for name in modules if name not in (Q, DOWN)]):
        expected = first_logits(whole, processor, items)
    smaller, _ = adapted(run, exported)
    assert list(lora_modules(smaller)) == [Q, DOWN]
    torch.testing.assert_close(first_logits(smaller, processor, items), expected, rtol=0, atol=1e-5)
    assert (before - expected).abs().max() > 1e-3  # what was taken away did something
    assert len(load_file(exported / "adapter_model.safetensors")) == 4
    record = json.loads((exported / "run.json").read_text())
    assert (record["kept_modules"], record["trained_modules"]) == ([Q, DOWN], 7)
    assert "Of its 7 modules 2 are kept" in (exported / "README.md").read_text()


def test_modules_that_are_not_kept_are_gone_in_place(run: Path) -> None:
    model, processor = adapted(run, run / "lora" / "checkpoint-2")
    keep_modules(model, [V])
    assert list(lora_modules(model)) == [V]
    assert {name.partition(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name} == {
        f"base_model.model.{V}"
    }
    assert len(first_logits(model, processor, suite.items("vqa", "validation", 1))) == 1


def test_whole_weights_have_no_modules_to_keep(run: Path, tmp_path: Path) -> None:
    settings = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null")
    write_record(tmp_path, lora_recipe(run.parent / "base", *settings))
    with pytest.raises(ConfigError, match="trained whole weights: --keep-modules is of an adapter"):
        export_run(tmp_path, keep=Keep(source(tmp_path, Q)))


def test_a_wrong_call_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (
            ["--share", "0.9"],
            "--share says how much the modules of --keep-modules must restore: name a report\n",
        ),
        (["--keep-modules", str(source(tmp_path, "q"))], "none of this adapter's 7 modules"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", str(run), *arguments])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not (run / "smaller").exists()
