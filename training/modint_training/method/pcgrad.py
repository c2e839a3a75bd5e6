"""PCGrad (arXiv 2001.06782): the terms of a loss no longer undo each other.

Where the gradients of two terms point in opposite directions (a negative inner product), each loses its
projection on the other before they are added up:

    g_i <- g_i - (g_i . g_j) / |g_j|^2 * g_j      for every j != i, in random order, if g_i . g_j < 0

with g_j as it was. Only the direction of g_j counts, so that the terms' weights mean what they meant before.
"""

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modint_training.method.conflict import cosine


def projected(gradients: Sequence[Tensor], rng: random.Random) -> list[Tensor]:
    """Each gradient  # (P,) without what conflicts with the others; `rng` draws the order of these."""
    results = []
    for place, gradient in enumerate(gradients):
        others = [other for number, other in enumerate(gradients) if number != place]
        for other in rng.sample(others, len(others)):
            product = gradient @ other
            if product < 0:
                gradient = gradient - product / (other @ other) * other
        results.append(gradient)
    return results


def cosines(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The cosine of each pair of gradients, by the names of both; 0 if one of them is 0."""
    names = list(gradients)
    return {
        f"{first}_{second}": cosine(gradients[first], gradients[second]) or 0.0
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    }


def gradients_of(model: nn.Module, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each term with respect to all trainable parameters  # (P,) float32, on the graph that
    they share and that stays."""
    parameters = _trained(model)
    return {
        name: _flat(torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True))
        for name, term in terms.items()
        if term.requires_grad
    }


def with_gradient(value: Tensor, model: nn.Module, gradient: Tensor) -> Tensor:
    """A loss of this value whose gradient with respect to the trainable parameters is `gradient`  # (P,)."""
    parameters = _trained(model)
    parts = gradient.split([parameter.numel() for parameter in parameters])
    slope = torch.stack(
        [
            (parameter.flatten().float() * part).sum()
            for parameter, part in zip(parameters, parts, strict=True)
        ]
    ).sum()
    return value.detach() + (slope - slope.detach())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().float() for gradient in gradients])
