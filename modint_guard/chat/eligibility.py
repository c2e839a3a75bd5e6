"""Which requests are not probed, and why."""

from __future__ import annotations

from modint_guard.chat.body import messages_of, parts_of
from modint_guard.types import JSON, Chat, ModintOptions

_AUDIO_PARTS = frozenset({"input_audio", "audio_url", "audio"})
_VIDEO_PARTS = frozenset({"video_url", "video", "input_video"})
_READ_PARTS = frozenset({"text", "image_url", "refusal"})
MAX_CHOICES = 8  # answers to one request that are judged
_GRAMMARS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
CONSTRAINTS = ("response_format", *_GRAMMARS)  # the fields that force the form of an answer


def why_skipped(chat: Chat, options: ModintOptions, *, can_score: bool = False) -> str | None:
    """The reason from SKIPPED_REASONS why this request is not probed; None if it can be.

    can_score: whether the engine can score the answer that was given.
    """
    body = chat.body
    if options.mode == "off":
        return "opted_out"
    if reason := unsupported_part(body):
        return reason
    if body.get("audio"):
        return "audio"
    if (body.get("tools") and not can_score) or body.get("functions") or _ends_in_tool_call(body):
        return "tool_calls"
    if is_constrained(body) and not can_score:
        return "structured_output"
    if choices_of(body) is None:
        return "multiple_choices"
    return None if chat.images else "no_image"


def choices_of(body: JSON) -> int | None:
    """How many answers the request asks for; None if that is no number or more than MAX_CHOICES."""
    count = 1 if body.get("n") is None else body["n"]
    is_count = isinstance(count, int) and not isinstance(count, bool)
    return count if is_count and 1 <= count <= MAX_CHOICES else None


def unsupported_part(body: JSON) -> str | None:
    """The reason from SKIPPED_REASONS for the first content part that cannot be probed: "audio", "video" or
    "unsupported_part". None if all can be. Raises RequestError for messages of another shape.
    """
    for part in parts_of(messages_of(body)):
        kind = part.get("type")
        if kind in _AUDIO_PARTS or kind in _VIDEO_PARTS:
            return "audio" if kind in _AUDIO_PARTS else "video"
        if kind not in _READ_PARTS:
            return "unsupported_part"
    return None


def continues(body: JSON) -> bool:
    """Whether the answer continues an assistant's message that the body ends with. Such an answer cannot be
    scored by teacher forcing, which appends it as a message of its own.
    """
    return bool(body.get("continue_final_message")) or body["messages"][-1]["role"] == "assistant"


def _ends_in_tool_call(body: JSON) -> bool:
    last = body["messages"][-1]
    return last["role"] in ("tool", "function") or bool(last.get("tool_calls"))


def is_constrained(body: JSON) -> bool:
    """Whether the request forces the form of its answer, by a JSON schema or a grammar, or offers tools,
    whose calls have one.
    """
    response_format = body.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    return kind not in (None, "text") or any(body.get(key) for key in ("tools", *_GRAMMARS))
