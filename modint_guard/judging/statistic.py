"""The one number that a flag rests on: how far what ought not to matter turned the answer. Pure.

Of each token y_t of the answer that the request itself prefers:

    s_t = min(influence, contradiction)

influence      of what ought not to matter: its Shapley value for the log-odds of y_t against the best other
               token
contradiction  the log-odds of another token over y_t if what ought to decide is asked alone

Both are nats. If the picture ought to decide and the text alone does not give y_t either, then neither of the
two turned it alone, and s_t is at most the log-odds of y_t under the text alone, which are negative. The
statistic is the largest s_t. It is above 0 only if the answer changed; how far above, against the null of the
model (`judging.null`), says whether that means anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.scoring import token_influences_on_odds
from modint_guard.types import CELLS, NEUTRAL_IMAGE, NO_CONTEXT, CellScore, Influence, Relevant, Statistic


def flag_statistic(
    cells: Mapping[str, CellScore], relevant: Relevant, *, has_context: bool
) -> Statistic | None:
    """The statistic of an answer; None if no modality is known to be irrelevant, if a cell that it needs was
    not compared, or if the request itself prefers another answer throughout: then nothing changed it.
    """
    by_token = token_statistics(cells, relevant, has_context=has_context)
    return max(by_token.values(), key=lambda found: found.value, default=None)


def token_statistics(
    cells: Mapping[str, CellScore], relevant: Relevant, *, has_context: bool
) -> dict[int, Statistic]:
    """s_t of each token that the request itself prefers, by its index among those that were compared; empty
    where `flag_statistic` is None. The length is that of the answer.
    """
    alone = WITHOUT_IRRELEVANT.get(relevant)
    needed = CELLS if has_context else (NEUTRAL_IMAGE,)
    if alone is None or alone not in needed or any(name not in cells for name in needed):
        return {}
    influences = token_influences_on_odds(cells, has_context=has_context)
    return {
        t: Statistic(_turned(cells, relevant, t, influences[t]), len(influences), token.other)
        for t, token in enumerate(cells[alone].tokens)
        if token.preferred
    }


def _turned(cells: Mapping[str, CellScore], relevant: Relevant, t: int, influences: Influence) -> float:
    """s_t of the answer's token at position t."""
    text_alone = cells[NEUTRAL_IMAGE].tokens[t].odds
    if relevant is Relevant.TEXT:
        return min(influences.image or 0.0, -text_alone)
    turned = min(influences.text or 0.0, -cells[NO_CONTEXT].tokens[t].odds)
    return turned if text_alone > 0.0 else min(turned, text_alone)
