"""An answer with its words coloured by what gave them: in a notebook, and by `modint-guard ask`."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from PIL import Image

from modint_guard import highlight
from modint_guard.cli import GROUP, main
from modint_guard.errors import EndpointError
from modint_guard.report import AnswerSpan, Mitigation, Report, SpanKind, Verdict
from modint_guard.schema import SpanObject
from modint_guard.showing.notebook import FLAGGED, STYLES
from modint_guard.showing.pieces import pieces_of, shown
from modint_guard.types import JSON, Cause, State
from tests.core.fakes import completion, serving

ASK = EntryPoint("ask", "modint_guard.showing.ask:ask", GROUP)
ANSWER = "A red <b>ball</b> & a blue cube"


def span(
    text: str,
    *,
    of_text: float | None = 0.0,
    image: float = 0.0,
    cause: Cause | None = None,
    kind: SpanKind = "word",
    within: str = ANSWER,
    path: str | None = None,
) -> AnswerSpan:
    start = within.index(text)
    return AnswerSpan(kind, start, start + len(text), text, path, cause, of_text, image)


SPANS = (
    span("blue", of_text=6.9, cause=Cause.TEXT),
    span("A", of_text=0.3, image=0.9),
    span("red", image=7.2),
)


def answered(text: str = ANSWER, spans: tuple[AnswerSpan, ...] = SPANS, **fields: Any) -> JSON:
    report = Report(
        Verdict(State.FLAGGED, cause=Cause.TEXT), spans=spans, explanation="The text <did> it.", **fields
    )
    return {**completion(text), "created": 1, "model": "m", "modint": report.to_json()}


def pieces(document: Any, choice: int = 0) -> list[tuple[str, str | None, bool]]:
    return [
        (piece.text, piece.gave, piece.is_flagged) for text in shown(document, choice).texts for piece in text
    ]


# -- pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "carrier", [lambda body: body, ChatCompletion.model_validate], ids=["dict", "openai"]
)
def test_the_pieces_of_an_answer_are_its_spans_and_what_is_between_them(
    carrier: Callable[[JSON], Any],
) -> None:
    assert pieces(carrier(answered())) == [
        ("A", None, False),
        (" ", None, False),
        ("red", "image", False),
        (" <b>ball</b> & a ", None, False),
        ("blue", "text", True),
        (" cube", None, False),
    ]


def test_a_leaf_is_shown_by_its_words_if_it_has_several() -> None:
    record = '{"a": "light blue", "b": "red"}'
    spans = (
        span("light blue", kind="leaf", within=record, path="/a", image=2.0),
        span("light", within=record, path="/a", image=2.0),
        span("blue", within=record, path="/a", image=2.0),
        span("red", kind="leaf", within=record, path="/b", image=2.0),
    )
    assert [text for text, gave, _ in pieces(answered(record, spans)) if gave] == ["light", "blue", "red"]


def test_of_tool_calls_the_arguments_are_shown() -> None:
    document = answered(
        "", (span("red", within='{"a": "red"}', path="/tool_calls/0/function/arguments/a", image=3.0),)
    )
    document["choices"][0]["message"]["tool_calls"] = [
        {"function": {"name": "f", "arguments": '{"a": "red"}'}},
        {"function": {"name": "f", "arguments": '{"a": "red"}'}},
    ]
    assert [gave for text, gave, _ in pieces(document) if text == "red"] == ["image"]
    assert len(shown(document).texts) == 2


def test_spans_of_another_answer_than_the_one_that_is_shown_colour_nothing() -> None:
    mended = Mitigation("neutralise", "neutralise", "the original", answer=ANSWER)
    for document in (answered(choice=1), answered(mitigation=mended)):
        assert pieces(document) == [(ANSWER, None, False)]


def test_each_of_several_answers_is_shown_by_its_own_object() -> None:
    document = answered()
    first = document["choices"][0]
    document["choices"] = [
        {**first, "modint": answered(spans=())["modint"]},
        {**first, "modint": answered(choice=1)["modint"]},
    ]
    assert len(pieces(document, 0)) == 1 and len(pieces(document, 1)) == 6


@pytest.mark.parametrize(
    "document", [{}, {"choices": []}, None, {"choices": [{}]}, completion("red") | {"choices": [1]}]
)
def test_what_is_no_completion_is_refused(document: Any) -> None:
    with pytest.raises(EndpointError, match="no answer number 0"):
        highlight(document)


@given(st.text(max_size=20), st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=8))
def test_whatever_the_spans_say_the_pieces_are_the_text(text: str, places: list[tuple[int, int]]) -> None:
    spans = [
        SpanObject.model_validate(AnswerSpan("word", a, b, "", None, None, 2.0, None).to_json())
        for a, b in places
    ]
    assert "".join(piece.text for piece in pieces_of(text, spans)) == text


# -- the notebook -------------------------------------------------------------------------------------------


def test_a_notebook_shows_the_words_in_colour_and_every_text_escaped() -> None:
    shown_html = highlight(answered())._repr_html_()
    assert (
        f'<span style="{STYLES["text"]};{FLAGGED}" title="text +6.9 nats, picture +0.0 nats">blue</span>'
        in shown_html
    )
    assert f'<span style="{STYLES["image"]}"' in shown_html and ">red</span>" in shown_html
    assert " &lt;b&gt;ball&lt;/b&gt; &amp; a " in shown_html and "<b>" not in shown_html
    assert "The text &lt;did&gt; it." in shown_html
    assert str(highlight(answered())) == ANSWER


def test_a_path_cannot_leave_its_attribute() -> None:
    record = '{"\\"><script>": "red"}'
    spans = (span("red", kind="leaf", within=record, path='/"><script>', image=2.0),)
    assert "<script>" not in highlight(answered(record, spans))._repr_html_()


def test_an_answer_without_a_verdict_is_shown_without_colours() -> None:
    assert "no verdict" in highlight(completion("red"))._repr_html_()


# -- the command --------------------------------------------------------------------------------------------


@contextmanager
def gateway(answer: JSON) -> Iterator[tuple[str, list[JSON]]]:
    """A server in a thread of its own, for a command that runs a loop itself; and the bodies it was sent."""
    bodies: list[JSON] = []
    ready, stop = threading.Event(), threading.Event()
    urls: list[str] = []

    async def complete(body: JSON) -> JSON:
        bodies.append(body)
        return answer

    async def serve() -> None:
        async with serving(complete) as (url, _):
            urls.append(url)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield urls[0], bodies
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "ball.png"
    Image.new("RGB", (8, 8), "red").save(file)
    return file


def asked(*arguments: str) -> int:
    try:
        main(["ask", *arguments], [ASK])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_an_answer_is_printed_with_what_gave_its_words(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(answered()) as (url, bodies):
        code = asked(
            str(picture),
            "What is it?",
            "--context",
            "It is blue.",
            "--relevant",
            "image",
            "--url",
            url,
            "--model",
            "m",
        )
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        ANSWER,
        "from the text: blue",
        "from the picture: red",
        "flagged: blue",
        "flagged: The text <did> it.",
    ]
    (body,) = bodies
    assert body["modint"] == {"relevant": "image", "context": "It is blue."} and body["model"] == "m"
    assert [part.get("text") for part in body["messages"][0]["content"]] == [
        None,
        "It is blue.",
        "What is it?",
    ]
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_terminal_gets_colours_unless_it_asks_for_none(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with gateway(answered()) as (url, _):
        asked(str(picture), "What is it?", "--url", url, "--model", "m")
        assert "\x1b[36mred\x1b[0m" in capsys.readouterr().out
        monkeypatch.setenv("NO_COLOR", "1")
        asked(str(picture), "What is it?", "--url", url, "--model", "m")
        assert "\x1b[36m" not in capsys.readouterr().out


def test_what_an_answer_tells_a_terminal_to_do_is_shown_as_an_escape(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(answered("\x1b[2J[red]x[/red]", ())) as (url, _):
        asked(str(picture), "What is it?", "--url", url, "--model", "m")
    assert capsys.readouterr().out.startswith("\\x1b[2J[red]x[/red]\n")


def test_the_completion_is_printed_as_json(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gateway(answered()) as (url, _):
        asked(str(picture), "What is it?", "--url", url, "--model", "m", "--json")
    assert json.loads(capsys.readouterr().out) == answered()


def test_a_server_that_gives_no_verdict_is_no_gateway(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(completion("red")) as (url, _):
        assert asked(str(picture), "What is it?", "--url", url, "--model", "m") == 2
    assert "is a gateway of modint-guard running there?" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"text"])
def test_a_file_that_is_no_picture_is_refused(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    assert asked(str(file), "What is it?") == 2
    assert "x.png cannot be read" in capsys.readouterr().err.replace("\n", " ")


def test_a_relevance_that_is_none_is_refused(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(str(picture), "What is it?", "--relevant", "sound") == 2
    assert "it must be one of image, text, both, auto" in capsys.readouterr().err
