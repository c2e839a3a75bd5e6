"""The README's picture: what it draws of a flagged answer, and what it refuses to draw."""

import json
from typing import Any

import pytest
from PIL import Image

from bench.picture import GREEN, RED, Flagged, card, flagged_of
from modint_guard.errors import EndpointError
from tests.core.items import DIGIT

LIED = DIGIT.replace(context="Caption: the digit 7.", perturbation="misleading_description")
MODINT: dict[str, Any] = {
    "schema": "2",
    "verdict": "flagged",
    "cause": "text",
    "score": 4.5,
    "risk": 0.973,
    "null": None,
    "calibrated": True,
    "reason": None,
    "relevant": "image",
    "relevant_source": "request",
    "examined": ["text", "image"],
    "influence": {"text": 4.5, "image": 0.0, "synergy": 0.0},
    "answers": {"image_only": "3", "text_only": "7"},
    "probes": [],
    "method": "first_token",
    "notes": [],
    "action": "annotate",
}


def completion(**changes: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": " 7 "}}], "modint": {**MODINT, **changes}}


@pytest.fixture
def flagged() -> Flagged:
    return flagged_of(LIED, completion())


def test_the_summary_names_the_question_the_three_answers_and_the_verdict(flagged: Flagged) -> None:
    assert flagged.summary == (
        "A picture of a 3 with the caption “Caption: the digit 7.”; asked “What digit is shown?” the model "
        "answers “7”. Without the caption it answers “3”, without the picture “7”. "
        "Verdict: flagged, cause text, risk 0.97."
    )


def test_the_card_shows_wrong_answers_in_red_and_the_right_one_in_green(flagged: Flagged) -> None:
    (axes,) = card(flagged).axes
    drawn = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert [each for each in drawn if each[0] in ("7", "3")] == [
        ("7", RED),
        ("3", GREEN),
        ("7", RED),
    ]
    assert ("flagged", RED) in drawn
    assert any("cause: text" in text and "risk: 0.97" in text for text, _ in drawn)


def test_the_png_says_what_it_shows_and_what_made_it(flagged: Flagged, tmp_path: Any) -> None:
    card(flagged).savefig(tmp_path / "card.png", metadata=flagged.metadata)
    with Image.open(tmp_path / "card.png") as picture:
        info = picture.info
    assert info["Description"] == flagged.summary
    assert json.loads(info["modint"])["risk"] == 0.973
    assert info["Comment"].startswith("Made by `python -m bench picture` at commit ")


@pytest.mark.parametrize(
    "modint",
    [{"verdict": "pass", "cause": None}, {"answers": {"image_only": "3", "text_only": None}}],
    ids=["a passed answer", "a view without an answer"],
)
def test_an_answer_with_nothing_to_show_is_refused(modint: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="was not flagged with both views answered"):
        flagged_of(LIED, completion(**modint))
