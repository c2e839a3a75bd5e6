"""A verdict as one sentence that a person can read."""

from dataclasses import replace

import pytest

from modint_guard import Guard
from modint_guard.judging.explanation import explained
from modint_guard.report import Verdict
from modint_guard.types import SKIPPED_REASONS, UNSCORED_REASONS, Cause, Relevant, Score, State
from tests.core.fakes import ask, world
from tests.core.test_verdict import FLIP, SAME, SURE, cell

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
PASS = Verdict(State.PASS)


@pytest.mark.parametrize(
    ("cause", "relevant", "sentence"),
    [
        (
            Cause.TEXT,
            Relevant.IMAGE,
            "The picture ought to decide, as the request says, which alone says “other”,"
            " but the answer follows the text.",
        ),
        (
            Cause.IMAGE,
            Relevant.TEXT,
            "The text ought to decide, as the request says, which alone says “y”,"
            " but the answer follows the picture.",
        ),
        (
            Cause.PRIOR,
            Relevant.IMAGE,
            "The picture ought to decide, as the request says,"
            " but the same answer comes with confidence without it.",
        ),
        (
            Cause.NEGLECT,
            Relevant.BOTH,
            "Picture and text ought to decide, as the request says,"
            " but one of the two had no influence on the answer.",
        ),
        (
            Cause.CONFLICT,
            Relevant.UNKNOWN,
            "The picture alone says “red”, the text alone “blue”, and nobody said which ought to decide.",
        ),
    ],
)
def test_a_flag_says_what_ought_to_decide_who_said_so_and_what_did(
    cause: Cause, relevant: Relevant, sentence: str
) -> None:
    cells = {"no_context": cell(FLIP), "neutral_image": cell(SAME), "prior": cell(FLIP)}
    score = Score(cells, {}, image_only="red", text_only="blue")
    assert explained(Verdict(State.FLAGGED, cause), relevant, "request", score) == sentence


def test_a_pass_says_why_nothing_was_found() -> None:
    def said(**changes: object) -> str:
        cells = {"no_context": replace(cell(FLIP), **changes), "neutral_image": cell(SAME)}  # type: ignore[arg-type]
        return explained(PASS, Relevant.IMAGE, "rules", Score(cells, {}))

    begins = "The picture ought to decide, by the words of the question, and "
    assert said(reproduces=True) == f"{begins}the answer stays the same without the text."
    assert said(preferred=False).startswith(
        f"{begins}the answer is not the one that the model itself prefers"
    )
    assert said().startswith(f"{begins}it may have needed the text")
    shaky = Score({"no_context": cell(FLIP), "neutral_image": cell(SURE)}, {}, unstable=("benign",))
    assert "harmless change" in explained(PASS, Relevant.IMAGE, "rules", shaky)
    assert explained(PASS, Relevant.UNKNOWN, "none", shaky).startswith("Nobody said what ought to decide")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        *((State.UNSCORED, reason) for reason in UNSCORED_REASONS),
        *((State.SKIPPED, reason) for reason in SKIPPED_REASONS),
    ],
)
def test_every_reason_has_words(state: State, reason: str) -> None:
    sentence = explained(Verdict(state, reason=reason), Relevant.IMAGE, "rules", None)
    assert sentence.startswith("The answer was not ") and "something failed" not in sentence


def test_an_answer_is_quoted_on_one_line_and_not_at_length() -> None:
    cells = {"no_context": replace(cell(FLIP), answer="a\nvery " + "long " * 50)}
    sentence = explained(Verdict(State.FLAGGED, Cause.TEXT), Relevant.IMAGE, "none", Score(cells, {}))
    assert "\n" not in sentence and len(sentence) < 200


async def test_the_report_carries_the_sentence() -> None:
    misled = world(both="blue", image="red", text="blue", neither="round")
    said = (await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), misled)).completion["modint"]
    assert said["explanation"] == (
        "The picture ought to decide, by the words of the question, which alone says “red”,"
        " but the answer follows the text."
    )
