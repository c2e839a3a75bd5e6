"""The content parts of messages in one form, whatever name the client's library gives them.

vLLM reads more than OpenAI's chat parts: bare strings, the parts of the Responses API (`input_text`,
`input_image`), parts without a type, and fields of other kinds of part that are null. What is read here is
read as vLLM 0.32 reads it (`vllm.renderers.chat_utils`), so that limits hold whatever a part is called.
"""

from __future__ import annotations

from typing import Any

from modint_guard.types import JSON

# The field that holds the text of a part that vLLM reads as text.
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "thinking": "thinking"}
# The kinds of media by which vLLM knows a part without a type, in this order.
_MEDIA_KINDS = ("image_url", "audio_url", "input_audio", "video_url")


def in_one_form(messages: list[JSON]) -> list[JSON]:
    """The messages with every part as `text`, `image_url` or whatever else its type says.

    The messages have been checked by `messages_of`. The list itself comes back if nothing had to be changed,
    and so does every message and part in which nothing had.
    """
    changed = [_message(message) for message in messages]
    return messages if all(a is b for a, b in zip(changed, messages, strict=True)) else changed


def _message(message: JSON) -> JSON:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [part for raw in content if (part := _part(raw)) is not None]
    if len(parts) == len(content) and all(a is b for a, b in zip(parts, content, strict=True)):
        return message
    return {**message, "content": parts}


def _part(raw: Any) -> JSON | None:
    """One part; None for a text part without text, which vLLM leaves out."""
    if isinstance(raw, str):
        return {"type": "text", "text": raw}
    part: JSON = raw
    if any(value is None for value in raw.values()):
        part = {key: value for key, value in raw.items() if value is not None}
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in _MEDIA_KINDS if name in part), None)
        return part if kind is None else _media({"type": kind, **part}, kind)
    if kind in ("text", "refusal") and kind not in part:
        return None
    if kind == "input_image":
        return _media({**part, "type": "image_url"}, "image_url")
    if isinstance(kind, str) and kind in _TEXT_FIELDS:
        return _text(part, _TEXT_FIELDS[kind])
    return _media(part, kind)


def _text(part: JSON, field: str) -> JSON:
    if part["type"] == "text" or field not in part:
        return part
    rest = {key: value for key, value in part.items() if key != field}
    return {**rest, "type": "text", "text": part[field]}


def _media(part: JSON, kind: Any) -> JSON:
    """A part whose address, if it is a plain string, is in an object, with the picture's `detail`."""
    if kind not in ("image_url", "audio_url", "video_url") or not isinstance(part.get(kind), str):
        return part
    detail = {"detail": part["detail"]} if "detail" in part else {}
    rest = {key: value for key, value in part.items() if key != "detail"}
    return {**rest, kind: {"url": part[kind], **detail}}
