"""What a local model answers to items: the first token's distribution, in batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.data.item import Item, is_right, reply_for
from modint_guard.data.perturb import REGISTRY, perturb
from modint_guard.evaluation.effects import Answered
from modint_guard.judging.divergence import Distribution
from modint_training.data.collate import collate, encode
from modint_training.data.twins import fits
from modint_training.loop.validation import batches
from modint_training.method.families import family_of
from modint_training.method.passes import bare, hooked

BASELINE_ITEMS = 200  # of each family in an adapter's flip baseline


@dataclass(frozen=True)
class Rows:
    """Some items as the model's inputs, of like length: which ones, and for each the position that predicts
    its first answer token."""

    chosen: list[int]
    inputs: dict[str, Tensor]
    places: Tensor  # (R,)


@dataclass(frozen=True)
class Prepared:
    """Items as the model's inputs, in batches; several models may read them."""

    items: Sequence[Item]
    batches: Sequence[Rows]


def prepare(items: Sequence[Item], processor: Any) -> Prepared:
    """Encode items once."""
    return Prepared(items, list(_batches(items, processor)))


def _batches(items: Sequence[Item], processor: Any) -> Iterator[Rows]:
    rows = [encode(item, processor) for item in items]
    for chosen in batches(rows):
        inputs = collate([rows[index] for index in chosen], processor)
        del inputs["labels"]
        places = [len(rows[index].ids) - rows[index].answer_length - 1 for index in chosen]
        yield Rows(chosen, inputs, torch.tensor(places))


@torch.no_grad()
def _logits(model: nn.Module, made: Iterable[Rows]) -> Tensor:
    """Logits of the position that predicts the first answer token  # (N, V), float32.

    Of that position alone: a head makes 150,000 of each, and a row with a picture has a thousand positions.
    """
    training = model.training
    model.eval()
    core = bare(model)
    head = core.get_submodule(family_of(core.config.model_type).head)
    device = next(model.parameters()).device
    order: list[int] = []
    found: list[Tensor] = []
    for rows in made:
        places = rows.places.to(device)

        def cut(module: nn.Module, args: tuple[Any, ...], places: Tensor = places) -> tuple[Tensor]:
            return (args[0][torch.arange(len(places), device=places.device), places],)

        inputs = {name: value.to(device) for name, value in rows.inputs.items()}
        with hooked(head, cut):
            found.append(model(**inputs, use_cache=False).logits.float().cpu())  # (R, V)
        order += rows.chosen
    model.train(training)
    return torch.cat(found)[torch.tensor(order).argsort()]


def first_logits(model: nn.Module, processor: Any, items: Sequence[Item]) -> Tensor:
    """Logits of the position that predicts the first answer token  # (N, V), float32."""
    return _logits(model, _batches(items, processor))


def answered(model: nn.Module, processor: Any, prepared: Prepared) -> list[Answered]:
    """The greedy first token of each answer, and the probabilities of the options, renormalised over them."""
    logits = _logits(model, prepared.batches)
    texts = [processor.tokenizer.decode([int(token)]) for token in logits.argmax(-1)]
    return [
        Answered(item, text, options_of(item, row, processor))
        for item, text, row in zip(prepared.items, texts, logits, strict=True)
    ]


def options_of(item: Item, logits: Tensor, processor: Any) -> Distribution | None:
    """The choices' probabilities by their first tokens  # (V,); None where two choices begin alike."""
    tokens = [
        processor.tokenizer(reply_for(item, choice), add_special_tokens=False).input_ids[0]
        for choice in item.choices
    ]
    if not tokens or len(set(tokens)) < len(tokens):
        return None
    return dict(zip(item.choices, logits[tokens].softmax(-1).tolist(), strict=True))


def answers(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[str]:
    """The greedy first token of each answer, as text; every TinyWorld answer is one token."""
    return [
        processor.tokenizer.decode([int(token)]) for token in first_logits(model, processor, items).argmax(-1)
    ]


def right(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[bool]:
    """Which answers are right."""
    return [is_right(item, text) for item, text in zip(items, answers(model, processor, items), strict=True)]


def accuracy(model: nn.Module, processor: Any, items: Sequence[Item]) -> float:
    """Share of right answers in [0, 1]."""
    hits = right(model, processor, items)
    return sum(hits) / len(hits)


def flip_baseline(model: nn.Module, processor: Any, items: Sequence[Item]) -> dict[str, Any] | None:
    """How often the greedy first token changes when what must not matter is taken away: the caption of
    image-heavy items, the picture of text-heavy ones for a grey one of its size.

    Under each registered perturbation that fits an item, and over all of these together (`flip_ratio`, shares
    in [0, 1]); None where no item can be perturbed.
    """
    kinds = [name for name in REGISTRY if name not in ("no_image", "grey")]  # where nothing is to take away
    asked = {name: of_kind for name in kinds if (of_kind := [item for item in items if fits(item, name)])}
    if not asked:
        return None
    neutral = dict(_said(model, processor, [_without(item) for item in items]))
    flips = {
        name: [
            text != neutral[id_]
            for id_, text in _said(model, processor, [perturb(item, name) for item in of_kind])
        ]
        for name, of_kind in asked.items()
    }
    every = [flip for found in flips.values() for flip in found]
    return {
        "flip_ratio": sum(every) / len(every),
        "n": len(every),
        "by_perturbation": {name: sum(found) / len(found) for name, found in flips.items()},
    }


def _without(item: Item) -> Item:
    return perturb(item, "grey") if item.family == "text-heavy" else item.replace(context=None)


def _said(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[tuple[str, str]]:
    return [(item.id, text) for item, text in zip(items, answers(model, processor, items), strict=True)]
