"""The null: p-values by hand, their promise for every set of scores, its bounds, and its file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import ConfigError
from modint_guard.judging.null import (
    CHECKUP,
    LIES,
    Null,
    NullScore,
    from_rows,
    to_rows,
    with_checkup,
    with_lie,
    with_score,
)
from modint_guard.judging.null_file import read_nulls, write_nulls

LENGTHS = (1, 5, 20, 60, 150)
ALPHA = 0.01
Scored = tuple[float, int]  # value, length
PValue = Callable[[Null, float, int], float]


def null_of(*values: float, length: int = 1) -> Null:
    return Null(tuple(NullScore(value, length) for value in values))


def of_pairs(scores: Sequence[Scored]) -> Null:
    return Null(tuple(NullScore(value, length) for value, length in scores))


# -- by hand ------------------------------------------------------------------------------------------------


def test_a_p_value_counts_the_scores_that_are_at_least_as_high() -> None:
    null = null_of(-3.0, -1.0, 0.5, 2.0)
    assert null.p_value(3.0, 1) == pytest.approx(1 / 5)  # none is
    assert null.p_value(0.5, 1) == pytest.approx(3 / 5)  # 0.5 and 2.0
    assert null.p_value(-9.0, 1) == 1.0


def test_without_a_null_nothing_is_unusual() -> None:
    assert Null().p_value(100.0, 7) == 1.0
    assert Null().near(7) == 0.0


def test_scores_far_away_in_length_count_only_as_ranks() -> None:
    # Ten answers of 1 token score 0 to 9, ten of 400 tokens 100 to 109: exp(-0.5 (ln 400 / 0.5)^2) is 0.
    null = of_pairs([*((float(v), 1) for v in range(10)), *((100.0 + v, 400) for v in range(10))])
    # 20 at 400 tokens is below all of its length: rank 1. All 21 ranks are at most that.
    assert null.p_value(20.0, 400) == 1.0
    # 20 at 1 token is above all of its length: rank 1/11. The lowest of the others is 109's, 1/10.
    assert null.p_value(20.0, 1) == pytest.approx(1 / 21)
    # 8.5 at 1 token: rank 2/11. At 1 token only 9 has a lower one (1/11); at 400 tokens 109 (1/10).
    assert null.p_value(8.5, 1) == pytest.approx(3 / 21)


def test_a_score_of_another_length_counts_by_its_distance() -> None:
    # ln 2 / 0.5 = 1.386; exp(-1.386^2 / 2) = 0.383.
    null = null_of(1.0, 2.0, length=2)
    assert null.near(2) == pytest.approx(2.0)
    assert null.near(1) == pytest.approx(2 * 0.3826, abs=1e-3)
    assert null.near(4) == null.near(1)


def test_an_answer_of_a_length_that_the_null_does_not_know_is_never_unusual() -> None:
    assert null_of(*range(200)).p_value(1e9, 2000) == 1.0


def test_alpha_needs_enough_scores_of_about_the_length() -> None:
    null = null_of(*range(99), length=3)
    assert null.resolves(0.01, 3)
    assert null.p_value(1000.0, 3) == pytest.approx(0.01)
    assert not null_of(*range(98), length=3).resolves(0.01, 3)
    assert not null.resolves(0.01, 4)  # 99 * exp(-0.5 (ln(4/3) / 0.5)^2) = 84


@pytest.mark.parametrize("score", [(float("inf"), 1), (float("nan"), 1), (0.0, 0)])
def test_a_score_that_is_none_is_refused(score: Scored) -> None:
    with pytest.raises(ValueError, match="finite"):
        NullScore(*score)


# -- the promise --------------------------------------------------------------------------------------------


def share_at_most(alpha: float, scores: Sequence[Scored], p_value: PValue) -> float:
    """P(p <= alpha) if any of these scores is equally likely to be the new one: exact for this set."""
    found = [
        p_value(of_pairs([*scores[:n], *scores[n + 1 :]]), *scores[n]) <= alpha for n in range(len(scores))
    ]
    return sum(found) / len(found)


def right(null: Null, value: float, length: int) -> float:
    return null.p_value(value, length)


def without_itself(null: Null, value: float, length: int) -> float:
    """Broken: the answer is not counted among the scores, so that p can be 0."""
    n = len(null.scores)
    return (null.p_value(value, length) * (n + 1) - 1) / n


def strictly_higher(null: Null, value: float, length: int) -> float:
    """Broken: ties speak for the answer."""
    return null.p_value(np.nextafter(value, np.inf), length)


scored = st.tuples(st.floats(-50, 50) | st.sampled_from((-1.0, 0.0)), st.sampled_from((1, 2, 3, 8, 60)))


@given(st.lists(scored, min_size=1, max_size=30), st.floats(0.001, 0.999))
def test_of_exchangeable_scores_at_most_alpha_have_a_p_value_of_alpha(
    scores: list[Scored], alpha: float
) -> None:
    assert share_at_most(alpha, scores, right) <= alpha + 1e-9


@given(scored, st.lists(scored, min_size=1, max_size=30), st.floats(0.01, 20))
def test_a_higher_score_is_never_less_unusual(score: Scored, known: list[Scored], more: float) -> None:
    value, length = score
    null = of_pairs(known)
    assert null.p_value(value + more, length) <= null.p_value(value, length)


@given(scored, st.lists(scored, min_size=1, max_size=20), st.randoms())
def test_the_order_of_the_null_does_not_matter(score: Scored, known: list[Scored], random: Random) -> None:
    shuffled = list(known)
    random.shuffle(shuffled)
    assert of_pairs(shuffled).p_value(*score) == pytest.approx(of_pairs(known).p_value(*score))


@pytest.mark.parametrize(
    ("broken", "scores", "alpha"),
    [
        (without_itself, [(float(v), 1) for v in range(151)], 0.01),
        (strictly_higher, [(0.0, 1) for _ in range(20)], 0.1),
        (lambda null, *score: null.p_value(*score) / 2, [(float(v), 1) for v in range(100)], 0.05),
    ],
)
def test_a_broken_p_value_breaks_the_promise(broken: PValue, scores: list[Scored], alpha: float) -> None:
    assert share_at_most(alpha, scores, right) <= alpha
    assert share_at_most(alpha, scores, broken) > alpha


# -- lengths ------------------------------------------------------------------------------------------------


def highest_of(length: int, rng: np.random.Generator) -> float:
    """A null whose scores grow with the length: the highest of so many positions."""
    return float(rng.standard_exponential(length).max())


def rarely_moved(length: int, rng: np.random.Generator) -> float:
    """Most positions move by nothing, one in thirty by a little: short answers seldom score at all."""
    moved = rng.random(length) < 1 / 30
    return float(np.where(moved, rng.standard_exponential(length), -5 + rng.standard_normal(length)).max())


def false_flags(
    draw: Callable[[int, np.random.Generator], float], *, regards_length: bool = True
) -> dict[int, float]:
    """By length, the share of fresh null answers with p <= ALPHA, over many nulls of 500 mixed lengths."""
    rng = np.random.default_rng(0)
    rounds, fresh = 30, 60
    flagged = dict.fromkeys(LENGTHS, 0)
    for _ in range(rounds):
        lengths = [int(length) for length in rng.choice(LENGTHS, 500)]
        null = of_pairs([(draw(length, rng), length if regards_length else 1) for length in lengths])
        for length in LENGTHS:
            drawn = [draw(length, rng) for _ in range(fresh)]
            flagged[length] += sum(
                null.p_value(value, length if regards_length else 1) <= ALPHA for value in drawn
            )
    return {length: count / (rounds * fresh) for length, count in flagged.items()}


@pytest.mark.parametrize("draw", [highest_of, rarely_moved])
def test_false_flags_of_a_fresh_null_keep_to_alpha_at_every_length(
    draw: Callable[[int, np.random.Generator], float],
) -> None:
    shares = false_flags(draw)
    assert max(shares.values()) <= ALPHA + 0.01, shares
    assert max(shares.values()) > 0.0


def test_one_threshold_for_all_lengths_would_flag_long_answers() -> None:
    shares = false_flags(highest_of, regards_length=False)
    assert shares[150] > ALPHA + 0.01
    assert shares[1] < ALPHA / 2


# -- bounds -------------------------------------------------------------------------------------------------


def client(name: str, value: float = 0.0, source: str | None = None) -> NullScore:
    return NullScore(value, 1, name, source)


def test_packaged_items_stay_a_quarter_and_one_client_an_eighth() -> None:
    null = with_checkup(Null(), [NullScore(0.0, 1)] * 100)
    for n in range(2000):
        null = with_score(null, client(f"client {n % 2}"))
    # Two clients with an eighth each: c <= (100 + 2c) / 8, so 16 each.
    assert null.origins == {CHECKUP: 100, "client 0": 16, "client 1": 16}
    for n in range(5000):
        null = with_score(null, client(f"client {n % 100}"))
    assert null.origins[CHECKUP] == 100
    assert len(null.scores) == 400


def test_one_client_alone_may_fill_all_but_the_quarter() -> None:
    null = with_checkup(Null(client_share=1.0), [NullScore(0.0, 1)] * 10)
    for _ in range(50):
        null = with_score(null, client(""))
    assert null.origins == {CHECKUP: 10, "": 30}


def test_without_packaged_items_no_client_is_let_in() -> None:
    assert with_score(Null(client_share=1.0), client("")).scores == ()


def test_a_full_null_forgets_the_oldest_of_the_largest_origin() -> None:
    null = with_checkup(Null(capacity=40, client_share=1.0), [NullScore(0.0, 1)] * 20)
    for n in range(100):
        null = with_score(null, client("", float(n)))
    assert null.origins == {CHECKUP: 10, "": 30}
    assert [score.value for score in null.scores if not score.origin] == [float(n) for n in range(70, 100)]


def test_a_source_has_one_score() -> None:
    null = with_checkup(Null(client_share=1.0), [NullScore(0.0, 1)] * 10)
    null = with_score(with_score(null, client("", 1.0, "a")), client("", 2.0, "a"))
    assert [score.value for score in null.scores if not score.origin] == [2.0]


def test_new_packaged_scores_replace_the_old_ones_and_leave_the_clients() -> None:
    null = with_score(with_checkup(Null(client_share=1.0), [NullScore(0.0, 1)] * 10), client(""))
    null = with_checkup(null, [NullScore(7.0, 1)] * 5)
    assert [score.value for score in null.scores] == [7.0] * 5 + [0.0]


def test_power_is_unknown_below_twenty_lies() -> None:
    null = Null()
    for n in range(19):
        null = with_lie(null, flagged=n > 0)
    assert null.power is None
    assert with_lie(null, flagged=True).power == pytest.approx(19 / 20)


def test_power_forgets_the_oldest_lies() -> None:
    null = replace(Null(), lies=(False,) * LIES)
    assert with_lie(null, flagged=True).power == pytest.approx(1 / LIES)


# -- the file -----------------------------------------------------------------------------------------------


def test_a_null_comes_back_from_its_file_without_what_tells_requests_apart(tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    null = with_checkup(Null(), [NullScore(float(n), 1 + n) for n in range(20)])
    null = with_lie(with_score(null, client("a client", 1.5, "digest of a request")), flagged=True)
    write_nulls(file, {"base": null, "adapter": Null()})
    assert "digest" not in file.read_text("utf-8")
    back = read_nulls(file)
    assert to_rows(back["base"]) == to_rows(null)
    assert back["base"].lies == (True,)
    assert back["adapter"] == Null()


def test_a_file_from_elsewhere_is_held_to_the_bounds(tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    write_nulls(file, {"base": Null(tuple([NullScore(0.0, 1)] * 8 + [client("greedy")] * 500))})
    assert read_nulls(file)["base"].origins == {CHECKUP: 8, "greedy": 1}


def test_without_a_file_there_is_no_null(tmp_path: Path) -> None:
    assert read_nulls(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": "modint-null-9", "models": {}}',
        '{"format": "modint-null-1", "models": {"m": {"scores": [[0.0, 1]]}}}',
        '{"format": "modint-null-1", "models": {"m": {"scores": [[0.0, 0, "checkup"]]}}}',
        '{"format": "modint-null-1", "models": {"m": {"scores": [[0.0, "1", "checkup"]]}}}',
        '{"format": "modint-null-1", "models": {"m": {"scores": [[1e999, 1, "checkup"]]}}}',
        "\x00\xff",
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "null.json"
    file.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match=r"null\.json .*measured anew\.$") as refused:
        read_nulls(file)
    assert "\n" not in str(refused.value)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_nulls(tmp_path)


def test_a_write_that_fails_leaves_what_there_was(tmp_path: Path) -> None:
    folder = tmp_path / "null.json"
    folder.mkdir()
    with pytest.raises(OSError, match=r"null\.json"):
        write_nulls(folder, {"base": Null()})
    assert list(tmp_path.iterdir()) == [folder]


def test_rows_that_are_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="not a score"):
        from_rows([["0.0", 1, CHECKUP]], Null())
