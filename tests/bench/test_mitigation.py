"""The tables of mitigation: items, controls, what is fitted, what a row counts, without an engine."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.mitigation import fit, tables, tokens
from bench.mitigation.answers import (
    CONTROLS,
    ItemAnswers,
    ServedAnswer,
    ask_item,
    asked_once,
    neutral_body,
    plausible,
    shipped_policies,
    with_constant,
)
from bench.mitigation.measure import (
    FITTED,
    PAGE,
    Run,
    chosen_line,
    measure_mitigation,
    rungs_table,
    timed_body,
    timings,
)
from bench.mitigation.settings import FITTED_ON, SETTINGS, Setting, in_world, moved, orders_of
from modint_guard.chat.reply import reply_of
from modint_guard.config import GuardConfig
from modint_guard.data.item import RELEVANT, Item
from modint_guard.errors import ConfigError
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.results import END
from modint_guard.evaluation.runner import request_for
from modint_guard.guard import Guard
from modint_guard.judging.risk import Thresholds
from modint_guard.mitigation import fitted
from modint_guard.mitigation.policy import REASONED, TABLE, Form, Policy, table_of
from modint_guard.report import Report, Verdict
from modint_guard.types import JSON, Cause, Relevant, State
from tests.core.fakes import completion
from tests.core.items import BLUE, DIGIT, LETTERED, SUM

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
LIE = DIGIT.replace(context="Caption: the digit 7.", perturbation="misleading_description")
LETTER_LIE = LETTERED.replace(context="Caption: the digit 7.")
LYING, CLEAN = SETTINGS[1], SETTINGS[0]


def text_of(body: JSON) -> str:
    return " ".join(part.get("text", "") for part in body["messages"][-1]["content"])


async def misled(body: JSON, sure: float = 0.9995) -> JSON:
    """A base that believes a caption, and an adapter that sees a 3 whatever is said."""
    lied = "Caption" in text_of(body) and body["model"] != "robust-lora"
    said, other = ("7", "3") if lied else ("3", "7")
    return completion(said, [{said: sure, other: 0.99 - sure if sure < 0.99 else 0.0001}])


async def served(item: Item, **asked: Any) -> ItemAnswers:
    return await ask_item(item, RELEVANT[item.family], "base", misled, shipped_policies(), GUARD, **asked)


GUARD = Guard(GuardConfig())


# -- items -----------------------------------------------------------------------------------------


def test_every_setting_has_its_clean_twins_among_the_settings() -> None:
    assert {one.clean.name for one in SETTINGS} <= {one.name for one in SETTINGS}
    assert {one.held_out for one in SETTINGS} == {"no", "perturbation", "wording"}
    assert {one.kind for one in SETTINGS} == {"clean", "lying", "needed", "other"}
    assert all(one.held_out == "no" and one.named != "auto" for one in FITTED_ON)


def test_of_a_needed_input_the_client_says_that_both_decide_or_nothing() -> None:
    needed = [one for one in SETTINGS if one.kind == "needed"]
    assert sorted(one.relevant for one in needed) == ["auto", "auto", "both", "both"]
    prints = Setting("image-heavy", "poor_print", named="both").items("validation", 4, 0)
    assert all(item.context and item.perturbation == "poor_print" for item in prints)


def test_items_are_balanced_over_labels_and_letters_and_lettered_ones_asked_twice() -> None:
    items = LYING.items("validation", 40, 0)
    letters = [item for item in items if item.form == "letter"]
    assert len(items) == 40 + len(letters) // 2
    first = [item for item in letters if not item.id.endswith("-moved")]
    places = Counter(item.choices.index(item.answer) for item in first)
    assert max(places.values()) - min(places.values()) <= 1
    for item, again in zip(letters[::2], letters[1::2], strict=True):
        assert again.id == f"{item.id}-moved"
        assert sorted(again.choices) == sorted(item.choices)
        assert again.choices.index(again.answer) == (item.choices.index(item.answer) + 1) % len(item.choices)
    assert {item.perturbation for item in items} == {"misleading_description"}


def test_the_picture_books_settings_draw_its_items_and_a_poor_print_has_a_true_caption() -> None:
    settings = in_world("picturebook", SETTINGS)
    assert [one.name for one in settings] == [one.name for one in SETTINGS]
    for setting in settings:
        items, clean = setting.items("validation", 9, 0), setting.clean.items("validation", 9, 0)
        assert [item.id for item in items] == [item.id for item in clean]
        assert all(item.source.startswith(("thing:", "sum:")) for item in items)
        if setting.perturbation == "poor_print":
            sharp = Setting("image-heavy", "clean", world="picturebook").items("validation", 9, 0)
            assert all(item.context == other.truth for item, other in zip(items, sharp, strict=True))
            assert all(item.image != other.image for item, other in zip(items, sharp, strict=True))


def test_the_items_of_a_setting_are_those_of_its_clean_twin_one_by_one() -> None:
    lying, clean = LYING.items("test", 12, 0), LYING.clean.items("test", 12, 0)
    assert [(a.id, a.answer, a.choices) for a in lying] == [(b.id, b.answer, b.choices) for b in clean]


def test_options_move_round_and_words_have_one_order() -> None:
    assert moved(LETTERED, 1).choices == ("7", "3", "1", "5")
    assert moved(LETTERED, -3).choices == moved(LETTERED, 1).choices
    assert orders_of(DIGIT) == (DIGIT,)


# -- controls --------------------------------------------------------------------------------------


def test_a_constant_for_each_label_moves_the_answer_and_needs_every_label() -> None:
    reply = reply_of(completion("B", [{"A": 0.2, "B": 0.6, "C": 0.1, "D": 0.1}]))
    assert with_constant(LETTERED, reply, {}) == "B"
    assert with_constant(LETTERED, reply, {"A": 1.2}) == "A"  # 0.2 e^1.2 = 0.66
    assert with_constant(LETTERED, reply, {"A": 1.0}) == "B"  # 0.2 e^1.0 = 0.54
    short = reply_of(completion("B", [{"A": 0.2, "B": 0.6}]))
    assert with_constant(LETTERED, short, {"A": 9.0}) == "B"


def test_a_plausible_draw_is_seeded_and_never_of_an_unlikely_answer() -> None:
    reply = reply_of(completion("B", [{"A": 0.45, "B": 0.5, "C": 0.03, "D": 0.02}]))
    drawn = {plausible(LETTERED.replace(id=f"item-{n}"), reply) for n in range(60)}
    assert drawn == {"A", "B"}
    assert plausible(LETTERED, reply) == plausible(LETTERED, reply)
    assert plausible(LETTERED, reply_of(completion("B"))) == "B"
    told = reply_of(completion("It shows a fox.", [{"It": 0.5, "A": 0.5}]))
    (item,) = in_world("picturebook", [CLEAN])[0].items("test", 1, 0)
    assert item.form == "free"
    assert {plausible(item.replace(id=str(n)), told) for n in range(9)} == {"It shows a fox."}


def test_always_neutralising_takes_the_irrelevant_modality_out_whatever_the_verdict() -> None:
    body = neutral_body(Guard().plan(request_for(LIE, "m")))
    assert body is not None and "Caption" not in text_of(body) and body["max_tokens"] == 8
    pictured = Guard().plan(request_for(SUM.replace(image=BLUE), "m"))
    body = neutral_body(pictured)
    assert body is not None and body["messages"] != pictured.body["messages"]
    assert neutral_body(Guard().plan(request_for(LIE.replace(family="vqa"), "m"))) is None


def test_each_policys_time_is_taken_of_its_own_request() -> None:
    assert timed_body(LIE, LYING, "m", "debias")["modint"] == {"relevant": "image", "action": "debias"}
    assert timed_body(LIE, LYING, "m", "ladder_abstain")["modint"]["action"] == "ladder"
    assert timed_body(LIE, LYING, "m", "greedy")["modint"] == {"mode": "off"}
    neutral = timed_body(LIE, LYING, "m", "always_neutralise")
    assert neutral["modint"] == {"mode": "off"} and "Caption" not in text_of(neutral)
    assert timed_body(LIE, LYING, "m", "always_escalate")["model"] == "robust-lora"
    (pictured,) = in_world("picturebook", [LYING])
    assert timed_body(LIE, pictured, "m", "always_escalate")["model"] == "picturebook-lora"


# -- one item --------------------------------------------------------------------------------------


async def test_an_item_is_served_by_every_policy_and_control_from_the_same_replies() -> None:
    asked = await served(LIE)
    assert (asked.report.verdict.cause, asked.form, asked.flagged) == ("text", "word", True)
    right = {name for name, one in asked.served.items() if one.right}
    mending = {"neutralise", "escalate", "ladder", "ladder_abstain", "ladder_trusting"}
    assert right == {*mending, "always_neutralise", "always_escalate"}
    assert asked.served["abstain"].abstained and not asked.served["abstain"].right
    spent = {name: one.tokens // 31 for name, one in asked.served.items()}
    # a flag rests on every cell, whoever acts on it; the adapter is cleared by one probe
    assert (spent["annotate"], spent["neutralise"], spent["escalate"]) == (4, 4, 4 + 2)
    assert {spent[name] for name in CONTROLS} == {1}


async def test_another_worlds_policies_and_controls_ask_its_own_adapter() -> None:
    asked = set()

    async def noted(body: JSON) -> JSON:
        asked.add(body["model"])
        return await misled({**body, "model": "robust-lora" if body["model"] == "own" else body["model"]})

    found = await ask_item(LIE, "image", "base", noted, shipped_policies("own"), GUARD, robust="own")
    assert asked == {"base", "own"}
    assert found.served["escalate"].right and found.served["always_escalate"].right


async def test_where_the_client_names_nothing_only_a_trusting_ladder_gives_another_answer() -> None:
    asked = await ask_item(LIE, "auto", "base", misled, shipped_policies(), GUARD)
    assert {name for name, one in asked.served.items() if one.right and name not in CONTROLS} == {
        "ladder_trusting"
    }
    assert asked.served["ladder_abstain"].abstained


async def test_validation_lets_every_rung_see_every_cell() -> None:
    unsure = partial(misled, sure=0.9)
    easily_sure = Guard(GuardConfig(thresholds=Thresholds(sure=0.5)))  # so that the answer is flagged
    asked = await ask_item(LIE, "image", "base", unsure, fit.grid(), easily_sure, whole=True)
    assert {one.tokens // 31 for name, one in asked.served.items() if name.startswith("debias")} == {4}
    assert asked.served["neutralise accept_at=0.9"].settled
    assert not asked.served["neutralise accept_at=0.99"].settled


async def test_an_item_without_a_picture_is_asked_too() -> None:
    asked = await served(SUM.replace(image=None))
    assert asked.report.verdict.state is State.SKIPPED
    assert all(one.right for name, one in asked.served.items() if name != "plausibility_only")
    assert {one.tokens for one in asked.served.values()} == {31}


# -- raw answers -----------------------------------------------------------------------------------


async def test_a_call_is_made_once_and_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    calls: list[JSON] = []

    async def counted(body: JSON) -> JSON:
        calls.append(body)
        return completion("3")

    path = tmp_path / "runs" / "raw.jsonl"
    with Journal(path, {}) as journal:
        first = asked_once(counted, journal)
        assert await first({"model": "m", "a": 1}) == await first({"a": 1, "model": "m"}) == completion("3")
    with path.open("a") as file:
        file.write('{"key": "cut sho')
    with Journal(path, {}) as journal:
        again = asked_once(counted, journal)
        await again({"model": "m", "a": 1})
        await again({"model": "m", "a": 2})
    assert [body["a"] for body in calls] == [1, 2]


async def test_two_calls_with_one_body_at_the_same_time_are_made_once(tmp_path: Path) -> None:
    calls: list[JSON] = []

    async def slow(body: JSON) -> JSON:
        calls.append(body)
        await asyncio.sleep(0)
        return completion("3")

    with Journal(tmp_path / "raw.jsonl", {}) as journal:
        ask = asked_once(slow, journal)
        one, other = await asyncio.gather(ask({"model": "m"}), ask({"model": "m"}))
    assert one == other and one is not other and len(calls) == 1


def test_answers_of_other_weights_are_never_taken_for_these() -> None:
    run = Run("test", 4, 0, 1, 1)
    assert run.journal.name.startswith("mitigation-test-") and len(run.journal.stem.split("-")) == 4
    assert Run("test", 4, 0, 1, 1, Path("here.jsonl")).journal == Path("here.jsonl")
    pictured = Run("test", 4, 0, 1, 1, world="picturebook")
    assert pictured.journal != run.journal and " --world picturebook " in pictured.command


# -- rows ------------------------------------------------------------------------------------------


def outcome(
    text: str = "3", right: bool = True, abstained: bool = False, tokens: int = 40, settled: bool = False
) -> ServedAnswer:
    return ServedAnswer(text, right, abstained, tokens, 40, settled)


WRONG = outcome("7", False)
REPLIES = [(DIGIT, reply_of(completion("3", [{"3": 0.5, "7": 0.25}])))]


def asked(item: Item, flagged: bool = False, form: Form = "word", /, **served: ServedAnswer) -> ItemAnswers:
    cause = Cause.TEXT if flagged else None
    verdict = Verdict(State.FLAGGED if flagged else State.PASS, cause=cause)
    report = Report(verdict, relevant=Relevant(RELEVANT[item.family]))
    return ItemAnswers(item, reply_of(completion("3", [{"3": 0.5, "7": 0.25}])), report, form, served)


def test_a_row_counts_the_gap_that_was_closed_and_what_it_cost() -> None:
    dear = outcome(tokens=120)
    here = [
        asked(LIE, True, greedy=WRONG, ladder=dear),
        asked(LIE, True, greedy=WRONG, ladder=dear),
        asked(LIE, True, greedy=WRONG, ladder=outcome("No answer", False, True, 80)),
        asked(LIE, False, greedy=outcome(), ladder=outcome("7", False, tokens=80)),
    ]
    twins = [asked(DIGIT, greedy=outcome(), ladder=outcome())] * 3
    twins.append(asked(DIGIT, greedy=outcome(), ladder=WRONG))
    found = {LYING.name: here, CLEAN.name: twins}
    rows = {row["policy"]: row for row in tables.table_rows("m", LYING, found, {"ladder": 12.5})}
    ladder = rows["ladder"]
    assert (ladder["n"], ladder["accuracy"], ladder["clean_accuracy"]) == (4, 0.5, 0.75)
    assert ladder["gap_closed"] == pytest.approx((0.5 - 0.25) / 0.75)
    assert (ladder["changed_right_to_wrong"], ladder["abstained"], ladder["flagged"]) == (0.25, 0.25, 0.75)
    assert ladder["extra_tokens"] == (80 + 80 + 40 + 40) / 4
    assert ladder["ratio_flagged"] == pytest.approx(320 / 120)
    assert (ladder["ratio_unflagged"], ladder["ms_p50"]) == (2.0, 12.5)
    assert (rows["greedy"]["gap_closed"], rows["greedy"]["ms_p50"]) == (0.0, None)


def test_without_a_gap_there_is_none_to_close() -> None:
    twins = [asked(DIGIT, greedy=outcome())]
    (row,) = tables.table_rows("m", CLEAN, {CLEAN.name: twins}, {})
    assert (row["gap_closed"], row["ratio_flagged"]) == (None, None)


# -- goals -----------------------------------------------------------------------------------------

SPENT = {"model": "m", "policy": "ladder", "setting": "s", "n": 2, "main_tokens": 50.0, "cells": 1.0}


def every_setting(
    lying: Mapping[str, ServedAnswer], else_: Mapping[str, ServedAnswer]
) -> dict[str, list[ItemAnswers]]:
    """Ten answers a setting, all alike; those under a lie apart."""
    return {
        each.name: [
            asked(DIGIT.replace(source=f"digit:{n}"), **(lying if each.kind == "lying" else else_))
            for n in range(10)
        ]
        for each in SETTINGS
    }


def test_each_goal_has_a_row_with_what_was_reached_and_a_verdict() -> None:
    under = {"greedy": WRONG, "ladder": outcome()} | dict.fromkeys(CONTROLS, WRONG)
    calm = {name: outcome() for name in ("greedy", "ladder", *CONTROLS)}
    costs = [
        {**SPENT, "prompt": prompt, "flagged": flagged, "ratio": ratio, "computed": 1.2}
        for prompt in ("short", "padded")
        for flagged, ratio in ((False, 1.8), (True, 2.8))
    ]
    rows = {row["goal"]: row for row in tables.goal_rows(every_setting(under, calm), costs, 0)}
    closed = rows["gap closed, text-driven, nothing held out"]
    assert (closed["value"], closed["bar"], closed["verdict"], closed["n"]) == (1.0, 0.8, "met", 10)
    assert rows["gap closed, image-driven, held-out wording"]["verdict"] == "met"
    assert (rows["clean accuracy"]["value"], rows["clean accuracy"]["verdict"]) == (0.0, "met")
    assert rows["needed input, nobody says"]["n"] == 20
    assert rows["tokens, unflagged, short prompts"]["verdict"] == "missed"
    assert rows["computed tokens, unflagged, padded prompts"]["verdict"] == "met"
    assert rows["tokens, flagged, short prompts"]["value"] == pytest.approx(2.8)
    against = rows["against constant_bias, text-driven"]
    assert (against["value"], against["verdict"]) == (1.0, "–")
    assert against["p"] == pytest.approx(2 / 2**20)  # all of 20 one way
    assert {tuple(row) for row in rows.values()} == {tuple(closed)}


def test_a_gap_that_is_too_small_is_not_measured() -> None:
    calm = {name: outcome() for name in ("greedy", "ladder", *CONTROLS)}
    rows = {row["goal"]: row for row in tables.goal_rows(every_setting(calm, calm), [], 0)}
    assert rows["gap closed, text-driven, nothing held out"]["verdict"] == "not measured"
    assert rows["tokens, flagged, padded prompts"]["verdict"] == "not measured"


def test_the_interval_of_a_closed_gap_resamples_sources() -> None:
    before, ceiling = [False] * 20, [True] * 20
    after = [True] * 15 + [False] * 5
    alike = tables.closed_interval(before, after, ceiling, ["one"] * 20, 0)
    assert alike == (0.75, 0.75)  # a single source has nothing to be resampled
    low, high = tables.closed_interval(before, after, ceiling, [str(n) for n in range(20)], 0)
    assert low is not None and high is not None and 0.5 <= low < 0.75 < high <= 0.95
    assert tables.closed_interval(ceiling, ceiling, ceiling, ["one"] * 20, 0) == (None, None)


# -- tokens ----------------------------------------------------------------------------------------


def test_the_tokens_of_a_request_are_those_of_all_its_calls_and_the_cached_apart() -> None:
    probes = [{"tokens": 50, "cached_tokens": 32}, {"tokens": 60, "cached_tokens": 0}]
    rungs = [{"rung": "neutralise", "outcome": "mended", "tokens": 70, "cached_tokens": 64}]
    made = completion("3")
    made["modint"] = {"verdict": "flagged", "probes": probes, "mitigation": {"rungs": rungs}}
    found = tokens.tokens_of(made)
    assert (found.main, found.every, found.cached, found.cells) == (31, 31 + 180, 16 + 96, 2)
    made["modint"] = {"verdict": "pass", "probes": probes[:1], "mitigation": None}
    (row, flagged) = tokens.rows_of("m", "ladder", "short", "s", [found, tokens.tokens_of(made)])
    assert (row["ratio"], row["flagged"], row["cells"]) == (pytest.approx(81 / 31), False, 1.0)
    assert flagged["computed"] == pytest.approx((211 - 112) / 31)
    assert (row["rungs"], flagged["rungs"]) == (None, "neutralise mended: 1")


def test_the_ways_that_rungs_went_are_counted() -> None:
    once = tokens.RequestTokens(True, 2, 10, 30, 0, "neutralise mended")
    twice = tokens.RequestTokens(True, 2, 10, 90, 0, "neutralise unsure, escalate mended")
    (row,) = tokens.rows_of("m", "ladder", "padded", "s", [once, twice, twice])
    assert row["rungs"] == "neutralise unsure, escalate mended: 2; neutralise mended: 1"


async def test_tokens_and_times_are_those_of_every_policy_as_a_client_asks() -> None:
    async def gateway(body: JSON) -> JSON:
        acted = body["modint"].get("action", "annotate")
        if body["modint"].get("mode") == "off":
            return await misled(body)
        guarded = Guard(GuardConfig(policies=(Policy(acted),)))
        return (await guarded.inspect(body, misled)).completion

    settings, how = (LYING, CLEAN), {"split": "test", "count": 2, "seed": 0, "concurrency": 2}
    rows = await tokens.token_rows(gateway, ["base"], settings, **how)  # type: ignore[arg-type]
    cells = {
        (policy, setting.name): {
            row["cells"] for row in rows if (row["policy"], row["setting"]) == (policy, setting.name)
        }
        for policy in ("annotate", "ladder")
        for setting in settings
    }
    assert {row["prompt"] for row in rows} == {"short", "padded"}
    assert (cells["annotate", LYING.name], cells["annotate", CLEAN.name]) == ({3.0}, {1.0})
    assert cells["ladder", LYING.name] <= {1.0, 3.0} and cells["ladder", CLEAN.name] == {0.0}
    taken = await timings(gateway, [LIE], LYING, "base")
    assert {"annotate", "ladder", "ladder_abstain", *CONTROLS} <= set(taken)
    assert all(value is not None for value in taken.values())
    assert set((await timings(gateway, [], LYING, "base")).values()) == {None}


def test_padded_prompts_share_a_beginning_with_their_own_probes_alone() -> None:
    body = tokens.body_of(LIE, LYING, "m", "ladder", "padded")
    other = tokens.body_of(LIE, LYING, "m", "annotate", "padded")
    said = body["messages"][0]["content"]
    assert len(said.split()) == 560 and said[:60] != other["messages"][0]["content"][:60]
    plan = Guard().plan(body)
    assert plan.chat is not None and plan.chat.context == "Caption: the digit 7."
    assert all(view.body["messages"][0] == body["messages"][0] for view in plan.views)


# -- what validation chooses -----------------------------------------------------------------------


def tried(*, right: set[str], settled: set[str], form: Form = "options") -> ItemAnswers:
    names = (*fit.grid(), "annotate")
    each = {name: outcome(right=name in right, settled=name in settled) for name in names}
    each["escalate"] = outcome(right="escalate" in right, settled="escalate" in settled, tokens=100)
    return asked(LETTER_LIE, True, form, **each)


NEUTRAL = {f"neutralise accept_at={v:g}" for v in fit.CONFIDENCES}


def test_an_orders_answer_is_that_of_its_first_rung_that_settles() -> None:
    one = tried(right={"escalate"}, settled={"escalate", "debias lambda=1"})
    assert fit.tried_in([one], ("neutralise", "escalate"), 0.5, 1.0) == fit.Tally(1, 60)
    assert fit.tried_in([one], ("debias", "escalate"), 0.5, 1.0) == fit.Tally(0, 0)
    assert fit.tried_in([one], (), 0.5, 1.0) == fit.Tally(0, 0)


def test_the_best_order_is_the_rightest_then_the_cheapest_then_none_then_the_longest() -> None:
    by_both = tried(right={"escalate", *NEUTRAL}, settled={"escalate", *NEUTRAL})
    assert fit.best([by_both], 0.5, 1.0) == (("neutralise", "escalate", "debias"), fit.Tally(1, 0))
    by_adapter = tried(right={"escalate"}, settled={"escalate", *NEUTRAL})
    assert fit.best([by_adapter], 0.5, 1.0)[0] == ("escalate", "neutralise", "debias")
    false_alarm = tried(right={"annotate", *NEUTRAL}, settled=set(NEUTRAL))
    assert fit.best([false_alarm], 0.5, 1.0)[0] == ()


def test_validation_chooses_weight_sureness_and_orders_and_the_code_is_written_from_them(
    tmp_path: Path,
) -> None:
    good = {"debias lambda=0.5", "debias lambda=1", "neutralise accept_at=0.5", "neutralise accept_at=0.7"}
    found = [tried(right=good, settled=good)] * fit.ENOUGH
    sure = {name for name in good if name.startswith("neutralise")}
    found += [tried(right=sure, settled=sure, form="word")] * (fit.ENOUGH - 1)
    rows = [
        *fit.fit_rows("m", found),
        *(row for name in ("m", "n") for row in fit.bias_rows(name, REPLIES)),
    ]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"rows": rows}), "utf-8")
    chosen = fit.read_fit(path, "m")
    assert (chosen.debias_lambda, chosen.accept_at) == (0.5, 0.7)  # the smaller weight, the stricter sureness
    assert chosen.orders == {("text", "image", "options"): ("neutralise", "escalate", "debias")}
    assert (
        chosen.bias["m"] == chosen.bias["n"] == pytest.approx({"3": -math.log(2 / 3), "7": -math.log(1 / 3)})
    )
    table = table_of(chosen.orders)[Cause.TEXT, Relevant.IMAGE]
    assert table["options"] == ("neutralise", "escalate", "debias")
    assert table["word"] == REASONED[Cause.TEXT, Relevant.IMAGE]["word"]
    made: dict[str, Any] = {}
    exec(fit.fitted_source(chosen), made)
    assert (made["DEBIAS_LAMBDA"], made["ACCEPT_AT"], made["ORDERS"]) == (0.5, 0.7, chosen.orders)


def test_without_flagged_answers_nothing_is_chosen_but_the_controls_constants() -> None:
    rows = [*fit.fit_rows("m", [asked(DIGIT)]), *fit.bias_rows("m", REPLIES)]
    assert {row["kind"] for row in rows if row["chosen"]} == {"constant_bias"}


def test_a_labels_constant_is_minus_its_mean_log_probability() -> None:
    assert fit.constants([*REPLIES, *REPLIES]) == pytest.approx(
        {"3": -math.log(2 / 3), "7": -math.log(1 / 3)}
    )


def test_the_test_split_wants_what_validation_chose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--split validation"):
        measure_mitigation(tmp_path / "none.json", Run("test", 4, 0, 1, 1))


# -- code, page and result files -------------------------------------------------------------------


def committed(name: str) -> list[dict[str, Any]]:
    """The rows of a committed result file."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / name).read_text("utf-8"))["rows"]
    return rows


def block(name: str) -> str:
    page = (ROOT / PAGE).read_text("utf-8")
    begin = f"<!-- {name}: made by `make bench-mitigation` -->"
    return page.partition(begin)[2].partition(END)[0].strip()


def test_the_code_holds_what_the_committed_validation_chose() -> None:
    chosen = fit.read_fit(RESULTS / "mitigation_validation.json", "tinyworld-base")
    assert (ROOT / FITTED).read_text("utf-8") == fit.fitted_source(chosen)
    assert block("chosen") == chosen_line(chosen)


def test_the_page_shows_the_rungs_of_the_code() -> None:
    assert block("rungs") == rungs_table(TABLE)
    assert table_of(fitted.ORDERS) == TABLE


def test_the_committed_page_shows_the_committed_rows_in_short() -> None:
    notes = tables.notes(committed("mitigation.json"), committed("mitigation_goals.json"))
    assert f"\n\n{notes}\n\n" in (RESULTS / "mitigation.md").read_text("utf-8")


def test_a_block_of_the_page_is_made_anew_and_must_have_its_place() -> None:
    page = f"before\n<!-- one: made by `make bench-mitigation` -->\nold\n{END}\nafter"
    made = tables.rewritten(page, {"one": "new\n"})
    assert made == page.replace("\nold\n", "\n\nnew\n\n")
    with pytest.raises(ValueError, match="the page needs"):
        tables.rewritten(page, {"two": "new"})


def test_the_operators_table_weighs_settings_by_their_items() -> None:
    shared: dict[str, Any] = {
        "changed_right_to_wrong": 0.0,
        "abstained": 0.0,
        "extra_tokens": 10.0,
        "ms_p50": 5.0,
    }
    shared |= {"model": "tinyworld-base", "gap_closed": None}
    rows = [
        {
            **shared,
            "policy": policy,
            "setting": each.name,
            "n": 30 if each.family == "vqa" else 10,
            "accuracy": share,
        }
        for each in SETTINGS
        for policy, share in (("greedy", 0.5), ("ladder", 1.0 if each.family == "vqa" else 0.5))
    ]
    greedy, ladder = tables.operators(rows).splitlines()[2:]
    assert greedy == "| greedy | 0.500 | 0.000 | 0.000 | 0.000 | 0.000 | 10.000 | 5.000 |"
    assert "| ladder | 0.500 | 0.000 | 0.375 |" in ladder  # 30 of 40 needed inputs gain a half
