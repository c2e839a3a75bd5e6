"""The table of mitigation: items, controls, what is fitted and what a row counts, without an engine."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modint_guard.errors import ConfigError
from modint_guard.guard import Guard
from modint_guard.item import RELEVANT, Item
from modint_guard.reply import reply_of
from modint_guard.runner import request_for
from modint_guard.types import JSON, Cause, Relevant, Report, State, Verdict
from modint_training.mitigation_results import (
    BEGIN,
    CLEAN,
    CONTROLS,
    END,
    LAMBDAS,
    SETTINGS,
    SURENESSES,
    Asked,
    Fit,
    Outcome,
    Recorded,
    ask_item,
    constants,
    control_body,
    fit_rows,
    grid,
    moved,
    orders_of,
    plausible,
    policies_of,
    read_fits,
    rewritten,
    setting_items,
    table_rows,
    timed_body,
    with_constant,
)
from tests.core.fakes import completion
from tests.core.items import BLUE, DIGIT, LETTERED, SUM

LIE = DIGIT.replace(context="Caption: the digit 7.", perturbation="misleading_description")
LETTER_LIE = LETTERED.replace(context="Caption: the digit 7.")


def text_of(body: JSON) -> str:
    return " ".join(part.get("text", "") for part in body["messages"][-1]["content"])


async def misled(body: JSON) -> JSON:
    """A base that believes a caption, and an adapter that sees a 3 whatever is said."""
    lied = "Caption" in text_of(body) and body["model"] != "robust-lora"
    top = {"7": 0.9, "3": 0.09} if lied else {"3": 0.9, "7": 0.09}
    return completion("7" if lied else "3", [top])


# Items


def test_every_setting_has_its_clean_twins_among_the_settings() -> None:
    names = {setting.name for setting in SETTINGS}
    assert {replace(one, perturbation=CLEAN[one.family]).name for one in SETTINGS} <= names
    assert {one.held_out for one in SETTINGS} == {"no", "perturbation", "wording"}


def test_items_are_balanced_over_labels_and_letters_and_lettered_ones_asked_twice() -> None:
    items = setting_items(SETTINGS[1], "validation", 40, 0)
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


def test_options_move_round_and_words_have_one_order() -> None:
    assert moved(LETTERED, 1).choices == ("7", "3", "1", "5")
    assert moved(LETTERED, -3).choices == moved(LETTERED, 1).choices
    assert orders_of(DIGIT) == (DIGIT,)


# Controls


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


def test_always_neutralising_takes_the_irrelevant_modality_out_whatever_the_verdict() -> None:
    plan = Guard().plan(request_for(LIE, "m"))
    body = control_body("always_neutralise", LIE, plan)
    assert body is not None and "Caption" not in text_of(body) and body["max_tokens"] == 8
    escalated = control_body("always_escalate", LIE, plan)
    assert escalated is not None and escalated["model"] == "robust-lora" and "Caption" in text_of(escalated)
    both = LIE.replace(family="vqa")
    assert control_body("always_neutralise", both, Guard().plan(request_for(both, "m"))) is None


def test_each_policys_time_is_taken_of_its_own_request() -> None:
    assert timed_body(LIE, "m", "debias")["modint"] == {"relevant": "image", "action": "debias"}
    assert timed_body(LIE, "m", "ladder_abstain")["modint"]["action"] == "ladder"
    assert timed_body(LIE, "m", "greedy")["modint"] == {"mode": "off"}
    neutral = timed_body(LIE, "m", "always_neutralise")
    assert neutral["modint"] == {"mode": "off"} and "Caption" not in text_of(neutral)


# One item


async def test_an_item_is_served_by_every_policy_and_control_from_the_same_replies() -> None:
    fit = Fit(1.0, 0.5, {})
    asked = await ask_item(LIE, "base", misled, policies_of(fit), {})
    assert asked.report.verdict.cause == "text"
    right = {name for name, one in asked.served.items() if one.right}
    assert right == {
        "neutralise",
        "escalate",
        "ladder",
        "ladder_abstain",
        "always_neutralise",
        "always_escalate",
    }
    assert asked.served["abstain"].abstained and not asked.served["abstain"].right
    tokens = {name: one.tokens // 31 for name, one in asked.served.items()}
    assert (tokens["annotate"], tokens["neutralise"], tokens["escalate"]) == (4, 4, 8)
    assert {tokens[name] for name in CONTROLS} == {1}


async def test_an_item_without_a_picture_is_asked_too() -> None:
    asked = await ask_item(SUM.replace(image=None), "base", misled, policies_of(Fit(1.0, 0.5, {})), {})
    assert asked.report.verdict.state is State.SKIPPED
    assert all(one.right for name, one in asked.served.items() if name != "plausibility_only")
    assert {one.tokens for one in asked.served.values()} == {31}


# Raw answers


async def test_a_call_is_made_once_and_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    calls: list[JSON] = []

    async def counted(body: JSON) -> JSON:
        calls.append(body)
        return completion("3")

    path = tmp_path / "runs" / "raw.jsonl"
    first = Recorded(counted, path)
    assert await first({"model": "m", "a": 1}) == await first({"a": 1, "model": "m"}) == completion("3")
    with path.open("a") as file:
        file.write('{"key": "cut sho')
    again = Recorded(counted, path)
    await again({"model": "m", "a": 1})
    await again({"model": "m", "a": 2})
    assert len(calls) == 2
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["m", "m"]


# Rows


def outcome(text: str = "3", right: bool = True, abstained: bool = False, tokens: int = 40) -> Outcome:
    return Outcome(text, right, abstained, False, tokens, 40)


def asked(item: Item, flagged: bool = False, **served: Outcome) -> Asked:
    cause = Cause.TEXT if flagged else None
    verdict = Verdict(State.FLAGGED if flagged else State.PASS, cause=cause)
    report = Report(verdict, relevant=Relevant(RELEVANT[item.family]))
    return Asked(item, reply_of(completion("3", [{"3": 0.5, "7": 0.25}])), report, served)


def test_a_row_counts_the_gap_that_was_closed_and_what_it_cost() -> None:
    wrong, dear = outcome("7", False), outcome(tokens=120)
    here = [
        asked(LIE, True, greedy=wrong, ladder=dear),
        asked(LIE, True, greedy=wrong, ladder=dear),
        asked(LIE, True, greedy=wrong, ladder=outcome("No answer", False, True, 80)),
        asked(LIE, False, greedy=outcome(), ladder=outcome("7", False, tokens=80)),
    ]
    twins = [asked(DIGIT, greedy=outcome(), ladder=outcome())] * 3
    twins.append(asked(DIGIT, greedy=outcome(), ladder=wrong))
    found = {"image-heavy/misleading_description": here, "image-heavy/clean": twins}
    rows = {row["policy"]: row for row in table_rows("m", SETTINGS[1], found, {"ladder": 12.5})}
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
    (row,) = table_rows("m", SETTINGS[0], {"image-heavy/clean": twins}, {})
    assert (row["gap_closed"], row["ratio_flagged"]) == (None, None)


def test_the_page_shows_the_means_over_settings_with_a_gap() -> None:
    row = {"model": "m", "policy": "ladder", "accuracy": 0.5, "clean_accuracy": 1.0, "gap_closed": 0.25}
    row |= {"changed_right_to_wrong": 0.0, "abstained": 0.0, "extra_tokens": 10.0}
    rows = [row, {**row, "accuracy": 0.75, "gap_closed": 0.75}, {**row, "accuracy": 0.0, "gap_closed": None}]
    page = rewritten(f"before\n{BEGIN}\nold\n{END}\nafter", rows)
    assert "| m | ladder | 0.625 | 1.000 | 0.500 | 0.000 | 0.000 | 10.000 |" in page
    assert page.startswith("before\n") and page.endswith("\nafter") and "old" not in page
    with pytest.raises(ValueError, match="the page needs"):
        rewritten("before", rows)


# What validation chooses


def fitted(good: set[str]) -> dict[str, Outcome]:
    return {name: outcome(right=name in good) for name in (*grid(), *CONTROLS)}


def test_validation_chooses_the_best_weight_and_the_smaller_of_equals(tmp_path: Path) -> None:
    found = [asked(LETTER_LIE, True, **fitted({"lambda=0.5", "lambda=1", "accept_at=0.7", "neutralise"}))]
    rows = fit_rows("m", found)
    assert {tuple(row) for row in rows} == {("model", "kind", "key", "value", "n", "accuracy", "chosen")}
    chosen = {row["kind"]: row["value"] for row in rows if row["chosen"]}
    assert (chosen["lambda"], chosen["accept_at"]) == (0.5, 0.7)
    rungs = {row["key"]: row for row in rows if row["kind"] == "rung"}
    assert [key for key, row in rungs.items() if row["chosen"]] == ["text/image/options/neutralise"]
    assert len([row for row in rows if row["kind"] == "lambda"]) == len(LAMBDAS)
    assert len([row for row in rows if row["kind"] == "accept_at"]) == len(SURENESSES)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"rows": rows}), "utf-8")
    assert read_fits(path)["m"].debias_lambda == 0.5


def test_a_labels_constant_is_minus_its_mean_log_probability() -> None:
    found: list[Any] = [asked(DIGIT), asked(DIGIT)]
    assert constants(found) == pytest.approx({"3": -math.log(2 / 3), "7": -math.log(1 / 3)})


def test_the_test_split_wants_what_validation_chose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--split validation"):
        read_fits(tmp_path / "none.json")


def test_a_picture_beside_a_sum_is_taken_away_as_well() -> None:
    item = SUM.replace(image=BLUE)
    plan = Guard().plan(request_for(item, "m"))
    body = control_body("always_neutralise", item, plan)
    assert body is not None and body["messages"] != plan.body["messages"]
