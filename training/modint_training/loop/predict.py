"""What a local model answers to items: the distribution of the first token, in batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from modint_guard.data.item import Item, is_right, reply_for
from modint_guard.data.perturb import REGISTRY, clean_view, perturb
from modint_guard.evaluation.effects import Answered
from modint_guard.judging.divergence import Distribution
from modint_training.data.collate import collate, encode, on_device
from modint_training.data.twins import fits
from modint_training.loop.validation import batches
from modint_training.method.batch import Inputs
from modint_training.method.families import family_of
from modint_training.method.passes import hooked, unwrap

BASELINE_ITEMS = 200  # of each family in an adapter's flip baseline


@dataclass(frozen=True)
class PromptBatch:
    """Some items of similar length as the model's inputs: their indices, and for each the position that
    predicts its first answer token."""

    indices: list[int]
    inputs: Inputs
    positions: Tensor  # (R,) int64


@dataclass(frozen=True)
class Prepared:
    """Items encoded in batches, so that several models can answer them."""

    items: Sequence[Item]
    batches: Sequence[PromptBatch]


def prepare(items: Sequence[Item], processor: Any) -> Prepared:
    """Encode items once."""
    return Prepared(items, list(_prompt_batches(items, processor)))


def _prompt_batches(items: Sequence[Item], processor: Any) -> Iterator[PromptBatch]:
    rows = [encode(item, processor) for item in items]
    for indices in batches(rows):
        inputs = collate([rows[index] for index in indices], processor).inputs
        positions = [len(rows[index].ids) - rows[index].answer_length - 1 for index in indices]
        yield PromptBatch(indices, inputs, torch.tensor(positions))


@torch.no_grad()
def _logits(model: nn.Module, prompts: Iterable[PromptBatch]) -> Tensor:
    """Logits of the position that predicts the first answer token  # (N, V) float32.

    Of that position alone: a head makes 150,000 logits for each, and a row with a picture has a thousand.
    """
    training = model.training
    model.eval()
    core = unwrap(model)
    head = core.get_submodule(family_of(core.config.model_type).head)
    device = next(model.parameters()).device
    order: list[int] = []
    logits: list[Tensor] = []
    for batch in prompts:
        positions = batch.positions.to(device)

        def reduce(module: nn.Module, args: tuple[Any, ...], positions: Tensor = positions) -> tuple[Tensor]:
            return (args[0][torch.arange(len(positions), device=positions.device), positions],)

        with hooked(head, reduce):
            outputs = model(**on_device(batch.inputs, device), use_cache=False)
        logits.append(outputs.logits.float().cpu())  # (R, V)
        order += batch.indices
    model.train(training)
    return torch.cat(logits)[torch.tensor(order).argsort()]


def first_logits(model: nn.Module, processor: Any, items: Sequence[Item]) -> Tensor:
    """Logits of the position that predicts the first answer token  # (N, V) float32."""
    return _logits(model, _prompt_batches(items, processor))


def first_answers(model: nn.Module, processor: Any, prepared: Prepared) -> list[Answered]:
    """The greedy first token of each answer, and the probabilities of the options, renormalised over them."""
    logits = _logits(model, prepared.batches)
    texts = [processor.tokenizer.decode([int(token)]) for token in logits.argmax(-1)]
    return [
        Answered(item, text, option_probabilities(item, row, processor))
        for item, text, row in zip(prepared.items, texts, logits, strict=True)
    ]


def option_probabilities(item: Item, logits: Tensor, processor: Any) -> Distribution | None:
    """The probabilities of the choices by their first tokens  # (V,) -> by choice; None if two choices begin
    with the same token."""
    tokens = [
        processor.tokenizer(reply_for(item, choice), add_special_tokens=False).input_ids[0]
        for choice in item.choices
    ]
    if not tokens or len(set(tokens)) < len(tokens):
        return None
    return dict(zip(item.choices, logits[tokens].softmax(-1).tolist(), strict=True))


def first_words(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[str]:
    """The greedy first token of each answer, as text; every TinyWorld answer is one token."""
    return [
        processor.tokenizer.decode([int(token)]) for token in first_logits(model, processor, items).argmax(-1)
    ]


def right_first_words(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[bool]:
    """For each item, whether the greedy first token is the right answer."""
    return [
        is_right(item, text) for item, text in zip(items, first_words(model, processor, items), strict=True)
    ]


class FlipBaseline(TypedDict):
    """Shares of flipped answers in [0, 1], as `run.json` records them: over all `n` answers, and by
    perturbation."""

    flip_ratio: float
    n: int
    by_perturbation: dict[str, float]


def flip_baseline(model: nn.Module, processor: Any, items: Sequence[Item]) -> FlipBaseline | None:
    """How often the greedy first token of perturbed items differs from that of the same items without what
    must not matter: without the caption of image-heavy items, and with a grey picture of the same size for
    the picture of text-heavy ones.

    Measured under each registered perturbation that fits an item, and over all of these together; None if no
    item can be perturbed.
    """
    kinds = [name for name in REGISTRY if name not in ("no_image", "grey")]  # these have nothing to take away
    by_kind = {name: fitting for name in kinds if (fitting := [item for item in items if fits(item, name)])}
    if not by_kind:
        return None
    neutral = dict(_words_by_id(model, processor, [_neutral_view(item) for item in items]))
    flips = {
        name: [
            text != neutral[item_id]
            for item_id, text in _words_by_id(model, processor, [perturb(item, name) for item in fitting])
        ]
        for name, fitting in by_kind.items()
    }
    every = [flip for of_kind in flips.values() for flip in of_kind]
    return {
        "flip_ratio": sum(every) / len(every),
        "n": len(every),
        "by_perturbation": {name: sum(of_kind) / len(of_kind) for name, of_kind in flips.items()},
    }


def _neutral_view(item: Item) -> Item:
    """The clean view, but with a grey picture where it has none: as the gateway probes it."""
    return perturb(item, "grey") if item.family == "text-heavy" else clean_view(item)


def _words_by_id(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[tuple[str, str]]:
    return [(item.id, text) for item, text in zip(items, first_words(model, processor, items), strict=True)]
