"""Compares answers by their texts if there are no log-probabilities: another text is a flip.

Every view generates its own answer. This method is weaker than comparing probabilities, and the report names
it: there is no risk, no influence and no confidence, so nothing can be flagged as `prior` or `conflict`. The
unchanged request is generated again as well; if that gives other words, the answer moves by itself and no
flag is raised. Answers of more than a few words are not compared, because other words need not mean another
answer.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.scoring import cells_of, first_word, shifted_labels, unjudged_result
from modint_guard.report import ProbeResult
from modint_guard.types import (
    CONTROLS,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    PERMUTED_OPTIONS,
    REGENERATED,
    CellScore,
    Chat,
    Failure,
    ProbeOutcome,
    Relevant,
    Replies,
    Reply,
    Score,
)

MAX_WORDS = 8  # the longest answer that is compared
MAX_TOKENS = 32  # the longest answer that a view may generate
_MARKS = string.punctuation + "。，！？、«»“”„’‘ "


def is_short(answer: Reply) -> bool:
    """Whether an answer is short enough to be compared as a text: 1 to `MAX_WORDS` words."""
    return 0 < len(answer.text.split()) <= MAX_WORDS


def same_answer(first: str, second: str, labels: Sequence[str]) -> bool:
    """Whether two texts give the same answer: one option, or the same words but for case and punctuation."""
    return _normalised(first, labels) == _normalised(second, labels)


def score_words(answer: Reply, replies: Replies, chat: Chat) -> Score:
    """The score of an answer by texts alone: a flipped cell has divergence and margin 1, any other 0 and -1.

    If the unchanged request, asked again, got no answer, `noop` is among the missing views: it is then
    unknown whether the answer moves by itself.
    """
    labels = [option.label for option in chat.options]
    cells, missing = cells_of(replies, lambda view: _cell(view, same_answer(answer.text, view.text, labels)))
    again = replies.get(NOOP)
    return Score(
        cells=cells,
        missing=missing | ({NOOP: again.reason} if isinstance(again, Failure) else {}),
        unstable=tuple(name for name in (*CONTROLS, NOOP) if _moves(name, answer, replies.get(name), chat)),
        method=REGENERATED,
        image_only=cells[NO_CONTEXT].answer if NO_CONTEXT in cells else None,
        text_only=cells[NEUTRAL_IMAGE].answer if NEUTRAL_IMAGE in cells else None,
    )


def turned(cells: Mapping[str, CellScore], relevant: Relevant) -> bool:
    """Whether what ought not to matter turned the answer: without it another one comes, and, if it is a text,
    the text alone gives the answer.
    """
    alone = cells.get(WITHOUT_IRRELEVANT.get(relevant, ""))
    if alone is None or not alone.flip:
        return False
    return relevant is Relevant.TEXT or (NEUTRAL_IMAGE in cells and cells[NEUTRAL_IMAGE].reproduces)


def words_result(name: str, answer: Reply, reply: Reply | Failure, chat: Chat) -> ProbeResult:
    """The report's row of one view whose answer was generated as a whole."""
    result = unjudged_result(name, reply)
    if isinstance(reply, Failure):
        return result
    flip = _moves(name, answer, reply, chat)
    outcome = ProbeOutcome.FLIPPED if flip else ProbeOutcome.CONSISTENT
    return replace(result, outcome=outcome, flip=flip, answer=reply.text.strip() or None)


def _moves(name: str, answer: Reply, view: Reply | Failure | None, chat: Chat) -> bool:
    """Whether a view gives another answer; labels of shifted options are read as those of the request."""
    if not isinstance(view, Reply):
        return False
    labels = [option.label for option in chat.options]
    view_answer = _normalised(view.text, labels)
    if name == PERMUTED_OPTIONS:
        view_answer = shifted_labels(chat.options).get(view_answer, view_answer)
    return view_answer != _normalised(answer.text, labels)


def _normalised(text: str, labels: Sequence[str]) -> str:
    """The label that a text begins with, or its words in the form in which they are compared."""
    word = first_word(text, labels) if text.split() else ""
    return word if word in labels else " ".join(text.casefold().split()).strip(_MARKS)


def _cell(reply: Reply, same: bool) -> CellScore:
    return CellScore(
        divergence=0.0 if same else 1.0,
        exact=False,
        coverage=0.0,
        flip=not same,
        margin=-1.0 if same else 1.0,
        confidence=0.0,
        p_answer=0.0,
        reproduces=same,
        delta_logprob=0.0,
        entropy=0.0,
        answer=reply.text.strip(),
    )
