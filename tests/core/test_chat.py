"""Reading a chat body and rebuilding it with one part replaced."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.eligibility import unsupported_part
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.options import parse_options
from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.request import parse
from modint_guard.errors import ImageError, RequestError
from modint_guard.types import JSON, ModintOptions
from tests.core.fakes import GREY, RED, SIZE, ask, image_part, text_part

QUESTION = "What colour is the ball?\nA. red\nB. blue"
CAPTION = "The picture shows a blue ball."
SENTENCES = st.lists(
    st.text(st.characters(codec="ascii", categories=["Ll", "Lu", "Zs"]), min_size=1)
    .map(lambda s: " ".join(s.split()).capitalize())
    .filter(lambda s: len(s) > 2)
    .map(lambda s: f"It seems that {s.lower()}."),
    min_size=1,
    max_size=4,
).map(" ".join)


def texts(body: JSON) -> list[str]:
    content = body["messages"][-1]["content"]
    return [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]


def test_one_string_is_split_and_without_its_context_reads_like_the_clean_prompt() -> None:
    chat = parse(ask(f"{CAPTION}\n{QUESTION}"))
    assert (chat.context, chat.question) == (CAPTION, QUESTION)
    assert [(o.label, o.text) for o in chat.options] == [("A", "red"), ("B", "blue")]
    assert rebuild(chat, context="") == ask(QUESTION)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"\n{CAPTION}\n\n{QUESTION}", QUESTION),
        (f"{QUESTION}\n{CAPTION}\n", QUESTION),
        (f"{CAPTION} What is it?", "What is it?"),
        (f"Look at the picture.\n{CAPTION}\nWhat is it?", "Look at the picture.\nWhat is it?"),
        (f"What is it? {CAPTION}\nA. red\nB. blue", "What is it?\nA. red\nB. blue"),
    ],
)
def test_no_blank_is_left_where_the_context_stood(text: str, clean: str) -> None:
    assert texts(rebuild(parse(ask(text)), context="")) == [clean]


def test_of_several_text_parts_the_last_is_the_question() -> None:
    chat = parse(ask(CAPTION, "It is round. Really?", QUESTION))
    assert (chat.context, chat.question) == (f"{CAPTION}\nIt is round. Really?", QUESTION)
    assert rebuild(chat, context="") == ask(QUESTION)
    assert texts(rebuild(chat, context="New.")) == ["New.", QUESTION]


def test_blank_text_parts_count_for_nothing_and_stay() -> None:
    chat = parse(ask(QUESTION, "  "))
    assert (chat.context, chat.question) == (None, QUESTION)
    assert texts(rebuild(chat, context="")) == [QUESTION, "  "]


def test_explicit_context_and_question_come_first() -> None:
    body = ask("Is it red? Say it. The ball is blue.")
    chat = parse(body, ModintOptions(context="Is it red?"))
    assert (chat.context, chat.question) == ("Is it red?", "Say it. The ball is blue.")
    chat = parse(body, ModintOptions(question="Say it."))
    assert (chat.context, chat.question) == ("Is it red?\nThe ball is blue.", "Say it.")
    assert texts(rebuild(chat, context="")) == ["Say it."]
    chat = parse(body, ModintOptions(context="The ball is blue.", question="Is it red?"))
    assert texts(rebuild(chat, context="")) == ["Is it red? Say it."]


def test_an_explicit_empty_context_means_there_is_none() -> None:
    chat = parse(ask(f"{CAPTION}\n{QUESTION}"), ModintOptions(context=""))
    assert (chat.context, chat.question) == (None, f"{CAPTION}\n{QUESTION}")


@pytest.mark.parametrize("key", ["context", "question"])
def test_an_explicit_text_that_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(RequestError, match=r"is not in (the last user message|any message)") as caught:
        parse(ask(QUESTION), parse_options({key: "elsewhere"}))
    assert caught.value.param == f"modint.{key}"


def test_a_context_that_leaves_no_question_is_refused() -> None:
    with pytest.raises(RequestError, match="covers the whole message"):
        parse(ask(QUESTION), ModintOptions(context=QUESTION))


def test_the_question_is_the_last_users_and_context_and_images_may_stand_in_earlier_turns() -> None:
    body: JSON = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "It is green. Be brief."},
            {"role": "user", "content": [image_part(), text_part("It is black. What is it?")]},
            {"role": "assistant", "content": "It is a ball. It is black."},
            {"role": "user", "content": f"{CAPTION}\n{QUESTION}"},
        ],
    }
    chat = parse(body)
    assert (chat.turn, chat.context, len(chat.images)) == (3, f"It is black.\n{CAPTION}", 1)
    both = rebuild(chat, context="", images=[GREY])
    assert both["messages"][0] == body["messages"][0]
    assert both["messages"][1]["content"] == [image_part(GREY), text_part("What is it?")]
    assert both["messages"][2:] == [body["messages"][2], {"role": "user", "content": QUESTION}]
    new = rebuild(chat, context="New.")["messages"]
    assert [new[1]["content"][1]["text"], new[3]["content"]] == ["What is it?", f"New.\n{QUESTION}"]


def test_what_an_earlier_turn_or_the_system_prompt_states_is_context() -> None:
    body: JSON = {
        "messages": [
            {"role": "system", "content": "You are a guide.\nThe picture shows a blue ball.\nBe brief."},
            {"role": "user", "content": [image_part(), text_part("The note says that the ball is blue.")]},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": QUESTION},
        ]
    }
    chat = parse(body)
    assert chat.context == "The picture shows a blue ball.\nThe note says that the ball is blue."
    assert [message["content"] for message in rebuild(chat, context="")["messages"]] == [
        "You are a guide.\nBe brief.",
        [image_part()],
        "I see.",
        QUESTION,
    ]
    assert rebuild(chat, context="New.")["messages"][0]["content"] == "You are a guide.\nNew.\nBe brief."


def test_a_turn_that_only_states_leaves_an_empty_message_and_the_order_of_speakers() -> None:
    body: JSON = {
        "messages": [
            {"role": "user", "content": [text_part("The ball is blue.")]},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": [image_part(), text_part(QUESTION)]},
        ]
    }
    cleaned = rebuild(parse(body), context="")["messages"]
    assert [message["role"] for message in cleaned] == ["user", "assistant", "user"]
    assert cleaned[0]["content"] == ""


def test_an_explicit_context_may_stand_in_any_message_of_user_or_system() -> None:
    body: JSON = {
        "messages": [
            {"role": "system", "content": "Be brief. The ball is blue."},
            {"role": "user", "content": [image_part(), text_part("It is round. What colour is it?")]},
        ]
    }
    chat = parse(body, ModintOptions(context="The ball is blue."))
    assert (chat.context, chat.question) == ("The ball is blue.", "It is round. What colour is it?")
    assert rebuild(chat, context="")["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("given", "context", "question"),
    [
        (["What colour is it?", CAPTION], CAPTION, "What colour is it?"),
        (
            [CAPTION, "What colour is it?", "Answer with one word."],
            CAPTION,
            "What colour is it?\nAnswer with one word.",
        ),
        ([f"{CAPTION}\nWhat colour is it?", "Answer:"], CAPTION, "What colour is it?\nAnswer:"),
        (["Image 1:", CAPTION, "Which is it?"], CAPTION, "Image 1:\nWhich is it?"),
        (["Look at the picture.", CAPTION, "The colour is"], CAPTION, "Look at the picture.\nThe colour is"),
        ([CAPTION, "It is round."], CAPTION, "It is round."),
    ],
)
def test_the_part_that_asks_is_the_question_wherever_it_stands(
    given: list[str], context: str, question: str
) -> None:
    chat = parse(ask(*given))
    assert (chat.context, chat.question) == (context, question)


def test_the_places_of_options_are_those_of_their_own_part() -> None:
    body = ask(CAPTION, QUESTION)
    chat = parse(body)
    content = body["messages"][0]["content"]
    found = [
        content[o.span.part]["text"][o.span.start : o.span.end]
        for o in chat.options
        if o.span and o.span.part
    ]
    assert found == ["red", "blue"]
    explicit = parse(ask(f"{CAPTION}\n{QUESTION}"), ModintOptions(context=CAPTION))
    assert [option.text for option in explicit.options] == ["red", "blue"]
    assert all(option.span for option in explicit.options)


def test_every_image_is_replaced_and_keeps_its_other_fields_but_not_the_cache_key() -> None:
    part = {"type": "image_url", "image_url": {"url": RED, "detail": "low"}, "uuid": "theirs"}
    body = {"messages": [{"role": "user", "content": [part, image_part(), text_part("What?")]}]}
    chat = parse(body)
    assert [image.size for image in chat.images] == [SIZE, SIZE]
    content = rebuild(chat, images=[GREY] * len(chat.images))["messages"][0]["content"]
    assert content[0] == {"type": "image_url", "image_url": {"url": GREY, "detail": "low"}}
    assert content[1:] == [image_part(GREY), text_part("What?")]


def test_a_new_context_stands_before_the_question() -> None:
    assert texts(rebuild(parse(ask(QUESTION)), context=CAPTION)) == [f"{CAPTION}\n{QUESTION}"]
    assert texts(rebuild(parse(ask(f"It is red.\n{QUESTION}")), context=CAPTION)) == [
        f"{CAPTION}\n{QUESTION}"
    ]
    assert texts(rebuild(parse(ask()), context=CAPTION)) == [CAPTION]


def test_the_clients_object_is_never_changed_and_other_fields_keep_their_order() -> None:
    body = {
        "temperature": 0.3,
        **ask(f"{CAPTION}\n{QUESTION}"),
        "x_unknown": {"a": [1]},
        "modint": {"mode": "on"},
    }
    before = copy.deepcopy(body)
    chat = parse(body)
    for made in (
        rebuild(chat, context=""),
        rebuild(chat, images=[GREY] * len(chat.images)),
        rebuild(chat, context="New."),
        rebuild(chat),
    ):
        assert list(made) == ["temperature", "model", "messages", "x_unknown"]
        assert list(made["messages"][0]) == ["role", "content"]
    assert body == before
    assert rebuild(chat) == {key: value for key, value in before.items() if key != "modint"}


@given(SENTENCES)
def test_splitting_what_was_rebuilt_gives_the_same_parts_again(context: str) -> None:
    chat = parse(rebuild(parse(ask(QUESTION)), context=context))
    assert (chat.context, chat.question) == (context, QUESTION)
    assert rebuild(chat, context="") == ask(QUESTION)


@given(st.text(max_size=120), st.text(max_size=40), st.text(max_size=120))
def test_no_rebuild_ever_alters_the_question_or_the_options(before: str, context: str, after: str) -> None:
    chat = parse(ask(f"{before}\n{QUESTION}\n{after}"))
    pieces = chat.question.split("\n")
    for body in (
        rebuild(chat, context=""),
        rebuild(chat, context=context),
        rebuild(chat, images=[GREY] * len(chat.images)),
        rebuild(chat),
    ):
        (text,) = texts(body)
        assert all(piece in text for piece in pieces)
    (text,) = texts(rebuild(chat, context=""))
    if chat.context is not None:
        assert text == text.strip()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": 3}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "hello"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages[0].content[0].text",
        ),
        ([], "messages"),
        (None, "messages"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_with_its_place(body: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert (caught.value.param, caught.value.status) == (param, 400)


@pytest.mark.parametrize("held", [None, {}, {"url": None}, {"url": 3}, []])
def test_an_image_part_without_an_address_is_refused(held: Any) -> None:
    with pytest.raises(ImageError, match=r"messages\[0\].content\[0\].image_url"):
        parse({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": held}]}]})


def test_a_bad_image_is_refused_with_its_place() -> None:
    body = {"messages": [{"role": "user", "content": [text_part("What?"), image_part("http://a/b.png")]}]}
    with pytest.raises(ImageError) as caught:
        parse(body)
    assert caught.value.envelope()["error"] == {
        "message": "Images by address (http…) are not fetched: send the image itself as a data: URL.",
        "type": "invalid_request_error",
        "param": "messages[0].content[1].image_url",
        "code": "remote_image_refused",
    }


def test_too_many_images_are_refused() -> None:
    with pytest.raises(ImageError, match="holds 3 images, the limit is 2"):
        parse(ask("What?", images=3), limits=ImageLimits(max_images=2))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("input_audio", "audio"),
        ("audio_url", "audio"),
        ("video_url", "video"),
        ("file", "unsupported_part"),
        ("image_embeds", "unsupported_part"),
    ],
)
def test_parts_that_cannot_be_probed_are_named(kind: str, reason: str) -> None:
    body = ask("What?")
    assert unsupported_part(body) is None
    body["messages"][0]["content"].append({"type": kind})
    assert unsupported_part(body) == reason


def test_messages_without_text_or_user_are_read_all_the_same() -> None:
    assert parse({"messages": [{"role": "system", "content": "Hi."}]}).turn == -1
    chat = parse({"messages": [{"role": "user", "content": None}]})
    assert (chat.question, chat.context, chat.images) == ("", None, ())
    assert rebuild(chat, context="") == chat.body


def test_texts_before_the_newest_400_000_characters_are_context_as_a_whole() -> None:
    old = "What is this? It is red."
    newer = "The ball is blue. " * 25_000
    body = {"messages": [{"role": "user", "content": text} for text in (old, newer, "What colour is it?")]}
    chat = parse(body)
    assert chat.question == "What colour is it?"
    assert chat.context is not None and chat.context.startswith(f"{old}\nThe ball")


def test_the_last_place_of_a_named_context_is_taken() -> None:
    body = {"messages": [{"role": "user", "content": "red blue red red? Which is it?"}]}
    chat = parse(body, ModintOptions(context="red"))
    assert [(span.start, span.end) for span in chat.context_spans] == [(13, 16)]
