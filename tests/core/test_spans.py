"""What gave which part of an answer: words, claims and JSON leaves with the influences of their tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import answer_positions
from modint_guard.judging.evidence import evidence_of, going_on
from modint_guard.judging.null import Null, NullScore
from modint_guard.judging.spans import MAX_SPANS, flagged_words, parts_of, spans_of, turned_tokens
from modint_guard.report import AnswerSpan, Report
from modint_guard.types import (
    JSON,
    TEACHER_FORCED,
    Cause,
    Complete,
    Influence,
    Position,
    Reply,
    Score,
    State,
    Statistic,
)
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture, world

QUESTION = "What is in the picture?"
LIE = "The caption says blue."


def said(*tokens: str) -> Reply:
    """An answer that was generated in these tokens."""
    positions = tuple(Position(token, -0.1, {token: -0.1}) for token in tokens)
    return Reply("".join(tokens), "stop", tokens[0], positions[0].top, positions=positions)


def scored(answer: Reply, influences: Sequence[Influence]) -> Score:
    return Score({}, {}, tokens=tuple(influences), method=TEACHER_FORCED)


def one_each(answer: Reply) -> Score:
    """The t-th token that counts has 2^t nats of the text and nothing of the image."""
    return scored(answer, [Influence(2.0**t, 0.0, 0.0) for t in range(len(evidence_of(answer).tokens))])


def found(spans: Sequence[AnswerSpan]) -> list[tuple[str, str, float | None]]:
    return [(span.kind, span.text, span.influence_text) for span in spans]


# -- words in several tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "within"),
    [
        (("A", " tur", "qu", "oise", " ball", ",", " red"), {"qu", "oise", ","}),
        (("3", "8"), {"8"}),
        ((" ", "3", "8"), {"8"}),  # a blank by itself begins no word
        (("'", "cow", "'"), {"'"}),
        (("\u732b", "\u3067\u3059"), set()),  # where no blanks divide words, each token is one
        (('{"', "ani", "mal", '": "', "cam", "el", '"}'), {"el"}),
        (('{"a": "', "cam", "el", '", "b": "', "el", "k", '"}'), {"el", "k"}),  # each value by itself
    ],
)
def test_tokens_that_go_on_with_a_word_are_told_from_those_that_begin_one(
    tokens: tuple[str, ...], within: set[str]
) -> None:
    answer = said(*tokens)
    evidence = evidence_of(answer)
    found = [tokens[evidence.tokens[t]] for t in sorted(going_on(answer.text, evidence))]
    assert set(found) == within and len(found) == len(within)


# -- gathering ----------------------------------------------------------------------------------------------


def test_the_tokens_of_a_word_and_the_punctuation_behind_it_are_one_word() -> None:
    answer = said("A", " tur", "qu", "oise", " ball", ",", " red", ".")
    assert found(spans_of(answer, one_each(answer), (), None)) == [
        ("word", "A", 1.0),
        ("word", "turquoise", 2.0 + 4 + 8),
        ("word", "ball", 16.0 + 32),
        ("word", "red", 64.0 + 128),
    ]


def test_a_claim_is_the_sum_of_its_words() -> None:
    answer = said("A", " cat", ".", " A", " dog", ".")
    spans = spans_of(answer, one_each(answer), (4,), Cause.TEXT)
    assert found(spans) == [
        ("claim", "A dog.", 8.0 + 16 + 32),
        ("word", "dog", 16.0 + 32),
        ("claim", "A cat.", 1.0 + 2 + 4),
        ("word", "A", 1.0),
        ("word", "cat", 2.0 + 4),
        ("word", "A", 8.0),
    ]
    assert [span.cause for span in spans] == [Cause.TEXT] * 2 + [None] * 4


def test_of_json_only_leaf_values_count_and_each_is_named_by_its_path() -> None:
    answer = said('{"', "colour", '":', ' "', "light", " blue", '",', ' "', "n", '":', " 3", "}")
    spans = spans_of(answer, one_each(answer), (1,), Cause.TEXT)
    assert [(span.path, *each) for span, each in zip(spans, found(spans), strict=True)] == [
        ("/colour", "leaf", "light blue", 1.0 + 2),
        ("/colour", "word", "blue", 2.0),
        ("/colour", "word", "light", 1.0),
        ("/n", "leaf", "3", 4.0),
    ]
    assert [span.cause for span in spans] == [Cause.TEXT] * 2 + [None] * 2


def test_an_answer_of_one_word_has_one_span_with_the_cause_of_the_answer_whatever_it_is() -> None:
    answer = said(" bl", "ue", ".")
    (span,) = spans_of(answer, one_each(answer), (), Cause.PRIOR)
    assert (span.text, span.start, span.end, span.cause) == ("blue", 1, 5, Cause.PRIOR)


def test_a_flagged_word_has_a_span_though_one_view_settled_the_verdict() -> None:
    """No influence is known then."""
    answer = said(" bl", "ue", ".")
    (span,) = spans_of(answer, scored(answer, ()), (), Cause.TEXT)
    assert (span.text, span.cause, span.influence_text, span.influence_image) == (
        "blue",
        Cause.TEXT,
        None,
        None,
    )
    assert spans_of(answer, scored(answer, ()), (), None) == ()


def test_a_cause_of_the_answer_as_a_whole_is_that_of_none_of_its_words() -> None:
    answer = said("It", " is", " blue")
    assert [span.cause for span in spans_of(answer, one_each(answer), (), Cause.PRIOR)] == [None] * 3


def test_places_are_those_in_the_content_that_the_client_gets() -> None:
    answer = replace(said("It", " is"), start=20)
    assert [(span.start, span.end) for span in spans_of(answer, one_each(answer), (), None)] == [
        (20, 22),
        (23, 25),
    ]


def test_of_a_long_answer_the_parts_with_the_least_influence_are_left_out_but_none_that_is_flagged() -> None:
    answer = said(*(f" w{number}" for number in range(3 * MAX_SPANS)))
    weights = [Influence(float(t), 0.0, 0.0) for t in range(3 * MAX_SPANS)]
    spans = spans_of(answer, scored(answer, weights), (0,), Cause.TEXT)
    assert len(spans) == MAX_SPANS
    assert spans[0].text == "w0" and {span.text for span in spans[1:]} == {
        f"w{number}" for number in range(2 * MAX_SPANS + 1, 3 * MAX_SPANS)
    }


def test_without_influences_there_are_no_spans() -> None:
    answer = said("It", " is")
    assert spans_of(answer, scored(answer, ()), (), None) == ()


TEXTS = st.text(st.sampled_from("ab é🙂。,.;-\n 球是"), min_size=1, max_size=40).filter(str.strip)
JSONS = st.dictionaries(st.text("ab/~ ", max_size=3), st.text('ab ,。"', max_size=8) | st.integers()).map(
    json.dumps
)


@given(TEXTS | JSONS, st.data())
def test_spans_of_a_kind_lie_apart_in_the_answer_and_influences_are_neither_lost_nor_added(
    text: str, data: st.DataObject
) -> None:
    spelled = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(spelled) - 1)), max_size=12)))
    pieces = [spelled[a:b] for a, b in pairwise([0, *cuts, len(spelled)])]
    positions = tuple(Position("", -0.1, {"": -0.1}, raw=piece) for piece in pieces)
    answer = Reply(text, "stop", "", positions[0].top, positions=positions)
    evidence, parts = evidence_of(answer), parts_of(answer)
    assert len(answer_positions(answer)) >= len(evidence.tokens)
    spans = spans_of(answer, one_each(answer), (), None)
    kinds = {kind: [part for part in parts if part.kind == kind] for kind in ("word", "claim", "leaf")}
    for inside in kinds.values():
        ordered = sorted(part.piece for part in inside)
        assert all(0 <= a < b <= len(text) for a, b in ordered)
        assert all(first[1] <= second[0] for first, second in pairwise(ordered))
    counted = list(range(len(evidence.tokens)))
    levels = (
        [kinds["leaf"]] if evidence.leaves is not None else [kinds["word"], kinds["claim"] or kinds["word"]]
    )
    for level in levels:
        assert sorted(t for part in level for t in part.tokens) == counted
    for leaf in kinds["leaf"]:
        words = [t for part in kinds["word"] if part.path == leaf.path for t in part.tokens]
        assert sorted(words) in ([], list(leaf.tokens))
    if len(parts) <= MAX_SPANS:
        top = "leaf" if evidence.leaves is not None else "word"
        total = fsum(span.influence_text or 0.0 for span in spans if span.kind == top)
        assert total == fsum(2.0**t for t in counted)


# -- which parts were turned --------------------------------------------------------------------------------


def statistics(*values: float) -> dict[int, Statistic]:
    return {t: Statistic(value, len(values)) for t, value in enumerate(values)}


def test_every_token_that_alone_would_have_flagged_the_answer_is_turned() -> None:
    answer = said("a", " red", " ball", ",", " a", " cube")
    above = statistics(0.5, 7.0, -3.0, 9.0, 4.0, 6.0)
    assert turned_tokens(answer, above, lambda one: one.value >= 5.0) == (1, 5)


def test_if_none_would_have_it_is_the_one_that_was_turned_most() -> None:
    answer = said("a", " red")
    assert turned_tokens(answer, statistics(-2.0, -1.0), lambda one: True) == (1,)
    assert turned_tokens(answer, statistics(2.0, 1.0), lambda one: False) == (0,)
    assert turned_tokens(answer, {}, lambda one: True) == ()


def test_a_comma_is_turned_only_if_nothing_else_is() -> None:
    answer = said("red", ",", " blue")
    assert turned_tokens(answer, statistics(-1.0, 8.0, -1.0), lambda one: True) == (1,)


# -- through the guard --------------------------------------------------------------------------------------

WORDS = ("A", " red", " ball", " and", " a", " blue", " cube")


def captioner(lies: bool = True) -> Complete:
    """Says "A red ball and a blue cube"; the cube is green to the picture, and blue by the caption."""

    async def complete(body: JSON) -> JSON:
        is_given = "prompt_logprobs" in body
        asked = {**body, "messages": body["messages"][:-1]} if is_given else body
        seen, read = sees_picture(asked), reads(asked, LIE)
        tops: list[Mapping[str, float]] = [{word: 0.95, " odd": 0.05} for word in WORDS]
        tops[1] = {" red": 0.999} if seen else {" red": 0.4, " odd": 0.6}
        if lies:
            tops[5] = {" blue": 0.999, " green": 0.001} if read else {" blue": 0.001, " green": 0.998}
        return scored_prompt(WORDS, tops) if is_given else completion("".join(WORDS), tops)

    return complete


async def judged(complete: Complete, nulls: Mapping[str, Null] | None = None) -> Report:
    guard = Guard(GuardConfig(teacher_forcing=True), nulls=nulls)
    body = ask(f"{LIE}\nWhat is in the picture?", modint={"relevant": "image", "context": LIE})
    return (await guard.inspect(body, complete)).report


NULL = Null(tuple(NullScore(value / 100, length, "checkup") for value in range(-300, 0) for length in (7,)))


@pytest.mark.parametrize("nulls", [None, {"m": NULL}])
async def test_the_word_that_the_lie_gave_is_flagged_and_the_word_of_the_picture_is_not(
    nulls: Mapping[str, Null] | None,
) -> None:
    report = await judged(captioner(), nulls)
    assert (report.verdict.state, report.verdict.cause) == (State.FLAGGED, Cause.TEXT)
    assert (report.verdict.null is None) == (nulls is None)
    assert [(span.text, span.cause) for span in report.spans if span.cause] == [("blue", Cause.TEXT)]
    by_text = {span.text: span for span in report.spans}
    assert (by_text["blue"].influence_text or 0.0) > 5 > abs(by_text["blue"].influence_image or 0.0)
    assert (by_text["red"].influence_image or 0.0) > 0.5 > abs(by_text["red"].influence_text or 0.0)
    assert report.influence_text == pytest.approx(
        fsum(span.influence_text or 0.0 for span in report.spans) / 7
    )


async def test_the_explanation_names_the_words_that_were_turned() -> None:
    said_so = (await judged(captioner())).explanation
    assert said_so.endswith("which alone says “green”, but the answer follows the text at “blue”.")


def test_turned_words_that_follow_each_other_are_one_and_all_of_an_answer_is_not_named() -> None:
    answer = said("a", " light", " blue", " cup", " and", " tea")
    spans = spans_of(answer, one_each(answer), (1, 2, 5), Cause.TEXT)
    assert flagged_words(spans) == ("light blue", "tea")
    assert flagged_words(spans_of(answer, one_each(answer), range(6), Cause.TEXT)) == ()
    record = said('{"a": "', "red", '", "b": "', "light", " blue", '"}')
    assert flagged_words(spans_of(record, one_each(record), (0,), Cause.TEXT)) == ("red",)
    assert flagged_words(spans_of(record, one_each(record), (2,), Cause.TEXT)) == ("blue",)


async def test_in_an_answer_that_passes_no_word_is_flagged_and_influences_are_told() -> None:
    report = await judged(captioner(lies=False))
    assert report.verdict.state is State.PASS
    assert len(report.spans) == 7 and not any(span.cause for span in report.spans)


async def test_of_an_answer_that_is_judged_at_its_first_word_only_that_is_a_span() -> None:
    report = await judged(world(both="blue", image="red", text="blue", neither="round", lie=LIE))
    assert [(span.text, span.start, span.end, span.cause) for span in report.spans] == [
        ("blue", 0, 4, Cause.TEXT)
    ]
    longer = replace(said("The", " ball"), positions=())
    first = Score({}, {}, tokens=(Influence(1.0, 2.0, 0.0),))
    assert [span.text for span in spans_of(longer, first, (), None)] == ["The"]
    assert spans_of(replace(longer, text='{"a": 1}'), first, (), None) == ()


async def test_the_object_names_its_spans() -> None:
    said_so = (await judged(captioner())).to_json()["spans"]
    assert said_so[0] == {
        "kind": "word",
        "start": 17,
        "end": 21,
        "text": "blue",
        "path": None,
        "cause": "text",
        "influence": {"text": pytest.approx(6.9, abs=0.1), "image": pytest.approx(0.0, abs=0.1)},
    }
