"""The learnt labels of tokens: the best labelling, what is never context, and the file of weights."""

import hashlib
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.learnt_split import PlacedText, RuledRequest, divided, joined, read_texts
from modint_guard.chat.ngrams import BUCKETS, MAX_CHARACTERS
from modint_guard.chat.request import parse
from modint_guard.chat.split_features import EARLIER, LAST, NOT_LAST, ONLY, SYSTEM, split_features
from modint_guard.chat.splitter import (
    SPLITTER,
    Splitter,
    best_labels,
    context_tokens,
    shipped_splitter,
    write_splitter,
)
from modint_guard.types import Option, Span


def plain(being: float = 0.0, *, limits: tuple[float, float] = (0.0, 0.0)) -> Splitter:
    """A splitter that finds every token alike: context if `being` is positive."""
    return Splitter(np.zeros((BUCKETS, 3), np.float32), np.array([being, 0, 0], np.float32), limits)


def request(*texts: tuple[str, int], block: Span | None = None, **more: object) -> RuledRequest:
    """A request that the rules divide nowhere. texts: each with its role."""
    placed = [
        PlacedText({SYSTEM: 0, EARLIER: 1}.get(role, 2), place, text, role)
        for place, (text, role) in enumerate(texts)
    ]
    asked = tuple(Span(t.message, t.part, 0, len(t.text)) for t in placed if t.role > EARLIER)
    base = RuledRequest(tuple(placed), (), asked, (), block, 1, 0)
    return replace(base, **more)  # type: ignore[arg-type]


SCORES = st.floats(-3, 3, allow_subnormal=False)


@given(st.lists(st.tuples(SCORES, SCORES, SCORES), min_size=1, max_size=6))
def test_the_best_labels_are_those_of_the_best_sum(scores: list[tuple[float, float, float]]) -> None:
    being, entering, leaving = (np.array(column) for column in zip(*scores, strict=True))

    def value(labels: tuple[bool, ...]) -> float:
        before = (False, *labels[:-1])
        return float(
            sum(
                being[i] * now + entering[i] * (now and not was) + leaving[i] * (was and not now)
                for i, (was, now) in enumerate(zip(before, labels, strict=True))
            )
        )

    best = max(value(labels) for labels in product([False, True], repeat=len(scores)))
    assert value(tuple(best_labels(being, entering, leaving).tolist())) == pytest.approx(best)


def test_a_context_must_gain_more_than_the_limit() -> None:
    ruled = request(("It is red", EARLIER), ("What", ONLY))
    features = split_features(joined(ruled, ruled.texts))
    assert context_tokens(features, plain(1.0, limits=(0.0, 2.9))).tolist() == [True] * 3 + [False]
    assert not context_tokens(features, plain(1.0, limits=(0.0, 3.1))).any()


def test_the_limit_is_another_one_where_the_rules_see_context_too() -> None:
    ruled = request(("It is red", EARLIER), ("What", ONLY), context=(Span(1, 0, 0, 9),))
    features = split_features(joined(ruled, ruled.texts))
    leaving = np.array([-0.5, 0, -5], np.float32)  # three tokens of -.5 each, and no way out before the end
    found = [
        context_tokens(features, replace(plain(limits=limits), bias=leaving)).tolist()
        for limits in ((-1.6, 9.0), (-1.4, 9.0), (9.0, -0.4))
    ]
    assert found == [[True] * 3 + [False], [False] * 4, [False] * 4]


def test_something_is_left_of_the_questions_message_however_much_it_looks_like_context() -> None:
    ruled = request(("It is red.", NOT_LAST), ("What is it?", LAST))
    context, question = divided(ruled, plain(1.0))
    assert len(context) == 1 and len(question) == 1


def test_options_are_never_context() -> None:
    text = "It is red. Which is it?\nA. red\nB. blue"
    block = Span(2, 0, text.index("A."), len(text))
    ruled = request((text, ONLY), block=block)
    context, question = divided(ruled, plain(1.0))
    assert context and all(span.end <= block.start for span in context)
    assert question[-1].end == len(text)


def test_an_option_that_would_be_cut_away_keeps_the_request_as_it_was() -> None:
    ruled = request(
        ("red or blue", NOT_LAST), ("What is it?", LAST), options=(Option("red or blue", "red or blue"),)
    )
    assert divided(replace(ruled, options=()), plain(1.0))[0]
    assert divided(ruled, plain(1.0)) == ((), ruled.question)


def test_of_a_long_request_the_newest_texts_are_read_and_the_rest_stays_as_the_rules_say() -> None:
    long = ("It is red. " * MAX_CHARACTERS, EARLIER)
    told = Span(1, 0, 0, 9)
    ruled = request(long, ("You are brief.", SYSTEM), ("It is red. What is it?", ONLY), context=(told,))
    assert [text.text for text in read_texts(ruled)] == ["You are brief.", "It is red. What is it?"]
    context, _ = divided(ruled, plain(-1.0))
    assert context == (told,)


def test_a_request_without_a_question_stays_as_it_was() -> None:
    ruled = request(("You are brief.", SYSTEM))
    assert divided(ruled, plain(1.0)) == ((), ())


def test_the_same_splitter_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_splitter(plain(1.5, limits=(0.0, 0.5)), tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_the_shipped_weights_are_small_and_those_of_the_card() -> None:
    assert SPLITTER.stat().st_size <= 300_000
    card = json.loads(SPLITTER.with_suffix(".json").read_text("utf-8"))
    assert hashlib.sha256(SPLITTER.read_bytes()).hexdigest() == card["sha256"]
    assert list(shipped_splitter().limits) == card["limits"]
    assert shipped_splitter().weights.shape == (BUCKETS, 3)


@pytest.mark.parametrize(
    "piece", ["Is it? ", "a", ".", "( ", "\n", "一の", '"', "A. red B. blue ", "é", "\ud800 "]
)
def test_a_hostile_text_is_divided_in_a_bounded_time(piece: str) -> None:
    text = piece * ((MAX_CHARACTERS - 1) // len(piece))
    begun = time.process_time()
    chat = parse({"messages": [{"role": "user", "content": text}]})
    assert time.process_time() - begun < 2  # a tenth of that on an idle core
    assert bool(chat.question) == bool(text.strip())


def test_context_and_question_are_told_apart_in_other_languages_and_places() -> None:
    system = {"role": "system", "content": "Sei un assistente di cucina. Dispensa: 2 kg di farina, 6 uova."}
    user = {"role": "user", "content": "Quante torte posso fare?"}
    chat = parse({"messages": [system, user]})
    assert (chat.context, chat.question) == ("Dispensa: 2 kg di farina, 6 uova.", user["content"])
