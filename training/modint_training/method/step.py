"""The method of arXiv 2505.19616 as one step's loss: L = L_sft + L_adv + lambda * L_cons.

Every term is a mean over the tokens of the whole batch: of all its micro-batches, on all ranks. Each part of
it is therefore a sum over the tokens at hand, divided by counts that the batch brings along.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modint_training.method.attack import Attack, Attacked, attack, token_scale
from modint_training.method.batch import PLAN, Batch
from modint_training.method.families import ModelFamily, family_of
from modint_training.method.losses import cross_entropies, inconsistencies, symmetric_kl
from modint_training.method.masks import predicted, predicting_mask, tokens_of
from modint_training.method.passes import Given, Read, bare, decoder_pass, whole_pass
from modint_training.method.ranks import over_ranks, world
from modint_training.recipe import StopGradient, TuneRecipe

NO_NOISE = dict.fromkeys(
    ("delta_squares", "delta_relative_squares", "delta_elements", "skipped_gradients"), 0.0
)


@dataclass(frozen=True)
class Weights:
    """What the terms of the loss weigh, and which consistency is meant."""

    task: float
    adversarial: float
    consistency: float
    kind: str  # losses.Consistency
    temperature: float = 1.0
    stop_gradient: StopGradient = "clean"


@dataclass
class Meter:
    """Sums of what the micro-batches of one step measured; `take` reads them and starts anew."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Add to the sums by name."""
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def take(self) -> dict[str, float]:
        """The sums over all ranks, which must have added to the same names; the meter is empty afterwards."""
        found, self.sums = self.sums, {}
        if not found:
            return {}
        values = list(found.values())
        device = next((value.device for value in values if value.device.type != "cpu"), values[0].device)
        summed = over_ranks(torch.stack([value.to(device) for value in values]))
        return dict(zip(found, summed.tolist(), strict=True))


def step_loss(
    family: ModelFamily, weights: Weights, how: Attack | None, meter: Meter
) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss of one (micro-)batch made by `plan`: `loss(model, batch)`."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in PLAN}
        where, share = predicting_mask(batch["labels"]), shares(batch["counts"])
        read, given = whole_pass(model, family, inputs, where)
        sft = cross_entropies(read.logits, predicted(batch["labels"])).sum() / share[0]
        cons = twin_inconsistency(read, batch["clean_row"], where, weights)
        adv = sft.new_zeros(())
        if how is not None:
            for harmed in attacked_rows(model, family, read, given, batch, how, meter):
                adv = adv + harmed.harm
                cons = cons + harmed.inconsistency(weights)
        adv, cons = adv / share[1], cons / share[2]
        total = weights.task * sft + weights.adversarial * adv + weights.consistency * cons
        ranks = world()
        meter.add(loss=total / ranks, sft=sft / ranks, adv=adv / ranks, cons=cons / ranks)
        return total

    return loss


@dataclass(frozen=True)
class Harmed:
    """One attacked pass: the sum of its harm (divided by the number of passes), and its tokens beside their
    clean ones."""

    harm: Tensor
    clean: Read
    attacked: Read
    passes: int

    def inconsistency(self, weights: Weights) -> Tensor:
        """The sum over tokens, divided by the number of passes."""
        return _inconsistency(self.clean, self.attacked, weights) / self.passes


def attacked_rows(
    model: nn.Module,
    family: ModelFamily,
    read: Read,
    given: Given,
    batch: Batch,
    how: Attack,
    meter: Meter,
) -> Iterator[Harmed]:
    """Attack the rows that have anything to attack, as a batch of their own, and yield each pass that
    counts."""
    mask, where = batch["attackable"], predicting_mask(batch["labels"])
    rows = mask.any(-1).nonzero().squeeze(-1)
    if not len(rows):
        meter.add(**NO_NOISE)
        return
    tokens = predicted(batch["labels"][rows])
    unharmed = _at(read, tokens_of(rows, where))
    chosen = given.rows(rows)

    def forward(embeds: Tensor) -> Read:
        return decoder_pass(model, family, chosen, embeds, where[rows])

    def climbed(now: Read) -> Tensor:
        if how.kind == "smart":
            return symmetric_kl(unharmed.logits.detach(), now.logits).sum()
        return cross_entropies(now.logits, tokens).sum()

    found = attack(forward, climbed, chosen.embeds, mask[rows], batch["row_seeds"][rows].tolist(), how)
    meter.add(**realised(found, chosen.embeds, mask[rows]))
    clean = _at(read, tokens_of(batch["clean_row"][rows], where))
    for now in found.reads:
        if how.kind == "smart":
            harm = symmetric_kl(unharmed.logits, now.logits).sum()
        else:
            harm = cross_entropies(now.logits, tokens).sum()
        yield Harmed(harm / len(found.reads), clean, now, len(found.reads))


def realised(found: Attacked, embeds: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """Squares of the noise as the model got it, absolute and relative to token size, and how many elements
    they are."""
    got = ((embeds + found.delta) - embeds).detach().float()
    relative = got / token_scale(embeds).clamp_min(torch.finfo(torch.float32).tiny)
    return {
        "delta_squares": got[mask].square().sum(),
        "delta_relative_squares": relative[mask].square().sum(),
        "delta_elements": float(mask.sum() * embeds.shape[-1]),
        "skipped_gradients": float(found.skipped),
    }


def twin_inconsistency(read: Read, clean_row: Tensor, where: Tensor, weights: Weights) -> Tensor:
    """The sum over the tokens of all heuristic twins in a batch; 0 where there are none.

    `clean_row`  # (B,) holds, for a twin, the row of its clean version, and -1 for every other row. Twin and
    clean row share the answer, so their predicting positions pair up one to one.
    """
    twins = (clean_row >= 0).nonzero().squeeze(-1)
    clean = _at(read, tokens_of(clean_row[twins], where))
    return _inconsistency(clean, _at(read, tokens_of(twins, where)), weights)


def _inconsistency(clean: Read, twin: Read, weights: Weights) -> Tensor:
    if weights.kind == "none" or not len(twin.logits):
        return twin.logits.new_zeros((), dtype=torch.float32)
    sides = (clean.hidden, twin.hidden) if weights.kind == "mse" else (clean.logits, twin.logits)
    return inconsistencies(
        *sides, weights.kind, temperature=weights.temperature, stop_gradient=weights.stop_gradient
    ).sum()


def _at(read: Read, places: Tensor) -> Read:
    return Read(read.hidden[places], read.logits[places])


def shares(whole: Tensor) -> Tensor:
    """What a rank's sums are divided by, so that the mean over ranks, which DDP takes, is a mean over
    tokens."""
    return (over_ranks(whole) / world()).clamp_min(torch.finfo(torch.float32).tiny)


def log_line(sums: Mapping[str, float]) -> dict[str, float]:
    """A step's figures for log and progress bar: the parts of the loss, and the size of the noise."""
    line = {name: sums[name] for name in ("loss", "sft", "adv", "cons") if name in sums}
    if elements := sums.get("delta_elements"):
        line["delta_rms"] = (sums["delta_squares"] / elements) ** 0.5
        line["delta_relative"] = (sums["delta_relative_squares"] / elements) ** 0.5
        line["skipped_gradients"] = sums["skipped_gradients"]
    return line


def twin_loss(recipe: TuneRecipe, meter: Meter | None = None) -> Callable[[nn.Module, Batch], Tensor]:
    """The whole method's loss of one batch, by the recipe's weights and attack."""
    weights = weights_of(recipe)
    measured = Meter() if meter is None else meter

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        family = family_of(bare(model).config.model_type)
        return step_loss(family, weights, attack_of(recipe), measured)(model, batch)

    return loss


def weights_of(recipe: TuneRecipe) -> Weights:
    """What the recipe lets the terms of the loss weigh."""
    return Weights(
        task=recipe.task_weight,
        adversarial=recipe.attack.weight if recipe.attack else 0.0,
        consistency=recipe.consistency_weight,
        kind=recipe.consistency,
        temperature=recipe.temperature,
        stop_gradient=recipe.stop_gradient,
    )


def attack_of(recipe: TuneRecipe) -> Attack | None:
    """The recipe's attack, if it has one."""
    section = recipe.attack
    if section is None:
        return None
    return Attack(
        kind=section.kind,
        step=section.step or "raw",
        epsilon=section.epsilon,
        relative=section.relative,
        alpha=section.alpha or 0.0,
        steps=section.steps,
    )
