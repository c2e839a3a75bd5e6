"""The `modint` field and the headers of a request."""

from typing import Any

import pytest

from modint_guard.chat.options import parse_options
from modint_guard.errors import RequestError
from modint_guard.types import ModintOptions, Relevant


def test_nothing_asked_is_the_default() -> None:
    assert parse_options() == parse_options({}, {}) == ModintOptions()


def test_every_key_is_read() -> None:
    field = {
        "mode": "off",
        "relevant": "both",
        "context": "c",
        "question": "q",
        "probes": ["noop", "noop", "black"],
        "deadline_s": 2,
        "action": "annotate",
    }
    assert parse_options(field) == ModintOptions(
        "off", Relevant.BOTH, "request", "c", "q", ("noop", "black"), 2.0, "annotate"
    )


def test_auto_and_null_leave_the_choice_to_the_rules() -> None:
    assert parse_options({"relevant": "auto", "context": None}) == ModintOptions()


def test_headers_count_where_the_field_says_nothing() -> None:
    headers = {"X-Modint-Mode": "OFF", "x-modint-relevant": " text "}
    assert parse_options(None, headers) == ModintOptions("off", Relevant.TEXT, "header")
    assert parse_options({"mode": "on", "relevant": "image"}, headers) == ModintOptions(
        "on", Relevant.IMAGE, "request"
    )
    assert parse_options({"relevant": "auto"}, headers).relevant is None
    assert parse_options(None, {"x-modint-relevant": "auto"}) == ModintOptions()


@pytest.mark.parametrize(
    ("field", "param", "said"),
    [
        ({"modes": "on"}, "modint.modes", "did you mean `mode`"),
        ({"relevent": "image"}, "modint.relevent", "did you mean `relevant`"),
        ({"relevant_source": "header"}, "modint.relevant_source", "did you mean `relevant`"),
        ({"mode": "maybe"}, "modint.mode", "one of on, off"),
        ({"mode": []}, "modint.mode", "one of on, off"),
        ({"relevant": "unknown"}, "modint.relevant", "one of image, text, both, auto"),
        ({"context": 3}, "modint.context", "a string"),
        ({"question": ["a"]}, "modint.question", "a string"),
        ({"probes": "noop"}, "modint.probes", "a list of probe names"),
        ({"probes": [1]}, "modint.probes", "a list of probe names"),
        ({"deadline_s": 0}, "modint.deadline_s", "above 0"),
        ({"deadline_s": 61}, "modint.deadline_s", "at most 60"),
        ({"deadline_s": float("nan")}, "modint.deadline_s", "above 0"),
        ({"deadline_s": True}, "modint.deadline_s", "a number of seconds"),
        ({"action": "pray"}, "modint.action", "one of annotate"),
        ("on", "modint", "an object"),
        ([], "modint", "an object"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_by_name(field: Any, param: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        parse_options(field)
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_a_wrong_header_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="x-modint-mode") as caught:
        parse_options(None, {"x-modint-mode": "perhaps"})
    assert caught.value.param == "x-modint-mode"


def test_a_header_may_name_the_action_of_a_route_and_the_field_wins() -> None:
    assert parse_options(None, {"X-Modint-Action": "Ladder"}).action == "ladder"
    assert parse_options({"action": "annotate"}, {"x-modint-action": "ladder"}).action == "annotate"
    with pytest.raises(RequestError, match="`x-modint-action` must be one of annotate"):
        parse_options(None, {"x-modint-action": "pray"})
