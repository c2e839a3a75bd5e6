"""Adversarial noise on input embeddings, inside a ball and under a mask.

All attacks here are the same loop with another start, step and ball (arXiv 2505.19616, section 4.2:
delta_0 ~ U(-eps, eps); delta <- Pi_eps(delta + alpha * g), T times):

    pgd       uniform start, T ascent steps on the cross-entropy; the last delta counts   (arXiv 1706.06083)
    freelb    uniform start, T normalised steps in a Frobenius ball; all T count          (arXiv 1909.11764)
    smart     normal start, T ascent steps on the symmetric KL to the unattacked answer; that divergence
              counts instead of the cross-entropy                                         (arXiv 1911.03437)
    gaussian  normal noise of size eps, no step: the effect of noise alone

The loop works on z, where delta = unit * z: `unit` is 1 for an absolute epsilon, and each token's root mean
square for a relative one. The gradient is that of the sum over rows, so that a row's step does not shrink as
the batch grows. z is float32 whatever the model computes in. Parameters get no gradient from the ascent, and
their `requires_grad` is not touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modint_training.method.passes import Outputs
from modint_training.recipe import AttackKind, StepKind


@dataclass(frozen=True)
class Attack:
    """Kind and size of the noise. `epsilon` and `alpha` are in units of embedding elements or, if `relative`,
    of each token's root mean square."""

    kind: AttackKind
    step: StepKind
    epsilon: float
    relative: bool
    alpha: float
    steps: int


@dataclass(frozen=True)
class AttackResult:
    """The passes whose losses count (they carry gradients to the parameters), the last delta, and how many
    steps of rows were skipped because the gradient was not finite."""

    passes: tuple[Outputs, ...]
    delta: Tensor  # (R, L, D) float32, zero outside the mask
    skipped: int


def run_attack(
    forward: Callable[[Tensor], Outputs],
    objective: Callable[[Outputs], Tensor],
    embeds: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    attack: Attack,
) -> AttackResult:
    """Noise on `embeds`  # (R, L, D), at the positions in `mask`  # (R, L) bool, that raises `objective`, a
    sum over the rows.

    `forward` runs the decoder on embeddings. Each row's start is drawn from its own seed and its own masked
    tokens, so that it is the same in any batch, on any rank and in a resumed run.
    """
    unit = token_scale(embeds) if attack.relative else torch.ones_like(embeds[..., :1], dtype=torch.float32)
    constant = embeds.detach().float()
    z = start(mask, embeds.shape[-1], seeds, attack)
    passes: list[Outputs] = []
    skipped = 0
    for _ in range(attack.steps):
        z.requires_grad_()
        outputs = forward((embeds if attack.kind == "freelb" else constant) + unit * z)
        (gradient,) = torch.autograd.grad(objective(outputs), z, retain_graph=attack.kind == "freelb")
        passes.append(outputs)
        z, skipped_rows = ascend(z.detach(), gradient, mask, attack)
        skipped += skipped_rows
    delta = unit * z
    counted = tuple(passes) if attack.kind == "freelb" else (forward(embeds + delta),)
    return AttackResult(counted, delta, skipped)


def token_scale(embeds: Tensor) -> Tensor:
    """The root mean square of each token's embedding, as a constant  # (R, L, D) -> (R, L, 1) float32."""
    return embeds.detach().float().square().mean(-1, keepdim=True).sqrt()


def start(mask: Tensor, width: int, seeds: Sequence[int], attack: Attack) -> Tensor:
    """The first z of each row, zero outside its mask  # (R, L, width).

    Drawn on the device of the mask: a picture in a model of seven billion parameters takes millions of
    numbers. A GPU draws other numbers than a CPU, and the same ones in every run.
    """
    z = torch.zeros(*mask.shape, width, device=mask.device)
    for row, seed in enumerate(seeds):
        generator = torch.Generator(mask.device).manual_seed(seed)
        shape = (int(mask[row].sum()), width)
        if attack.kind in ("pgd", "freelb"):
            drawn = (2 * torch.rand(shape, generator=generator, device=mask.device) - 1) * attack.epsilon
        else:  # SMART starts close to the row itself, where its divergence is flat but not constant
            spread = attack.epsilon if attack.kind == "gaussian" else attack.epsilon / 10
            drawn = torch.randn(shape, generator=generator, device=mask.device) * spread
        z[row, mask[row]] = drawn
    return project(z, mask, attack)


def ascend(z: Tensor, gradient: Tensor, mask: Tensor, attack: Attack) -> tuple[Tensor, int]:
    """One step up the gradient and back into the ball. A row whose gradient is not finite keeps its z; the
    second value counts such rows."""
    finite = gradient.isfinite().all(-1).all(-1)  # (R,)
    usable = mask.unsqueeze(-1) & finite.view(-1, 1, 1)
    gradient = torch.where(usable, gradient, 0.0)
    if attack.step == "sign":
        gradient = gradient.sign()
    elif attack.step == "normalised":
        gradient = gradient / row_size(gradient, mask).clamp_min(torch.finfo(torch.float32).tiny)
    moved = project(z + attack.alpha * gradient, mask, attack)
    return torch.where(finite.view(-1, 1, 1), moved, z), int((~finite).sum())


def project(z: Tensor, mask: Tensor, attack: Attack) -> Tensor:
    """The nearest point of the ball: every element within epsilon; for FreeLB every row's root mean square
    within epsilon."""
    if attack.kind != "freelb":
        return z.clamp(-attack.epsilon, attack.epsilon)
    return z * (attack.epsilon / row_size(z, mask).clamp_min(attack.epsilon))


def row_size(values: Tensor, mask: Tensor) -> Tensor:
    """The root mean square of each row over its masked tokens  # (R, L, D), (R, L) -> (R, 1, 1)."""
    count = (mask.sum(-1) * values.shape[-1]).clamp_min(1).view(-1, 1, 1)
    inside = torch.where(mask.unsqueeze(-1), values, 0.0)
    # Scaled first: the squares of very small or very large gradients would leave the range of float32.
    largest = inside.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return largest * ((inside / largest).square().sum((1, 2), keepdim=True) / count).sqrt()
