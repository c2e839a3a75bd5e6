"""An adapter's training: only LoRA moves, only the language model has it, and nothing held out is seen."""

import json
import math
import multiprocessing
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from modint_guard.data import write_items
from modint_guard.data.item import Turn
from modint_guard.data.perturb import HELD_OUT_CLAIMS
from modint_guard.errors import ConfigError, DataError
from modint_training.loop.trainer import Trained, last_step, read_log
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.losses import cross_entropies, kl_divergence
from modint_training.method.masks import answer_tokens, predicting_mask
from modint_training.method.step import twin_loss
from modint_training.models.export import export_adapter
from modint_training.models.loading import load_base, lora_config, trainable
from modint_training.recipe import TuneRecipe
from modint_training.run_record import run_record
from modint_training.tinyworld import suite
from modint_training.tinyworld.tasks import TASKS
from modint_training.tune import check_device, tune
from tests.training.small import lora_recipe, save_small_base, small_model, tinyworld_batches


@pytest.fixture(scope="module")
def base(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_base(processor, tmp_path_factory.mktemp("small") / "base")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(base: Path, runs: Path) -> Trained:
    """A run of two steps at a rate that is seen."""
    return tune(lora_recipe(base, "lr=0.05"), runs)


# Two steps


def test_training_moves_every_adapter_of_the_language_model(trained: Trained) -> None:
    model = trained.model
    moved = {name for name, tensor in model.named_parameters() if "lora_B" in name and tensor.abs().sum() > 0}
    assert len(moved) == 7  # B starts at nought; q, k, v, o, gate, up and down of the one layer
    assert all(".language_model." in name for name in moved)


def is_untouched(model: Any, base: Path) -> bool:
    """Whether all but the adapter is the base, bit for bit."""
    before = load_base(str(base))[0].state_dict()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_training_leaves_the_base_bit_for_bit_as_it_was(trained: Trained, base: Path) -> None:
    assert is_untouched(trained.model, base)


def test_only_lora_can_be_trained_and_the_vision_tower_has_none(trained: Trained) -> None:
    model = trained.model
    trainable = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert trainable == adapters
    assert len(adapters) == 14
    assert not any("vision_tower" in name or "projector" in name for name in adapters)


def test_the_saved_keys_all_belong_to_the_language_model(trained: Trained, tmp_path: Path) -> None:
    recipe = lora_recipe("tinyworld-base")
    export_adapter(trained.model, tmp_path / "lora", run_record(recipe, trained.history, [], 1.0))
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(keys) == 14
    assert all("language_model" in key for key in keys)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["inference_mode"] is True


def test_the_validation_split_is_measured_and_the_run_can_be_resumed(trained: Trained, runs: Path) -> None:
    history = trained.history
    assert [figures["step"] for figures in history] == [2]
    assert set(history[0]) == {
        "step",
        "image-heavy/clean",
        "image-heavy/true_description",
        "image-heavy/misleading_description",
        "text-heavy/no_image",
        "text-heavy/agreeing_image",
        "text-heavy/contradicting_image",
        "vqa/clean",
        "loss",
        "image-heavy/true_description/flips",
        "image-heavy/misleading_description/flips",
        "text-heavy/agreeing_image/flips",
        "text-heavy/contradicting_image/flips",
    }
    assert last_step(runs / "lora", "auto") == 2


def test_a_gradient_reaches_lora_and_nothing_else(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base")
    model = get_peft_model(small_model(processor), lora_config(recipe, "llava"))
    twin_loss(recipe)(model, tinyworld_batches(recipe, processor)(0)[0]).backward()
    reached = {name for name, tensor in model.named_parameters() if tensor.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_the_targets_are_the_linear_layers_of_the_language_model(processor: Any) -> None:
    model = get_peft_model(small_model(processor), lora_config(lora_recipe("tinyworld-base"), "llava"))
    named = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert named == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # Defect 9 of the reference code: the vision tower has a q_proj too.
    assert all("language_model" in name for name in model.targeted_module_names)


def test_the_layers_below_the_first_have_no_adapter(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "first_layer=2")
    model = get_peft_model(small_model(processor, layers=12), lora_config(recipe, "llava"))
    layers = {int(name.partition("layers.")[2].partition(".")[0]) for name in model.targeted_module_names}
    assert layers == set(range(2, 12))


# Batches


def steps_logged(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log that are of steps, and not of looks at the validation split."""
    return [line for line in read_log(run / "log.jsonl") if "loss" in line]


def whole_batches(recipe: TuneRecipe, processor: Any) -> Callable[[int], Batch]:
    """The one micro-batch of each step."""
    micro_batches = tinyworld_batches(recipe, processor)

    def batch(step: int) -> Batch:
        (whole,) = micro_batches(step)
        return whole

    return batch


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {**batch.inputs, **{name: value for name, value in vars(batch).items() if name != "inputs"}}


def texts(batch: Batch, processor: Any) -> list[str]:
    return [processor.tokenizer.decode(row) for row in batch.inputs["input_ids"].tolist()]


def answers(batch: Batch) -> list[list[int]]:
    return [row[row != -100].tolist() for row in batch.labels]


def test_a_batch_holds_the_quotas_and_each_twin_behind_its_clean_row(processor: Any) -> None:
    batch = whole_batches(lora_recipe("tinyworld-base"), processor)(0)
    # Eight examples as 2 image-heavy : 2 text-heavy : 4 vqa, of which the first four have a twin.
    assert batch.clean_row.tolist() == [-1, 0, -1, 2, -1, 4, -1, 6, -1, -1, -1, -1]
    pictured = (
        (batch.inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>"))
        .any(dim=1)
        .tolist()
    )
    assert pictured[:5] == [True] * 4 + [False]  # image-heavy pairs, then a text-heavy clean row
    assert pictured[8:] == [True] * 4
    assert len(batch.inputs["pixel_values"]) == sum(pictured)


def test_a_twin_has_the_answer_of_its_clean_row(processor: Any) -> None:
    batches = whole_batches(lora_recipe("tinyworld-base"), processor)
    for step in range(5):
        batch = batches(step)
        said = answers(batch)
        for row, clean in enumerate(batch.clean_row.tolist()):
            assert clean < 0 or said[row] == said[clean]


def test_a_batch_depends_on_its_number_alone(processor: Any) -> None:
    first, second = (whole_batches(lora_recipe("tinyworld-base"), processor) for _ in range(2))
    first(0)
    one, other = first(3), second(3)
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(one).items())
    assert texts(first(4), processor) != texts(one, processor)


def test_training_sees_no_held_out_claim_wording_or_picture(processor: Any) -> None:
    batches = whole_batches(lora_recipe("tinyworld-base", "batch=64"), processor)
    starts = [claim.partition("{claim}")[0] for claim in HELD_OUT_CLAIMS]
    unseen = [wording for task in TASKS.values() for wording in task.held_out if "{" not in wording]
    prompts: list[str] = []
    for step in range(4):
        batch = batches(step)
        prompts += texts(batch, processor)
        assert not (batch.inputs["pixel_values"] == 1).flatten(1).all(dim=1).any()  # white
    assert any("The picture shows the digit" in prompt for prompt in prompts)
    assert not any(start in prompt for start in starts for prompt in prompts)
    asked = {line for prompt in prompts for line in prompt.replace("<|end|>", "\n").split("\n")}
    asked = {line.rpartition(">")[2] for line in asked}
    assert "What digit is shown?" in asked
    assert not asked & set(unseen)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_as_many_twins_are_attacked_as_the_recipe_says(processor: Any, share: float) -> None:
    noise = "kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1"
    attack = f"attack={{{noise}, mask: modality, weight: 1, share: {share}}}"
    batch = whole_batches(lora_recipe("tinyworld-base", attack, "batch=160"), processor)(0)
    attacked = batch.attackable.any(-1)
    assert not attacked[batch.clean_row < 0].any()
    assert attacked.sum() / (batch.clean_row >= 0).sum() == pytest.approx(share, abs=0.12)


def test_a_family_without_a_quota_is_left_out(processor: Any) -> None:
    batch = whole_batches(lora_recipe("tinyworld-base", "quotas=[1, 0, 0]"), processor)(0)
    assert batch.clean_row.tolist() == [-1, 0, -1, 2, -1, 4, -1, 6, -1, 8, -1, 10, -1, 12, -1, 14]


# The loss


def test_the_loss_adds_task_and_weighted_consistency(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "task_weight=2.0", "consistency_weight=0.25", "consistency=kl")
    model, batch = small_model(processor).eval(), whole_batches(recipe, processor)(0)
    logits, where = model(**batch.inputs, use_cache=False).logits, predicting_mask(batch.labels)
    twins = batch.clean_row >= 0
    clean = batch.clean_row[twins]
    divergence = kl_divergence(logits[clean][where[clean]], logits[twins][where[twins]]).mean()
    expected = 2.0 * cross_entropies(logits[where], answer_tokens(batch.labels)).mean() + 0.25 * divergence
    assert twin_loss(recipe)(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_consistency_the_task_alone_is_learnt(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "consistency=none")
    model, batch = small_model(processor).eval(), whole_batches(recipe, processor)(0)
    with_js = twin_loss(lora_recipe("tinyworld-base", "consistency_weight=0"))(model, batch)
    assert twin_loss(recipe)(model, batch).item() == pytest.approx(with_js.item(), rel=1e-6)
    # An untrained model guesses: about ln(vocabulary) nats a token.
    assert with_js.item() == pytest.approx(math.log(len(processor.tokenizer)), rel=0.05)


# The whole method, over a run

PGD = (
    "{kind: pgd, step: normalised, epsilon: 0.1, relative: true, alpha: 0.1, steps: 1, mask: span, weight: 1}"
)


def test_a_run_of_the_whole_method_logs_its_parts_and_draws_its_curves(base: Path, tmp_path: Path) -> None:
    model = tune(lora_recipe(base, f"attack={PGD}", "micro_batches=2"), tmp_path).model
    assert is_untouched(model, base)  # after attacks as well: nothing of it was unfrozen
    lines = steps_logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        parts = line["sft"] + line["adv"] + 0.5 * line["cons"]  # the recipe's consistency_weight
        assert line["loss"] == pytest.approx(parts, rel=1e-4)
        assert 0 < line["delta_relative"] <= 0.1 + 1e-6
        assert line["skipped_gradients"] == 0
    assert (tmp_path / "curves.png").is_file()


def test_step_k_plus_1_is_the_same_in_a_resumed_run(base: Path, tmp_path: Path) -> None:
    recipe = lora_recipe(base, f"attack={PGD}", "steps=3", "lr=0.01")
    whole = tune(recipe, tmp_path / "whole").model.state_dict()
    tune(recipe, tmp_path / "broken")
    # As if it had been killed after step 2: the batches and the noise of step 3 come again.
    checkpoints = tmp_path / "broken" / "lora"
    shutil.rmtree(checkpoints / "checkpoint-3")
    early = lora_recipe(base, f"attack={PGD}", "steps=3", "lr=0.01", "checkpoint_minutes=1e-9")
    tune(early, tmp_path / "broken")
    shutil.rmtree(checkpoints / "checkpoint-3")
    resumed = tune(recipe, tmp_path / "broken", resume="auto").model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = {run: steps_logged(tmp_path / run) for run in ("whole", "broken")}
    assert [line["loss"] for line in lines["whole"]] == [line["loss"] for line in lines["broken"]]


def test_full_fine_tuning_trains_its_scope_alone(base: Path, tmp_path: Path) -> None:
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null", "lr=0.01")
    before = load_base(str(base))[0].state_dict()
    model = tune(lora_recipe(base, *without, "scope=[connector]"), tmp_path).model
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)


# Your own examples


def own_items(folder: Path, families: tuple[str, ...]) -> Path:
    """Some of TinyWorld's, as a user's files: without the pictures that would contradict or agree."""
    write_items([item for family in families for item in suite.items(family, "train", 6)], folder)  # type: ignore[arg-type]
    return folder


def test_a_data_set_of_ones_own_is_trained_on_and_watched(base: Path, tmp_path: Path) -> None:
    data = own_items(tmp_path / "data", ("image-heavy", "text-heavy", "vqa"))
    recipe = lora_recipe(
        base,
        f"data={data}",
        f"validation={data}",
        "letter=null",
        "steps=null",
        "epochs=1",
        "evaluate_items=18",
    )
    history = tune(recipe, tmp_path / "run").history
    assert [figures["step"] for figures in history] == [2]  # 18 examples in batches of 8
    clean = {"image-heavy/clean", "text-heavy/clean", "vqa/clean"}
    kinds = {
        "image-heavy/misleading_description",
        "image-heavy/unrelated_facts",
        "text-heavy/noise",
        "text-heavy/black",
    }
    assert set(history[0]) == {"step", "loss", *clean, *kinds, *(f"{kind}/flips" for kind in kinds)}


def test_examples_with_earlier_turns_and_a_system_text_are_trained_on(base: Path, tmp_path: Path) -> None:
    earlier = (Turn("user", "Look at this.", has_image=True), Turn("assistant", "I see it."))
    items = [
        item.replace(turns=earlier, system="Be brief.") for item in suite.items("image-heavy", "train", 4)
    ]
    write_items(items, tmp_path / "data")
    own = (f"data={tmp_path / 'data'}", "letter=null", "quotas=[1, 0, 0]", "batch=4")
    tune(lora_recipe(base, *own), tmp_path / "run")
    assert all(line["cons"] > 0 for line in read_log(tmp_path / "run" / "log.jsonl"))


def test_rows_without_a_label_are_taken_for_the_consistency_loss_and_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = suite.items("image-heavy", "train", 4)
    others = [item.replace(id=f"u{item.id}", answer="", wrong="") for item in labelled[:3]]
    both = [
        item.replace(answer="") for item in suite.items("vqa", "train", 2)
    ]  # no twin, nothing to agree with
    write_items([*labelled, *others, *both], tmp_path / "data")
    own = (f"data={tmp_path / 'data'}", "letter=null", "quotas=[1, 0, 0]", "batch=7", "steps=2")
    tune(lora_recipe(base, *own, "validation=null"), tmp_path / "run")
    said = "7 examples, 3 of them without a label (for the consistency loss only); 2 are left out: of unknown"
    assert said in capsys.readouterr().err
    assert all(line["cons"] > 0 for line in read_log(tmp_path / "run" / "log.jsonl"))
    # Without a consistency loss they teach nothing.
    tune(lora_recipe(base, *own, "validation=null", "consistency=none"), tmp_path / "run")
    assert "4 examples; 5 are left out" in capsys.readouterr().err
    nothing = lora_recipe(base, *own, "consistency=none", "quotas=[1, 0, 1]", "batch=4")
    with pytest.raises(DataError, match="holds no vqa examples to train on"):
        tune(nothing, tmp_path / "run")


def test_a_picture_that_breaks_ends_the_run_with_its_place_and_its_workers(
    base: Path, tmp_path: Path
) -> None:
    data = own_items(tmp_path / "data", ("image-heavy",))
    own = (f"data={data}", "letter=null", "quotas=[1, 0, 0]", "batch=4")
    broken = sorted(data.rglob("*.png"))[0]
    broken.write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"cannot be used: .* \(correct it and go on with --resume auto\)"
    ) as ended:
        tune(lora_recipe(base, *own), tmp_path / "run")
    assert str(ended.value).startswith(f"{data / 'items.jsonl'}:")
    assert broken.name in str(ended.value) and "\n" not in str(ended.value)
    # They ignore SIGTERM: one that is left would keep the process from ending.
    assert not multiprocessing.active_children()
    broken.unlink()
    with pytest.raises(DataError, match="is not in"):  # before the first step
        tune(lora_recipe(base, *own), tmp_path / "run")


@pytest.mark.parametrize(("written", "said"), [("[]", "holds no rows"), ("", "the file is empty")])
def test_a_data_set_without_rows_is_refused(base: Path, tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "mine.json").write_text(written, "utf-8")
    for key in ("data", "validation"):
        sound = own_items(tmp_path / "data", ("image-heavy",))
        paths = {"data": sound, "validation": sound} | {key: tmp_path / "mine.json"}
        own = [f"{name}={path}" for name, path in paths.items()]
        with pytest.raises(DataError, match=said):
            tune(lora_recipe(base, *own, "letter=null", "quotas=[1, 0, 0]"), tmp_path / "run")


def test_a_quota_without_examples_is_refused(base: Path, tmp_path: Path) -> None:
    data = own_items(tmp_path / "data", ("image-heavy", "vqa"))
    said = "holds no text-heavy examples to train on, of which quotas: .* wants 2; set that quota to 0"
    with pytest.raises(DataError, match=said):
        tune(lora_recipe(base, f"data={data}", "letter=null"), tmp_path / "run")


def test_qlora_without_a_cuda_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind: qlora needs a CUDA device for its 4-bit weights; on this"):
        check_device(lora_recipe("x", "kind=qlora"), cuda=False)


def test_a_place_to_report_to_that_is_not_installed_is_refused(base: Path, tmp_path: Path) -> None:
    if find_spec("mlflow"):
        pytest.skip("mlflow is installed here")
    with pytest.raises(ConfigError, match="report_to: mlflow is not installed: pip install mlflow, or leave"):
        tune(lora_recipe(base, "report_to=[mlflow]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch", "parts", "ranks", "said"),
    [
        (
            8,
            2,
            8,
            "batch: 8 examples cannot be shared out evenly to 8 processes with micro_batches: 2 each; .* 16",
        ),
        (12, 4, 2, "batch: 12 examples cannot be shared out evenly to 2 processes .* choose a multiple of 8"),
        (8, 1, 3, "batch: 8 examples cannot be shared out evenly to 3 processes"),
    ],
)
def test_a_batch_that_processes_and_micro_batches_cannot_share_is_refused_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processor: Any,
    batch: int,
    parts: int,
    ranks: int,
    said: str,
) -> None:
    recipe = lora_recipe(tmp_path / "nowhere", f"batch={batch}", f"micro_batches={parts}")
    with pytest.raises(ConfigError, match=said):
        tinyworld_batches(recipe, processor, rank=0, ranks=ranks)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=said):
        tune(recipe, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_one_step_of_eight_is_four_micro_batches_of_two(base: Path, tmp_path: Path) -> None:
    settings = (base, f"attack={PGD}", "lr=0.01", "batch=8")
    whole, cut = (
        tune(lora_recipe(*settings, f"micro_batches={parts}"), tmp_path / str(parts)).model.state_dict()
        for parts in (1, 4)
    )
    learnt = [name for name in whole if "lora_" in name]
    assert any(whole[name].abs().max() > 1e-3 for name in learnt if "lora_B" in name)
    assert all(torch.allclose(whole[name], cut[name], atol=1e-5) for name in learnt)
    lines = [steps_logged(tmp_path / parts) for parts in ("1", "4")]
    for one, four in zip(*lines, strict=True):
        for part in ("loss", "sft", "adv", "cons", "delta_rms"):
            assert four[part] == pytest.approx(one[part], rel=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("perturbations=[white]", "'white' is held out for testing"),
        ("controls=[noise]", "'noise' is a trained kind"),
        ("perturbations=[fog]", "unknown perturbation 'fog'"),
    ],
)
def test_kinds_that_must_not_be_trained_on_stop_the_run_before_it_starts(
    base: Path, tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        tune(lora_recipe(base, override), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_base_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), str(tmp_path), "tinyworld-huge"):
        with pytest.raises(
            ConfigError, match=f"no base model '{name}': neither a model folder nor a bundled"
        ):
            load_base(name)


def test_a_base_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    with pytest.raises(ConfigError, match="cannot train a model of type 'mllama'; known: llava, qwen2_vl"):
        load_base(str(tmp_path))
    with pytest.raises(ConfigError, match="'unknown'"):
        family_of("unknown")


def test_rows_of_a_batch_are_padded_to_one_length(processor: Any) -> None:
    batch = whole_batches(lora_recipe("tinyworld-base"), processor)(1)
    rows = (batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels, batch.attackable)
    shapes = [tensor.shape for tensor in rows]
    assert all(one == other for one, other in pairwise(shapes))


def test_checkpointed_activations_leave_a_frozen_tower_without_gradients(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "gradient_checkpointing=true")
    model = trainable(small_model(processor), recipe).train()
    seen: list[torch.Tensor] = []
    tower = model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, args, out: seen.append(out.last_hidden_state))
    twin_loss(recipe)(model, tinyworld_batches(recipe, processor)(0)[0]).backward()
    assert model.is_gradient_checkpointing
    assert [states.requires_grad for states in seen] == [False]
    assert any(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
