"""The method of arXiv 2505.19616 as the loss of one step: L = L_sft + L_adv + lambda * L_cons.

Every term is a mean over the tokens of the whole batch: of all its micro-batches, on all ranks. Each
micro-batch therefore contributes a sum over its own tokens, divided by the counts of the whole batch, which
it carries with it.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modint_training.method.attack import Attack, AttackResult, run_attack, token_scale
from modint_training.method.batch import Batch
from modint_training.method.families import ModelFamily, family_of
from modint_training.method.losses import cross_entropies, inconsistencies, symmetric_kl
from modint_training.method.masks import answer_tokens, flat_indices, predicting_mask
from modint_training.method.passes import DecoderInputs, Outputs, decoder_pass, unwrap, whole_pass
from modint_training.method.pcgrad import cosines, gradients_of, projected, with_gradient
from modint_training.method.ranks import joined_processes, sum_over_ranks
from modint_training.recipe import Balance, StopGradient, TuneRecipe

NO_NOISE = dict.fromkeys(
    ("delta_squares", "delta_relative_squares", "delta_elements", "skipped_gradients"), 0.0
)


@dataclass(frozen=True)
class LossWeights:
    """The weights of the loss's terms, the kind of consistency, and how the terms' gradients are added up."""

    task: float
    adversarial: float
    consistency: float
    kind: str  # recipe.Consistency
    temperature: float = 1.0
    stop_gradient: StopGradient = "clean"
    balance: Balance = "sum"


@dataclass
class StepMeter:
    """Sums of what the micro-batches of one step measured; `take` reads them and starts again from 0."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Add to the sums by name."""
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def take(self) -> dict[str, float]:
        """The sums over all ranks, which must have added to the same names; empties the meter."""
        sums, self.sums = self.sums, {}
        if not sums:
            return {}
        values = list(sums.values())
        device = next((value.device for value in values if value.device.type != "cpu"), values[0].device)
        totals = sum_over_ranks(torch.stack([value.to(device) for value in values]))
        return dict(zip(sums, totals.tolist(), strict=True))


def step_loss(
    family: ModelFamily, weights: LossWeights, attack: Attack | None, meter: StepMeter
) -> Callable[[nn.Module, Batch], Tensor]:
    """The method's loss of one (micro-)batch, as a function of model and batch; `meter` adds up its terms."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        predicting, per_count = predicting_mask(batch.labels), denominators(batch.counts)
        outputs, decoder_inputs = whole_pass(model, family, batch.inputs, predicting)
        sft = cross_entropies(outputs.logits, answer_tokens(batch.labels)).sum() / per_count[0]
        cons = twin_inconsistency(outputs, batch.clean_row, predicting, weights)
        adv = sft.new_zeros(())
        if attack is not None:
            for attacked in attacked_passes(model, family, outputs, decoder_inputs, batch, attack, meter):
                adv = adv + attacked.objective
                cons = cons + attacked.inconsistency(weights)
        adv, cons = adv / per_count[1], cons / per_count[2]
        terms = {
            "sft": weights.task * sft,
            "adv": weights.adversarial * adv,
            "cons": weights.consistency * cons,
        }
        total = terms["sft"] + terms["adv"] + terms["cons"]
        if weights.balance == "pcgrad":
            total = without_conflict(model, terms, total, int(batch.row_seeds[0]), meter)
        ranks = joined_processes()
        meter.add(loss=total / ranks, sft=sft / ranks, adv=adv / ranks, cons=cons / ranks)
        return total

    return loss


def without_conflict(
    model: nn.Module, terms: Mapping[str, Tensor], total: Tensor, seed: int, meter: StepMeter
) -> Tensor:
    """The loss `total` with the gradient of PCGrad between its terms; the meter gets the terms' cosines."""
    gradients = gradients_of(model, terms)
    meter.add(**{f"cos_{pair}": value for pair, value in cosines(gradients).items()})
    kept = projected(list(gradients.values()), random.Random(seed))
    return with_gradient(total, model, torch.stack(kept).sum(0))


@dataclass(frozen=True)
class AttackedPass:
    """One pass under attack: the sum of its adversarial loss (divided by the number of passes), and the
    outputs of its tokens beside those of their clean rows."""

    objective: Tensor
    clean: Outputs
    attacked: Outputs
    passes: int

    def inconsistency(self, weights: LossWeights) -> Tensor:
        """The sum over tokens, divided by the number of passes."""
        return _inconsistency(self.clean, self.attacked, weights) / self.passes


def attacked_passes(
    model: nn.Module,
    family: ModelFamily,
    outputs: Outputs,
    decoder_inputs: DecoderInputs,
    batch: Batch,
    attack: Attack,
    meter: StepMeter,
) -> Iterator[AttackedPass]:
    """Attack the rows that have attackable positions, as a batch of their own; yields each pass that
    counts."""
    predicting = predicting_mask(batch.labels)
    rows = batch.attackable.any(-1).nonzero().squeeze(-1)
    if not len(rows):
        meter.add(**NO_NOISE)
        return
    mask, tokens = batch.attackable[rows], answer_tokens(batch.labels[rows])
    unattacked = _at(outputs, flat_indices(rows, predicting))
    chosen = decoder_inputs.rows(rows)

    def forward(embeds: Tensor) -> Outputs:
        return decoder_pass(model, family, chosen, embeds, predicting[rows])

    def objective(attacked: Outputs, unattacked_logits: Tensor) -> Tensor:
        if attack.kind == "smart":
            return symmetric_kl(unattacked_logits, attacked.logits).sum()
        return cross_entropies(attacked.logits, tokens).sum()

    def ascended(attacked: Outputs) -> Tensor:
        return objective(attacked, unattacked.logits.detach())

    result = run_attack(forward, ascended, chosen.embeds, mask, batch.row_seeds[rows].tolist(), attack)
    meter.add(**noise_sums(result, chosen.embeds, mask))
    clean = _at(outputs, flat_indices(_unperturbed(batch)[rows], predicting))
    for attacked in result.passes:
        share = objective(attacked, unattacked.logits) / len(result.passes)
        yield AttackedPass(share, clean, attacked, len(result.passes))


def _unperturbed(batch: Batch) -> Tensor:
    """For each row its clean version; for a row that is no twin itself  # (B,)."""
    every = torch.arange(len(batch.clean_row), device=batch.clean_row.device)
    return torch.where(batch.clean_row >= 0, batch.clean_row, every)


def noise_sums(result: AttackResult, embeds: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """The squares of the noise as the model received it, absolute and relative to the size of each token, and
    how many elements they are summed over."""
    received = ((embeds + result.delta) - embeds).detach().float()
    relative = received / token_scale(embeds).clamp_min(torch.finfo(torch.float32).tiny)
    return {
        "delta_squares": received[mask].square().sum(),
        "delta_relative_squares": relative[mask].square().sum(),
        "delta_elements": float(mask.sum() * embeds.shape[-1]),
        "skipped_gradients": float(result.skipped),
    }


def twin_inconsistency(
    outputs: Outputs, clean_row: Tensor, predicting: Tensor, weights: LossWeights
) -> Tensor:
    """The sum over the tokens of all heuristic twins in a batch; 0 if there are none.

    `clean_row`  # (B,) is that of `Batch`, `predicting`  # (B, L) bool. A twin and its clean row share the
    answer, so their predicting positions pair up one to one.
    """
    twins = (clean_row >= 0).nonzero().squeeze(-1)
    clean = _at(outputs, flat_indices(clean_row[twins], predicting))
    return _inconsistency(clean, _at(outputs, flat_indices(twins, predicting)), weights)


def _inconsistency(clean: Outputs, twin: Outputs, weights: LossWeights) -> Tensor:
    if weights.kind == "none" or not len(twin.logits):
        return twin.logits.new_zeros((), dtype=torch.float32)
    sides = (clean.hidden, twin.hidden) if weights.kind == "mse" else (clean.logits, twin.logits)
    return inconsistencies(
        *sides, weights.kind, temperature=weights.temperature, stop_gradient=weights.stop_gradient
    ).sum()


def _at(outputs: Outputs, index: Tensor) -> Outputs:
    return Outputs(outputs.hidden[index], outputs.logits[index])


def denominators(counts: Tensor) -> Tensor:
    """What a rank divides its sums by, so that the mean over ranks, which DDP takes, is a mean over tokens
    # (3,) -> (3,)."""
    return (sum_over_ranks(counts) / joined_processes()).clamp_min(torch.finfo(torch.float32).tiny)


def log_line(sums: Mapping[str, float]) -> dict[str, float]:
    """A step's figures for log and progress bar: the terms of the loss, the cosines of their gradients if
    these are balanced, and the size of the noise."""
    line = {name: sums[name] for name in ("loss", "sft", "adv", "cons") if name in sums}
    line |= {name: value for name, value in sums.items() if name.startswith("cos_")}
    if elements := sums.get("delta_elements"):
        line["delta_rms"] = (sums["delta_squares"] / elements) ** 0.5
        line["delta_relative"] = (sums["delta_relative_squares"] / elements) ** 0.5
        line["skipped_gradients"] = sums["skipped_gradients"]
    return line


def twin_loss(recipe: TuneRecipe, meter: StepMeter | None = None) -> Callable[[nn.Module, Batch], Tensor]:
    """The whole method's loss of one batch, with the weights and the attack of the recipe."""
    weights = weights_of(recipe)
    step_meter = StepMeter() if meter is None else meter

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        family = family_of(unwrap(model).config.model_type)
        return step_loss(family, weights, attack_of(recipe), step_meter)(model, batch)

    return loss


def weights_of(recipe: TuneRecipe) -> LossWeights:
    """The weights of the loss's terms by the recipe."""
    return LossWeights(
        task=recipe.task_weight,
        adversarial=recipe.attack.weight if recipe.attack else 0.0,
        consistency=recipe.consistency_weight,
        kind=recipe.consistency,
        temperature=recipe.temperature,
        stop_gradient=recipe.stop_gradient,
        balance=recipe.balance,
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
