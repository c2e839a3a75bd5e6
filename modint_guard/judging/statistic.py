"""The one number that a flag rests on: how far what ought not to matter turned the answer. Pure.

Of each token y_t of the answer that the request itself prefers:

    s_t = min(influence, contradiction)

influence      of what ought not to matter: its Shapley value for the log-odds of y_t against the best other
               token
contradiction  the log-odds of another token over y_t if what ought to decide is asked alone

Both are nats. The statistic is the largest s_t. It is above 0 only if the answer changed; how far above,
against the null of the model (`judging.null`), says whether that means anything. That what ought not to
matter gives y_t alone is not asked for: a caption can bring a word that a picture has to make room for. s_t
is at most 0 if the view without what ought not to matter moved y_t no further than chance moves the furthest
of so many tokens (`scoring.moved`).
"""

from __future__ import annotations

from collections.abc import Mapping

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.scoring import moved, token_influences_on_odds
from modint_guard.types import CELLS, NEUTRAL_IMAGE, CellScore, Influence, Relevant, Statistic, TokenScore


def flag_statistic(
    cells: Mapping[str, CellScore], relevant: Relevant, *, has_context: bool
) -> Statistic | None:
    """The statistic of an answer; None if no modality is known to be irrelevant, if a cell that it needs was
    not compared, or if the request itself prefers another answer throughout: then nothing changed it.
    """
    by_token = token_statistics(cells, relevant, has_context=has_context)
    ordered = sorted(by_token.values(), key=lambda found: -found.value)
    if not ordered:
        return None
    surer: list[tuple[float, float]] = []
    surest = ordered[0].sure
    for found in ordered[1:]:
        if found.value > 0.0 and found.sure > surest:
            surest = found.sure
            surer.append((found.value, surest))
    return ordered[0]._replace(surer=tuple(surer))


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
    preferred = {t: token for t, token in enumerate(cells[alone].tokens) if token.preferred}
    beyond_chance = moved({t: token.shift for t, token in preferred.items()})
    values = {t: _turned(token, relevant, influences[t]) for t, token in preferred.items()}
    return {
        t: Statistic(
            values[t] if t in beyond_chance else min(values[t], 0.0), len(influences), preferred[t].other
        )
        for t in values
    }


def _turned(token: TokenScore, relevant: Relevant, influences: Influence) -> float:
    """The smaller of influence and contradiction. token: as what ought to decide scores it alone."""
    influence = influences.image if relevant is Relevant.TEXT else influences.text
    return min(influence or 0.0, -token.odds)
