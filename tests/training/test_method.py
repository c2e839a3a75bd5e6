"""One step's loss: the three terms over the whole batch, however it is cut up, at the cost it should have."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modint_training.data.sampler import Quotas
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.losses import cross_entropies, js_divergence, symmetric_kl
from modint_training.method.masks import answer_tokens, predicting_mask
from modint_training.method.passes import (
    DecoderInputs,
    Outputs,
    RowGroup,
    decoder_pass,
    row_groups,
    whole_pass,
)
from modint_training.method.step import StepMeter, log_line, twin_loss
from modint_training.recipe import TuneRecipe
from tests.training.small import lora_recipe, small_model, tinyworld_batches
from tests.training.small_families import lively

LLAVA = family_of("llava")
BALL = "epsilon: 0.2, relative: true, mask: span, weight: 1"
ATTACKS = {
    "pgd": f"{{kind: pgd, step: normalised, alpha: 0.2, steps: 2, {BALL}}}",
    "freelb": f"{{kind: freelb, step: normalised, alpha: 0.1, steps: 2, {BALL}}}",
    "smart": f"{{kind: smart, step: sign, alpha: 0.1, steps: 1, {BALL}}}",
    "gaussian": f"{{kind: gaussian, steps: 0, {BALL}}}",
}
each_attack = pytest.mark.parametrize("kind", ATTACKS)


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    return lively(small_model(processor))


def recipe_with(*overrides: str, attack: str | None = "pgd") -> TuneRecipe:
    section = f"attack={ATTACKS[attack]}" if attack else "attack=null"
    return lora_recipe("tinyworld-base", section, "batch=8", *overrides)


def gradient(model: nn.Module, recipe: TuneRecipe, batches: list[Batch]) -> Tensor:
    """Of the sum of the losses of some micro-batches, with respect to every weight."""
    model.zero_grad()
    for batch in batches:
        twin_loss(recipe)(model, batch).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measured(model: nn.Module, recipe: TuneRecipe, batch: Batch) -> dict[str, float]:
    meter = StepMeter()
    twin_loss(recipe, meter)(model, batch)
    return log_line(meter.take())


# The whole batch, however it is cut up


@each_attack
@pytest.mark.parametrize("consistency", ["js", "mse"])
def test_micro_batches_add_up_to_the_whole_batch(
    kind: str, consistency: str, model: Any, processor: Any
) -> None:
    recipe = recipe_with(f"consistency={consistency}", attack=kind)
    parts = tinyworld_batches(recipe_with("micro_batches=4", attack=kind), processor)(3)
    assert [len(part.clean_row) for part in parts] == [4, 4, 2, 2]  # two examples each, twins beside them
    whole = tinyworld_batches(recipe, processor)(3)
    one, four = gradient(model, recipe, whole), gradient(model, recipe, parts)
    assert (one - four).abs().max() <= 1e-4 * one.abs().max()


def test_ranks_add_up_to_the_whole_batch(model: Any, processor: Any) -> None:
    recipe = recipe_with()
    whole = tinyworld_batches(recipe, processor)(3)
    ranks = [tinyworld_batches(recipe, processor, rank=rank, ranks=2)(3)[0] for rank in range(2)]
    counts = ranks[0].counts + ranks[1].counts
    assert torch.equal(counts, whole[0].counts)
    shared = [replace(rank, counts=counts) for rank in ranks]
    one, two = gradient(model, recipe, whole), gradient(model, recipe, shared)
    assert (one - two).abs().max() <= 1e-4 * one.abs().max()


def test_answers_of_many_tokens_do_not_weigh_more(model: Any, processor: Any) -> None:
    # A mean over tokens: the same rows twice give the same loss.
    (batch,) = tinyworld_batches(recipe_with(attack=None), processor)(0)
    rows = len(batch.labels)
    shifted = torch.where(batch.clean_row >= 0, batch.clean_row + rows, -1)
    twice = Batch(
        inputs={name: torch.cat([tensor] * 2) for name, tensor in batch.inputs.items()},
        labels=torch.cat([batch.labels] * 2),
        clean_row=torch.cat([batch.clean_row, shifted]),
        attackable=torch.cat([batch.attackable] * 2),
        row_seeds=torch.cat([batch.row_seeds] * 2),
        counts=2 * batch.counts,
    )
    loss = twin_loss(recipe_with(attack=None))
    assert loss(model, twice).item() == pytest.approx(loss(model, batch).item(), rel=1e-5)


# The terms


def put_together(inputs: DecoderInputs, groups: list[RowGroup], calls: list[Tensor]) -> Tensor:
    """The embeddings of a whole pass, which the decoder got in one call for each group."""
    whole = inputs.embeds.detach().clone()
    for group, embeds in zip(groups, calls, strict=False):
        whole[group.rows, : embeds.shape[1]] = embeds
    return whole


@each_attack
def test_the_terms_are_what_the_losses_say_of_the_final_pass(kind: str, model: Any, processor: Any) -> None:
    recipe = recipe_with("consistency=js", attack=kind)
    (batch,) = tinyworld_batches(recipe, processor)(1)
    where = predicting_mask(batch.labels)
    calls: list[Tensor] = []
    watch = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    found = measured(model, recipe, batch)
    watch.remove()
    outputs, given = whole_pass(model, LLAVA, batch.inputs, where)
    rows = batch.attackable.any(-1).nonzero().squeeze(-1)
    some, at = given.rows(rows), where[rows]
    decoder = model.model.language_model
    first, groups = len(row_groups(decoder, given, where)), row_groups(decoder, some, at)
    begins = range(first, len(calls), len(groups))
    attacked_passes = [put_together(some, groups, calls[begin:]) for begin in begins]
    tokens, clean = answer_tokens(batch.labels[rows]), batch.clean_row[rows]
    logits = {row: outputs.logits[where.nonzero()[:, 0] == row] for row in range(len(where))}
    clean_logits = torch.cat([logits[int(row)] for row in clean])
    own_logits = torch.cat([logits[int(row)] for row in rows])
    last = attacked_passes if kind == "freelb" else attacked_passes[-1:]
    passes = [decoder_pass(model, LLAVA, some, embeds, at) for embeds in last]
    harm: Callable[[Outputs], Tensor] = lambda now: cross_entropies(now.logits, tokens).mean()  # noqa: E731
    if kind == "smart":
        harm = lambda now: symmetric_kl(own_logits, now.logits).mean()  # noqa: E731
    adv = sum(harm(now).item() for now in passes) / len(passes)
    attacked = sum(js_divergence(clean_logits, now.logits).mean().item() for now in passes) / len(passes)
    twins = js_divergence(clean_logits, own_logits).mean().item()
    assert found["sft"] == pytest.approx(
        cross_entropies(outputs.logits, answer_tokens(batch.labels)).mean().item()
    )
    assert found["adv"] == pytest.approx(adv, rel=1e-4)
    assert found["cons"] == pytest.approx((twins + attacked) / 2, rel=1e-4)
    total = found["sft"] + found["adv"] + recipe.consistency_weight * found["cons"]
    assert found["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("consistency", ["kl", "js", "symmetric_kl", "mse"])
def test_identical_twins_are_consistent(consistency: str, model: Any, processor: Any) -> None:
    recipe = recipe_with("perturbations=[misleading_description]", f"consistency={consistency}", attack=None)
    (batch,) = tinyworld_batches(recipe, processor)(0)
    twins = (batch.clean_row >= 0).nonzero().squeeze(-1)
    for rows in (batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels):
        rows[twins] = rows[batch.clean_row[twins]]
    assert measured(model, recipe, batch)["cons"] == pytest.approx(0, abs=1e-7)


def test_an_attack_on_the_misleading_text_makes_it_worse(model: Any, processor: Any) -> None:
    (batch,) = tinyworld_batches(recipe_with(), processor)(0)
    quiet = measured(model, recipe_with("attack.epsilon=1e-6"), batch)
    found = measured(model, recipe_with(), batch)
    assert found["adv"] > quiet["adv"]
    assert 0.05 < found["delta_relative"] <= 0.2
    assert found["skipped_gradients"] == 0


def test_a_batch_of_items_that_need_both_is_not_attacked(model: Any, processor: Any) -> None:
    recipe = recipe_with("quotas=[0, 0, 1]")
    (batch,) = tinyworld_batches(recipe, processor)(0)
    found = measured(model, recipe, batch)
    assert (found["adv"], found["cons"]) == (0.0, 0.0)
    assert "delta_rms" not in found


def test_only_twins_are_attacked(processor: Any) -> None:
    for mask in ("span", "modality", "none"):
        (batch,) = tinyworld_batches(recipe_with(f"attack.mask={mask}"), processor)(0)
        attacked = batch.attackable.any(-1)
        assert attacked.any() and not (attacked & (batch.clean_row < 0)).any()


# Cost


def test_a_step_runs_tower_and_embedding_once_and_attacks_only_what_it_may(
    model: Any, processor: Any
) -> None:
    (batch,) = tinyworld_batches(recipe_with(), processor)(0)
    seen: dict[str, list[int]] = {"tower": [], "embedding": [], "decoder": [], "head": []}
    core = model.model
    watched = {
        "tower": core.vision_tower,
        "embedding": core.language_model.embed_tokens,
        "decoder": core.language_model.layers[0],
        "head": model.lm_head,
    }
    handles = [
        module.register_forward_hook(lambda module, args, out, name=name: seen[name].append(len(args[0])))
        if name != "tower"
        else module.register_forward_hook(lambda module, args, out: seen["tower"].append(1))
        for name, module in watched.items()
    ]
    twin_loss(recipe_with())(model, batch)
    for handle in handles:
        handle.remove()
    assert seen["tower"] == [1] and seen["embedding"] == [12]
    # Eight examples and four twins, in groups of similar length; the twins again: two steps, the last pass.
    assert sum(seen["decoder"]) == 12 + 4 + 4 + 4
    assert seen["head"] == [24, 8, 8, 8]  # an answer of one token and its end, nothing else


# Precision


@each_attack
def test_weights_in_bf16_are_attacked_in_float32(kind: str, processor: Any) -> None:
    half = lively(small_model(processor)).to(torch.bfloat16)
    recipe = recipe_with(attack=kind)
    (batch,) = tinyworld_batches(recipe, processor)(0)
    pixels = batch.inputs["pixel_values"].to(torch.bfloat16)
    batch = replace(batch, inputs={**batch.inputs, "pixel_values": pixels})
    meter = StepMeter()
    loss = twin_loss(recipe, meter)(half, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    found = log_line(meter.take())
    assert found["delta_relative"] > 0.03
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_nothing(processor: Any) -> None:
    recipe = recipe_with()
    batches = tinyworld_batches(recipe, processor)(0)
    plain, checkpointed = (lively(small_model(processor)).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable()
    one, other = gradient(plain, recipe, batches), gradient(checkpointed, recipe, batches)
    assert torch.allclose(one, other, atol=1e-6 * float(one.abs().max()))


# The meter


def test_the_meter_adds_up_and_starts_anew() -> None:
    meter = StepMeter()
    meter.add(loss=torch.tensor(1.5))
    meter.add(loss=2.0, sft=1.0)
    assert meter.take() == {"loss": 3.5, "sft": 1.0}
    assert meter.take() == {}


def test_the_noise_is_logged_as_a_root_mean_square() -> None:
    sums = {"loss": 1.0, "delta_squares": 8.0, "delta_relative_squares": 0.5, "delta_elements": 2.0}
    line = log_line({**sums, "skipped_gradients": 3.0})
    assert line == {"loss": 1.0, "delta_rms": 2.0, "delta_relative": 0.5, "skipped_gradients": 3.0}


# Which rows are attacked


@pytest.mark.parametrize(
    ("rows", "mask", "attacked"),
    [
        ("twins", "none", {"image-heavy twin", "text-heavy twin"}),
        ("twins_and_vqa", "none", {"image-heavy twin", "text-heavy twin", "vqa"}),
        ("all", "none", {"image-heavy twin", "text-heavy twin", "vqa", "image-heavy", "text-heavy"}),
        ("all", "modality", {"image-heavy twin", "text-heavy twin", "image-heavy"}),  # no picture, no mask
        ("all", "span", {"image-heavy twin", "text-heavy twin"}),  # a clean row has no span
    ],
)
def test_the_recipe_says_which_rows_are_attacked(
    rows: str, mask: str, attacked: set[str], processor: Any
) -> None:
    recipe = recipe_with(f"attack.rows={rows}", f"attack.mask={mask}")
    families = [slot.family for slot in Quotas(recipe.quotas, recipe.batch).slots(0)]
    (batch,) = tinyworld_batches(recipe, processor)(0)
    clean = [row for row, of in enumerate(batch.clean_row.tolist()) if of < 0]
    names: dict[int, str] = dict(zip(clean, families, strict=True))
    for row, of in enumerate(batch.clean_row.tolist()):
        names.setdefault(row, f"{names.get(of)} twin")
    hit = batch.attackable.any(-1).tolist()
    assert {names[row] for row in range(len(hit)) if hit[row]} == attacked


def test_an_attacked_clean_row_is_compared_with_itself(model: Any, processor: Any) -> None:
    recipe = recipe_with("consistency=reverse_kl", "attack.rows=all", "attack.mask=modality")
    (batch,) = tinyworld_batches(recipe, processor)(0)
    alone = replace(batch, attackable=batch.attackable & (batch.clean_row < 0).unsqueeze(1))
    unattacked = replace(batch, attackable=torch.zeros_like(batch.attackable))
    weak = recipe_with(
        *("consistency=reverse_kl", "attack.rows=all", "attack.mask=modality"),
        *("attack.epsilon=1e-6", "attack.alpha=1e-6"),
    )
    # Under next to no noise a clean row is what it was, and adds nothing to the twins' inconsistency.
    without, weakly, strongly = (
        measured(model, each, rows)["cons"]
        for each, rows in ((weak, unattacked), (weak, alone), (recipe, alone))
    )
    assert weakly == pytest.approx(without, rel=1e-3)
    assert strongly > weakly
