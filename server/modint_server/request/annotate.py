"""Where the verdict goes: the `modint` object of a body or a finishing chunk, and a few bounded headers."""

import re
from typing import Any

import orjson
from starlette.responses import Response

from modint_guard.types import ABSTAIN, JSON, Report
from modint_server.errors import Failure

VERDICT_HEADER = "x-modint-verdict"
MAX_HEADER_CHARS = 128
MAX_DETAIL_CHARS = 4096
_UNSAFE = re.compile(r"[^\x20-\x7e]")  # a CR or LF in a value makes the server send an empty reply


def headers_of(report: Report, *, debug: bool = False) -> dict[str, str]:
    """Verdict, risk, reason and schema; the whole object only for a client that asked to debug."""
    verdict = report.verdict
    values = {
        VERDICT_HEADER: verdict.state.value,
        "x-modint-risk": None if verdict.risk is None else f"{verdict.risk:.4f}",
        "x-modint-reason": verdict.reason,
        "x-modint-schema": report.schema,
        **_action_of(report),
    }
    headers = {
        name: sanitised(value, MAX_HEADER_CHARS) for name, value in values.items() if value is not None
    }
    if debug:
        headers["x-modint-detail"] = sanitised(orjson.dumps(report.to_json()).decode(), MAX_DETAIL_CHARS)
    return headers


def _action_of(report: Report) -> dict[str, str]:
    """What was done about a flagged answer, the rungs that were tried, and what they cost."""
    if (tried := report.mitigation) is None:
        return {}
    return {
        "x-modint-action": report.action,
        "x-modint-rungs": ",".join(f"{each.rung}={each.outcome.value}" for each in tried.rungs) or "none",
        "x-modint-mitigation-tokens": str(tried.tokens),
    }


def withheld(report: Report, *, debug: bool = False) -> Response:
    """The envelope in place of an answer: 422, which no client repeats, and the verdict beside it."""
    told = report.mitigation.answer if report.mitigation else None
    failure = Failure(422, told or "", "invalid_request_error", "modality_interference", "messages")
    response = failure.response()
    body = orjson.dumps(annotated(failure.envelope(), report))
    headers = {"x-should-retry": response.headers["x-should-retry"], **headers_of(report, debug=debug)}
    return Response(body, failure.status, headers, "application/json")


def is_withheld(report: Report, abstain_as: str) -> bool:
    """Whether the policy answers with an envelope instead of an answer."""
    return report.action == ABSTAIN and abstain_as == "error"


def said_instead(finish: JSON, answer: str) -> JSON:
    """A chunk with another answer, like the finishing one of the same stream."""
    head = {key: value for key, value in finish.items() if key not in ("usage", "choices")}
    delta = {"role": "assistant", "content": answer}
    return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}


def finished(finish: JSON, report: Report) -> JSON:
    """The finishing chunk with the reason of the answer that is served: that of a text already sent stays,
    unless the policy abstained.
    """
    mended = report.mitigation
    if mended is None or mended.answer is None or (mended.correction and report.action != ABSTAIN):
        return finish
    reason = {"finish_reason": mended.finish_reason, "logprobs": None}
    return {**finish, "choices": [{**choice, **reason} for choice in choices_of(finish)]}


def sanitised(value: str, limit: int) -> str:
    """Printable ASCII of bounded length."""
    return _UNSAFE.sub("?", value[:limit]).strip()


def annotated(document: JSON, report: Report) -> JSON:
    """A completion or chunk with the verdict at its top level; the argument stays as it is."""
    return {**document, "modint": report.to_json()}


def finishes(chunk: JSON) -> bool:
    """Whether a chunk ends the answer."""
    return any(choice.get("finish_reason") for choice in choices_of(chunk))


def choices_of(document: JSON) -> list[JSON]:
    choices = document.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def has_text(chunk: JSON) -> bool:
    """Whether a chunk carries a piece of the answer (content, reasoning, a tool call), not just a role."""
    return any(_says_something(choice.get("delta")) for choice in choices_of(chunk))


def split_finish(chunk: JSON) -> tuple[JSON | None, JSON]:
    """A finishing chunk as (its text, to be sent at once; its finish, held until the verdict is there)."""
    if not has_text(chunk):
        return None, chunk
    text = {key: value for key, value in chunk.items() if key != "usage"}
    text["choices"] = [{**choice, "finish_reason": None} for choice in choices_of(chunk)]
    for choice in text["choices"]:
        choice.pop("stop_reason", None)
    finish = {**chunk, "choices": [_emptied(choice) for choice in choices_of(chunk)]}
    return text, finish


def _emptied(choice: JSON) -> JSON:
    emptied: JSON = {**choice, "delta": {}}
    if "logprobs" in emptied:
        emptied["logprobs"] = None
    return emptied


def _says_something(delta: Any) -> bool:
    return isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
