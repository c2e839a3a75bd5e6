"""The sixteen defects of the reference code of arXiv 2505.19616, each as a sentence about ours.

Two are not training's own; more of 13 (an answer parser that knows the options) is held by
`tests/core/test_item.py`, of 14 (seeded noise in evaluation) by `tests/core/test_perturb.py`.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import modint_training
from modint_guard.data.item import Item, choice_of
from modint_guard.data.perturb import perturb
from modint_guard.errors import ConfigError, DataError
from modint_guard.evaluation.effects import Answered
from modint_guard.evaluation.effects import shares as shares_of
from modint_training.data.collate import collate, encode, parts_of
from modint_training.method.attack import Attack, run_attack
from modint_training.method.batch import token_counts
from modint_training.method.families import family_of
from modint_training.method.labels import IGNORED, Part
from modint_training.method.losses import js_divergence
from modint_training.method.masks import IMAGE_HEAVY, modality_mask, predicting_mask
from modint_training.method.passes import Outputs, whole_pass
from modint_training.method.step import (
    LossWeights,
    StepMeter,
    denominators,
    log_line,
    twin_inconsistency,
    twin_loss,
)
from modint_training.models.loading import lora_config
from modint_training.recipe_files import load_recipe
from modint_training.tinyworld import suite
from modint_training.tinyworld.conditions import Condition
from tests.training.small import lora_recipe, small_model, tinyworld_batches
from tests.training.small_families import FAMILIES, lively, small_family

PGD = (
    "{kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span, weight: 1}"
)


@pytest.fixture
def adapted(processor: Any) -> tuple[Any, Any]:
    """A small LLaVA with an adapter that does something, and a batch of the whole method."""
    recipe = lora_recipe("tinyworld-base", f"attack={PGD}", "consistency=js")
    model = get_peft_model(lively(small_model(processor)), lora_config(recipe, "llava"))
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
            parameter.normal_(std=0.1)
    return model, tinyworld_batches(recipe, processor)(0)[0]


def loss_of(model: Any, batch: Any, *overrides: str) -> tuple[torch.Tensor, dict[str, float]]:
    meter = StepMeter()
    recipe = lora_recipe("tinyworld-base", f"attack={PGD}", "consistency=js", *overrides)
    return twin_loss(recipe, meter)(model, batch), log_line(meter.take())


def test_1_consistency_is_read_where_the_answer_is_decided(adapted: Any) -> None:
    # The reference reads at t: for a one-letter answer that is the position behind the decision.
    assert predicting_mask(torch.tensor([[IGNORED, IGNORED, 5]])).tolist() == [[False, True, False]]
    _, batch = adapted
    where = predicting_mask(batch.labels)
    first = where & ~torch.roll(where, 1, dims=1)
    followed = torch.roll(first, 1, dims=1)
    assert (batch.labels[followed] != IGNORED).all() and int(first.sum()) == len(batch.labels)


def test_2_js_is_bounded_by_ln_2() -> None:
    # One half of KL(M||P) + KL(M||Q), as the reference computes it, gives 7.80 where the true value is 0.671.
    p = torch.tensor([[0.0, -17.0]])
    assert js_divergence(p, p.flip(-1)).item() == pytest.approx(math.log(2), abs=1e-5)


def test_3_lambda_means_the_same_for_any_number_of_twins_and_tokens() -> None:
    # A clean row with 1/4 and 3/4 for two answers, and twins with a half for either. The reference sums over
    # twins and tokens (`batchmean`): nine twins of five tokens would weigh 45 times one of one.
    by_hand = math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
    weights = LossWeights(task=1.0, adversarial=0.0, consistency=1.0, kind="kl")
    for twins, tokens in ((1, 1), (9, 5)):
        labels = torch.tensor([[IGNORED, *[1] * tokens]] * (1 + twins))
        clean_row = torch.tensor([-1] + [0] * twins)
        logits = torch.tensor([[0.0, math.log(3)]] * tokens + [[0.0, 0.0]] * tokens * twins)
        total = twin_inconsistency(Outputs(logits, logits), clean_row, predicting_mask(labels), weights)
        share = denominators(token_counts(labels, clean_row, torch.zeros_like(labels, dtype=torch.bool)))[2]
        assert (total / share).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("consistency", ["kl", "js", "symmetric_kl", "mse"])
def test_4_an_adapter_an_attack_and_any_consistency_go_together(adapted: Any, consistency: str) -> None:
    loss, _ = loss_of(*adapted, f"consistency={consistency}")
    loss.backward()
    assert loss.isfinite()


def test_5_what_is_frozen_stays_frozen(adapted: Any) -> None:
    model, batch = adapted
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss_of(model, batch)[0].backward()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())


def test_6_a_step_does_not_shrink_with_the_batch_and_noise_survives_bf16() -> None:
    def forward(embeds: torch.Tensor) -> Outputs:
        return Outputs(embeds, (3.0 * embeds).sum((1, 2)).unsqueeze(-1))

    how = Attack("pgd", "raw", epsilon=1e-3, relative=False, alpha=1e-4, steps=1)
    embeds = torch.full((64, 2, 4), 0.75, dtype=torch.bfloat16)
    mask = torch.ones(64, 2, dtype=torch.bool)
    many = run_attack(forward, lambda outputs: outputs.logits.sum(), embeds, mask, range(64), how).delta
    one = run_attack(forward, lambda outputs: outputs.logits.sum(), embeds[:1], mask[:1], range(1), how).delta
    assert torch.equal(many[0], one[0])
    assert ((embeds + many) != embeds.float()).all()
    assert (embeds + many.bfloat16() == embeds).float().mean() > 0.5  # what bf16 would have lost


def test_7_instructblip_is_attacked_with_its_real_queries(processor: Any) -> None:
    model, own = small_family("instructblip", processor)
    item = suite.items("text-heavy", "train", 1)[0]
    shown = perturb(item, "contradicting_image")
    rows = [encode(shown, own)]
    batch = collate(rows, own)
    predicting = predicting_mask(batch.labels)
    _, given = whole_pass(model, family_of("instructblip"), batch.inputs, predicting)
    queries = given.embeds[parts_of(rows) == Part.IMAGE]
    assert len(queries) == own.num_query_tokens
    assert queries.abs().sum(-1).min() > 0 and queries.std(0).sum() > 0


def test_8_the_mask_leaves_system_prompt_question_options_and_padding_alone() -> None:
    row = [Part.FRAME, Part.IMAGE, Part.CONTEXT, Part.FRAME, Part.QUESTION, Part.FRAME, Part.ANSWER, Part.PAD]
    mask = modality_mask(torch.tensor([row]), torch.tensor([IMAGE_HEAVY]), "span")
    assert mask.tolist() == [[part == Part.CONTEXT for part in row]]


@pytest.mark.parametrize("name", FAMILIES)
def test_9_adapters_do_not_hit_the_vision_tower(name: str, processor: Any) -> None:
    model, _ = small_family(name, processor)
    adapted = get_peft_model(model, lora_config(lora_recipe("x"), name))
    assert adapted.targeted_module_names
    assert all("language_model" in module for module in adapted.targeted_module_names)


def test_10_the_end_is_a_target_and_no_key_is_ignored(processor: Any) -> None:
    # That the last interval is saved is held by tests/training/test_trainer.py.
    row = encode(suite.items("vqa", "train", 1)[0], processor)
    assert row.labels[-1] == processor.tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="unknown key 'warmup'"):
        load_recipe("tinyworld-full", ["warmup=3"])


def test_11_nothing_is_truncated(processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "max_length=20")
    with pytest.raises(DataError, match=r"item train-0-lora-0 takes \d+ tokens, more than max_length: 20"):
        tinyworld_batches(recipe, processor)(0)


def test_12_a_lie_never_states_the_truth() -> None:
    for item in suite.items("image-heavy", "train", 200):
        said = perturb(item, "misleading_description").context or ""
        assert item.claim.format(item.wrong) in said
        assert item.claim.format(item.answer) not in said.replace(item.claim.format(item.wrong), "")


def test_13_an_answer_is_read_by_the_options_and_what_cannot_be_read_is_wrong_and_counted() -> None:
    choices = ("cat", "dog", "bird")
    item = Item("1", "image-heavy", "animal", "letter", "Which animal?", choices, answer="bird", wrong="cat")
    read = Answered(item, "A dog. The answer is C")  # by its first letter it is A
    unread = Answered(item, "A dog")
    assert (choice_of(item, read.text), choice_of(item, unread.text)) == ("bird", None)
    found = shares_of([read, unread])
    assert (found["n"], found["accuracy"], found["unparsable"]) == (2, 0.5, 0.5)


def test_14_noise_in_evaluation_is_seeded_by_item_so_that_two_models_see_the_same() -> None:
    first, other = Condition("text-heavy", "noise").items("test", 2)
    again, _ = Condition("text-heavy", "noise").items("test", 2)
    reseeded = perturb(first, "noise", seed=1)
    seen = [item.image.tobytes() for item in (first, again, other, reseeded) if item.image]
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3 and len(seen) == 4


def test_15_the_tower_runs_once_a_step_and_rows_with_nothing_to_attack_are_left_out(adapted: Any) -> None:
    model, batch = adapted
    core = model.get_base_model()
    towers, decoders, heads = [], [], []
    handles = [
        core.model.vision_tower.register_forward_hook(lambda *_: towers.append(1)),
        core.model.language_model.norm.register_forward_hook(
            lambda _, args, __: decoders.append(len(args[0]))
        ),
        core.lm_head.register_forward_hook(lambda _, args, __: heads.append(args[0].ndim)),
    ]
    loss_of(model, batch)
    for handle in handles:
        handle.remove()
    assert len(towers) == 1
    assert sum(decoders) == 12 + 4 + 4  # in groups; no vqa row, no clean row is attacked
    assert set(heads) == {2}  # (answer tokens, width), never every position


def test_16_what_differs_between_families_stands_in_one_place() -> None:
    package = Path(modint_training.__file__).parent
    named = {
        path.name
        for path in package.rglob("*.py")
        if any(family in path.read_text("utf-8").lower() for family in ("qwen", "instructblip"))
    }
    # Beside the records themselves, one comment says why a position id has three axes.
    assert named == {"families.py", "passes.py"}
