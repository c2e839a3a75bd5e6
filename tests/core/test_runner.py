"""Items through a model: the request that asks one, and the rows that come back."""

import asyncio
import base64
import io

import pytest
from PIL import Image

from modint_guard.chat.images import png_data_url
from modint_guard.config import GuardConfig
from modint_guard.data.item import Item, Turn
from modint_guard.data.perturb import perturb
from modint_guard.errors import EndpointError
from modint_guard.evaluation.runner import (
    FREE_TOKENS,
    Row,
    request_for,
    row_of,
    run,
    with_views,
    without_guard,
)
from modint_guard.guard import Guard
from modint_guard.plan import main_body
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR, Reply
from tests.core.fakes import completion
from tests.core.items import BOTH, DIGIT, LETTERED, RED, SUM

LIED = perturb(DIGIT, "misleading_description")


def saying(text: str | None, **more: object) -> JSON:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], **more}


def test_a_request_holds_picture_context_and_question_in_parts() -> None:
    item = LETTERED.replace(context="Caption: the digit 7.")
    assert request_for(item, "base") == {
        "model": "base",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": png_data_url(RED)}},
                    {"type": "text", "text": "Caption: the digit 7."},
                    {"type": "text", "text": "What digit is shown?\nA. 5\nB. 7\nC. 3\nD. 1"},
                ],
            }
        ],
        "temperature": 0,
        "max_tokens": 8,
        "modint": {"relevant": "image"},
    }


async def test_without_the_guard_all_else_of_a_request_is_kept_and_the_callers_body_too() -> None:
    async def echo(body: JSON) -> JSON:
        return body

    body = request_for(SUM, "base")
    assert await without_guard(echo)(body) == {**body, "modint": {"mode": "off"}}
    assert body["modint"] == {"relevant": "text"}


def test_context_and_question_can_be_one_string() -> None:
    content = request_for(LIED, "base", one_string=True)["messages"][0]["content"]
    assert content[1:] == [{"type": "text", "text": f"{LIED.context}\nWhat digit is shown?"}]


def test_a_request_without_picture_or_context_is_the_question() -> None:
    content = request_for(SUM, "base")["messages"][0]["content"]
    assert content == [{"type": "text", "text": "What is 1 plus 2?"}]


def test_earlier_turns_and_system_text_go_before_the_question_with_the_picture_in_its_turn() -> None:
    turns = (Turn("user", "Look.", has_image=True), Turn("assistant", "Yes?"))
    asked = request_for(DIGIT.replace(turns=turns, system="Be brief."), "base")
    picture = {"type": "image_url", "image_url": {"url": png_data_url(RED)}}
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture, {"type": "text", "text": "Look."}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "What digit is shown?"}]},
    ]


def test_a_free_answer_has_room_and_an_unknown_family_is_left_to_the_rules() -> None:
    free = SUM.replace(form="free", choices=(), answer="three", wrong="", family="unknown")
    asked = request_for(free, "base")
    assert (asked["max_tokens"], asked["modint"]) == (FREE_TOKENS, {"relevant": "auto"})


@pytest.mark.parametrize(("item", "relevant"), [(DIGIT, "image"), (SUM, "text"), (BOTH, "both")])
def test_the_client_names_what_ought_to_decide(item: Item, relevant: str) -> None:
    assert request_for(item, "base")["modint"] == {"relevant": relevant}


def test_further_fields_go_in_as_they_are() -> None:
    assert (
        request_for(DIGIT, "base", stream=True, max_tokens=1).items()
        >= {"stream": True, "max_tokens": 1}.items()
    )


def test_a_picture_travels_without_loss() -> None:
    picture = Image.effect_noise((9, 7), 60).convert("RGB")
    content = request_for(DIGIT.replace(image=picture), "base")["messages"][0]["content"]
    head, _, data = content[0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as read:
        assert (read.size, read.tobytes()) == (picture.size, picture.tobytes())


def test_the_guard_finds_context_and_question_where_they_were_put() -> None:
    plan = Guard().plan(request_for(LIED, "base"))
    assert plan.skip is None
    assert plan.chat is not None
    assert (plan.chat.context, plan.chat.question) == (LIED.context, "What digit is shown?")


async def test_rows_come_back_in_the_items_order_whichever_answer_is_first() -> None:
    seen: list[str] = []

    async def complete(body: JSON) -> JSON:
        lettered = "\nA. " in body["messages"][0]["content"][-1]["text"]
        await asyncio.sleep(0 if lettered else 0.02)
        return saying("C" if lettered else "7", modint={"verdict": "flagged"} if lettered else None)

    rows = await run([DIGIT, LETTERED], complete, "base", done=lambda row: seen.append(row.item.id))
    assert [(row.item.id, row.answer, row.right, row.flagged) for row in rows] == [
        ("digit-0", "7", False, False),
        ("digit-1", "C", True, True),
    ]
    assert seen == ["digit-1", "digit-0"]
    assert {row.model for row in rows} == {"base"}


async def test_no_more_than_the_allowed_requests_are_under_way() -> None:
    under_way, most = 0, 0

    async def complete(body: JSON) -> JSON:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return saying("3")

    rows = await run([DIGIT] * 20, complete, "base", concurrency=3)
    assert (len(rows), most) == (20, 3)


async def test_an_endpoint_error_ends_the_run_as_itself() -> None:
    calls = 0

    async def complete(body: JSON) -> JSON:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        raise EndpointError("the engine is gone: start it again")

    with pytest.raises(EndpointError, match="the engine is gone"):
        await run([DIGIT] * 20, complete, "base", concurrency=2)
    assert calls <= 4


@pytest.mark.parametrize(
    ("modint", "verdict", "flagged"),
    [(None, None, False), ({"verdict": "pass"}, "pass", False), ({"verdict": "flagged"}, "flagged", True)],
)
def test_a_row_knows_the_guards_verdict(modint: JSON | None, verdict: str | None, flagged: bool) -> None:
    row = row_of(DIGIT, "base", saying("3", modint=modint))
    assert (row.verdict, row.flagged) == (verdict, flagged)


def test_an_empty_message_is_a_wrong_answer() -> None:
    assert row_of(DIGIT, "base", saying(None)) == Row(DIGIT, "base", "", right=False, modint=None)


async def test_views_wait_their_turn_however_long_it_takes() -> None:
    guard = Guard(GuardConfig(deadline_s=0.01))
    plan = guard.plan(request_for(LIED, "m"))

    async def paced(body: JSON) -> JSON:
        await asyncio.sleep(0.05)
        return completion("3", [{"3": 0.9, "7": 0.1}])

    answer, replies = await with_views(plan, main_body(plan), paced, "digit-0")
    assert answer["choices"][0]["message"]["content"] == "3"
    assert {name for name, reply in replies.items() if isinstance(reply, Reply)} == {
        NEUTRAL_IMAGE,
        NO_CONTEXT,
        PRIOR,
    }


async def test_a_view_that_fails_fails_the_question() -> None:
    guard = Guard()
    plan = guard.plan(request_for(LIED, "m"))

    async def limited(body: JSON) -> JSON:
        if body["max_tokens"] == 2:
            raise EndpointError("slow down", status=429)
        return completion("3", [{"3": 0.9, "7": 0.1}])

    with pytest.raises(EndpointError, match="the view no_context of digit-0 got no answer: is the engine"):
        await with_views(plan, main_body(plan), limited, "digit-0")
