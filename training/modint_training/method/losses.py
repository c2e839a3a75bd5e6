"""Task and consistency losses over answer tokens, in float32 and nats.

Source: arXiv 2505.19616, section 4: L = L_sft + L_adv + lambda * L_cons. Every function takes rows of the
positions that predict answer tokens (`masks.predicting_mask`) and gives one value a row: the sum over the
rows of a micro-batch, divided by the count over the whole batch (all micro-batches, all ranks), adds up to
the mean.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from modint_training.method.labels import UNKNOWN
from modint_training.recipe import StopGradient

Divergence = Callable[[Tensor, Tensor], Tensor]


def cross_entropies(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, in nats; 0 for an UNKNOWN one  # (N, V), (N,) -> (N,)."""
    return F.cross_entropy(logits.float(), tokens, reduction="none", ignore_index=UNKNOWN)


def kl_divergence(clean: Tensor, twin: Tensor) -> Tensor:
    """KL(clean || twin) of each row of logits, in nats  # (N, V), (N, V) -> (N,)."""
    log_p, log_q = F.log_softmax(clean.float(), -1), F.log_softmax(twin.float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(clean: Tensor, twin: Tensor) -> Tensor:
    """KL(twin || clean) of each row of logits, in nats: what the reference code of arXiv 2505.19616 computes
    # (N, V), (N, V) -> (N,)."""
    return kl_divergence(twin, clean)


def js_divergence(clean: Tensor, twin: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row of logits, in nats, at most ln 2  # (N, V), (N, V) -> (N,)."""
    log_p, log_q = F.log_softmax(clean.float(), -1), F.log_softmax(twin.float(), -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1))


def symmetric_kl(clean: Tensor, twin: Tensor) -> Tensor:
    """(KL(clean || twin) + KL(twin || clean)) / 2 of each row of logits, in nats  # (N, V), (N, V) ->
    (N,)."""
    return 0.5 * (kl_divergence(clean, twin) + kl_divergence(twin, clean))


def squared_distance(clean: Tensor, twin: Tensor) -> Tensor:
    """Mean squared difference of each row's hidden states  # (N, D), (N, D) -> (N,)."""
    return (clean.float() - twin.float()).square().mean(-1)


DIVERGENCES: dict[str, Divergence] = {
    "kl": kl_divergence,
    "reverse_kl": reverse_kl,
    "js": js_divergence,
    "symmetric_kl": symmetric_kl,
}


def inconsistencies(
    clean: Tensor, twin: Tensor, kind: str, *, temperature: float = 1.0, stop_gradient: StopGradient = "clean"
) -> Tensor:
    """How far each token of a twin is from the same token of its clean row: logits  # (N, V), (N, V) -> (N,);
    hidden states (N, D) if `kind` is "mse".

    Logits are divided by `temperature` first; the result is not multiplied by it again, so that JS stays
    within ln 2. With `stop_gradient="clean"` the clean side is a constant: the twin is pulled towards it, and
    not the other way round.
    """
    if stop_gradient == "clean":
        clean = clean.detach()
    if kind == "mse":
        return squared_distance(clean, twin)
    return DIVERGENCES[kind](clean.float() / temperature, twin.float() / temperature)
