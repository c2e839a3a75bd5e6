"""A run's folder: taken up by the same run alone, exported at any of its checkpoints."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from modint_guard.cli import main
from modint_guard.data import read_data, write_items, write_llava
from modint_guard.errors import AdapterError, ConfigError
from modint_training.loop.trainer import read_log
from modint_training.models.loading import load_base, loaded, with_adapter
from modint_training.recipe import TuneRecipe
from modint_training.run_folder import RECORD, check_resumable, recipe_in
from modint_training.runs import export_run, run_recipe
from modint_training.tinyworld import suite
from modint_training.tune import tune
from tests.training.small import lora_recipe, save_small_base, small_model
from tests.training.small_families import save_small_family


@pytest.fixture(scope="module")
def base(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_base(processor, tmp_path_factory.mktemp("small") / "base")


def recipe_on(base: Path, *overrides: str) -> TuneRecipe:
    return lora_recipe(base, "lr=0.05", "checkpoint_minutes=1e-9", "evaluate_steps=1", *overrides)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tune(recipe_on(base), folder)
    return folder


def changed(base: Path, folder: Path) -> Path:
    """The same base with one weight changed."""
    shutil.copytree(base, folder)
    model = load_base(str(base))[0]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)
    return folder


# Taken up


def test_a_run_is_taken_up_by_its_own_recipe_and_may_go_on_for_longer(base: Path, run: Path) -> None:
    check_resumable(run, recipe_on(base, "steps=9", "checkpoint_minutes=5", "lr=0.01"))
    assert recipe_in(run) == recipe_on(base)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rank=4", "with rank: 2, and not 4"),
        ("alpha=8", "with alpha: 32, and not 8"),
        ("scope=[vision]", r"with scope: \['language'\], and not \['vision'\]"),
        ("seed=1", "with seed: 0, and not 1"),
        ("letter=0.25", "with letter: 0.5, and not 0.25"),  # other batches
        ("dropout=0.1", "with dropout: 0.0, and not 0.1"),
        ("quotas=[1, 1, 0]", r"with quotas: \[2, 2, 4\], and not \[1, 1, 0\]"),
        ("consistency=none", "with consistency: 'js', and not 'none'"),
        (
            "attack={kind: gaussian, epsilon: 0.1, relative: true, steps: 0, mask: span, weight: 1}",
            r"with attack: None, and not \{'kind': 'gaussian', .*\}",
        ),
    ],
)
def test_the_checkpoints_of_another_training_are_not_taken_up(
    base: Path, run: Path, override: str, said: str
) -> None:
    with pytest.raises(
        ConfigError, match=said + r": give this run another name \(name=…\), or start from scratch"
    ):
        tune(recipe_on(base, override), run, resume="auto")


def test_the_checkpoints_of_other_rows_are_not_taken_up(base: Path, tmp_path: Path) -> None:
    write_llava(suite.items("image-heavy", "train", 4), tmp_path / "data")
    rows, run = tmp_path / "data" / "data.json", tmp_path / "run"
    own = (f"data={rows}", "letter=null", "quotas=[1, 0, 0]", "batch=2")
    tune(recipe_on(base, *own, "steps=1"), run)
    tune(recipe_on(base, *own, "steps=2"), run, resume="auto")
    begun = read_data(rows).digest()
    with pytest.raises(ConfigError, match=r"with reading: .*'family': None.*, and not .*'image-heavy'"):
        tune(recipe_on(base, *own, "reading.family=image-heavy"), run, resume="auto")
    write_llava(suite.items("image-heavy", "train", 5), tmp_path / "more")
    shutil.copytree(tmp_path / "more", tmp_path / "data", dirs_exist_ok=True)
    said = rf"on other rows: the SHA-256 of .*data\.json was {begun[:12]}…, and is \w{{12}}… now: bring the"
    with pytest.raises(ConfigError, match=said):
        tune(recipe_on(base, *own, "steps=3"), run, resume="auto")
    # What is exported was trained on the old ones all the same.
    exported = export_run(run, test_items=2)
    assert json.loads((exported / "run.json").read_text("utf-8"))["data_sha256"] == begun
    tune(recipe_on(base, *own, "steps=1"), run)  # begun anew


def test_a_run_that_is_older_than_the_record_of_its_rows_is_taken_up(base: Path, tmp_path: Path) -> None:
    write_llava(suite.items("image-heavy", "train", 4), tmp_path / "data")
    own = (f"data={tmp_path / 'data'}", "letter=null", "quotas=[1, 0, 0]", "batch=2")
    tune(recipe_on(base, *own, "steps=1"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / RECORD).read_text("utf-8"))
    del record["data_sha256"], record["recipe"]["reading"]
    (tmp_path / "run" / RECORD).write_text(json.dumps(record), "utf-8")
    tune(recipe_on(base, *own, "steps=2"), tmp_path / "run", resume="auto")
    assert [step["step"] for step in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2]


def test_a_run_that_is_older_than_the_choice_of_attacked_rows_goes_on(base: Path, tmp_path: Path) -> None:
    attack = "attack={kind: gaussian, epsilon: 0.1, relative: true, steps: 0, mask: span, weight: 1}"
    tune(recipe_on(base, attack, "steps=1"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / RECORD).read_text("utf-8"))
    del record["recipe"]["attack"]["rows"]
    (tmp_path / "run" / RECORD).write_text(json.dumps(record), "utf-8")
    with pytest.raises(ConfigError, match="of a run with attack"):
        tune(recipe_on(base, attack, "attack.rows=all", "steps=2"), tmp_path / "run", resume="auto")
    tune(recipe_on(base, attack, "steps=2"), tmp_path / "run", resume="auto")
    logged = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert logged == [1, 1, 2, 2]  # each step and what was measured after it: the first was not repeated


def test_the_checkpoints_of_another_base_are_not_taken_up(base: Path, tmp_path: Path) -> None:
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    tune(recipe_on(mine, "steps=1"), tmp_path / "run")
    shutil.rmtree(mine)
    changed(base, mine)  # under the name of the old one
    with pytest.raises(ConfigError, match=r"holds checkpoints on revision \w{12} of .* which is \w{12} now"):
        tune(recipe_on(mine, "steps=2"), tmp_path / "run", resume="auto")
    with pytest.raises(ConfigError, match="holds checkpoints on revision"):
        export_run(tmp_path / "run", test_items=2)
    tune(recipe_on(mine, "steps=1"), tmp_path / "run")  # begun anew


def test_a_folder_that_says_nothing_of_itself_is_taken_up_and_not_exported(
    base: Path, tmp_path: Path
) -> None:
    check_resumable(tmp_path, recipe_on(base))
    with pytest.raises(
        ConfigError, match=r"is no run's folder: it has no recipe\.json; give one such as runs"
    ):
        export_run(tmp_path)
    (tmp_path / RECORD).write_text('{"recipe"', "utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.json was cut off: start from scratch"):
        check_resumable(tmp_path, recipe_on(base))
    (tmp_path / RECORD).write_text('{"recipe": {"kind": "lora"}}', "utf-8")
    with pytest.raises(ConfigError, match="is of another version"):
        recipe_in(tmp_path)


# Exported


def test_any_checkpoint_of_a_run_is_exported_with_its_record(run: Path, tmp_path: Path) -> None:
    last, first = (
        export_run(run, output=tmp_path / name, step=step, test_items=2)
        for name, step in (("last", None), ("first", 1))
    )
    for folder, step in ((last, 2), (first, 1)):
        weights = load_file(folder / "adapter_model.safetensors")
        kept = load_file(run / "lora" / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert weights.keys() == kept.keys()
        assert all(torch.equal(weights[key], kept[key]) for key in kept)
        record = json.loads((folder / "run.json").read_text("utf-8"))
        assert [figures["step"] for figures in record["validation"]] == list(range(1, step + 1))
        assert record["recipe"]["rank"] == 2 and record["test"]
    with pytest.raises(ConfigError, match="holds no checkpoint of step 7, only of 1, 2: name one"):
        export_run(run, output=tmp_path / "other", step=7)


def test_what_was_typed_stands_in_record_and_card_of_a_run_and_of_its_checkpoints(
    base: Path, tmp_path: Path
) -> None:
    short = ("rank=2", "steps=1", "batch=8", "warmup_steps=1", "evaluate_items=2", "precision=fp32")
    typed = (f"base={base}", "name=mine", "quotas=[1, 1, 2]", *short)
    made = run_recipe("robust-lora", typed, output=None, runs=tmp_path, resume="no", test_items=2)
    again = export_run(tmp_path / "mine", output=tmp_path / "again", test_items=2)
    assert made is not None
    command = f"modint-guard train robust-lora base={base} name=mine 'quotas=[1, 1, 2]' {' '.join(short)}"
    for folder in (made, again):
        assert json.loads((folder / "run.json").read_text("utf-8"))["command"] == command
        assert f"Made by `{command}` from revision" in (folder / "README.md").read_text("utf-8")


def test_a_fully_tuned_run_is_exported_too(base: Path, tmp_path: Path) -> None:
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null", "steps=1")
    model = tune(recipe_on(base, *without), tmp_path / "run").model
    folder = export_run(tmp_path / "run", test_items=2)
    held = load_base(str(folder))[0].state_dict()
    assert all(torch.equal(held[key], tensor) for key, tensor in model.state_dict().items())


def test_an_export_onto_a_full_disk_leaves_with_a_sentence_and_2(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_items(suite.items("image-heavy", "train", 4), tmp_path / "data")
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null", "steps=1", "batch=4")
    own = (f"data={tmp_path / 'data'}", "letter=null", "quotas=[1, 0, 0]")
    tune(recipe_on(base, *without, *own), tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(tmp_path / "run")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = f"{tmp_path / 'run' / 'export'} cannot be written (File too large): make room, and export again"
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_the_seconds_of_an_export_are_those_of_its_own_kind(base: Path, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null", "steps=1")
    tune(recipe_on(base, *without), mine)  # under the name of an adapter
    state = mine / "lora" / "checkpoint-2" / "trainer_state.json"
    held = json.loads(state.read_text("utf-8"))
    held["log_history"].append({"step": 2, "seconds": 1e6})
    state.write_text(json.dumps(held), "utf-8")
    record = json.loads((export_run(mine, test_items=2) / "run.json").read_text("utf-8"))
    assert record["recipe"]["kind"] == "full" and record["train_seconds"] < 1e6


def test_a_run_without_a_whole_checkpoint_is_not_exported(base: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes((run / RECORD).read_bytes())
    with pytest.raises(ConfigError, match="holds no whole checkpoint: train first"):
        export_run(tmp_path)


def test_a_model_is_evaluated_and_exported_on_the_gpu_and_left_for_the_trainer_to_place(
    base: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is none here: `meta` stands for it, which holds no numbers.
    monkeypatch.setattr("modint_training.models.loading.fastest_device", lambda: torch.device("meta"))
    places = {
        "evaluated": loaded(str(base), None)[0],
        "trained": load_base(str(base), placed=False)[0],
        "in 4 bits": load_base(str(base), device_map={"": "cpu"})[0],  # `from_pretrained` places it
    }
    found = {name: next(model.parameters()).device.type for name, model in places.items()}
    assert found == {"evaluated": "meta", "trained": "cpu", "in 4 bits": "cpu"}
    asked: list[str] = []

    def asking() -> torch.device:
        asked.append("where")
        return torch.device("cpu")

    monkeypatch.setattr("modint_training.models.loading.fastest_device", asking)
    tune(recipe_on(base, "steps=1"), tmp_path / "run")
    assert not asked
    export_run(run, output=tmp_path / "export", test_items=2)
    assert asked == ["where"]


# Worn


def test_an_adapter_is_worn_by_the_base_it_was_trained_on_alone(
    base: Path, run: Path, processor: Any, tmp_path: Path
) -> None:
    adapter = str(export_run(run, output=tmp_path / "lora", test_items=2))
    assert isinstance(with_adapter(small_model(processor), adapter, str(base)), PeftModel)
    other = changed(base, tmp_path / "other")
    with pytest.raises(
        AdapterError, match=r"was trained on revision \w+ of its base, and .* is \w+: name the"
    ):
        with_adapter(load_base(str(other))[0], adapter, str(other))
    (tmp_path / "lora" / "run.json").unlink()  # one that was trained elsewhere
    deeper = small_model(processor, layers=2)
    deeper.model.language_model.layers[0].mlp.up_proj = torch.nn.Linear(32, 48)
    with pytest.raises(AdapterError, match=r"does not fit .*: name the base it was trained on with --model"):
        with_adapter(deeper, adapter, str(base))
    blip = save_small_family("instructblip", processor, tmp_path / "blip")
    regex = tmp_path / "lora" / "adapter_config.json"
    regex.write_text(regex.read_text("utf-8").replace("language_model", "nothing"), "utf-8")
    with pytest.raises(AdapterError, match="does not fit"):
        with_adapter(load_base(str(blip))[0], adapter, str(blip))
