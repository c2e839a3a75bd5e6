"""The statistic of a flag, by hand, and the verdicts of a model that has a null."""

from dataclasses import replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard import Guard
from modint_guard.config import GuardConfig
from modint_guard.errors import ConfigError
from modint_guard.judging.null import Null, NullScore, sure_at, with_lie
from modint_guard.judging.scoring import influence, token_influences
from modint_guard.judging.statistic import flag_statistic, likeliest_statistic
from modint_guard.report import Report
from modint_guard.types import CELLS, CellScore, Complete, Influence, Relevant, Statistic, TokenScore
from tests.core.fakes import ask, world

LIE = "It is blue.\nWhat is in the picture?"
SURE_ODDS = log(0.99996 / 0.00001)  # of what `world` says against any other word


def cell(odds: list[float], request: list[float], other: float = 0.9) -> CellScore:
    """A view under which the answer's tokens have these log-odds; `request` are those of the request."""
    tokens = tuple(
        TokenScore(lost=(full - view) / 10, shift=full - view, odds=view, other=other, preferred=full > 0)
        for full, view in zip(request, odds, strict=True)
    )
    mean = sum(token.lost for token in tokens) / len(tokens)
    return CellScore(0.5, False, 1.0, None, 0.0, 0.9, 0.1, False, mean, 0.5, "other", tokens=tokens)


def cells(
    request: list[float], image: list[float], text: list[float], prior: list[float]
) -> dict[str, CellScore]:
    views = zip(CELLS, (image, text, prior), strict=True)
    return {name: cell(odds, request) for name, odds in views}


def value_of(found: Statistic | None) -> float:
    assert found is not None
    return found.value


# -- by hand ------------------------------------------------------------------------------------------------


def test_a_lie_scores_by_its_influence_or_by_what_contradicts_it_whichever_is_less() -> None:
    # Log-odds of y: request 4, image alone -3, text alone 2, neither -1.
    # Influence of the text: ((4 + 3) + (2 + 1)) / 2 = 5; the image alone is 3 against it.
    scored = cells([4.0], [-3.0], [2.0], [-1.0])
    assert flag_statistic(scored, Relevant.IMAGE, has_context=True) == Statistic(3.0, 1)
    # Image alone -8: influence 7.5, against it 8.
    assert value_of(
        flag_statistic(cells([4.0], [-8.0], [2.0], [-1.0]), Relevant.IMAGE, has_context=True)
    ) == pytest.approx(7.5)


def test_a_caption_counts_that_does_not_give_the_word_by_itself() -> None:
    # Under a grey picture "In a word, please" brings "word"; still, the caption made "blue" of "red".
    # Influence of the text: ((4 + 3) + (-1 + 2)) / 2 = 4; the image alone is 3 against it.
    assert value_of(
        flag_statistic(cells([4.0], [-3.0], [-1.0], [-2.0]), Relevant.IMAGE, has_context=True)
    ) == pytest.approx(3.0)


def test_a_picture_beside_a_text_is_scored_without_regard_to_what_the_picture_alone_says() -> None:
    # Influence of the image: ((4 + 2) + (-5 + 1)) / 2 = 1; the text alone is 2 against y.
    assert value_of(
        flag_statistic(cells([4.0], [-5.0], [-2.0], [-1.0]), Relevant.TEXT, has_context=True)
    ) == pytest.approx(1.0)
    # Without a context the picture is the only player: 4 + 2 = 6, and 2 against y.
    alone = {"neutral_image": cell([-2.0], [4.0])}
    assert value_of(flag_statistic(alone, Relevant.TEXT, has_context=False)) == pytest.approx(2.0)


def test_a_token_against_which_nothing_definite_speaks_scores_nothing() -> None:
    # The picture alone gives 30:1 against the second token, but it could be anything; 3:1 at the first.
    scored = cells([4.0, 4.0], [-1.1, -3.4], [2.0, 2.0], [-1.0, -1.0])
    vague = scored["no_context"].tokens
    scored["no_context"] = replace(scored["no_context"], tokens=(vague[0], replace(vague[1], other=0.49)))
    assert value_of(flag_statistic(scored, Relevant.IMAGE, has_context=True)) == pytest.approx(1.1)
    scored["no_context"] = replace(scored["no_context"], tokens=vague)
    assert value_of(flag_statistic(scored, Relevant.IMAGE, has_context=True)) == pytest.approx(3.4)


def test_an_answer_that_stays_scores_at_most_nothing() -> None:
    scored = flag_statistic(cells([4.0], [3.0], [2.0], [-1.0]), Relevant.IMAGE, has_context=True)
    assert value_of(scored) == pytest.approx(-3.0)


def test_of_a_longer_answer_the_token_that_was_turned_most_counts() -> None:
    found = flag_statistic(
        cells([4.0, 4.0, -1.0], [3.0, -3.0, -9.0], [2.0, 2.0, 9.0], [2.0, -1.0, 0.0]),
        Relevant.IMAGE,
        has_context=True,
    )
    # The third would score 9: but the request itself does not prefer it.
    assert found == Statistic(3.0, 3)


@pytest.mark.parametrize("relevant", [Relevant.BOTH, Relevant.UNKNOWN])
def test_where_nothing_is_known_to_be_irrelevant_there_is_no_statistic(relevant: Relevant) -> None:
    assert flag_statistic(cells([4.0], [-3.0], [2.0], [-1.0]), relevant, has_context=True) is None


def test_of_unknown_relevance_each_hypothesis_counts_by_its_probability() -> None:
    # Under `image` the score is 3 (above); under `text`, whose view alone gives y with log-odds 2, it is -2.
    scored = cells([4.0], [-3.0], [2.0], [-1.0])

    def score(**likely: float) -> float:
        probabilities = {Relevant(name): value for name, value in likely.items()}
        return value_of(likeliest_statistic(scored, probabilities, has_context=True))

    assert score(image=1.0, text=0.0) == pytest.approx(3.0)
    assert score(image=0.5, text=0.5) == pytest.approx(3.0 + log(0.5))
    assert score(image=0.001, text=0.9) == pytest.approx(-2.0 + log(0.9))
    assert likeliest_statistic(scored, {}, has_context=True) is None
    assert likeliest_statistic(scored, {Relevant.IMAGE: 0.0}, has_context=True) is None


async def test_an_answer_whose_relevance_is_unknown_has_a_score_and_is_not_flagged_by_it() -> None:
    body = ask("It is blue.\nAnd what is it to you?", modint={"relevant": "auto"})
    model = world(both="blue", image="red", text="blue", neither="red", sure=0.9)  # too little for a conflict
    report = (await Guard().inspect(body, model)).report
    assert (report.relevant, report.verdict.state, report.verdict.risk) == (Relevant.UNKNOWN, "pass", None)
    assert report.statistic is not None and 0.0 < report.statistic.value < SURE_ODDS


def test_without_a_cell_or_a_token_that_the_request_prefers_there_is_no_statistic() -> None:
    scored = cells([4.0], [-3.0], [2.0], [-1.0])
    del scored["prior"]
    assert flag_statistic(scored, Relevant.IMAGE, has_context=True) is None
    assert flag_statistic({}, Relevant.TEXT, has_context=False) is None
    drawn = cells([-0.5, -1.0], [-3.0, -3.0], [2.0, 2.0], [0.0, 0.0])
    assert flag_statistic(drawn, Relevant.IMAGE, has_context=True) is None


@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 4), min_size=1, max_size=5))
def test_the_influences_of_the_tokens_have_the_answers_as_their_mean(
    tokens_odds: list[tuple[float, float, float, float]],
) -> None:
    request_odds, *views = [list(each) for each in zip(*tokens_odds, strict=True)]
    scored = cells(request_odds, *views)
    tokens, whole = token_influences(scored, has_context=True), influence(scored, has_context=True)
    assert len(tokens) == len(tokens_odds)
    for name in Influence._fields:
        values = [getattr(token, name) for token in tokens]
        assert sum(values) / len(values) == pytest.approx(getattr(whole, name))


@given(st.tuples(*[st.floats(-10, 10)] * 4))
def test_it_is_above_nothing_only_if_the_answer_changed(found: tuple[float, float, float, float]) -> None:
    request_odds, image, text, prior = found
    scored = flag_statistic(cells([request_odds], [image], [text], [prior]), Relevant.IMAGE, has_context=True)
    if scored is not None and scored.value > 0:
        assert request_odds > 0 and image < 0 and request_odds - image + text - prior > 0


# -- verdicts by a null -------------------------------------------------------------------------------------

LIED_TO = world(both="blue", image="red", text="blue", neither="red")


def null_of(n: int, value: float = -5.0, length: int = 1) -> Null:
    return Null((NullScore(value, length),) * n)


async def judged(null: Null, model: Complete = LIED_TO, config: GuardConfig | None = None) -> Report:
    guard = Guard(config, nulls={"m": null})
    return (await guard.inspect(ask(LIE), model)).report


async def test_an_answer_above_its_whole_null_is_flagged_at_its_p_value() -> None:
    report = await judged(null_of(99))
    assert (report.verdict.state, report.verdict.cause) == ("flagged", "text")
    assert report.to_json()["score"] == pytest.approx(SURE_ODDS)
    assert report.verdict.risk == pytest.approx(0.99)
    assert report.verdict.calibrated
    assert report.to_json()["null"] == {"source": "checkup", "n": 99, "power": None}


async def test_an_answer_that_harmless_inputs_reach_too_passes() -> None:
    scores = (*null_of(98).scores, NullScore(20.0, 1))
    report = await judged(Null(scores))
    assert report.verdict.state == "pass"
    assert report.verdict.risk == pytest.approx(1 - 2 / 100)
    assert report.verdict.calibrated


@pytest.mark.parametrize("null", [null_of(98), null_of(500, length=60), Null()])
async def test_with_too_few_scores_of_its_length_the_thresholds_decide(null: Null) -> None:
    report, without = await judged(null), (await Guard().inspect(ask(LIE), LIED_TO)).report
    assert (report.verdict, report.statistic) == (without.verdict, without.statistic)
    assert (report.verdict.state, report.verdict.calibrated, report.verdict.null) == ("flagged", False, None)


async def test_another_alpha_needs_fewer_scores() -> None:
    report = await judged(null_of(19), config=GuardConfig(alpha=0.05))
    assert report.verdict.state == "flagged" and report.verdict.calibrated
    assert report.verdict.risk == pytest.approx(0.95)


async def test_an_answer_that_did_not_change_is_not_flagged_however_unusual_it_is() -> None:
    stays = world(both="blue", image="blue", text="green", neither="green", sure=0.9)
    report = await judged(null_of(200, -50.0), stays)
    assert report.verdict.risk is not None and report.verdict.risk > 0.99
    assert report.verdict.state == "pass"


async def test_what_is_sure_is_measured_on_the_model() -> None:
    # The picture alone says "red" at .65 and "blue" at .0875, seven to one: below the nine of .9.
    unsure = world(both="blue", image="red", text="blue", neither="red", sure=0.65)
    null = null_of(200)
    assert (await judged(null, unsure)).verdict.state == "pass"
    assert (await judged(replace(null, sure=0.85), unsure)).verdict.state == "flagged"
    assert (await judged(replace(null, sure=0.95), unsure)).verdict.state == "pass"


async def test_traffic_and_power_are_named() -> None:
    null = Null((*null_of(200).scores, NullScore(-5.0, 1, "a client")))
    for n in range(20):
        null = with_lie(null, flagged=n < 17)
    assert (await judged(null)).to_json()["null"] == {"source": "traffic", "n": 201, "power": 0.85}


async def test_the_null_is_read_anew_for_each_answer() -> None:
    nulls: dict[str, Null] = {}
    guard = Guard(nulls=nulls)
    assert not (await guard.inspect(ask(LIE), LIED_TO)).report.verdict.calibrated
    nulls["m"] = null_of(99)
    assert (await guard.inspect(ask(LIE), LIED_TO)).report.verdict.calibrated


# -- sure ---------------------------------------------------------------------------------------------------


def test_sure_is_the_least_confidence_from_which_nineteen_of_twenty_are_right() -> None:
    right = [(0.9, True)] * 38
    assert sure_at([*right, (0.7, False), (0.7, False)]) == 0.7  # 38 of 40
    assert sure_at([*right, (0.7, False), (0.7, False), (0.6, False)]) == 0.7  # 38 of 41 at 0.6
    assert sure_at([*right, *[(0.7, False)] * 3]) == 0.9


def test_sure_is_unknown_of_few_answers_and_of_a_model_that_is_wrong_when_it_is_sure() -> None:
    assert sure_at([(0.99, True)] * 19) is None
    assert sure_at([(0.99, False)] * 40 + [(0.5, True)] * 40) is None


def test_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha is 0\.5"):
        GuardConfig(alpha=0.5)
