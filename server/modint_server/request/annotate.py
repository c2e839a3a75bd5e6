"""Puts the verdict into an answer: the `modint` object of a body or a last chunk, and a few short headers."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from modint_guard.report import Report, first_concern
from modint_guard.types import ABSTAIN, JSON
from modint_server.errors import ErrorAnswer

VERDICT_HEADER = "x-modint-verdict"
MAX_HEADER_CHARS = 128
MAX_DETAIL_CHARS = 4096
_UNSAFE = re.compile(r"[^\x20-\x7e]")  # a CR or LF in a value makes the server send an empty reply


def headers_of(report: Report, *, debug: bool = False) -> dict[str, str]:
    """The headers of a report: verdict, risk, reason, schema, action; with `debug` the object, no spans."""
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
        told = {name: value for name, value in report.to_json().items() if name != "spans"}
        headers["x-modint-detail"] = sanitised(orjson.dumps(told).decode(), MAX_DETAIL_CHARS)
    return headers


def _action_of(report: Report) -> dict[str, str]:
    """What was done about a flagged answer, the rungs that were tried, and what they cost."""
    if (mitigation := report.mitigation) is None:
        return {}
    rungs = ",".join(f"{attempt.rung}={attempt.outcome.value}" for attempt in mitigation.rungs)
    return {
        "x-modint-action": report.action,
        "x-modint-rungs": rungs or "none",
        "x-modint-mitigation-tokens": str(mitigation.tokens),
    }


def withheld(report: Report, *, debug: bool = False) -> Response:
    """The error envelope in place of an answer, with the verdict: status 422, which no client repeats."""
    message = report.mitigation.answer if report.mitigation else None
    failure = ErrorAnswer(422, message or "", "invalid_request_error", "modality_interference", "messages")
    response = failure.response()
    body = orjson.dumps(annotated(failure.envelope(), report))
    headers = {"x-should-retry": response.headers["x-should-retry"], **headers_of(report, debug=debug)}
    return Response(body, failure.status, headers, "application/json")


def is_withheld(report: Report, abstain_as: str) -> bool:
    """Whether the client gets an error envelope instead of an answer; `abstain_as` is the policy's."""
    return report.action == ABSTAIN and abstain_as == "error"


def said_instead(finish: JSON, answer: str, index: int = 0) -> JSON:
    """A chunk with another answer in place of that of this index, to go before the stream's last chunk
    `finish`, whose ids it has.
    """
    head = {key: value for key, value in finish.items() if key not in ("usage", "choices")}
    delta = {"role": "assistant", "content": answer}
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]}


def finished(finish: JSON, report: Report) -> JSON:
    """The stream's last chunk, with the finish reason of the answer that is served.

    If the text was already sent, its own reason stays, unless the policy abstained.
    """
    if not (reason := _reason_of(report)):
        return finish
    return {**finish, "choices": [{**choice, **reason} for choice in choices_of(finish)]}


def _reason_of(report: Report) -> JSON:
    """What the end of an answer says that is served in place of the engine's; empty for that one."""
    mitigation = report.mitigation
    if mitigation is None or mitigation.answer is None:
        return {}
    if mitigation.correction and report.action != ABSTAIN:
        return {}
    return {"finish_reason": mitigation.finish_reason, "logprobs": None}


def without_answers(chunk: JSON, indices: Collection[int]) -> JSON | None:
    """A chunk without what it says of these answers; None if it says nothing else."""
    choices = choices_of(chunk)
    others = [choice for choice in choices if index_of(choice) not in indices]
    if len(others) == len(choices):
        return chunk
    return {**chunk, "choices": others} if others else None


def sanitised(value: str, limit: int) -> str:
    """Printable ASCII of at most `limit` characters; anything else becomes a question mark."""
    return _UNSAFE.sub("?", value[:limit]).strip()


def annotated(document: JSON, report: Report) -> JSON:
    """A copy of a completion or chunk with the report at its top level."""
    return {**document, "modint": report.to_json()}


def finishes(chunk: JSON) -> bool:
    """Whether a chunk ends the answer."""
    return any(choice.get("finish_reason") for choice in choices_of(chunk))


def choices_of(document: JSON) -> list[JSON]:
    """The choices of a completion or chunk; empty if it has none."""
    choices = document.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def index_of(choice: JSON) -> int:
    """Which of several answers a choice is of: the first if an engine numbers it by none."""
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def each_annotated(finish: JSON, reports: Sequence[Report]) -> JSON:
    """A copy of a chunk that ends one or more of several answers, with the report of each in its choice and
    the finish reason of what is served, and that of the first concern among these at its top level.
    """
    by_index = {report.choice: report for report in reports}
    choices, told = [], []
    for choice in choices_of(finish):
        report = by_index.get(index_of(choice))
        told += [report] if report else []
        choices.append({**choice, **_reason_of(report), "modint": report.to_json()} if report else choice)
    return {**finish, "choices": choices, "modint": first_concern(told or reports).to_json()}


def ends(chunk: JSON) -> int:
    """How many answers a chunk ends."""
    return sum(bool(choice.get("finish_reason")) for choice in choices_of(chunk))


def has_text(chunk: JSON) -> bool:
    """Whether a chunk carries a piece of the answer (content, reasoning, a tool call), not just a role."""
    return any(_says_something(choice.get("delta")) for choice in choices_of(chunk))


def split_finish(chunk: JSON) -> tuple[JSON | None, JSON]:
    """Splits a last chunk into its text (None without any) and its finish, which waits for the verdict."""
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
