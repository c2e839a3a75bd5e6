"""Several pictures: beside the usual views each of them is left out once, alone."""

from collections.abc import Mapping

import pytest
from PIL import Image

from modint_guard import Guard, GuardConfig
from modint_guard.chat.images import neutral_image, png_data_url
from modint_guard.mitigation.policy import Policy
from modint_guard.plan import NOTE_MANY_PICTURES
from modint_guard.probing.views import VIEWS
from modint_guard.report import Report
from modint_guard.types import JSON, LEFT_OUT, Complete
from tests.core.fakes import ask, completion, image_part, scored_prompt, text_part

SIZES = ((12, 8), (8, 12), (10, 10), (9, 9), (7, 7))
PICTURES = [png_data_url(Image.new("RGB", size, (20 * number, 0, 0))) for number, size in enumerate(SIZES, 1)]
QUESTION = "The caption says blue.\nWhat colour is the second thing?"


def asked(count: int) -> JSON:
    content = [*map(image_part, PICTURES[:count]), text_part(QUESTION)]
    return {**ask(), "messages": [{"role": "user", "content": content}], "modint": {"relevant": "image"}}


def seen(body: JSON) -> list[bool]:
    """Which pictures are there, in order."""
    parts = body["messages"][0]["content"]
    return [part["image_url"]["url"] in PICTURES for part in parts if part["type"] == "image_url"]


def looks_at_the_second(words: tuple[str, ...] = ("red",)) -> tuple[list[JSON], Complete]:
    """A model that says what the second picture shows; its last word is the colour."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        colour = {words[-1]: 0.99, " odd": 0.01} if seen(body)[1] else {words[-1]: 0.5, " odd": 0.5}
        tops: list[Mapping[str, float]] = [*({word: 1.0} for word in words[:-1]), colour]
        return scored_prompt(words, tops) if "prompt_logprobs" in body else completion("".join(words), tops)

    return calls, complete


async def report_of(model: Complete, count: int, **config: object) -> Report:
    return (await Guard(GuardConfig(**config)).inspect(asked(count), model)).report  # type: ignore[arg-type]


async def test_each_picture_is_left_out_once_and_its_influence_told() -> None:
    calls, model = looks_at_the_second()
    report = await report_of(model, 3)
    assert [probe.name for probe in report.probes][3:] == list(LEFT_OUT[:3])
    assert report.influence_images == pytest.approx((0.0, 0.683, 0.0), abs=0.001)
    assert report.to_json()["influence"]["images"] == list(report.influence_images)
    alone = [seen(call) for call in calls if seen(call).count(False) == 1]
    assert alone == [[False, True, True], [True, False, True], [True, True, False]]


async def test_of_a_longer_answer_it_is_the_mean_over_all_tokens() -> None:
    calls, model = looks_at_the_second(("It", " is", " red"))
    report = await report_of(model, 2, teacher_forcing=True)
    assert report.influence_images == pytest.approx((0.0, 0.683 / 3), abs=0.001)
    assert sum("prompt_logprobs" in call for call in calls) == 5


async def test_a_picture_that_was_not_scored_like_the_cells_has_no_influence() -> None:
    _, model = looks_at_the_second(("It", " is", " red"))

    async def failing(body: JSON) -> JSON:
        if "prompt_logprobs" in body and seen(body) == [True, False]:
            return completion("!")
        return await model(body)

    report = await report_of(failing, 2, teacher_forcing=True)
    assert report.influence_images[0] == pytest.approx(0.0, abs=0.001)
    assert report.influence_images[1] is None


@pytest.mark.parametrize("count", [1, 5])
async def test_a_single_picture_and_too_many_are_not_left_out_one_by_one(count: int) -> None:
    calls, model = looks_at_the_second() if count > 1 else ([], _red)
    report = await report_of(model, count)
    assert report.influence_images == () and not {probe.name for probe in report.probes} & set(LEFT_OUT)
    assert (NOTE_MANY_PICTURES in report.notes) == (count > 1)
    assert len(calls) in (0, 4)


async def _red(body: JSON) -> JSON:
    return completion("red", [{"red": 0.99, "odd": 0.01}])


async def test_where_the_first_probe_settles_the_answer_no_picture_is_left_out() -> None:
    calls, model = looks_at_the_second()
    report = await report_of(model, 2, policies=(Policy(action="neutralise"),))
    assert report.influence_images == () and len(calls) == 2


def test_the_view_greys_one_picture_in_its_own_size() -> None:
    guard = Guard()
    chat = guard.plan(asked(2)).chat
    made = VIEWS["without_image_2"](chat)
    assert made is not None
    urls = [part["image_url"]["url"] for part in made["messages"][0]["content"][:2]]
    assert urls == [PICTURES[0], neutral_image(SIZES[1])]
    assert VIEWS["without_image_3"](chat) is None
    assert VIEWS["without_image_1"](guard.plan(asked(1)).chat) is None
