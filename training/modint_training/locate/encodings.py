"""How the decoder encodes picture and caption, by layer: hidden states, and keys before rotary embedding.

Overlap is read in prompts that hold both modalities. Consistency is read on pairs: the same fact shown by a
picture, and told by a caption beside a grey one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modint_guard.data.perturb import seeded
from modint_guard.types import JSON
from modint_training.data.collate import Encoded
from modint_training.locate.overlap import (
    DIRECTIONS,
    States,
    a_distance,
    cka,
    cosines,
    median_widths,
    mmd,
    shuffled_cka,
    subspace_overlap,
    without_massive,
)
from modint_training.locate.subject import Run, Subject, last_logits, run_of
from modint_training.locate.twins import CONTEXT, IMAGE, Twins, in_batches

Space = Literal["hidden", "key"]
SPACES: tuple[Space, ...] = get_args(Space)
Place = tuple[Space, int]  # and the layer
TOKENS = 8  # of each modality that are drawn from a prompt
LEAST, MOST = 8, 100  # prompts that figures are made of


@dataclass(frozen=True)
class Sample:
    """States of one modality of one prompt: those of some tokens  # (t, D), and the mean of all  # (D,)."""

    tokens: NDArray[np.float32]
    mean: NDArray[np.float32]


@contextmanager
def _watched(subject: Subject, keep: Callable[[Place, Tensor], None]) -> Iterator[None]:
    def hook(place: Place) -> Callable[..., None]:
        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            keep(place, output[0] if isinstance(output, tuple) else output)

        return on_output

    with ExitStack() as hooks:
        for number, layer in enumerate(subject.layers):
            modules = {"hidden": layer, "key": layer.self_attn.k_proj}
            for space in SPACES:
                hooks.callback(modules[space].register_forward_hook(hook((space, number))).remove)
        yield


def samples(
    subject: Subject, rows: Sequence[Encoded], names: Sequence[str], group: int
) -> dict[Place, list[Sample]]:
    """The states of one token group in each prompt; `names` seed which tokens are drawn."""
    found: dict[Place, list[Sample | None]] = {}
    for chosen in in_batches([len(row.ids) for row in rows]):
        run = run_of(subject, [rows[index] for index in chosen])
        picked = [_picked(run, place, names[index], group) for place, index in enumerate(chosen)]

        def keep(
            place: Place, states: Tensor, chosen: list[int] = chosen, run: Run = run, picked: Any = picked
        ) -> None:
            kept = found.setdefault(place, [None] * len(rows))
            for row, index in enumerate(chosen):
                every = states[row][run.mask(group)[row]].float().cpu().numpy()
                kept[index] = Sample(every[picked[row]], every.mean(axis=0))

        with torch.no_grad(), _watched(subject, keep):
            last_logits(subject, run)
    return {place: [each for each in kept if each is not None] for place, kept in found.items()}


def _picked(run: Run, row: int, name: str, group: int) -> list[int]:
    count = int(run.mask(group)[row].sum())
    return sorted(seeded("tokens", name, group).sample(range(count), min(TOKENS, count)))


def overlaps(subject: Subject, twins: Sequence[Twins]) -> list[JSON]:
    """Feature overlap of picture and caption in the lying prompts of image-heavy `twins`: a row
    for each layer and space; `cosine` is that of the two means in each prompt. Of the first MOST; no rows for
    fewer than LEAST."""
    if len(twins) < LEAST:
        return []
    rows, names = [each.lie for each in twins[:MOST]], [each.item.id for each in twins[:MOST]]
    image, text = (samples(subject, rows, names, group) for group in (IMAGE, CONTEXT))
    return [
        {**_named(place), "n": len(rows), **_overlap(image[place], text[place])} for place in sorted(image)
    ]


def _named(place: Place) -> JSON:
    return {"space": place[0], "layer": place[1]}


def _overlap(image: Sequence[Sample], text: Sequence[Sample]) -> JSON:
    (seen, seen_of), (read, read_of) = (_together(each) for each in (image, text))
    seen_plain, read_plain = without_massive(seen), without_massive(read)
    centred = seen_plain - seen_plain.mean(axis=0), read_plain - read_plain.mean(axis=0)
    return {
        "a_distance": a_distance(seen, read, seen_of, read_of),
        "mmd": mmd(seen_plain, read_plain, median_widths(seen_plain, read_plain)),
        "subspace": subspace_overlap(centred[0], centred[1], DIRECTIONS),
        "cosine": cosines(_means(image), _means(text)).tolist(),
    }


def _together(samples: Sequence[Sample]) -> tuple[States, list[int]]:
    numbers = [number for number, sample in enumerate(samples) for _ in sample.tokens]
    return np.concatenate([sample.tokens for sample in samples]).astype(np.float64), numbers


def consistencies(subject: Subject, twins: Sequence[Twins]) -> list[JSON]:
    """Cross-modal consistency: linear CKA between the mean state of a picture's tokens and that of the
    caption which states the same fact, over all items that have both; `shuffled` is what other pairs give. A
    row for each layer and space, of the first MOST; none for fewer than LEAST."""
    pairs = [(each, each.told) for each in twins if each.told is not None][:MOST]
    if len(pairs) < LEAST:
        return []
    names = [each.item.id for each, _ in pairs]
    image = samples(subject, [each.bare for each, _ in pairs], names, IMAGE)
    text = samples(subject, [told for _, told in pairs], names, CONTEXT)
    return [
        {**_named(place), "n": len(pairs), **_consistency(image[place], text[place])}
        for place in sorted(image)
    ]


def _means(samples: Sequence[Sample]) -> States:
    return np.stack([sample.mean for sample in samples]).astype(np.float64)


def _consistency(image: Sequence[Sample], text: Sequence[Sample]) -> JSON:
    means = [_means(each) for each in (image, text)]
    return {"cka": cka(*means), "shuffled": shuffled_cka(*means)}
