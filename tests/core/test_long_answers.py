"""Long answers: chance alone flags them no more often than short ones, and one word that moved is found.

Simulated: the logits of every token are those of the request plus normal noise, as any change of the input
makes it, and nothing else.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from modint_guard.judging.risk import Thresholds
from modint_guard.judging.scoring import compare_forced
from modint_guard.judging.statistic import flag_statistic
from modint_guard.judging.verdict import by_rule, decide
from modint_guard.report import Verdict
from modint_guard.types import CellScore, Position, Relevant, Reply, Score

THRESHOLDS = Thresholds()
WORDS = tuple(f"w{number}" for number in range(8))
Logits = NDArray[np.float64]  # (T, 8): the logits of eight words at each of T positions


def request(length: int, rng: np.random.Generator) -> Logits:
    """Word 0 is the answer's at every position; its lead over the best other is 4 nats on average."""
    logits = rng.gumbel(size=(length, len(WORDS)))
    logits[:, 0] = logits[:, 1:].max(axis=1) + rng.exponential(4.0, size=length)
    return logits


def noisy(logits: Logits, rng: np.random.Generator, sd: float = 1.0) -> Logits:
    return logits + rng.normal(scale=sd, size=logits.shape)


def positions(logits: Logits) -> tuple[Position, ...]:
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    tops = [dict(zip(WORDS, map(float, row), strict=True)) for row in logprobs]
    return tuple(Position(WORDS[0], top[WORDS[0]], top) for top in tops)


def compared(logits: Logits, view: Logits) -> CellScore:
    full = positions(logits)
    answer = Reply(" ".join([WORDS[0]] * len(full)), "stop", full[0].token, full[0].top, positions=full)
    return compare_forced(answer, full, positions(view), THRESHOLDS)


@pytest.mark.parametrize(
    ("sd", "length", "at_most"),
    # One in a hundred by design, and more than five of a hundred are then drawn once in 2,000 times. Of more
    # noise an answer tells by its own words, if it has ten or more.
    [*((1.0, length, 5) for length in (1, 5, 20, 60, 150)), *((2.0, length, 12) for length in (20, 60, 150))],
)
def test_noise_alone_flips_long_answers_no_more_often_than_short_ones(
    sd: float, length: int, at_most: int
) -> None:
    rng = np.random.default_rng(length)
    flipped = flagged = 0
    for _ in range(100):
        logits = request(length, rng)
        view, text = noisy(logits, rng, sd), noisy(logits, rng, sd)
        flipped += compared(logits, view).flip is True
        flagged += judged(logits, view, text).cause == "text"
    assert flipped <= at_most and flagged <= at_most


def lied_to(length: int, rng: np.random.Generator) -> tuple[Logits, Logits, Logits]:
    """Request, image alone and text alone of an answer in which one word is the caption's: the picture shows
    another one, and is sure of it. The text alone would word another place differently.
    """
    logits = request(length, rng)
    logits[length // 2] = [9.0, 1.0, 0, 0, 0, 0, 0, 0]
    image, text = noisy(logits, rng), noisy(logits, rng)
    image[length // 2] = [1.0, 9.0, 0, 0, 0, 0, 0, 0]
    text[length // 2] = logits[length // 2]
    text[0, 1] = text[0, 0] + 1.0
    return logits, image, text


def judged(logits: Logits, image: Logits, text: Logits) -> Verdict:
    cells = {"no_context": compared(logits, image), "neutral_image": compared(logits, text)}
    cells["prior"] = replace(cells["neutral_image"])
    found = by_rule(flag_statistic(cells, Relevant.IMAGE, has_context=True), THRESHOLDS)
    return decide(Score(cells, {}), Relevant.IMAGE, weighed=found, has_context=True)


@pytest.mark.parametrize("length", [3, 20, 60, 150])
def test_one_word_that_a_lie_changed_is_found_in_an_answer_of_any_length(length: int) -> None:
    rng = np.random.default_rng(length)
    verdicts = [judged(*lied_to(length, rng)) for _ in range(20)]
    assert [verdict.cause for verdict in verdicts] == ["text"] * 20


def test_a_lie_is_read_where_the_request_itself_prefers_its_word_and_not_where_another_leads_most() -> None:
    logits, image, text = lied_to(60, np.random.default_rng(0))
    logits[5], image[5] = [2.0, 1.98, 0, 0, 0, 0, 0, 0], [0.0, 30.0, 0, 0, 0, 0, 0, 0]
    found = compared(logits, image)
    assert (found.at, found.flip) == (30, True) and found.answer.endswith(
        WORDS[1]
    )  # its tokens have no spaces
    assert min(token.odds for token in found.tokens) == found.tokens[5].odds < found.tokens[30].odds
    assert not compared(logits, text).reproduces and compared(logits, text).tokens[30].odds > 0.0
