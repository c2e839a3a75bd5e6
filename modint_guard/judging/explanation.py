"""A verdict as one sentence that a person can read: what moved the answer, what ought to decide, and why."""

from __future__ import annotations

from collections.abc import Sequence

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.report import Verdict
from modint_guard.types import Cause, CellScore, Relevant, RelevantSource, Score, State

_MAX_CHARACTERS = 60  # of an answer that is quoted
_MAX_WORDS = 3  # of a longer answer that are named
_SAID_BY: dict[RelevantSource, str] = {
    "request": "ought to decide, as the request says",
    "header": "ought to decide, as the request says",
    "route": "ought to decide, as a rule of the server says",
    "rules": "ought to decide, by the words of the question",
    "classifier": "ought to decide, by the words of the request",
    "self_ask": "ought to decide, as the model itself says",
    "none": "very likely suffices, by the words of the request",
}
_NOT_JUDGED = {
    "timeout": "a probe was late",
    "upstream_error": "the engine failed a probe",
    "no_logprobs": "the engine gave no log-probabilities",
    "incomplete": "a probe that was needed is missing",
    "opted_out": "the client did not want it",
    "sampled_out": "it was not drawn",
    "overload": "too many requests were in flight",
    "no_image": "there is no picture",
    "no_context": "there is nothing beside the question and its picture that could have led it astray",
    "tool_calls": "it is about tools",
    "structured_output": "its form is forced",
    "multiple_choices": "there is more than one answer",
    "reasoning": "there is no answer behind its reasoning that could be compared",
    "refusal": "the model refused",
    "audio": "there is audio in it",
    "video": "there is video in it",
    "unsupported_part": "there is content in it that cannot be probed",
    "empty_answer": "there is no text in it",
}
_NAME = {Relevant.IMAGE: "the picture", Relevant.TEXT: "the text", Relevant.BOTH: "picture and text"}
_OTHER = {Relevant.IMAGE: "the text", Relevant.TEXT: "the picture"}


def explained(
    verdict: Verdict,
    relevant: Relevant,
    source: RelevantSource,
    score: Score | None,
    words: Sequence[str] = (),
) -> str:
    """One sentence on a verdict, without a line break.

    relevant, source: by what the answer was judged, and who said so. score: None if nothing was compared.
    words: what was turned of a longer answer; empty for all of it.
    """
    if verdict.state in (State.UNSCORED, State.SKIPPED):
        kind = "judged" if verdict.state is State.UNSCORED else "examined"
        return f"The answer was not {kind}: {_NOT_JUDGED.get(verdict.reason or '', 'something failed')}."
    if verdict.cause is Cause.CONFLICT or relevant is Relevant.UNKNOWN:
        return _where_nobody_knows(verdict, score)
    ought = f"{_NAME[relevant][0].upper()}{_NAME[relevant][1:]} {_SAID_BY[source]}"
    where = f" at {', '.join(map(_quoted, words[:_MAX_WORDS]))}" if words else ""
    return f"{ought}, {_finding(verdict, relevant, score)}{where}."


def _where_nobody_knows(verdict: Verdict, score: Score | None) -> str:
    if verdict.cause is Cause.CONFLICT and score is not None:
        image, text = _quoted(score.image_only), _quoted(score.text_only)
        return (
            f"The picture alone says {image}, the text alone {text}, and nobody said which ought to decide."
        )
    return (
        "Nobody said what ought to decide, so that influences are reported and nothing is held against them."
    )


def _finding(verdict: Verdict, relevant: Relevant, score: Score | None) -> str:
    cell = score.cells.get(WITHOUT_IRRELEVANT.get(relevant, "")) if score is not None else None
    if verdict.cause in (Cause.TEXT, Cause.IMAGE):
        alone = (
            f"which alone says {_quoted(cell.answer)}" if cell is not None else "which alone says otherwise"
        )
        return f"{alone}, but the answer follows {_OTHER[relevant]}"
    if verdict.cause is Cause.PRIOR:
        return "but the same answer comes with confidence without it"
    if verdict.cause is Cause.NEGLECT:
        return (
            "but it had no influence on the answer"
            if relevant is not Relevant.BOTH
            else ("but one of the two had no influence on the answer")
        )
    if cell is None or score is None:
        return "and nothing speaks against the answer"
    return _why_it_passes(cell, score, relevant)


def _why_it_passes(cell: CellScore, score: Score, relevant: Relevant) -> str:
    if not cell.preferred:
        return "and the answer is not the one that the model itself prefers, so that nothing changed it"
    if cell.reproduces:
        return f"and the answer stays the same without {_OTHER[relevant]}"
    if score.unstable:
        return "but the answer also changes under a harmless change, so that nothing can be said"
    return f"and it may have needed {_OTHER[relevant]}: alone it does not clearly give another answer"


def _quoted(answer: str | None) -> str:
    """An answer of the model in quotation marks, on one line and not too long."""
    words = " ".join((answer or "").split())
    shown = words if len(words) <= _MAX_CHARACTERS else f"{words[:_MAX_CHARACTERS]}…"
    return f"“{shown}”"
