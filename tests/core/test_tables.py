"""Tables of answers, by hand: effects, modalities, consistency, doses, two models."""

from typing import Any

import pytest

from modint_guard.data.item import Item
from modint_guard.data.perturb import CLEAN, perturb
from modint_guard.evaluation.tables import (
    Answer,
    compared,
    consistency,
    dose_response,
    modalities,
    perceptual,
    rows_of,
    text_preference,
)
from modint_guard.evaluation.variants import Variant
from modint_guard.types import NEUTRAL_IMAGE, NO_CONTEXT, PRIOR
from tests.core.items import DIGIT, SUM

NAMES = ("m", "n")


def digit(number: int) -> Item:
    return DIGIT.replace(id=f"digit-{number}", source=f"source-{number}")


def clean(number: int, text: str = "3", **more: Any) -> Answer:
    return Answer(Variant(digit(number), CLEAN, 0), text, **more)


def lied(number: int, text: str, severity: int = 5, **more: Any) -> Answer:
    item = perturb(digit(number), "misleading_description")
    return Answer(Variant(item, "misleading_description", severity), text, **more)


def cells(image: str, text: str, neither: str) -> dict[str, str]:
    return {NO_CONTEXT: image, NEUTRAL_IMAGE: text, PRIOR: neither}


def test_a_row_holds_accuracy_and_effect_against_the_same_items() -> None:
    answers = [clean(0), clean(1), clean(2, "7"), lied(0, "7"), lied(1, "3"), lied(2, "7")]
    first, second = rows_of("m", answers)
    assert (first["perturbation"], first["n"], first["change"]) == (CLEAN, 3, None)
    assert first["accuracy"] == pytest.approx(2 / 3)
    assert (second["perturbation"], second["severity"]) == ("misleading_description", 5)
    assert second["accuracy"] == pytest.approx(1 / 3)
    assert second["change"] == pytest.approx(-1 / 3)
    assert (second["harmful_flip"], second["beneficial_flip"]) == (pytest.approx(1 / 3), 0.0)
    assert second["js"] is None  # no options were known


def test_a_perturbation_without_clean_answers_has_no_effect() -> None:
    (row,) = rows_of("m", [lied(0, "7")])
    assert row["accuracy"] == 0.0 and row["change"] is None


def test_the_options_move_from_certainty_to_certainty_by_one() -> None:
    sure, turned = {"3": 1.0, "7": 0.0}, {"3": 0.0, "7": 1.0}
    *_, row = rows_of("m", [clean(0, options=sure), lied(0, "7", options=turned)])
    assert row["js"] == pytest.approx(1.0)


def test_perceptual_score_is_the_share_of_the_accuracy_that_is_lost() -> None:
    answers = [
        clean(0, cells={NEUTRAL_IMAGE: "7"}),
        clean(1, cells={NEUTRAL_IMAGE: "3"}),
        clean(2, "7", cells={NEUTRAL_IMAGE: "7"}),
        clean(3),  # without the view it is not counted
    ]
    assert perceptual(answers, NEUTRAL_IMAGE) == pytest.approx(1 / 2)
    assert perceptual(answers, NO_CONTEXT) is None
    assert perceptual([clean(0, "7", cells={NEUTRAL_IMAGE: "7"})], NEUTRAL_IMAGE) is None  # nothing right


def test_shapley_values_and_interaction_of_the_accuracy_by_hand() -> None:
    # Right with both: 1 of 2; image alone 2 of 2; text alone 0; neither 0.
    answers = [lied(0, "7", cells=cells("3", "7", "7")), lied(1, "3", cells=cells("3", "7", "7"))]
    seen = modalities(answers)
    assert seen["shapley_text"] == pytest.approx(((0.5 - 1.0) + (0.0 - 0.0)) / 2)
    assert seen["shapley_image"] == pytest.approx(((0.5 - 0.0) + (1.0 - 0.0)) / 2)
    assert seen["interaction"] == pytest.approx(0.5 - 1.0 - 0.0 + 0.0)


def test_influences_are_means_and_the_share_is_of_their_sizes() -> None:
    one = {"text": 3.0, "image": -1.0, "synergy": None}
    two = {"text": 1.0, "image": None, "synergy": None}
    seen = modalities([lied(0, "7", influence=one), lied(1, "7", influence=two)])
    assert (seen["influence_text"], seen["influence_image"], seen["synergy"]) == (2.0, -1.0, None)
    assert seen["share_text"] == pytest.approx(2 / 3)
    assert modalities([lied(0, "7")])["share_text"] is None


def test_text_preference_counts_those_that_take_a_side() -> None:
    assert text_preference([lied(0, "7"), lied(1, "3"), lied(2, "7"), lied(3, "none of them")]) == 2 / 3
    shown = perturb(SUM, "contradicting_image")
    image = [Answer(Variant(shown, "contradicting_image", 5), text) for text in ("3", "3", "3", "7")]
    assert text_preference(image) == 3 / 4
    assert text_preference([clean(0)]) is None


def test_order_flips_are_shares_of_those_asked() -> None:
    answers = [clean(0, reordered=True), clean(1, reordered=False), clean(2)]
    assert modalities(answers)["order_flip"] == 0.5


def test_the_same_fact_as_picture_and_as_text() -> None:
    def told(number: int, text: str) -> Answer:
        item = perturb(digit(number), "true_description")
        return Answer(Variant(item, "true_description", 5), "3", cells={NEUTRAL_IMAGE: text})

    answers = [clean(0), clean(1, "7"), clean(2), told(0, "3"), told(1, "3"), told(2, "7")]
    assert consistency(answers) == {"n": 3, "same": 1 / 3, "both_right": 1 / 3}
    assert consistency([clean(0)]) is None


def test_dose_and_response_by_hand() -> None:
    def row(severity: int, change: float | None) -> dict[str, Any]:
        key = {"model": "m", "family": "image-heavy", "perturbation": "noise", "held_out": "no"}
        return {**key, "severity": severity, "change": change}

    (response,) = dose_response([row(0, None), row(5, -0.5), row(2, 0.0)])
    # Trapezoids: 0 up to 0.4, then 0.6 wide and 0.5 high: 0.15. Slope: 1 * 0.5 / (0.16 + 1).
    assert response["area"] == pytest.approx(0.15)
    assert response["slope"] == pytest.approx(0.5 / 1.16)
    assert list(dose_response([row(5, -0.5)])) == []


def test_two_models_on_the_same_variants() -> None:
    first = [lied(n, "3" if n < 1 else "7") for n in range(6)]
    second = [lied(n, "3") for n in range(6)]
    (row,) = compared(NAMES, first, second)
    assert (row["m"], row["n"]) == (pytest.approx(1 / 6), 1.0)
    assert row["difference"] == pytest.approx(5 / 6)
    assert (row["only_first_right"], row["only_second_right"]) == (0, 5)
    assert row["p"] == pytest.approx(2 / 2**5)
    assert row["difference_low"] <= 5 / 6 <= row["difference_high"]
    with pytest.raises(ValueError, match="on the same variants"):
        list(compared(NAMES, first, second[1:]))


def test_wordings_that_no_training_has_seen_have_rows_of_their_own() -> None:
    reworded = digit(0).replace(id="reworded", held_out_wording=True)
    caption = perturb(digit(1), "ocr_noise")
    answers = [
        clean(0),
        clean(1),
        Answer(Variant(reworded, CLEAN, 0), "7"),
        Answer(Variant(caption, "ocr_noise", 5), "3"),
    ]
    rows = [
        (row["perturbation"], row["held_out"], row["n"], row["accuracy"]) for row in rows_of("m", answers)
    ]
    assert rows == [(CLEAN, "no", 2, 1.0), (CLEAN, "wording", 1, 0.0), ("ocr_noise", "perturbation", 1, 1.0)]
    again = [(row["held_out"], row["n"]) for row in compared(("m", "other"), answers, answers)]
    assert again == [("no", 2), ("wording", 1), ("perturbation", 1)]
