"""Task and consistency losses, read at the positions that predict the answer, in float32 and nats.

Source: arXiv 2505.19616, section 4: L = L_sft + lambda * L_cons (the adversarial term is a later recipe's).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from modint_training.masks import predicted, predicting_mask


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over answer tokens, end token included.

    `logits`  # (B, L, V), `labels`  # (B, L) with IGNORED outside the answer. Returns nats a token.
    """
    return F.cross_entropy(logits[predicting_mask(labels)].float(), predicted(labels))


def kl_divergence(clean: Tensor, twin: Tensor) -> Tensor:
    """KL(clean || twin) of each row, in nats; `clean` is a constant  # (N, V), (N, V) -> (N,)."""
    log_p, log_q = F.log_softmax(clean.detach().float(), -1), F.log_softmax(twin.float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def js_divergence(clean: Tensor, twin: Tensor) -> Tensor:
    """Jensen-Shannon divergence, in nats, at most ln 2; `clean` is a constant  # (N, V), (N, V) -> (N,)."""
    log_p, log_q = F.log_softmax(clean.detach().float(), -1), F.log_softmax(twin.float(), -1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    return 0.5 * ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1))


CONSISTENCY = {"kl": kl_divergence, "js": js_divergence}


def consistency_loss(logits: Tensor, labels: Tensor, clean_row: Tensor, kind: str) -> Tensor:
    """Mean divergence between each twin and its clean row over the tokens of the answer.

    `clean_row`  # (B,) holds, for a twin, the row of its clean version, and -1 for every other row. Twin and
    clean row share the answer, so their predicting positions pair up one to one. Zero where there are no
    twins.
    """
    twins = (clean_row >= 0).nonzero().squeeze(-1)
    if not len(twins):
        return logits.new_zeros((), dtype=torch.float32)
    mask, partner = predicting_mask(labels), clean_row[twins]
    return CONSISTENCY[kind](logits[partner][mask[partner]], logits[twins][mask[twins]]).mean()
