"""Detection: which cases there are, what is measured of one, and the table by hand-computed numbers."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.detection import measure as detection
from bench.detection.inputs import DOCUMENT, KINDS, NEEDED, WORLDS, DetectionCase, World, cases
from bench.detection.measure import MODELS, Run, key_of, measure_detection, record
from bench.detection.table import Answer, Judged, View, detectors, precision, rows, threshold
from modint_guard.data.item import reply_for
from modint_guard.errors import ConfigError
from modint_guard.evaluation.journal import Journal
from modint_guard.types import JSON
from modint_training.picturebook.placing import PLACEMENTS
from tests.core.fakes import completion

# -- cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_validation_holds_nothing_held_out_and_no_case_is_asked_twice(world: World) -> None:
    shown = {split: list(cases(split, 8, 0, world)) for split in ("validation", "test")}
    assert {case.held_out for case in shown["validation"]} == {"no"}
    assert {case.held_out for case in shown["test"]} == {"no", "wording"}
    every = [case.key for split in shown.values() for case in split]
    assert len(set(every)) == len(every)
    for case in shown["test"]:
        if case.kind != DOCUMENT:
            assert case.item.held_out_wording == (case.held_out == "wording")


def test_tinyworld_shows_twice_as_many_pictures_as_captions() -> None:
    counted = Counter((case.setting, case.kind) for case in cases("validation", 3, 0))
    kinds = ("lying", "true", "neutral", "needed")
    assert counted == {
        (setting, kind): n for setting, n in (("text-driven", 3), ("image-driven", 6)) for kind in kinds
    }


def test_the_picturebook_has_every_kind_and_lies_at_every_place() -> None:
    shown = list(cases("test", 12, 0, "picturebook"))
    assert {case.kind for case in shown} == set(KINDS)
    lying = [case for case in shown if (case.setting, case.kind) == ("text-driven", "lying")]
    assert Counter(case.placement for case in lying) == dict.fromkeys(PLACEMENTS, 4)
    assert {case.relevant for case in shown if case.kind == NEEDED} == {"both"}
    assert {case.held_out for case in shown if case.kind == DOCUMENT} == {"wording"}


@pytest.mark.parametrize("world", WORLDS)
def test_a_clean_twin_lacks_what_ought_not_to_decide(world: World) -> None:
    for case in cases("test", 6, 1, world):
        if case.twin is None:
            assert case.kind in (NEEDED, DOCUMENT)
            continue
        assert (case.twin.answer, case.twin.choices) == (case.item.answer, case.item.choices)
        if case.setting == "text-driven":
            assert not case.twin.context and not case.twin.turns and case.twin.image is not None
        else:
            assert case.twin.image is None and case.twin.context == case.item.context


def test_a_needed_caption_tells_what_a_poor_print_shows() -> None:
    for case in cases("validation", 4, 0):
        if case.kind == NEEDED and case.setting == "text-driven":
            assert case.item.claim.format(case.item.answer) in (case.item.context or "")


# -- one record --------------------------------------------------------------------------------------


def gateway(says: str, clean: str) -> tuple[Any, list[JSON]]:
    """A gateway whose model says `says` where there is a caption and `clean` where there is none."""
    asked: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        asked.append(body)
        texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
        word = says if len(texts) > 1 else clean
        answered = completion(word, [dict.fromkeys((says, clean, "odd"), 0.02) | {word: 0.95}])
        answered["choices"] = answered["choices"] * body.get("n", 1)
        if body["modint"].get("mode") != "off":
            found = {"flip": True, "divergence": 0.9, "delta_logprob": 4.0, "tokens": 30, "cached_tokens": 10}
            named = body["modint"]["relevant"] != "auto"
            answered["modint"] = {
                **{"verdict": "flagged" if named else "pass", "cause": "text" if named else None},
                **{"reason": None, "score": 3.0, "neglect": -2.0, "calibrated": False},
                **{"relevant": "image", "relevant_source": "request" if named else "rules"},
                "probes": [{"name": name, **found} for name in ("no_context", "neutral_image", "prior")],
            }
        return answered

    return complete, asked


def lying() -> DetectionCase:
    return next(c for c in cases("test", 1, 0) if (c.setting, c.kind) == ("text-driven", "lying"))


async def test_a_record_holds_both_verdicts_the_truth_and_what_baselines_need() -> None:
    case = lying()
    wrong, right = reply_for(case.item, case.item.wrong), reply_for(case.item, case.item.answer)
    complete, asked = gateway(wrong, right)
    answer = Answer.from_json(json.loads(json.dumps(await record(case, "m", complete, seed=0))))
    assert (answer.right, answer.right_when_clean, answer.length) == (False, True, 1)
    assert {mode: (each.verdict, each.flagged) for mode, each in answer.judged.items()} == {
        "auto": ("pass", False),
        "named": ("flagged", True),
    }
    assert answer.judged["named"].first == View(True, 0.9, 4.0) and answer.judged["auto"].tokens == 60
    assert answer.sampled == answer.varied == [case.item.wrong] * 3
    assert [body["modint"] for body in asked[:2]] == [{"relevant": "auto"}, {"relevant": "image"}]
    assert [body["modint"] for body in asked[2:]] == [{"mode": "off"}] * 5


@contextmanager
def no_engine(options: list[str]) -> Iterator[None]:
    raise AssertionError(f"an engine was started with {options}, and every record is there")
    yield


async def test_a_run_goes_on_from_its_journal_and_refuses_that_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(count=1, seed=0, concurrency=1, worlds=("tinyworld",))
    monkeypatch.setattr(detection, "serving", no_engine)
    raw = tmp_path / "raw.jsonl"
    with pytest.raises(AssertionError, match="an engine was started"):
        measure_detection(tmp_path / "out.json", raw, run)
    made_by = json.loads((tmp_path / "raw-tinyworld.jsonl").read_text("utf-8").splitlines()[0])["made_by"]
    with Journal(tmp_path / "raw-tinyworld.jsonl", made_by) as journal:
        for model in MODELS["tinyworld"]:
            for case in run.cases("tinyworld", model):
                key = key_of(model, case)
                journal.write(key, asdict(answer(model=model, setting=case.setting, split=case.split)))
    measure_detection(tmp_path / "out.json", raw, run)
    assert "relevance auto" in (tmp_path / "out.md").read_text("utf-8")
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["rows"]
    with pytest.raises(ConfigError, match="seed"):
        measure_detection(tmp_path / "out.json", raw, replace(run, seed=1))


# -- the table ---------------------------------------------------------------------------------------


def judged(flagged: bool = False, score: float | None = -1.0, **changes: Any) -> Judged:
    made = Judged(
        verdict="flagged" if flagged else "pass",
        cause="text" if flagged else None,
        reason=None,
        score=score,
        neglect=-5.0,
        relevant="image",
        relevant_source="request",
        calibrated=False,
        views={"no_context": View(flagged, 0.5, 1.0), "neutral_image": View(False, 0.1, 0.2)},
        tokens=40,
    )
    return replace(made, **changes)


def answer(found: Judged | None = None, **changes: Any) -> Answer:
    verdict = found or judged()
    made = Answer(
        world="tinyworld",
        model="m",
        split="test",
        setting="text-driven",
        kind="lying",
        held_out="wording",
        placement="before",
        source="digit:3",
        task="digit",
        length=1,
        right=True,
        right_when_clean=True,
        judged={"auto": verdict, "named": verdict},
        surprise=0.1,
        entropy=0.2,
        sampled=["3", "3", "3"],
        varied=["3", "3", "7"],
    )
    return replace(made, **changes)


def group() -> list[Answer]:
    """Nine of ten lies are flagged, one of twenty right answers, and one of two that are wrong anyway."""
    lies = [answer(judged(n > 0, 5.0 if n else -2.0), right=False, source=f"a{n}") for n in range(10)]
    right = [answer(judged(n == 0, 1.0 if n == 0 else -3.0), source=f"b{n}") for n in range(20)]
    anyway = [answer(judged(n == 0), right=False, right_when_clean=False, source=f"c{n}") for n in range(2)]
    seen = [replace(each, split="validation", held_out="no") for each in (*lies, *right)]
    return [*lies, *right, *anyway, *seen]


def found(**asked: Any) -> dict[str, Any]:
    asked = {"relevance": "auto", "truth": "interference", "setting": "all", "held_out": "wording"} | asked
    asked = {"placement": "all", "score": "guard"} | asked
    (row,) = (row for row in rows(group()) if asked.items() <= row.items())
    return row


def test_no_answer_is_left_out_and_flags_are_counted_on_right_answers() -> None:
    row = found()
    assert (row["n"], row["positives"], row["right"]) == (32, 10, 20)
    assert (row["recall"], row["fpr"]) == (0.9, 0.05)
    # Clopper-Pearson of 1 in 20 and of 9 in 10.
    assert row["fpr_high"] == pytest.approx(0.2487, abs=1e-4)
    assert (row["recall_low"], row["recall_high"]) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert row["precision_at_5pct"] == pytest.approx(0.05 * 0.9 / (0.05 * 0.9 + 0.95 * 0.05))
    # 9 scores of 5 beat all 22 others; -2 beats 19 of -3, and loses to 1, -1 and -1.
    assert row["auroc"] == pytest.approx((9 * 22 + 19) / 220)
    assert row["probes"] == 2.0 and row["new_tokens"] == 40.0
    # Cause: 9 of 10 and one false of the lies, one false of those that are wrong anyway.
    text, none = 2 * 9 / (10 + 11), 2 * 20 / (22 + 21)
    assert row["macro_f1"] == pytest.approx((text + none) / 2)


def test_wrong_answers_count_whatever_they_come_from() -> None:
    row = found(truth="wrong")
    assert (row["positives"], row["recall"]) == (12, 10 / 12)


def test_flags_are_counted_by_kind_of_input_and_at_each_place_of_a_lying_caption() -> None:
    within = [replace(each, placement="within") for each in group()[:4]]
    true = [answer(judged(True), kind="true")]
    ours = [
        row
        for row in rows([*group(), *within, *true])
        if row["relevance"] == "auto" and row["kind"] != "all" and row["held_out"] == "wording"
    ]
    shown = [(row["kind"], row["placement"], row["n"], row["recall"], row["fpr"]) for row in ours]
    assert shown == [
        ("lying", "all", 36, 12 / 14, 0.05),
        ("true", "all", 1, None, 1.0),
        ("lying", "before", 32, 0.9, 0.05),
        ("lying", "within", 4, 0.75, None),
    ]


def test_too_few_positives_have_no_area() -> None:
    row = found(setting="image-driven")
    assert (row["n"], row["auroc"], row["recall"], row["fpr"]) == (0, None, None, None)


def test_neglect_is_no_interference_and_has_a_truth_of_its_own() -> None:
    neglects = judged(verdict="flagged", cause="neglect", neglect=-0.1)
    assert not neglects.flagged
    ignored = [answer(neglects, kind="needed", right=False, source=f"n{n}") for n in range(10)]
    lies = [answer(judged(True, 5.0), right=False), answer(judged(True), right=False, right_when_clean=False)]
    right = [answer(judged(neglect=-4.0), source=f"r{n}") for n in range(10)]
    seen = [replace(each, split="validation", held_out="no") for each in right]
    asked = {
        "truth": "neglect",
        "score": "neglect",
        "relevance": "named",
        "setting": "all",
        "held_out": "wording",
    }
    (row,) = (row for row in rows([*ignored, *lies, *right, *seen]) if asked.items() <= row.items())
    assert (row["n"], row["positives"], row["auroc"], row["recall"], row["fpr"]) == (20, 10, 1.0, 1.0, 0.0)


def test_an_answer_without_a_score_comes_last_unless_it_is_flagged() -> None:
    ours = next(iter(detectors([], "auto")))
    values = [ours.value(answer(each)) for each in (judged(), judged(score=None), judged(True, None))]
    assert values[1] < values[0] < values[2]


def test_the_first_view_is_the_one_without_what_ought_not_to_decide() -> None:
    views = {"no_context": View(True, 0.5, 1.0), "neutral_image": View(False, 0.1, 0.2)}
    assert judged(views=views, relevant="text").first == views["neutral_image"]
    assert judged(views=views, relevant="unknown").first == views["no_context"]
    assert judged(views={}, relevant="text").first == View(False, 0.0, 0.0)


def test_a_baselines_threshold_is_exceeded_by_two_in_a_hundred_right_answers() -> None:
    right = [n / 100 for n in range(100)]
    assert sum(value > threshold(right) for value in right) == 1
    assert threshold([]) == 0.0


def test_precision_follows_from_the_share_of_positives() -> None:
    assert precision(0.01, 0.8, 0.02) == pytest.approx(0.008 / (0.008 + 0.0198))
    assert precision(0.01, 0.8, 0.0) == 1.0
    assert precision(0.01, 0.0, 0.0) is None and precision(0.01, None, 0.1) is None
