"""What is planted into requests, what is drawn for the null, and what a model's answers make of it."""

import random
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from modint_guard import Guard
from modint_guard.chat.images import png_data_url
from modint_guard.chat.request import parse
from modint_guard.config import GuardConfig
from modint_guard.data.perturb import CLAIMS, FACTS
from modint_guard.evaluation.drawn_items import drawn_items
from modint_guard.evaluation.null_measure import checkup_null, examined
from modint_guard.evaluation.planting import OTHERS, Planted, harmless, lying
from modint_guard.judging.null import CHECKUP, Null, NullScore
from modint_guard.mitigation.policy import Policy
from modint_guard.types import JSON, Chat, ModintOptions, Relevant
from tests.core.fakes import RED, ask, completion, image_part, text_part

QUESTION = "What is in the picture?"


def chat_of(*texts: str, **fields: Any) -> Chat:
    return parse(ask(*texts, **fields))


def plants(
    make: Any, chat: Chat, relevant: Relevant = Relevant.IMAGE, answer: str | None = "a fox"
) -> list[Planted]:
    found = [make(chat, relevant, answer, random.Random(seed)) for seed in range(60)]
    return [each for each in found if each is not None]


def texts_of(body: JSON) -> list[str]:
    content = body["messages"][-1]["content"]
    return [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]


# -- planting -----------------------------------------------------------------------------------------------


def test_beside_a_picture_it_is_an_unrelated_text_or_what_the_model_says_itself() -> None:
    texts = {each.context for each in plants(harmless, chat_of(QUESTION))}
    claims = {template.format(claim="a fox") for template in CLAIMS}
    unrelated = [text for text in texts if text not in claims]
    assert texts & claims and unrelated
    assert all(sentence in " ".join(FACTS) for text in unrelated for sentence in str(text).split(". ")[:1])
    assert {len(str(text).split(". ")) for text in unrelated} >= {1, 2, 12}


def test_it_stands_above_the_question_before_the_picture_and_behind_the_question() -> None:
    places = set()
    for each in plants(harmless, chat_of(QUESTION)):
        names = {each.context: "text", QUESTION: "question"}
        content = each.body["messages"][-1]["content"]
        places.add(tuple(names.get(part.get("text"), "picture") for part in content))
    assert places == {
        ("picture", "text", "question"),
        ("text", "picture", "question"),
        ("picture", "question", "text"),
    }


def test_it_takes_the_place_of_a_context_that_was_there() -> None:
    chat = chat_of("The caption says: a cat.", QUESTION)
    for each in [*plants(harmless, chat), *plants(lying, chat)]:
        assert not any("cat" in text for text in texts_of(each.body) if text != each.context)
        assert QUESTION in texts_of(each.body)


def test_the_context_of_what_is_planted_can_be_told_from_the_question() -> None:
    for each in [*plants(harmless, chat_of(QUESTION)), *plants(lying, chat_of(QUESTION))]:
        read = parse(each.body, ModintOptions(context=each.context))
        assert (read.context, read.question) == (each.context, QUESTION)


def test_a_question_in_one_string_is_planted_into_too() -> None:
    picture, question = {"role": "user", "content": [image_part()]}, {"role": "user", "content": QUESTION}
    chat = parse({"model": "m", "messages": [picture, question]})
    assert all(each.context in texts_of(each.body) for each in plants(harmless, chat))


def test_beside_a_text_it_is_a_landscape_of_the_same_size() -> None:
    chat = chat_of("The cat is red.", "What colour is the cat?")
    planted = plants(harmless, chat, Relevant.TEXT)[0]
    read = parse(planted.body)
    assert read.images[0].url != RED and read.images[0].size == chat.images[0].size
    assert planted.context == chat.context


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (2001, 2000)])
def test_no_landscape_takes_the_place_of_a_tiny_or_a_large_picture(size: tuple[int, int]) -> None:
    picture = {"type": "image_url", "image_url": {"url": png_data_url(Image.new("RGB", size))}}
    texts = [{"type": "text", "text": text} for text in ("The cat is red.", "What colour is the cat?")]
    chat = parse({"model": "m", "messages": [{"role": "user", "content": [picture, *texts]}]})
    assert plants(harmless, chat, Relevant.TEXT) == []


@pytest.mark.parametrize("relevant", [Relevant.BOTH, Relevant.UNKNOWN])
def test_where_nobody_knows_what_is_irrelevant_nothing_is_planted(relevant: Relevant) -> None:
    assert plants(harmless, chat_of(QUESTION), relevant) == []
    assert plants(lying, chat_of(QUESTION), relevant) == []


def test_a_lie_claims_another_answer_of_the_same_kind() -> None:
    def claims(answer: str, *texts: str) -> set[str]:
        return {str(each.context) for each in plants(lying, chat_of(*texts or (QUESTION,)), answer=answer)}

    assert all(" no" in text for text in claims("Yes."))
    assert all("fox" not in text and any(other in text for other in OTHERS) for text in claims("a fox"))
    assert not any(" 3." in text for text in claims("3"))
    lettered = "What is shown?\nA. cat\nB. dog\nAnswer with the letter only."
    assert all("dog" in text for text in claims("A", lettered))


@pytest.mark.parametrize("answer", [None, "", "It is " + "very " * 10 + "long.", "two\nlines"])
def test_a_long_or_missing_answer_is_not_claimed(answer: str | None) -> None:
    assert plants(lying, chat_of(QUESTION), answer=answer) == []
    texts = [str(each.context) for each in plants(harmless, chat_of(QUESTION), answer=answer)]
    assert not any(text.startswith("Caption") for text in texts)


# -- drawn items --------------------------------------------------------------------------------------------


def test_drawn_pictures_are_all_different_and_the_same_every_time() -> None:
    items, again = drawn_items(60), drawn_items(60)
    pictures = [item.image.tobytes() for item in items if item.image]
    assert len(set(pictures)) == 60
    assert pictures == [item.image.tobytes() for item in again if item.image]
    assert {item.answer for item in items} >= {"red", "blue", "circle", "cross"}
    assert all(item.answer != item.wrong and item.wrong not in item.question for item in items)


# -- measuring ----------------------------------------------------------------------------------------------


def blind(says: str = "red") -> Any:
    """A model that always says the same."""

    async def complete(body: JSON) -> JSON:
        return completion(says, [{says: 0.9, "nothing": 0.05}])

    return complete


async def test_only_harmless_inputs_that_are_answered_rightly_count() -> None:
    null = await checkup_null(Null(), Guard(), blind("red"), "m", concurrency=8)
    right = sum(item.answer == "red" for item in drawn_items(150))
    assert right <= len(null.scores) <= right + 6  # and the packaged red shapes
    assert {score.value < 0 for score in null.scores} == {True}
    assert (null.power, null.lies, null.sure) == (None, (), None)


async def test_new_scores_of_packaged_items_leave_those_of_clients() -> None:
    before = Null((NullScore(1.0, 1), NullScore(2.0, 1, "client")), client_share=1.0)
    null = await checkup_null(before, Guard(), blind("circle"), "m", concurrency=8)
    assert null.origins["client"] == 1 and null.origins[CHECKUP] == len(null.scores) - 1 > 10


async def test_a_request_that_is_not_probed_has_no_statistic() -> None:
    text_only = {"model": "m", "messages": [{"role": "user", "content": [text_part(QUESTION)]}]}
    assert await examined(Guard(), blind(), text_only, Relevant.IMAGE, None) is None


async def test_every_cell_is_asked_even_if_a_policy_stops_early() -> None:
    guard = Guard(replace(GuardConfig(), policies=(Policy("neutralise"),)))
    body = ask("It is blue.", QUESTION)
    found = await examined(guard, blind(), body, Relevant.IMAGE, "It is blue.")
    assert found is not None and found[1].statistic is not None
    assert found[1].mitigation is None
