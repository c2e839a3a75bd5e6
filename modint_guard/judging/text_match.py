"""Without log-probabilities: the answer is generated again under each view, and flips are told by the words.

A weaker method than comparing probabilities, and named as such: there is no risk, no influence and no
confidence, so nothing can be flagged as `prior` or `conflict`. The unchanged request is generated again as
well; where that gives other words, the answer moves by itself and no flag is raised. Answers of more than a
few words are not compared: another wording is no other answer.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from modint_guard.judging.scoring import cells_of, first_word, shifted_labels
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
    ProbeResult,
    Replies,
    Reply,
    Score,
)

MAX_WORDS = 8  # of an answer that is compared
MAX_TOKENS = 32  # of a view's answer
_MARKS = string.punctuation + "。，！？、«»“”„’‘ "


def is_short(answer: Reply) -> bool:
    """Whether an answer is short enough to be compared by its words."""
    return 0 < len(answer.text.split()) <= MAX_WORDS


def same_answer(first: str, second: str, labels: Sequence[str]) -> bool:
    """Whether two texts say the same: the same option, or the same words, case and marks aside."""
    return _said(first, labels) == _said(second, labels)


def score_words(answer: Reply, replies: Replies, chat: Chat) -> Score:
    """The cells by the words alone: a flip has margin 1 and divergence 1, none has margin -1 and 0. Where the
    unchanged request got no answer it is missing too: nobody knows whether the answer moves by itself.
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


def words_result(name: str, answer: Reply, reply: Reply | Failure, chat: Chat) -> ProbeResult:
    """The report's row of one view that was generated again."""
    if isinstance(reply, Failure):
        return ProbeResult(name, reply.outcome, ms=reply.ms)
    flip = _moves(name, answer, reply, chat)
    return ProbeResult(
        name,
        ProbeOutcome.FLIPPED if flip else ProbeOutcome.CONSISTENT,
        flip=flip,
        answer=reply.text.strip() or None,
        tokens=reply.prompt_tokens + reply.completion_tokens,
        cached_tokens=reply.cached_tokens,
        ms=reply.ms,
    )


def _moves(name: str, answer: Reply, view: Reply | Failure | None, chat: Chat) -> bool:
    """Whether a view says something else; an option that was moved is read by its text."""
    if not isinstance(view, Reply):
        return False
    labels = [option.label for option in chat.options]
    said = _said(view.text, labels)
    if name == PERMUTED_OPTIONS:
        said = shifted_labels(chat.options).get(said, said)
    return said != _said(answer.text, labels)


def _said(text: str, labels: Sequence[str]) -> str:
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
