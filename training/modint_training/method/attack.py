"""Adversarial noise on input embeddings, inside a ball and under a mask.

Every attack here is the same few lines with another start, step and ball (arXiv 2505.19616, section 4.2:
delta_0 ~ U(-eps, eps); delta <- Pi_eps(delta + alpha * g), T times):

    pgd       uniform start, T steps up the cross-entropy; the last delta counts      (arXiv 1706.06083)
    freelb    uniform start, T normalised steps in a Frobenius ball; all T count      (arXiv 1909.11764)
    smart     normal start, T steps up the symmetric KL to the unattacked answer; that divergence counts
              in the place of the cross-entropy                                       (arXiv 1911.03437)
    gaussian  normal noise of size eps, no step: what noise alone does

It works on z with delta = unit * z: `unit` is 1 where epsilon is absolute, and each token's root mean square
where it is relative. The gradient is that of the sum over rows, so that a row's step does not shrink as the
batch grows. z is float32 whatever the model computes in. Parameters get no gradient here and their
`requires_grad` is not touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modint_training.method.passes import Read
from modint_training.recipe import AttackKind, StepKind


@dataclass(frozen=True)
class Attack:
    """Size and shape of the noise. `epsilon` and `alpha` are in units of embedding elements, or of each
    token's root mean square where `relative`."""

    kind: AttackKind
    step: StepKind
    epsilon: float
    relative: bool
    alpha: float
    steps: int


@dataclass(frozen=True)
class Attacked:
    """The passes whose losses count (they carry gradients to the parameters), the last delta, and how many
    rows' steps were left out because their gradient was not finite."""

    reads: tuple[Read, ...]
    delta: Tensor  # (R, L, D) float32, zero outside the mask
    skipped: int


def attack(
    forward: Callable[[Tensor], Read],
    harm: Callable[[Read], Tensor],
    embeds: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    how: Attack,
) -> Attacked:
    """Noise on `embeds`  # (R, L, D) where `mask`  # (R, L) bool, that raises `harm`, a sum over the rows.

    `forward` runs the decoder on embeddings. Each row's start is drawn from its own seed and its own masked
    tokens, so that it is the same in any batch, on any rank, in a resumed run.
    """
    unit = token_scale(embeds) if how.relative else torch.ones_like(embeds[..., :1], dtype=torch.float32)
    constant = embeds.detach().float()
    z = start(mask, embeds.shape[-1], seeds, how)
    passes: list[Read] = []
    skipped = 0
    for _ in range(how.steps):
        z.requires_grad_()
        read = forward((embeds if how.kind == "freelb" else constant) + unit * z)
        (gradient,) = torch.autograd.grad(harm(read), z, retain_graph=how.kind == "freelb")
        passes.append(read)
        z, left_out = climb(z.detach(), gradient, mask, how)
        skipped += left_out
    delta = unit * z
    reads = tuple(passes) if how.kind == "freelb" else (forward(embeds + delta),)
    return Attacked(reads, delta, skipped)


def token_scale(embeds: Tensor) -> Tensor:
    """The root mean square of each token's embedding, a constant  # (R, L, D) -> (R, L, 1), float32."""
    return embeds.detach().float().square().mean(-1, keepdim=True).sqrt()


def start(mask: Tensor, width: int, seeds: Sequence[int], how: Attack) -> Tensor:
    """The first z of each row, zero outside its mask  # (R, L, width).

    Drawn where the mask lies: a picture in a model of seven billion takes millions of numbers. A GPU's are
    its own, the same in every run.
    """
    z = torch.zeros(*mask.shape, width, device=mask.device)
    for row, seed in enumerate(seeds):
        generator = torch.Generator(mask.device).manual_seed(seed)
        shape = (int(mask[row].sum()), width)
        if how.kind in ("pgd", "freelb"):
            drawn = (2 * torch.rand(shape, generator=generator, device=mask.device) - 1) * how.epsilon
        else:  # SMART starts close to the row itself, where its divergence is flat but not constant
            spread = how.epsilon if how.kind == "gaussian" else how.epsilon / 10
            drawn = torch.randn(shape, generator=generator, device=mask.device) * spread
        z[row, mask[row]] = drawn
    return project(z, mask, how)


def climb(z: Tensor, gradient: Tensor, mask: Tensor, how: Attack) -> tuple[Tensor, int]:
    """One step up and back into the ball; rows whose gradient is not finite stay where they are, and are
    counted."""
    finite = gradient.isfinite().all(-1).all(-1)  # (R,)
    held = mask.unsqueeze(-1) & finite.view(-1, 1, 1)
    gradient = torch.where(held, gradient, 0.0)
    if how.step == "sign":
        gradient = gradient.sign()
    elif how.step == "normalised":
        gradient = gradient / row_size(gradient, mask).clamp_min(torch.finfo(torch.float32).tiny)
    moved = project(z + how.alpha * gradient, mask, how)
    return torch.where(finite.view(-1, 1, 1), moved, z), int((~finite).sum())


def project(z: Tensor, mask: Tensor, how: Attack) -> Tensor:
    """The nearest point of the ball: elements within epsilon, for FreeLB a row's root mean square within
    it."""
    if how.kind != "freelb":
        return z.clamp(-how.epsilon, how.epsilon)
    return z * (how.epsilon / row_size(z, mask).clamp_min(how.epsilon))


def row_size(values: Tensor, mask: Tensor) -> Tensor:
    """The root mean square of each row over its masked tokens  # (R, L, D), (R, L) -> (R, 1, 1)."""
    count = (mask.sum(-1) * values.shape[-1]).clamp_min(1).view(-1, 1, 1)
    inside = torch.where(mask.unsqueeze(-1), values, 0.0)
    # Scaled first: the squares of very small or large gradients would leave the range of float32.
    largest = inside.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return largest * ((inside / largest).square().sum((1, 2), keepdim=True) / count).sqrt()
