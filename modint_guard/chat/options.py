"""What a request asks of the guard: its `modint` field and its `x-modint-*` headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, cast

from modint_guard.errors import RequestError, nearest
from modint_guard.types import ACTIONS, MAX_DEADLINE_S, ModintOptions, Relevant

MODE_HEADER = "x-modint-mode"
RELEVANT_HEADER = "x-modint-relevant"
ACTION_HEADER = "x-modint-action"
_BY_HEADER = ((MODE_HEADER, "mode"), (RELEVANT_HEADER, "relevant"), (ACTION_HEADER, "action"))
OPTION_KEYS = tuple(f.name for f in fields(ModintOptions) if f.name != "relevant_source")


def parse_options(field: Any = None, headers: Mapping[str, str] | None = None) -> ModintOptions:
    """The body's `modint` field merged with the request's headers; the field wins. Raises RequestError for an
    unknown key and for a value that its key does not take.
    """
    field = {} if field is None else field
    if not isinstance(field, dict):
        raise RequestError("`modint` must be an object.", param="modint")
    for key in field:
        if key not in OPTION_KEYS:
            raise _unknown_key(key)
    values = {key: _CHECKS[key](f"modint.{key}", value) for key, value in field.items() if value is not None}
    source = "request" if "relevant" in values else None
    for header, key in _BY_HEADER:
        value = _header(headers, header)
        if value is not None and key not in values:
            values[key] = _CHECKS[key](header, value.strip().lower())
            source = "header" if key == "relevant" else source
    if values.get("relevant") is None:
        source = None
    return ModintOptions(**values, relevant_source=cast('Literal["request", "header"] | None', source))


def _header(headers: Mapping[str, str] | None, name: str) -> str | None:
    if not headers:
        return None
    return headers.get(name) or next((v for k, v in headers.items() if k.lower() == name), None)


def _unknown_key(key: Any) -> RequestError:
    shown = str(key)[:40]
    near = nearest(shown, OPTION_KEYS)
    return RequestError(
        f"`modint.{shown}` is not a key of `modint`: did you mean `{near}`? Known: {', '.join(OPTION_KEYS)}.",
        param=f"modint.{shown}",
        code="unknown_parameter",
    )


def _one_of(*known: str) -> Callable[[str, Any], str]:
    """A check that a value is one of these words."""

    def check(name: str, value: Any) -> str:
        if value not in known:
            raise RequestError(
                f"`{name}` must be one of {', '.join(known)}.", param=name, code="invalid_value"
            )
        return str(value)

    return check


def _relevant(name: str, value: Any) -> Relevant | None:
    word = _one_of("image", "text", "both", "auto")(name, value)
    return None if word == "auto" else Relevant(word)


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"`{name}` must be a string.", param=name, code="invalid_value")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"`{name}` must be a list of probe names.", param=name, code="invalid_value")
    return tuple(dict.fromkeys(value))


def _deadline(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DEADLINE_S:
        raise RequestError(
            f"`{name}` must be a number of seconds above 0 and at most {MAX_DEADLINE_S:g}.",
            param=name,
            code="invalid_value",
        )
    return float(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "mode": _one_of("on", "off"),
    "relevant": _relevant,
    "context": _string,
    "question": _string,
    "probes": _names,
    "deadline_s": _deadline,
    "action": _one_of(*ACTIONS),
}
