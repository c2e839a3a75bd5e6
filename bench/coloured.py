"""`python -m bench coloured`: the README's answer with its words coloured by what gave them, from a real run.

Of the picture-book's pictures whose captions lie about a detail, it is the first whose answer has a word that
is flagged as the caption's beside one that the picture gave.
"""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.picture import FAINT, INK, PAPER, RED, white_card
from bench.spans.cases import LYING, cases
from modint_guard.data.item import Item
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.results import commit
from modint_guard.evaluation.runner import request_for
from modint_guard.models.picturebook import NAME
from modint_guard.showing.pieces import ShownAnswer, ShownPiece, shown
from modint_guard.types import JSON, Complete
from modint_training.picturebook.things import NAMED

COMMAND = "python -m bench coloured"
SEARCHED = 20  # cases
WIDTH, HEIGHT = 1200, 320  # of the card, in points of the drawing
THUMBNAIL = 150
TEXT, IMAGE = "#f6d9a8", "#a9d3f5"  # what the caption gave, and what the picture did
OF = {"text": "caption", "image": "picture"}


@dataclass(frozen=True)
class Coloured:
    """One answer of which the caption gave one word and the picture another."""

    item: Item
    answer: ShownAnswer

    @property
    def text(self) -> str:
        """What the model said."""
        return "".join(piece.text for piece in self.answer.texts[0])

    @property
    def summary(self) -> str:
        """What the card shows, in one sentence: the README's text for who cannot see it."""
        words = "; ".join(
            f"“{piece.text}” from the {OF[piece.gave]}{', flagged' if piece.is_flagged else ''}"
            for piece in self.answer.texts[0]
            if piece.gave
        )
        return (
            f"A picture of {NAMED[self.item.answer].a} with the caption “{self.item.context}”; asked "
            f"“{self.item.question}” the model answers “{self.text}” Its words are coloured: {words}."
        )


def draw_coloured(output: Path) -> Coloured:
    """Ask until an answer is found, draw it into `output` (PNG), and return it.

    Raises EndpointError if none of SEARCHED cases has such an answer, and ConfigError without matplotlib.
    """
    with serving(["--model", NAME]) as served:
        found = asyncio.run(_ask(served.url))
    try:
        figure = card(found)
    except ModuleNotFoundError as exc:
        raise ConfigError("the picture needs: pip install 'modint-guard[report]'") from exc
    output.parent.mkdir(parents=True, exist_ok=True)
    told = {"Description": found.summary, "Comment": f"Made by `{COMMAND}` at commit {commit()}"}
    modint = found.answer.modint.model_dump_json(by_alias=True) if found.answer.modint else ""
    figure.savefig(output, dpi=150, transparent=True, metadata={**told, "modint": modint, "Software": None})
    return found


async def _ask(url: str) -> Coloured:
    async with Endpoint(url) as endpoint:
        return await first_of(lied_to(), endpoint.complete)


def lied_to() -> Iterable[Item]:
    """Descriptions whose captions name a colour that the picture lacks."""
    every = cases("picturebook", SEARCHED, 0, "validation")
    return (case.item for case in every if case.form == "detail" and case.kind == LYING)


async def first_of(items: Iterable[Item], complete: Complete) -> Coloured:
    """The first item whose answer has a flagged word of the caption's and one of the picture's. Raises
    EndpointError if there is none."""
    async for found in _answers(items, complete):
        (pieces,) = found.answer.texts
        if any(piece.is_flagged and piece.gave == "text" for piece in pieces) and any(
            piece.gave == "image" and piece.text in found.item.answer for piece in pieces
        ):
            return found
    raise EndpointError("no answer has a flagged word of its caption beside one of its picture")


async def _answers(items: Iterable[Item], complete: Complete) -> AsyncIterator[Coloured]:
    for item in items:
        options: JSON = {"relevant": "image", "deadline_s": 60}
        yield Coloured(item, shown(await complete(request_for(item, NAME, modint=options))))


def card(found: Coloured) -> Any:
    """The drawing: a white card that reads on light and dark pages, as a matplotlib figure."""
    figure, axes = white_card(WIDTH, HEIGHT)
    assert found.item.image is not None
    extent = (40, 40 + THUMBNAIL, 40 + THUMBNAIL, 40)
    picture = found.item.image.convert("RGB")
    axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
    asked = f"caption: {found.item.context}\nquestion: {found.item.question}"
    lines = "\n".join(textwrap.fill(line, 72) for line in asked.splitlines())
    axes.text(220, 44, lines, color=INK, fontsize=13.5, va="top", linespacing=1.5)
    left = 220.0
    for piece in found.answer.texts[0]:
        left = _piece(figure, axes, left, 165, piece)
    _legend(axes, found)
    return figure


def _piece(figure: Any, axes: Any, left: float, baseline: float, piece: ShownPiece) -> float:
    """One piece of the answer on its colour, a flagged one underlined; returns where the next one begins."""
    fill = {"text": TEXT, "image": IMAGE, None: PAPER}[piece.gave]
    font = {"fontsize": 25, "weight": "bold" if piece.is_flagged else "normal"}
    box = {"facecolor": fill, "edgecolor": "none", "pad": 3}
    axes.text(left, baseline, piece.text, color=INK, bbox=box if piece.gave else None, **font)
    # Trailing blanks have no width of their own, so the piece is measured with a sign behind it.
    ends = [axes.text(0, baseline, text, **font) for text in (piece.text + "|", "|")]
    whole, sign = (end.get_window_extent().width for end in ends)
    for end in ends:
        end.remove()
    width = float(whole - sign) * WIDTH / figure.bbox.width
    if piece.is_flagged:
        axes.plot([left, left + width], [baseline + 12] * 2, color=RED, lw=2.5)
    return left + width


def _legend(axes: Any, found: Coloured) -> None:
    modint = found.answer.modint
    said = f"{modint.verdict}, cause {modint.cause}" if modint else ""
    for left, words, fill in ((40, "the caption gave this", TEXT), (265, "the picture gave this", IMAGE)):
        box = {"facecolor": fill, "edgecolor": "none", "pad": 3}
        axes.text(left, 270, words, color=INK, fontsize=13, bbox=box)
    axes.text(490, 270, "turned by the caption", color=RED, fontsize=13, weight="bold")
    axes.text(720, 270, f"the verdict: {said}", color=FAINT, fontsize=13)
