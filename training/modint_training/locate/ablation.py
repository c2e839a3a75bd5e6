"""Heads ablated: what they write is replaced by its mean over truthful prompts, at every position.

Each head is ablated alone first. The best, by what that does beside a lie and without it, are then ablated
together, on other items.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from modint_guard.data.perturb import seeded
from modint_training.locate.scoring import Given, Prepared, answers_to
from modint_training.locate.subject import Run, Site, Subject, last_logits, recorded_states, replaced, run_of
from modint_training.locate.twins import GROUPS, Twins, in_batches

Head = tuple[int, int]  # layer and number
SCREENED = 48  # twins of a family on which every head is ablated alone
MOST, FEW = 0.2, 8  # the largest share of the heads that is ablated; up to so many every number is
ANCHOR = 0.05  # of the heads: about what ablates most flips in arXiv 2606.28273
DRAWS = 3  # of random heads, to compare with


def counts_ablated(heads: int) -> list[int]:
    """How many heads are ablated, for a curve: each number up to a fifth of few, or powers of two up to a
    fifth of many, that fifth, and 5 %."""
    most = max(1, int(heads * MOST))
    if most <= FEW:
        return list(range(most + 1))
    powers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return sorted({0, *powers, max(1, round(heads * ANCHOR)), most})


def random_heads(subject: Subject, count: int, draw: int) -> list[Head]:
    """So many heads, drawn at random."""
    every = [(layer, head) for layer in range(len(subject.layers)) for head in range(subject.heads)]
    return seeded("heads", draw).sample(every, count)


@torch.no_grad()
def head_means(subject: Subject, twins: Sequence[Twins]) -> Tensor:
    """What the heads of each layer write for each token group, on average over the truthful prompts
    # (layers, groups, D); 0 for a group without tokens."""
    sums: Tensor | None = None
    counts = torch.zeros(len(GROUPS), device=subject.device)
    for chosen in in_batches([len(each.clean.ids) for each in twins]):
        run = run_of(subject, [twins[index].clean for index in chosen])
        with recorded_states(subject) as states:
            last_logits(subject, run)
        member = F.one_hot(run.groups + 1, len(GROUPS) + 1)[..., 1:].float()  # (R, L, G)
        by_layer = [states["head", layer].float() for layer in range(len(subject.layers))]
        added = torch.stack([torch.einsum("rlg,rld->gd", member, state) for state in by_layer])
        sums = added if sums is None else sums + added
        counts += member.sum((0, 1))
    assert sums is not None  # there are twins
    return sums / counts.clamp_min(1.0)[:, None]


@contextmanager
def ablated(subject: Subject, heads: Sequence[Head], means: Tensor, run: Run) -> Iterator[None]:
    """In the block, these heads write their means  # as `head_means`."""
    everywhere = run.groups >= 0
    with ExitStack() as hooks:
        for layer, head in heads:
            values = means[layer][run.groups.clamp_min(0)]  # (R, L, D)
            hooks.enter_context(replaced(subject, Site("head", layer, "", head), values, everywhere))
        yield


def answers_without(
    subject: Subject, heads: Sequence[Head], means: Tensor, prompts: Prepared
) -> dict[str, Given]:
    """The answers to prompts with these heads ablated, by name."""
    return answers_to(subject, prompts, lambda run: ablated(subject, heads, means, run))


def vulnerability(lie: Sequence[float], bare: Sequence[float]) -> float:
    """How much a head does harm: by how much the gap rises beside a lie if it is ablated, less what the gap
    loses without the lie; means, in nats, over rises of each twin."""
    losses = [max(0.0, -rise) for rise in bare]
    return sum(lie) / len(lie) - sum(losses) / len(losses)
