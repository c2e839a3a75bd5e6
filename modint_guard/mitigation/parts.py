"""The flagged parts of a longer answer, generated again without the interfering modality, or left out.

A part is a claim of a text or a value of a JSON document (`judging.spans`), in an answer that has others too.
What stands before it is given to the view without the irrelevant modality as the beginning of its reply, and
what that writes up to the end of the claim or of the value takes its place; the rest of the answer stays. A
JSON document keeps its paths and its kinds of values, or it is not changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.reply import reply_of
from modint_guard.chat.unread import entries
from modint_guard.chat.words import claims_in
from modint_guard.probing.views import full_body, unconstrained
from modint_guard.report import AnswerSpan, Report
from modint_guard.types import JSON, Complete, Reply

MAX_PARTS = 4  # of one answer; one with more flagged parts is regenerated as a whole
LEFT_OUT_CLAIM = "[…]"
_MORE_TOKENS = 16  # that a new part may have beyond twice as many as the old one has characters in fours
_CLOSING = re.compile(r"[\s.,;:!?…。，；：！？]*\Z")
_STRING = re.compile(r'(?:[^"\\]|\\.)*(?=")', re.S)
_LITERAL = re.compile(r"\s*(true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?=[\s,}\]])")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An answer with new parts. tokens: the log-probabilities of all new tokens; empty if not known."""

    text: str
    logprobs: tuple[float, ...]


def flagged_parts(report: Report) -> tuple[AnswerSpan, ...]:
    """The flagged claims and values of an answer that has other claims or values too, in the order of the
    text; none of an answer that is flagged as a whole, and none of one with too many.
    """
    kinds = ("leaf",) if any(span.kind == "leaf" for span in report.spans) else ("claim",)
    parts = [span for span in report.spans if span.kind in kinds]
    flagged = sorted((span for span in parts if span.cause), key=lambda span: span.start)
    return tuple(flagged) if 0 < len(flagged) < len(parts) and len(flagged) <= MAX_PARTS else ()


async def rewritten(
    answer: Reply, parts: Sequence[AnswerSpan], request: JSON, view: JSON, complete: Complete
) -> Rewritten | None:
    """The answer with its flagged parts generated again; None if one of them cannot be.

    request: the client's body. view: that of the view without the irrelevant modality. Raises EndpointError.
    """
    text, shift = answer.text, -answer.start
    logprobs: list[float] = []
    for part in parts:
        start, end = part.start + shift, part.end + shift
        before = text[:start]
        completion = await complete(_continued(request, view, before.rstrip(), end - start))
        written = reply_of(completion)
        new = _value(text, start, written.text) if part.kind == "leaf" else _claim(text[start:end], written)
        if new is None:
            return None
        text = before + new + text[end:]
        shift += len(new) - (end - start)
        logprobs += _logprobs(completion, new)
    same_form = leaves_in(answer.text) is None or _paths(text) == _paths(answer.text)
    return Rewritten(text, tuple(logprobs)) if same_form else None


def left_out(answer: Reply, parts: Sequence[AnswerSpan]) -> str:
    """The answer without its flagged parts: null in place of a value, three dots in place of a claim."""
    text = answer.text
    for part in reversed(parts):
        start, end = part.start - answer.start, part.end - answer.start
        if part.kind == "leaf":
            quoted = text[start - 1 : start] == '"'
            text = text[: start - quoted] + "null" + text[end + quoted :]
        else:
            text = text[:start] + LEFT_OUT_CLAIM + text[end:]
    return text


def _continued(request: JSON, view: JSON, before: str, characters: int) -> JSON:
    """A body under which the view goes on behind the beginning of the answer."""
    begun: JSON = {
        "messages": [*view["messages"], {"role": "assistant", "content": before}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    return {
        **unconstrained(full_body(request)),
        **(begun if before else {"messages": view["messages"]}),
        "max_tokens": characters // 2 + _MORE_TOKENS,
        "logprobs": True,
        "top_logprobs": 1,
    }


def _claim(old: str, written: Reply) -> str | None:
    """The first claim that was written, with the closing marks of the old one; None if it was cut off."""
    said = written.text.strip()
    claims = claims_in(said)
    if not claims or (len(claims) == 1 and written.finish_reason == "length"):
        return None
    start, end = claims[0]
    closing = _CLOSING.search(old)
    bare = _CLOSING.sub("", said[start:end])
    return bare + (closing[0] if closing else "") if bare else None


def _value(text: str, start: int, written: str) -> str | None:
    """The value that was written in place of the one that begins here; None if it is of another kind, or if a
    document was begun anew.
    """
    if leaves_in(written) is not None:
        return None
    found = _STRING.match(written) if text[start - 1 : start] == '"' else _LITERAL.match(written)
    if found is None:
        return None
    return found[found.re.groups] or None


def _logprobs(completion: JSON, new: str) -> list[float]:
    """The log-probabilities of the tokens up to the end of the new part."""
    listed = (completion["choices"][0].get("logprobs") or {}).get("content")
    said, found = "", []
    for entry in entries(listed):
        if len(said.lstrip()) >= len(new.rstrip()):
            break
        said += str(entry["token"])
        found.append(float(entry["logprob"]))
    return found


def _paths(text: str) -> list[tuple[str, type]] | None:
    """The path and the kind of every value of a JSON document; None if it is none, or was cut off."""
    try:
        json.loads(text)
    except ValueError:
        return None
    return [
        (leaf.path, str if text[leaf.start - 1] == '"' else type(json.loads(text[leaf.start : leaf.end])))
        for leaf in leaves_in(text) or ()
    ]
