"""Short answers of several words, where the engine scores no given answer: told by the views' whole words."""

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Complete, Report
from tests.core.fakes import ask, completion, reads, sees_picture

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
BODY = ask(f"{LIE}\n{QUESTION}")
GUARD = Guard(GuardConfig(regenerate=True))


def talks(*, both: str, image: str, text: str, neither: str) -> tuple[list[JSON], Complete]:
    """A model that says whole sentences, all of which begin alike."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        told = reads(body, "blue.")
        said = {(True, True): both, (True, False): image, (False, True): text, (False, False): neither}[
            sees_picture(body), told
        ]
        first = said.split()[0]
        return completion(said, [{first: 0.98, "Odd": 0.02}] if body.get("logprobs") else None)

    return calls, complete


async def judged(guard: Guard, model: Complete, body: JSON = BODY) -> Report:
    return (await guard.inspect(body, model)).report


async def test_a_lie_repeated_in_the_last_word_is_flagged() -> None:
    calls, model = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.state, found.verdict.cause, found.verdict.risk) == ("flagged", "text", None)
    assert (found.method, found.image_only, found.text_only) == ("regenerated", "It is red.", "It is blue.")
    assert len(calls) == 4 + 4  # the request and its cells; the cells whole, and the request again
    flips = {row.name: row.flip for row in found.probes}
    assert flips == {"no_context": True, "neutral_image": False, "prior": True, "noop": False}
    assert {row.tokens for row in found.probes if row.name != "noop"} == {2 * 31}


async def test_a_first_word_that_flips_decides() -> None:
    calls, model = talks(both="It is blue.", image="Red it is.", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.cause, found.method, len(calls)) == ("text", "first_token", 4)


async def test_the_same_words_without_the_caption_need_no_other_cell() -> None:
    calls, model = talks(both="It is red.", image="it is red", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.state, found.method, found.image_only) == ("pass", "regenerated", "it is red")
    assert len(calls) == 4 + 1


async def test_an_answer_that_moves_by_itself_is_not_flagged() -> None:
    calls, steady = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")

    async def model(body: JSON) -> JSON:
        answered = await steady(body)
        if len(calls) > 4 and sees_picture(body) and reads(body, "blue."):
            return completion("It is pink.")
        return answered

    found = await judged(GUARD, model)
    assert found.verdict.state == "pass" and "noop" in found.notes[-1]


@pytest.mark.parametrize(
    ("guard", "body", "said"),
    [
        (Guard(), BODY, "It is blue."),  # switched off
        (GUARD, BODY, "blue"),  # one word
        (GUARD, BODY, "It is blue as far as I can tell from here."),  # too long
        (GUARD, {**BODY, "modint": {"relevant": "both"}}, "It is blue."),  # nothing known to be irrelevant
    ],
)
async def test_other_answers_are_judged_at_their_first_word(guard: Guard, body: JSON, said: str) -> None:
    calls, model = talks(both=said, image="It is red.", text=said, neither="It is green.")
    found = await judged(guard, model, body)
    assert found.method == "first_token" and len(calls) == 4


async def test_an_answer_that_was_cut_off_is_judged_at_its_first_word() -> None:
    calls, steady = talks(both="It is blue", image="It is red.", text="It is blue", neither="It is green.")

    async def model(body: JSON) -> JSON:
        answered = await steady(body)
        choice = {**answered["choices"][0], "finish_reason": "length"}
        return {**answered, "choices": [choice]}

    found = await judged(GUARD, model)
    assert found.method == "first_token" and len(calls) == 4


@pytest.mark.parametrize("well", [5, 7])  # 8 calls in all: the last is the unchanged request once more
async def test_where_a_view_fails_the_first_word_decides(well: int) -> None:
    calls, steady = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")

    async def model(body: JSON) -> JSON:
        if len(calls) >= well:
            raise EndpointError("busy", status=503)
        return await steady(body)

    found = await judged(GUARD, model)
    assert (found.verdict.state, found.method) == ("pass", "first_token")
    assert not any("(noop)" in note for note in found.notes)
