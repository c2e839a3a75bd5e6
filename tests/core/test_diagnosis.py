"""All that a report says, by hand: the finding, the radar, the worst answers, the notes."""

import pytest

from modint_guard.data.perturb import CLEAN, perturb
from modint_guard.evaluation.diagnosis import WORST, diagnosis_of, finding
from modint_guard.evaluation.tables import Answer
from modint_guard.evaluation.variants import Variant
from tests.core.test_tables import clean, digit, lied


def believing(count: int, lies_believed: int) -> list[Answer]:
    options = {True: {"3": 0.0, "7": 1.0}, False: {"3": 1.0, "7": 0.0}}
    believed = [n < lies_believed for n in range(count)]
    return [
        *(clean(n, options=options[False]) for n in range(count)),
        *(lied(n, "7" if b else "3", options=options[b]) for n, b in enumerate(believed)),
    ]


def test_the_finding_names_the_worst_and_what_it_does() -> None:
    diagnosis = diagnosis_of({"m": believing(4, 3)}, data="d")
    assert diagnosis.finding == (
        "m is right in 100% of 4 clean image-heavy questions, and in 25% of them under "
        "misleading_description at severity 5, which harms it most.",
        "75% of its answers turn from right to wrong.",
    )


def test_a_second_model_is_the_second_sentence() -> None:
    diagnosis = diagnosis_of({"m": believing(4, 4), "n": believing(4, 0)}, data="d")
    assert diagnosis.finding[1].startswith("n is right in 100% there, a difference of +100% (95 % interval ")
    assert {row["model"] for row in diagnosis.rows} == {"m", "n"}


def test_clean_answers_alone_have_a_finding_too() -> None:
    diagnosis = diagnosis_of({"m": [clean(0), clean(1, "7")]}, data="d")
    assert finding(("m",), diagnosis.rows, [])[0] == "m is right in 50% of 2 clean questions."


def test_the_radar_by_hand() -> None:
    diagnosis = diagnosis_of({"m": believing(4, 3)}, data="d")
    assert diagnosis.radar["m"] == {
        "right when clean": 1.0,
        "right when disturbed": 0.25,
        "not turned wrong": 0.25,
        "options unmoved": pytest.approx(0.25),
    }


def test_the_furthest_moved_come_first() -> None:
    near = lied(1, "7", options={"3": 0.49, "7": 0.51})
    far = lied(0, "7", options={"3": 0.0, "7": 1.0})
    sure = {"3": 1.0, "7": 0.0}
    diagnosis = diagnosis_of({"m": [clean(0, options=sure), clean(1, options=sure), near, far]}, data="d")
    assert [each["id"] for each in diagnosis.worst] == ["digit-0", "digit-1"]


def test_weak_methods_and_skipped_answers_are_said() -> None:
    given = [clean(0, method="regenerated"), lied(0, "", skip="empty_answer")]
    notes = " ".join(diagnosis_of({"m": given}, data="d").notes)
    assert "m gave no log-probabilities" in notes
    assert "1 of 2 answers of m were empty" in notes


def test_without_captions_nothing_is_said_of_the_same_fact() -> None:
    diagnosis = diagnosis_of({"m": believing(4, 3)}, data="d")
    assert diagnosis.consistency == [] and "same fact, same answer" not in diagnosis.radar["m"]


def test_a_finding_in_held_out_wordings_says_so() -> None:
    reworded = [digit(n).replace(held_out_wording=True) for n in range(2)]
    answers = [Answer(Variant(item, CLEAN, 0), "3") for item in reworded]
    lies = [perturb(item, "misleading_description") for item in reworded]
    answers += [Answer(Variant(item, "misleading_description", 5), "7") for item in lies]
    first, _ = diagnosis_of({"m": answers}, data="d").finding
    assert "right in 100% of 2 clean image-heavy questions in held-out wordings, and in 0% of them" in first


def test_no_more_than_the_worst_are_kept() -> None:
    assert len(diagnosis_of({"m": believing(2 * WORST, 2 * WORST)}, data="d").worst) == WORST
