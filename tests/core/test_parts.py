"""Content parts by the names that clients' libraries give them, read as vLLM reads them."""

from typing import Any

import pytest

from modint_guard.chat.body import check_media
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.parts import in_one_form
from modint_guard.chat.request import parse
from modint_guard.errors import ImageError, RequestError
from modint_guard.types import JSON
from tests.core.fakes import RED, ask, image_part, text_part


def content(*parts: Any) -> list[JSON]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("part", "read_as"),
    [
        ("What?", text_part("What?")),
        ({"type": "input_text", "text": "What?"}, text_part("What?")),
        ({"type": "output_text", "text": "Red.", "logprobs": []}, {**text_part("Red."), "logprobs": []}),
        ({"type": "thinking", "thinking": "Hm."}, text_part("Hm.")),
        ({"image_url": RED}, image_part()),
        ({"image_url": {"url": RED}}, image_part()),
        ({"type": "image_url", "image_url": RED}, image_part()),
        (
            {"type": "input_image", "image_url": RED, "detail": "low", "file_id": None},
            {"type": "image_url", "image_url": {"url": RED, "detail": "low"}},
        ),
        ({"type": "text", "text": "What?", "image_url": None, "input_audio": None}, text_part("What?")),
        ({"type": None, "video_url": "data:video/mp4;base64,AAAA"},
         {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}),
        ({"input_audio": {"data": "AAAA"}}, {"type": "input_audio", "input_audio": {"data": "AAAA"}}),
    ],
)  # fmt: skip
def test_a_part_is_read_by_whatever_name_it_has(part: Any, read_as: JSON) -> None:
    assert in_one_form(content(part)) == content(read_as)


def test_a_text_part_without_text_is_left_out() -> None:
    assert in_one_form(content({"type": "text", "text": None}, "What?")) == content(text_part("What?"))


def test_messages_in_the_usual_form_are_not_copied() -> None:
    messages = ask("What?")["messages"]
    assert in_one_form(messages) is messages


@pytest.mark.parametrize("part", [{}, {"text": "What?"}, {"type": 5}, {"type": ["text"]}])
def test_what_vllm_does_not_read_is_left_to_the_check(part: JSON) -> None:
    assert in_one_form(content(part)) == content(part)
    with pytest.raises(RequestError, match="must be an object with a string `type`"):
        parse({"messages": content(part)})


def test_a_request_in_other_names_is_split_like_one_in_the_usual_ones() -> None:
    usual = ask("The caption says blue.", "What colour is it?")
    names = content(
        {"type": "input_image", "image_url": RED},
        "The caption says blue.",
        {"type": "input_text", "text": "What colour is it?"},
    )
    chat = parse({**usual, "messages": names})
    assert chat == parse(usual)
    assert (chat.context, chat.question) == ("The caption says blue.", "What colour is it?")


@pytest.mark.parametrize("part", [{"type": "input_image", "image_url": RED}, {"image_url": RED}])
def test_the_limit_of_pixels_holds_whatever_a_part_is_called(part: JSON) -> None:
    with pytest.raises(ImageError, match="measures 12 x 8 pixels, more than the limit of 90") as caught:
        parse({"messages": content(part)}, limits=ImageLimits(max_pixels=90))
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("part", "code", "said"),
    [
        ({"type": "image_url"}, "invalid_image", "`image_url` holds no media"),
        ({"type": "image_url", "image_url": {"url": "iVBORw0KGgo"}}, "invalid_image", "no data: URL"),
        ({"type": "image_url", "image_url": {"url": "//10.0.0.1/a"}}, "remote_image_refused", "an address"),
    ],
)
def test_a_part_without_media_is_named(part: JSON, code: str, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        check_media(part)
    assert caught.value.code == code
