"""The one number that a flag rests on: how far what ought not to matter turned the answer. Pure.

Of each token y_t of the answer that the request itself prefers:

    s_t = min(influence, contradiction)

influence      of what ought not to matter: its Shapley value for the log-odds of y_t against the best other
               token
contradiction  the log-odds of another token over y_t if what ought to decide is asked alone

Both are nats. s_t is at most 0

    if what ought to decide, alone, gives that other word less than DEFINITE: odds alone speak against
    nothing, for a model that cannot read a document gives each of many dates a little, and less to y_t. Of a
    token within a word this is the probability of the other token times that of the word's beginning: behind
    a 3 that it would not have written, such a model may be certain that "38" ends here;
    if the view without what ought not to matter moved y_t no further than chance moves the furthest of so
    many tokens (`scoring.moved`).

The statistic is the largest s_t. It is above 0 only if the answer changed. A flag wants more: that what ought
to decide, alone, is sure that y_t is wrong (`Thresholds.least_score`), and that the null of the model
(`judging.null`), if there is one, rarely gets as high. That what ought not to matter gives y_t alone is not
asked for: a caption can bring a word that a picture has to make room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.scoring import moved, token_influences_on_odds
from modint_guard.types import CELLS, NEUTRAL_IMAGE, CellScore, Influence, Relevant, Statistic, TokenScore

DEFINITE = 0.5  # of a word that speaks against another: at least as much as all that it might be instead


def flag_statistic(
    cells: Mapping[str, CellScore], relevant: Relevant, *, has_context: bool
) -> Statistic | None:
    """The statistic of an answer; None if no modality is known to be irrelevant, if a cell that it needs was
    not compared, or if the request itself prefers another answer throughout: then nothing changed it.
    """
    by_token = token_statistics(cells, relevant, has_context=has_context)
    return max(by_token.values(), key=lambda found: found.value, default=None)


def likeliest_statistic(
    cells: Mapping[str, CellScore], likely: Mapping[Relevant, float], *, has_context: bool
) -> Statistic | None:
    """The statistic where it is unknown what ought to decide: the largest of those under each modality, each
    with the logarithm of the probability that it alone ought to decide added, in nats. It orders answers and
    flags none. None if there is no statistic under any modality that may decide.

    likely: the probabilities, in [0, 1].
    """
    found = [
        statistic._replace(value=statistic.value + log(probability))
        for relevant, probability in likely.items()
        if probability > 0.0 and (statistic := flag_statistic(cells, relevant, has_context=has_context))
    ]
    return max(found, key=lambda statistic: statistic.value, default=None)


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
    counts = {t for t in beyond_chance if preferred[t].other >= DEFINITE}
    return {
        t: Statistic(value if t in counts else min(value, 0.0), len(influences))
        for t, value in values.items()
    }


def _turned(token: TokenScore, relevant: Relevant, influences: Influence) -> float:
    """The smaller of influence and contradiction. token: as what ought to decide scores it alone."""
    influence = influences.image if relevant is Relevant.TEXT else influences.text
    return min(influence or 0.0, -token.odds)
