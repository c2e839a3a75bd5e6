"""Several questions about one picture in one row: each sees the picture and itself, and no other question.

A picture and the words around it are half of a short question's tokens. Shared, they are computed once, and
the numbers are those of separate rows: positions start again behind the shared beginning, and attention is
masked. Short pages stand behind each other in one row, so that little of a batch is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modint_guard.data.item import Item
from modint_training.data.collate import Encoded, encode
from modint_training.method.families import clip_pixels
from modint_training.method.labels import IGNORED
from modint_training.picturebook.augment import SIZE

PAD = -1  # the page and segment of padding


@dataclass(frozen=True)
class Turn:
    """One question after the shared beginning, and the tokens of its answer, end token included."""

    question: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Page:
    """A shared beginning, in which the picture's tokens stand, and the turns that follow it."""

    beginning: Sequence[int]
    turns: Sequence[Turn]
    picture: Image.Image | None = None

    @property
    def length(self) -> int:
        return len(self.beginning) + sum(len(turn.question) + len(turn.answer) for turn in self.turns)


def pages_of(items: Sequence[Item], processor: Any) -> list[Page]:
    """The items as pages: those with the same picture, system text and earlier turns share one."""
    groups: dict[Any, list[Encoded]] = {}
    for item in items:
        groups.setdefault((id(item.image), item.system, item.turns), []).append(encode(item, processor))
    return [_page(rows) for rows in groups.values()]


def _page(rows: Sequence[Encoded]) -> Page:
    prompts = [row.ids[: len(row.ids) - row.answer_length] for row in rows]
    # The last token of a prompt predicts the answer, so it stays with its turn.
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    start = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    turns = [Turn(prompt[start:], row.ids[len(prompt) :]) for prompt, row in zip(prompts, rows, strict=True)]
    return Page(prompts[0][:start], turns, rows[0].image)


@dataclass(frozen=True)
class PageBatch:
    """Rows of one or more pages, padded at the end to L tokens."""

    input_ids: Tensor  # (B, L) int64
    position_ids: Tensor  # (B, L) int64: each turn's go on from the shared beginning's
    pages: Tensor  # (B, L) int64: which page of its row a token is on: 0, 1, ...; -1: padding
    segments: Tensor  # (B, L) int64: 0 in a shared beginning, then 1, 2, ... by turn of the row; -1: padding
    labels: Tensor  # (B, L) int64: IGNORED where a token is not of an answer
    pixels: Tensor  # (pictures, 3, 64, 64): the pages' pictures in order


def collate_pages(pages: Sequence[Page], processor: Any) -> PageBatch:
    """Pages in one batch, in rows no longer than the longest page; pixels as the processor makes them."""
    packed = rows_of_pages(pages)
    rows = [_row(row) for row in packed]
    length = max(len(columns[0]) for columns in rows)
    fills = (processor.tokenizer.pad_token_id, 0, PAD, PAD, IGNORED)
    padded = [
        torch.tensor([column + [fill] * (length - len(column)) for column in columns])
        for columns, fill in zip(zip(*rows, strict=True), fills, strict=True)
    ]
    pictures = [page.picture for row in packed for page in row if page.picture is not None]
    pixels = clip_pixels(pictures, processor) if pictures else torch.empty(0, 3, SIZE, SIZE)
    ids, positions, numbers, segments, labels = padded
    return PageBatch(ids, positions, numbers, segments, labels, pixels)


def rows_of_pages(pages: Sequence[Page]) -> list[list[Page]]:
    """The pages in rows no longer than the longest page: the longest first, each in the first row that has
    room for it."""
    longest = max(page.length for page in pages)
    rows: list[list[Page]] = []
    for page in sorted(pages, key=lambda page: page.length, reverse=True):
        with_room = (row for row in rows if sum(other.length for other in row) + page.length <= longest)
        row = next(with_room, None)
        if row is None:
            rows.append(row := [])
        row.append(page)
    return rows


def _row(pages: Sequence[Page]) -> tuple[list[int], ...]:
    """Token ids, positions, pages, segments and labels of a row."""
    ids: list[int] = []
    positions: list[int] = []
    numbers: list[int] = []
    segments: list[int] = []
    labels: list[int] = []
    turns = 0
    for number, page in enumerate(pages):
        start = len(page.beginning)
        ids += page.beginning
        positions += range(start)
        segments += [0] * start
        labels += [IGNORED] * start
        for turn in page.turns:
            turns += 1
            size = len(turn.question) + len(turn.answer)
            ids += [*turn.question, *turn.answer]
            positions += range(start, start + size)
            segments += [turns] * size
            labels += [IGNORED] * len(turn.question) + list(turn.answer)
        numbers += [number] * page.length
    return ids, positions, numbers, segments, labels


def page_mask(pages: Tensor, segments: Tensor) -> Tensor:
    """What each token attends to: itself and what stands before it, in its page's shared beginning or its own
    turn. `pages` and `segments`  # (B, L), to an additive mask  # (B, 1, L, L), float32"""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    seen = ((key == query) | (key == 0)) & (pages[:, :, None] == pages[:, None, :])
    seen &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def turn_losses(answer_losses: Tensor, segments: Tensor, rows: Tensor) -> Tensor:
    """The mean over a turn's answer tokens, then over turns, so that a long answer weighs no more.

    `answer_losses`  # (N,) of answer tokens, each with its segment and row  # (N,)
    """
    _, turns, counts = torch.stack([rows, segments]).unique(dim=1, return_inverse=True, return_counts=True)
    return (answer_losses / counts[turns]).sum() / len(counts)
