"""`python -m bench picture`: the README's picture of one flagged answer of the bundled base, from a real run.

One item of the demo is asked through the engine and the gateway: its caption lies about its picture.
"""

import asyncio
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modint_guard.chat.images import NEUTRAL_GREY
from modint_guard.data import read_items
from modint_guard.data.item import Item, is_right
from modint_guard.demo.launch import serving
from modint_guard.demo.shows import TINYWORLD_ITEMS
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.results import commit
from modint_guard.evaluation.runner import request_for
from modint_guard.models import BASE
from modint_guard.schema import ModintObject, verdict
from modint_guard.types import CELLS

ITEM = "image-heavy-misleading_description-09"
COMMAND = "python -m bench picture"

WIDTH, HEIGHT = 1200, 500  # of the card, in points of the drawing
PANEL = 380  # width of one of the three panels
THUMBNAIL = 132
INK, FAINT, PAPER, LINE = "#1f2328", "#656d76", "#ffffff", "#d0d7de"
RED, GREEN, PALE_RED = "#b42318", "#1a7f37", "#fdeceb"


@dataclass(frozen=True)
class Flagged:
    """One answer and the verdict on it."""

    item: Item
    answer: str
    modint: ModintObject

    @property
    def metadata(self) -> dict[str, str | None]:
        """What the PNG says about itself: what it shows, the whole `modint` object, what made it."""
        return {
            "Description": self.summary,
            "modint": self.modint.model_dump_json(by_alias=True),
            "Comment": f"Made by `{COMMAND}` at commit {commit()}",
            "Software": None,
        }

    @property
    def summary(self) -> str:
        """What the picture shows, in one sentence: the README's text for who cannot see it."""
        answers = self.modint.answers
        return (
            f"A picture of a {self.item.answer} with the caption “{self.item.context}”; asked "
            f"“{self.item.question}” the model answers “{self.answer}”. Without the caption it answers "
            f"“{answers.image_only}”, without the picture “{answers.text_only}”. Verdict: "
            f"{self.modint.verdict}, cause {self.modint.cause}, risk {self.modint.risk:.2f}."
        )


def draw_picture(output: Path) -> Flagged:
    """Ask the item, draw the answer and its verdict into `output` (PNG), and return them.

    Raises EndpointError if the answer is not flagged or a view gave no answer, and ConfigError without
    matplotlib.
    """
    with serving([]) as served:
        flagged = asyncio.run(_ask(served.url))
    try:
        figure = card(flagged)
    except ModuleNotFoundError as exc:
        raise ConfigError("the picture needs: pip install 'modint-guard[report]'") from exc
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, transparent=True, metadata=flagged.metadata)
    return flagged


async def _ask(url: str) -> Flagged:
    item = next(item for item in read_items(TINYWORLD_ITEMS) if item.id == ITEM)
    body = request_for(item, BASE)
    body["modint"]["probes"] = list(CELLS)
    async with Endpoint(url) as endpoint:
        completion = await endpoint.complete(body)
    return flagged_of(item, completion)


def flagged_of(item: Item, completion: dict[str, Any]) -> Flagged:
    """The answer with its verdict. Raises EndpointError if there is nothing to show."""
    modint = verdict(completion)
    if modint is None or modint.verdict != "flagged" or None in modint.answers.model_dump().values():
        raise EndpointError(f"the answer to {item.id} was not flagged with both views answered: {modint}")
    return Flagged(item, completion["choices"][0]["message"]["content"].strip(), modint)


def white_card(width: int, height: int) -> tuple[Any, Any]:
    """An empty card with rounded corners: a matplotlib figure and its axes, of so many points, y down."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(width / 100, height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    shape = "round,pad=0,rounding_size=18"
    axes.add_patch(FancyBboxPatch((2, 2), width - 4, height - 4, shape, fc=PAPER, ec=LINE, lw=1))
    return figure, axes


def card(flagged: Flagged) -> Any:
    """The drawing: a white card that reads on light and dark pages, as a matplotlib figure."""
    from matplotlib.patches import FancyBboxPatch

    figure, axes = white_card(WIDTH, HEIGHT)
    item, answers = flagged.item, flagged.modint.answers
    assert item.image is not None
    grey = Image.new("L", item.image.size, NEUTRAL_GREY)
    panels = (
        (f"the request, to {BASE}", item.image, item.context, flagged.answer),
        ("the picture alone", item.image, None, answers.image_only),
        ("the text alone", grey, item.context, answers.text_only),
    )
    for number, (title, picture, caption, answer) in enumerate(panels):
        colour = GREEN if is_right(item, answer or "") else RED
        _panel(axes, 30 + number * PANEL, title, picture, caption, item.question, answer or "", colour)
    shape = "round,pad=0,rounding_size=12"
    axes.add_patch(FancyBboxPatch((30, 352), WIDTH - 60, 118, shape, fc=PALE_RED, ec="none"))
    _verdict(axes, flagged)
    return figure


def _panel(
    axes: Any,
    left: float,
    title: str,
    picture: Image.Image,
    caption: str | None,
    question: str,
    answer: str,
    colour: str,
) -> None:
    """One question with its answer: the picture, the words beside it, the answer below."""
    axes.text(left, 50, title, color=FAINT, fontsize=12.5)
    axes.imshow(
        picture.convert("RGB"),
        extent=(left, left + THUMBNAIL, 70 + THUMBNAIL, 70),
        interpolation="nearest",
        aspect="auto",
        zorder=2,
    )
    words = left + THUMBNAIL + 18
    axes.text(
        words,
        132,
        _wrapped(caption or "no caption"),
        color=INK if caption else FAINT,
        va="bottom",
        fontsize=12.5,
    )
    axes.text(words, 146, _wrapped(question), color=INK, va="top", fontsize=12.5)
    axes.text(left, 258, "answer", color=FAINT, fontsize=12.5)
    axes.text(left, 306, answer, color=colour, fontsize=27, weight="bold")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 22)


def _verdict(axes: Any, flagged: Flagged) -> None:
    modint = flagged.modint
    axes.text(56, 405, str(modint.verdict), color=RED, fontsize=22, weight="bold")
    facts = f"cause: {modint.cause}      risk: {modint.risk:.2f}      relevant: {modint.relevant}"
    axes.text(230, 404, facts, color=INK, fontsize=15)
    axes.text(
        56,
        446,
        f"The {modint.relevant} ought to decide, but the {modint.cause} did: without the caption the answer "
        f"is “{modint.answers.image_only}”.",
        color=INK,
        fontsize=13.5,
    )
