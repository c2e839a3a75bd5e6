"""How much of the right answer returns if a site of the lying run is given the states of its clean twin.

Attribution patching estimates that for all sites at once, by the gradient of the lying run (arXiv
2310.10348); exact patching runs the model once for each site.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modint_training.locate.subject import (
    Run,
    Site,
    States,
    Subject,
    gaps,
    last_logits,
    recorded_states,
    replaced,
)
from modint_training.locate.twins import GROUPS, Twins

MIN_GAP = 1.0  # nats: twins that the lie moves by less are left out, since their recovery divides by that


def recovery(lie: float, patched: float, clean: float) -> float:
    """The share of the way back from the lying run to the clean one that a patch goes: 0 for nothing, 1 for
    all of it. The three are log p(true) - log p(lie); ZeroDivisionError if the lie moved nothing."""
    return (patched - lie) / (clean - lie)


def is_moved(lie: float, clean: float) -> bool:
    """Whether the lie moves the answer far enough for its recovery to be read."""
    return clean - lie >= MIN_GAP


def attributions(subject: Subject, clean: Run, lie: Run, twins: Sequence[Twins]) -> Tensor:
    """By how much log p(true) - log p(lie) would rise, to first order, if each site of the lying run had the
    states of its clean twin  # (R, sites) float32, in the order of `Subject.sites`."""
    with torch.no_grad(), recorded_states(subject) as truthful:
        last_logits(subject, clean)
    embeds = lie.inputs.embeds.detach().requires_grad_()
    with torch.enable_grad(), recorded_states(subject) as lying:
        gap = gaps(last_logits(subject, lie, embeds), twins)
        gradients = torch.autograd.grad(gap.sum(), list(lying.values()))
    return _by_site(subject, truthful, lying, gradients, lie.groups)


def _by_site(
    subject: Subject, truthful: States, lying: States, gradients: Sequence[Tensor], groups: Tensor
) -> Tensor:
    member = F.one_hot(groups + 1, len(GROUPS) + 1)[..., 1:].float()  # (R, L, G)
    by_place = {}
    for (place, state), gradient in zip(lying.items(), gradients, strict=True):
        product = ((truthful[place] - state).detach().float() * gradient.float()).unflatten(
            -1, (subject.heads, -1) if place[0] == "head" else (1, -1)
        )  # (R, L, H, D)
        by_place[place] = torch.einsum("rlh,rlg->rhg", product.sum(-1), member)
    columns = [
        by_place[site.kind, site.layer][:, site.head or 0, GROUPS.index(site.group)]
        for site in subject.sites()
    ]
    return torch.stack(columns, dim=1)


@torch.no_grad()
def exact_gaps(
    subject: Subject, clean: Run, lie: Run, twins: Sequence[Twins], sites: Sequence[Site]
) -> dict[str, list[float]]:
    """log p(true) - log p(lie) of each lying row, with one site at a time as in its clean twin; by the site's
    key."""
    with recorded_states(subject) as truthful:
        last_logits(subject, clean)
    return {site.key: _patched(subject, truthful, lie, twins, site) for site in sites}


def _patched(subject: Subject, truthful: States, lie: Run, twins: Sequence[Twins], site: Site) -> list[float]:
    mask = lie.mask(GROUPS.index(site.group))
    with replaced(subject, site, truthful[site.kind, site.layer], mask):
        return gaps(last_logits(subject, lie), twins).tolist()


def top_sites(sites: Sequence[Site], means: Mapping[str, float], count: int) -> list[Site]:
    """The `count` sites of each kind with the largest estimates, in size; `means` are by the site's key."""
    ranked = sorted(sites, key=lambda site: -abs(means[site.key]))
    kinds = dict.fromkeys(site.kind for site in sites)
    return [site for kind in kinds for site in [each for each in ranked if each.kind == kind][:count]]
