"""Detection: which cases there are, what is measured of one, and the tables by hand-computed numbers."""

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.detection import measure as detection
from bench.detection.inputs import (
    KINDS,
    NEEDED,
    SETTINGS,
    DetectionCase,
    cases,
    pilot,
    rarely_misled,
)
from bench.detection.measure import (
    PILOT,
    judged_by,
    key_of,
    pilot_result_of,
    record,
    run_pilot,
    served_cost,
    write_tables,
)
from bench.detection.report import ModelRows, goals
from bench.detection.table import (
    Answer,
    Cost,
    cells_cost,
    detectors,
    early_stop_cost,
    flag_rows,
    labelled,
    macro_f1,
    rows,
    threshold_of,
)
from modint_guard.data.item import Item, reply_for
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.journal import Journal
from modint_guard.models import ADAPTER, BASE
from modint_guard.types import JSON
from modint_training.tinyworld import suite
from modint_training.tinyworld.tasks import reworded
from tests.core.fakes import completion

TEXT_HEAVY = ("arithmetic", "lookup_colour", "lookup_shape", "ordering")

# Cases


def test_validation_holds_nothing_held_out_and_test_all_of_it() -> None:
    shown = [(c.setting, c.kind, c.held_out) for c in cases("validation", 2, 0)]
    assert set(shown) == {(setting, kind, "no") for setting in SETTINGS for kind in KINDS}
    tested = list(cases("test", 3, 0))
    assert {c.held_out for c in tested} == {"no", "wording", "perturbation"}
    # Three cases a cell, six where a text ought to decide: four kinds in two wordings, one of unseen kinds.
    assert len({c.key for c in tested}) == len(tested) == (3 + 6) * (2 * 4 + 1)
    assert {c.item.perturbation for c in tested if c.held_out == "perturbation"} == {
        "ocr_noise",
        "irrelevant_image",
        "white",
        "screenshot",
    }
    assert all(c.item.held_out_wording == (c.held_out == "wording") for c in tested)


def test_sub_tasks_that_hardly_give_way_are_asked_every_third_time() -> None:
    thinned = frozenset({"lookup_colour", "lookup_shape"})
    drawn = [
        c for c in cases("test", 8, 0, thinned=thinned) if (c.setting, c.kind) == ("image-driven", "lying")
    ]
    asked = Counter(c.item.task for c in drawn if c.held_out == "no")
    # 16 cases of turns 4 + 2 + 2 + 4 + 2 + 2: every sub-task, then twice those that give way.
    assert asked == {"arithmetic": 6, "ordering": 6, "lookup_colour": 2, "lookup_shape": 2}
    plain = {c.key for c in cases("test", 24, 0)}
    assert all(c.key in plain for c in drawn)  # the same items, fewer of some
    forms = {c.item.form for c in drawn if c.item.task == "lookup_colour"}
    assert forms == {"word", "letter"}


def content(item: Item) -> tuple[object, ...]:
    """What a model is shown, whatever the item is called."""
    return item.question, item.context, item.choices, item.image and item.image.tobytes()


def test_the_pilot_shares_no_item_with_the_cases_and_thins_by_its_answers() -> None:
    first = pilot(3, 0)
    assert Counter(item.task for item in first) == dict.fromkeys(TEXT_HEAVY, 3)
    assert {item.perturbation for item in first} == {"contradicting_image"}
    asked = [case.item for case in cases("validation", 8, 0)]
    assert not {item.id for item in first} & {item.id for item in asked}
    assert not set(map(content, first)) & set(map(content, asked))
    wrong = {"arithmetic": [True] * 6 + [False] * 4, "ordering": [True] + [False] * 9}
    steady = {"lookup_colour": [False] * 10}
    assert rarely_misled({**wrong, **steady}) == {"lookup_colour"}
    assert rarely_misled(steady) == frozenset()


def test_a_clean_twin_asks_the_same_in_other_words() -> None:
    for case in cases("test", 6, 1):
        assert (case.twin is None) == (case.kind == NEEDED)
        if case.twin is None:
            continue
        assert case.twin.question != case.item.question
        assert (case.twin.answer, case.twin.choices) == (case.item.answer, case.item.choices)
        if case.setting == "text-driven":
            assert case.twin.context is None and case.twin.image is not None
        else:
            assert case.twin.image is None and case.twin.context == case.item.context


def test_a_needed_caption_tells_what_a_poor_print_shows() -> None:
    for case in cases("validation", 4, 0):
        if case.kind != NEEDED:
            assert case.relevant in ("image", "text")
            continue
        assert case.relevant == "both"
        if case.setting == "text-driven":
            assert case.item.context is not None
            assert case.item.claim.format(case.item.answer) in case.item.context


def test_other_words_keep_what_is_asked_for() -> None:
    (item,) = suite.items("text-heavy", "test", 1)
    assert item.task == "arithmetic"
    sums = [reworded(item, by).question.rstrip("?").split()[-3:] for by in range(4)]
    assert sums[0] == sums[1] == sums[2] == sums[3]
    assert reworded(item, 0) == item
    with pytest.raises(ValueError, match="is no wording of arithmetic"):
        reworded(item.replace(question="What else?"))


# One record


def gateway(says: str, clean: str) -> tuple[Any, list[JSON]]:
    """A gateway whose model says `says` where there is a caption and `clean` where there is none."""
    asked: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        asked.append(body)
        texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
        word = says if len(texts) > 1 else clean
        words = dict.fromkeys((says, clean, "odd"), 0.02) | {word: 0.95}
        answered = completion(word, [words])
        if len(body["messages"]) > 1:
            answered["choices"][0]["message"]["content"] = "80"
        answered["choices"] = answered["choices"] * body.get("n", 1)
        if body["modint"].get("mode") != "off":
            probes = [
                {"name": name, "tokens": 30, "cached_tokens": 10, "ms": 5.0}
                for name in ("no_context", "neutral_image", "prior")
            ]
            answered["modint"] = {"verdict": "flagged", "cause": "text", "risk": 0.9, "probes": probes}
        return answered

    return complete, asked


def lying() -> DetectionCase:
    return next(c for c in cases("test", 1, 0) if (c.setting, c.kind) == ("text-driven", "lying"))


async def test_a_record_holds_verdict_features_baselines_truth_and_cost() -> None:
    case = lying()
    wrong, right = reply_for(case.item, case.item.wrong), reply_for(case.item, case.item.answer)
    complete, asked = gateway(wrong, right)
    answer = Answer.from_json(json.loads(json.dumps(await record(case, "m", complete, seed=0))))
    assert (answer.right, answer.right_when_clean) == (False, True)
    assert (answer.verdict, answer.cause, answer.risk) == ("flagged", "text", 0.9)
    assert answer.max_probability == pytest.approx(0.05)
    assert answer.feature("flip") == 1.0 and answer.feature("js") > 0.5
    assert answer.feature("flip", "neutral_image") == 0.0
    assert answer.sampled == [case.item.wrong] * 10 and answer.varied == [case.item.wrong] * 5
    assert answer.stated == 0.8
    assert answer.costs["no_context"] == Cost(1, 20, 10, 5.0)
    assert answer.costs["gateway"] == Cost(3, 60, 30, 5.0) and answer.answer_ms > 0.0
    assert answer.feature("sure", "neutral_image") == pytest.approx(0.95, abs=0.05)
    five, ten = answer.costs["semantic_entropy_5"], answer.costs["semantic_entropy_10"]
    assert (five.calls, ten.calls, ten.new_tokens) == (5, 10, 2 * five.new_tokens)
    # Guarded once and first; sampled with seeds that no sample shares.
    assert [body["modint"] for body in asked].count({"relevant": "image"}) == 1
    assert asked[0]["modint"] == {"relevant": "image"}
    assert [body["seed"] for body in asked if body.get("n") == 5] == [0, 5]


async def test_a_template_without_a_second_turn_states_no_confidence() -> None:
    complete, _ = gateway("3", "7")

    async def single(body: JSON) -> JSON:
        if len(body["messages"]) > 1:
            raise EndpointError("one turn only", status=400)
        return await complete(body)

    found = await record(lying(), "m", single, seed=0)
    assert found["stated"] is None and found["costs"]["verbalised"] == asdict(Cost())


async def test_an_endpoint_without_log_probabilities_is_refused() -> None:
    complete, _ = gateway("3", "7")

    async def silent(body: JSON) -> JSON:
        answered = await complete(body)
        answered["choices"][0]["logprobs"] = None
        return answered

    with pytest.raises(ConfigError, match="does the endpoint give log-probabilities"):
        await record(lying(), "m", silent, seed=0)


async def test_a_case_whose_view_fails_is_not_recorded() -> None:
    complete, _ = gateway("3", "7")

    async def failing(body: JSON) -> JSON:
        texts = [part for part in body["messages"][0]["content"] if part["type"] == "text"]
        if body["modint"].get("mode") == "off" and len(texts) == 1:  # without the caption
            raise EndpointError("busy", status=503)
        return await complete(body)

    with pytest.raises(EndpointError, match="the view no_context of test/text-driven/lying"):
        await record(lying(), "m", failing, seed=0)


def test_records_of_other_verdicts_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = judged_by()
    assert before == judged_by()
    monkeypatch.setattr(detection, "bundled", lambda name: tmp_path)  # where no calibration lies
    assert judged_by() != before


async def test_a_model_that_states_no_confidence_is_not_asked_for_one() -> None:
    complete, asked = gateway("3", "7")
    found = await record(lying(), "m", complete, seed=0, states_confidence=False)
    assert found["stated"] is None and all(len(body["messages"]) == 1 for body in asked)


def test_the_cost_of_a_verdict_with_an_early_stop_by_hand() -> None:
    probed = {
        "no_context": Cost(1, 20, 10, 5.0),
        "prior": Cost(1, 30, 0, 6.0),
        "neutral_image": Cost(1, 9, 1, 7),
    }
    later = frozenset({"prior", "neutral_image"})
    assert served_cost(probed, frozenset()) == Cost(3, 59, 11, 7.0)
    assert served_cost(probed, later) == Cost(3, 59, 11, 5.0, 7.0)
    assert served_cost({"no_context": probed["no_context"]}, later) == Cost(1, 20, 10, 5.0)


async def test_the_first_look_is_kept_and_settles_what_is_asked(tmp_path: Path) -> None:
    asked = []

    async def complete(body: JSON) -> JSON:
        asked.append(body)
        return completion("80" if len(body["messages"]) > 1 else "nothing")

    with Journal(tmp_path / "raw.jsonl", {}) as journal:
        assert pilot_result_of(journal.records, 0) is None
        found = await run_pilot(complete, journal, 0, 4)
        assert found == pilot_result_of(journal.records, 0) == await run_pilot(complete, journal, 0, 4)
    assert found.thinned == frozenset() and found.state_confidence == {BASE, ADAPTER}
    assert len(asked) == 4 * PILOT + 2 * PILOT  # once
    base, adapter = (found.cases(model, 4, 0) for model in (BASE, ADAPTER))
    assert len(base) == 2 * len(adapter) and {c.key for c in adapter} < {c.key for c in base}


def test_records_of_two_models_have_names_of_their_own() -> None:
    assert key_of("a", lying()) != key_of("b", lying())


# The table

numbers = count()


def answer(js: float, *, right: bool, entropy: float = 0.5, **more: Any) -> Answer:
    fields: dict[str, Any] = {
        "model": "m",
        "split": "test",
        "setting": "text-driven",
        "kind": "lying",
        "held_out": "no",
        "source": f"source-{next(numbers)}",
        "relevant": "image",
        "right": right,
        "right_when_clean": True,
        "verdict": "pass" if right else "flagged",
        "cause": None if right else "text",
        "risk": js,
        "entropy": entropy,
        "max_probability": 0.1,
        "cells": {
            "no_context": {"js": js, "margin": 0.0, "pmi": 0.0, "entropy": 0.0, "flip": float(js > 0.5)}
        },
        "influence": {"text": None, "image": None, "synergy": None},
        "relative_entropy": None,
        "sampled": ["3"] * 10,
        "varied": ["3"] * 5,
        "stated": None,
        "answer_ms": 10.0,
        "costs": {
            "no_context": Cost(1, 20, 10, 5.0),
            "neutral_image": Cost(1, 30, 0, 7.0),
            "prior": Cost(1, 30, 0, 6.0),
            "gateway": Cost(1, 20, 10, 15.0),
        },
    }
    return Answer(**{**fields, **more})


def split(**more: Any) -> list[Answer]:
    """Four wrong and four right answers; js tells six of eight apart: 14.5 of 16 pairs."""
    wrong = [answer(js, right=False, **more) for js in (0.9, 0.8, 0.7, 0.3)]
    return [*wrong, *(answer(js, right=True, **more) for js in (0.4, 0.3, 0.1, 0.0))]


def everything() -> list[Answer]:
    image = {"setting": "image-driven", "relevant": "text"}
    cells = {"neutral_image": {"js": 0.1, "margin": 0.0, "pmi": 0.0, "entropy": 0.0, "flip": 0.0}}
    return [
        *split(split="validation"),
        *split(),
        *[replace(a, cells=cells) for a in (*split(split="validation", **image), *split(**image))],
    ]


def test_a_row_by_hand() -> None:
    found = list(rows(everything(), resamples=50))
    (row,) = (
        r for r in found if (r["setting"], r["truth"], r["score"]) == ("text-driven", "interference", "js")
    )
    assert (row["n"], row["positives"]) == (8, 4)
    # 0.9, 0.8 and 0.7 beat all four right ones; 0.3 beats two, ties one, loses one.
    assert row["auroc"] == pytest.approx(14.5 / 16)
    # Precision at the three is 1; the fourth comes with a tie after 0.4: 4/6.
    assert row["auprc"] == pytest.approx((3 + 4 / 6) / 4)
    assert row["fpr_at_95"] == 0.5
    # 80 % of 8 are 7 answers: all but that of 0.9, and three of them are wrong.
    assert row["risk_at_80"] == pytest.approx(3 / 7)
    # Flagging from 0.7 on: right F1 = 2*4/(4+5), wrong F1 = 2*3/(4+3).
    assert row["threshold"] == 0.7
    assert (row["tpr"], row["fpr"]) == (0.75, 0.0)
    assert row["macro_f1"] == pytest.approx((8 / 9 + 6 / 7) / 2)
    assert (row["probes"], row["new_tokens"], row["cached_tokens"], row["ms_p50"]) == (1, 20, 10, 5.0)
    assert row["gain"] == pytest.approx(14.5 / 16 - 0.5)  # every baseline is constant here
    assert row["latency_ratio"] == 1.0  # done before the answer


def test_the_gateway_is_judged_by_its_verdict_and_what_it_costs() -> None:
    (row,) = (
        r
        for r in rows(everything(), resamples=50)
        if (r["setting"], r["truth"], r["score"]) == ("text-driven", "interference", "gateway")
    )
    assert (row["macro_f1"], row["tpr"], row["fpr"], row["threshold"]) == (1.0, 1.0, 0.0, None)
    assert (row["probes"], row["new_tokens"], row["cached_tokens"], row["ms_p50"]) == (1, 20, 10, 15.0)
    assert row["latency_ratio"] == 1.5


def test_baselines_name_no_cause_and_the_unable_have_no_figures() -> None:
    found = {r["score"]: r for r in rows(everything(), resamples=50) if r["setting"] == "text-driven"}
    assert found["entropy"]["macro_f1"] is None and found["entropy"]["gain"] is None
    assert found["entropy"]["auroc"] == 0.5
    assert found["verbalised"]["auroc"] is None and found["verbalised"]["fpr_at_95"] is None
    assert found["semantic_entropy_10"]["auroc"] == 0.5


def test_all_rows_have_the_same_keys_and_pooled_ones_hold_both_settings() -> None:
    found = list(rows(everything(), resamples=20))
    assert len({tuple(row) for row in found}) == 1
    assert {row["n"] for row in found if row["setting"] == "both"} == {16}
    assert {row["held_out"] for row in found} == {"no"}  # a part without answers has no rows


def test_answers_whose_clean_twin_is_wrong_count_for_wrong_against_right_alone() -> None:
    lost = answer(0.2, right=False, right_when_clean=False)
    assert labelled([lost], "interference") == [] and labelled([lost], "wrong") == [lost]


def test_the_threshold_is_the_highest_of_the_best_macro_f1() -> None:
    validation = split(split="validation")
    assert threshold_of(lambda a: a.feature("js"), validation) == 0.7


def test_macro_f1_counts_another_cause_as_a_miss() -> None:
    assert macro_f1(["text", "none"], ["text", "none"]) == 1.0
    assert macro_f1(["text", "text", "none"], ["text", "prior", "none"]) == pytest.approx((2 / 3 + 1) / 2)


def test_costs_of_an_early_stop_by_hand() -> None:
    asked = answer(0.2, right=True)
    first, all_three = Cost(1, 20, 10, 5.0), Cost(3, 80, 10, 5.0, 7.0)  # the others wait for the answer
    assert cells_cost(asked) == Cost(3, 80, 10, 7.0)
    assert early_stop_cost(asked, 0.2, 0.3, 0.8) == first  # cleared
    assert early_stop_cost(asked, 0.3, 0.3, 0.8) == all_three
    assert early_stop_cost(asked, 0.8, 0.3, 0.8) == first  # flagged
    assert all_three.slower(4.0) == (5.0 + 7.0) / 4.0 and all_three.slower(10.0) == 1.7
    both = replace(asked, relevant="both")
    assert early_stop_cost(both, 0.5, 0.3, 0.8) == Cost(1, 30, 0, 6.0)
    sure = replace(both, cells={"no_context": {}, "prior": {"sure": 1.0}})
    assert early_stop_cost(sure, 0.5, 0.3, 0.8) == Cost(3, 80, 10, 6.0, 7.0)
    bare = replace(both, cells={}, costs={"neutral_image": Cost(1, 30, 0, 7.0)})
    assert early_stop_cost(bare, 0.5, 0.3, 0.8) == Cost(1, 30, 0, 7.0)


def test_where_both_decide_the_verdict_itself_is_the_score() -> None:
    needed = replace(answer(0.9, right=True, relevant="both", kind="needed"), risk=None, verdict="pass")
    fitted = {d.name: d for d in detectors(split(split="validation"))}
    assert fitted["risk"].value(needed) == 0.0 == fitted["gateway"].value(needed)
    assert fitted["risk"].value(replace(needed, verdict="flagged")) == 1.0
    assert fitted["risk"].value(answer(0.9, right=True)) > 0.5


def test_the_image_driven_setting_reads_the_other_view() -> None:
    cells = {
        "no_context": {"js": 0.9, "margin": 0.0, "pmi": 0.0, "entropy": 0.0, "flip": 1.0},
        "neutral_image": {"js": 0.2, "margin": 0.0, "pmi": 0.0, "entropy": 0.0, "flip": 0.0},
    }
    given = answer(0.0, right=True, setting="image-driven", cells=cells, relative_entropy=0.4)
    assert (given.feature("js"), given.other) == (0.2, "image")


def test_flags_by_kind_of_wrong_and_right_answers() -> None:
    (row, *_) = flag_rows(everything())
    assert (row["kind"], row["n"], row["wrong"]) == ("lying", 8, 4)
    assert (row["gateway_flagged_of_wrong"], row["gateway_flagged_of_right"]) == (1.0, 0.0)
    assert (row["risk_flagged_of_wrong"], row["risk_flagged_of_right"]) == (0.75, 0.0)


def test_both_tables_are_written_beside_each_other(tmp_path: Path) -> None:
    made = [replace(each, model=BASE) for each in everything()]
    write_tables(tmp_path / "d.json", made, thinned=frozenset({"ordering"}), command="made", seed=0)
    assert json.loads((tmp_path / "d.json").read_text())["command"] == "made"
    shown = (tmp_path / "d.md").read_text()
    assert shown.index("## Goals") < shown.index("| gateway |") < shown.index("By construction")
    assert "this time ordering, found" in shown
    assert (tmp_path / "d_flags.md").exists()


def test_a_setting_that_cannot_be_fitted_has_no_rows_and_meets_no_goal() -> None:
    known = [a for a in everything() if a.setting == "text-driven" or a.split == "test"]
    found = list(rows(known, resamples=20))
    assert {row["setting"] for row in found} == {"text-driven"}
    assert {row["setting"] for row in flag_rows(known)} == {"text-driven"}
    met = {line["goal"]: line for line in goals(ModelRows(found))}
    assert met["AUROC image-driven at least 0.90"] == {
        **{"goal": "AUROC image-driven at least 0.90", "figure": "–", "met": "no"}
    }


def test_a_page_names_the_settings_that_have_no_rows(tmp_path: Path) -> None:
    known = [a for a in everything() if a.setting == "text-driven" or a.split == "test"]
    write_tables(tmp_path / "d.json", known, thinned=frozenset(), command="made", seed=0)
    assert "allows no fit: m image-driven (" in (tmp_path / "d.md").read_text()
    write_tables(tmp_path / "d.json", everything(), thinned=frozenset(), command="made", seed=0)
    assert "allows no fit: none." in (tmp_path / "d.md").read_text()


def test_each_goal_is_met_by_its_figure() -> None:
    def row(score: str, setting: str, **more: object) -> dict[str, object]:
        head = {"score": score, "setting": setting, "truth": "interference", "held_out": "no"}
        figures = {"auroc": 0.96, "auroc_low": 0.94, "auroc_high": 0.98, "gain": 0.1, "gain_low": 0.05}
        return {**head, **figures, "fpr_at_95": 0.05, "macro_f1": 0.89, "probes": 1.6, **more}

    made = [
        row(score, setting) for score in ("risk", "gateway", "entropy") for setting in (*SETTINGS, "both")
    ]
    made += [row("risk_early_stop", "both"), row("vauq", "text-driven", auroc=0.97)]
    worse = [{**each, "gain": -0.1, "gain_low": -0.15} for each in made]
    assert {line["goal"]: (line["figure"], line["met"]) for line in goals(ModelRows(worse))}[
        "text-driven above the best other detector"
    ] == ("-0.100, at least -0.150 (vauq)", "no")
    said = {line["goal"]: (line["figure"], line["met"]) for line in goals(ModelRows(made))}
    assert said == {
        "AUROC text-driven at least 0.95": ("0.960 [0.940, 0.980]", "yes"),
        "text-driven above the best other detector": ("+0.100, at least +0.050 (vauq)", "yes"),
        "AUROC image-driven at least 0.90": ("0.960 [0.940, 0.980]", "yes"),
        "image-driven above the best other detector": ("+0.100, at least +0.050 (entropy)", "yes"),
        "macro-F1 of the cause at least 0.9 (risk)": ("0.890", "no"),
        "macro-F1 of the cause at least 0.9 (gateway)": ("0.890", "no"),
        "false alarms at 95 % found, text-driven, at most 5%": ("0.050", "yes"),
        "at most 1.6 probes on average at equal AUROC": ("1.60 at 0.960 (0.960)", "yes"),
    }


def test_validation_items_of_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="all right or all wrong"):
        detectors([answer(0.1, right=True, split="validation")] * 4)
