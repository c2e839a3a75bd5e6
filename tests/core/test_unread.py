"""Large documents of an engine: what is not read at once says the same as what is."""

import json

import msgspec
import orjson
import pytest

from modint_guard.chat.reply import reply_of, strip_added
from modint_guard.chat.responses import completion_of, without_added
from modint_guard.chat.unread import LARGE, dumps, entries, fields, loads
from modint_guard.probing.teacher_forcing import forced_reply
from modint_guard.types import JSON, TokenOptions

TOKENS = 300  # 0.6 MB


def listed(tokens: int = TOKENS) -> list[JSON]:
    """Log-probabilities of as many tokens, with 20 alternatives each."""
    tops = [
        [
            {"token": f" {at}{n}é", "logprob": -n - 0.5, "bytes": list(f" {at}{n}é".encode())}
            for n in range(20)
        ]
        for at in range(tokens)
    ]
    return [{**top[0], "top_logprobs": top} for top in tops]


def completion(tokens: int = TOKENS) -> JSON:
    said = listed(tokens)
    text = "".join(entry["token"] for entry in said)
    choice = {"index": 0, "message": {"content": text}, "logprobs": {"content": said, "refusal": None}}
    choice |= {"finish_reason": "stop", "token_ids": list(range(tokens))}
    return {
        "id": "x",
        "choices": [choice],
        "usage": {"completion_tokens": tokens},
        "future_field": [{"a": 1}],
    }


def response() -> JSON:
    part = {
        "type": "output_text",
        "text": "".join(entry["token"] for entry in listed()),
        "logprobs": listed(),
    }
    return {"id": "r", "output": [{"type": "message", "content": [part]}], "top_logprobs": 20}


def in_bytes(document: JSON) -> bytes:
    data = json.dumps(document, ensure_ascii=False, indent=1).encode()  # with blanks, as some engines write
    assert len(data) > LARGE
    return data


def test_log_probabilities_of_a_large_answer_are_not_read_at_once() -> None:
    read = loads(in_bytes(completion()))
    inside = read["choices"][0]["logprobs"]["content"]
    assert all(isinstance(entry, msgspec.Raw) for entry in inside)
    assert list(entries(inside)) == listed()
    del read["choices"][0]["logprobs"]["content"]
    whole = completion()
    del whole["choices"][0]["logprobs"]["content"]
    assert read == whole


def test_a_small_answer_is_read_as_it_always_was() -> None:
    small = completion(1)
    assert loads(json.dumps(small).encode()) == small


@pytest.mark.parametrize("document", [completion(), response()], ids=["chat", "responses"])
def test_what_was_not_read_is_written_as_it_came(document: JSON) -> None:
    assert orjson.loads(dumps(loads(in_bytes(document)))) == document


def test_a_large_answer_is_the_same_reply() -> None:
    assert reply_of(loads(in_bytes(completion()))) == reply_of(completion())
    assert len(reply_of(completion()).positions) == TOKENS
    large = completion_of(loads(in_bytes(response())))
    assert reply_of(large) == reply_of(completion_of(response()))


@pytest.mark.parametrize("wanted", [TokenOptions(), TokenOptions(logprobs=True, top_logprobs=3)])
def test_a_large_answer_is_freed_of_what_the_client_did_not_ask_for(wanted: TokenOptions) -> None:
    stripped = strip_added(loads(in_bytes(completion())), wanted)
    assert orjson.loads(dumps(stripped)) == strip_added(completion(), wanted)
    shown = without_added(loads(in_bytes(response())), wanted)
    assert orjson.loads(dumps(shown)) == without_added(response(), wanted)


def test_a_given_answer_is_scored_behind_a_prompt_of_any_length() -> None:
    answer = reply_of(completion(3))
    answer_entries = [
        {str(at): {"logprob": -1.0, "decoded_token": entry["token"]}} for at, entry in enumerate(listed(3))
    ]
    filler = [{"7": {"logprob": -2.0, "decoded_token": "x" * 20}}] * 10_000
    scored = {**completion(1), "prompt_logprobs": [None, *filler, *answer_entries]}
    scored["prompt_token_ids"] = [0] * (len(filler) + 1) + [0, 1, 2]
    large = forced_reply(loads(in_bytes(scored)), 0.0, answer)
    assert large == forced_reply(scored, 0.0, answer)
    assert [position.logprob for position in large.forced] == [-1.0] * 3


def test_one_field_of_a_document_is_read_alone() -> None:
    assert fields(in_bytes(completion()), "usage", "message") == {"usage": {"completion_tokens": TOKENS}}
    for data in (b"[1]", b"<html>", b'{"usage": '):
        with pytest.raises(ValueError):  # noqa: PT011 - whichever library says so
            fields(data, "usage")


@pytest.mark.parametrize(
    "data",
    [
        in_bytes(completion())[:-1],
        b"<html>" + b"x" * LARGE,
        b'{"choices":' + b"[" * LARGE + b"]" * LARGE + b"}",
    ],
    ids=["cut off", "a page", "too deep"],
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever library says so
        loads(data)
