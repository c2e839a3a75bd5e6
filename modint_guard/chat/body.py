"""The check of a chat body's shape, in one place and one wording for gateway and library.

`messages_of` checks every body, and `check_media` every part that is passed on to an engine. A body that is
split into context and question is also checked by `check_types`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from modint_guard.chat.images import ImageLimits, check_data_url, check_total, is_data_url
from modint_guard.errors import ImageError, RequestError
from modint_guard.types import JSON


def messages_of(body: JSON, *, max_messages: int | None = None) -> list[JSON]:
    """The messages of a body: objects with a role, whose content is text, null or a list of parts.

    Raises RequestError if they are not, and if there are more than `max_messages`.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "must be a list of at least one message")
    if max_messages is not None and len(messages) > max_messages:
        raise RequestError(
            f"The request holds {len(messages)} messages, the limit is {max_messages}: send fewer.",
            param="messages",
            code="too_many_messages",
        )
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid(where, "must be an object with a string `role`")
        content = message.get("content")
        is_list = isinstance(content, list) and all(isinstance(part, dict | str) for part in content)
        if content is not None and not isinstance(content, str) and not is_list:
            raise _invalid(f"{where}.content", "must be a string or a list of parts")
    return cast("list[JSON]", messages)


def parts_of(messages: Sequence[JSON]) -> Iterator[JSON]:
    """Every content part that is an object. The messages have been checked by `messages_of`."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def check_types(messages: Sequence[JSON]) -> None:
    """Raises RequestError unless every content part has a string `type`, and text parts a string `text`."""
    for index, message in enumerate(messages):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else []):
            where = f"messages[{index}].content[{place}]"
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise RequestError(f"`{where}` must be an object with a string `type`.", param=where)
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise RequestError(f"`{where}.text` must be a string.", param=f"{where}.text")


def check_image_count(count: int, limit: int) -> None:
    """Raises ImageError if a request holds more than `limit` images."""
    if count > limit:
        raise ImageError(
            f"The request holds {count} images, the limit is {limit}: send fewer.", code="too_many_images"
        )


def check_media(part: JSON) -> None:
    """Raises RequestError or ImageError unless a part's media are in the request itself.

    An address would make the engine fetch whatever it points to, and embeddings would reach the model
    unchecked.
    """
    kind = part.get("type")
    if isinstance(kind, str) and kind.endswith("_url") and kind not in part:
        raise ImageError(f"`{kind}` holds no media: send a data: URL.")
    for key, value in part.items():
        if "embeds" in key or "embeds" in str(part.get("type", "")):
            raise RequestError(
                "Embeddings in place of media are refused.", param="messages", code="embeds_refused"
            )
        if key.endswith("_url"):
            url = url_of(value)
            if not url:
                raise ImageError(f"`{key}` holds no media: send a data: URL.")
            if not is_data_url(url):
                raise ImageError(
                    f"`{key}` is an address, and addresses are not fetched: send the bytes as a data: URL.",
                    code="remote_image_refused",
                )


def check_image_headers(body: JSON, limits: ImageLimits) -> None:
    """Checks every image by its header alone, for a request that is not examined. Raises ImageError."""
    parts = (part for part in parts_of(body["messages"]) if "image_url" in part)
    check_total((check_data_url(url_of(part["image_url"]), limits, whole=False) for part in parts), limits)


def url_of(value: Any) -> str:
    """The address in an `image_url` or the like: an object with `url`, or a string. "" if there is none."""
    url = value.get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) else ""


def _invalid(where: str, what: str) -> RequestError:
    return RequestError(f"`{where}` {what}.", param=where, code="invalid_messages")
