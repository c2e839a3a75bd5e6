"""Which requests are not probed, and why."""

from __future__ import annotations

from modint_guard.chat.request import unsupported
from modint_guard.types import JSON, Chat, ModintOptions

_STRUCTURED = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def why_skipped(chat: Chat, options: ModintOptions) -> str | None:
    """Why this request is not probed, or None."""
    body = chat.body
    if options.mode == "off":
        return "opted_out"
    if part := unsupported(body):
        return part
    if body.get("audio"):
        return "audio"
    if body.get("tools") or body.get("functions") or _ends_in_tool_call(body):
        return "tool_calls"
    if _is_structured(body):
        return "structured_output"
    if (body.get("n") or 1) != 1:
        return "multiple_choices"
    return None if chat.images else "no_image"


def continues(body: JSON) -> bool:
    """Whether the answer goes on where an assistant's message stops: it cannot be put behind it once more."""
    return bool(body.get("continue_final_message")) or body["messages"][-1]["role"] == "assistant"


def _ends_in_tool_call(body: JSON) -> bool:
    last = body["messages"][-1]
    return last["role"] in ("tool", "function") or bool(last.get("tool_calls"))


def _is_structured(body: JSON) -> bool:
    shape = body.get("response_format")
    kind = shape.get("type") if isinstance(shape, dict) else None
    return kind not in (None, "text") or any(body.get(key) for key in _STRUCTURED)
