"""`modint_guard.highlight`: an answer for a notebook, its words coloured by what gave them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from modint_guard.showing.pieces import ShownAnswer, ShownPiece, shown

STYLES = {  # readable on white and on black
    "text": "background:rgba(230,140,0,.30)",
    "image": "background:rgba(0,120,220,.28)",
}
FLAGGED = "text-decoration:underline wavy #d33;text-underline-offset:.2em"


@dataclass(frozen=True, slots=True)
class Highlight:
    """An answer that notebooks show as HTML and `print` as plain text."""

    answer: ShownAnswer

    def __str__(self) -> str:
        return "\n".join("".join(piece.text for piece in text) for text in self.answer.texts)

    def _repr_html_(self) -> str:
        texts = "".join(
            f'<div style="white-space:pre-wrap">{"".join(map(_html, text))}</div>'
            for text in self.answer.texts
        )
        modint = self.answer.modint
        said = f"{modint.verdict}: {modint.explanation}" if modint else "no verdict"
        legend = " ".join(f'<span style="{style}">{name}</span>' for name, style in STYLES.items())
        legend += f' <span style="{FLAGGED}">flagged</span>'
        return f'<div>{texts}<div style="opacity:.7;font-size:smaller">{legend} · {escape(said)}</div></div>'


def highlight(completion: Any, choice: int = 0) -> Highlight:
    """An answer with its words coloured by what gave them, as the last expression of a notebook's cell.

    completion: an answer of the gateway or of `Guard.inspect`, as an object of the `openai` package or a
    dict. choice: which of several answers. Raises EndpointError if there is no such answer.
    """
    return Highlight(shown(completion, choice))


def _html(piece: ShownPiece) -> str:
    if piece.span is None:
        return escape(piece.text)
    styles = [STYLES[piece.gave]] if piece.gave else []
    if piece.is_flagged:
        styles.append(FLAGGED)
    known = {"text": piece.span.influence.text, "picture": piece.span.influence.image}
    title = ", ".join(f"{name} {value:+.1f} nats" for name, value in known.items() if value is not None)
    if piece.span.path:
        title = f"{piece.span.path}: {title}"
    return f'<span style="{";".join(styles)}" title="{escape(title)}">{escape(piece.text)}</span>'
