"""`modint-guard demo --url`: the check-up through a gateway of its own, in front of an engine that runs."""

import asyncio
import io
from pathlib import Path

from PIL import Image
from rich.console import Console

from modint_guard.demo.run import run
from modint_guard.demo.shows import show_of
from tests.server.fake_upstream import JSON, Answer, FakeUpstream, misled, running, text_of


def believing(body: JSON) -> Answer:
    """A model that gives way to captions, and knows nothing else."""
    return misled(body) if "caption" in text_of(body).lower() else Answer("red", {"red": 0.9, "blue": 0.05})


async def test_the_check_up_of_an_endpoint_prints_both_tables_what_it_finds_and_counters_that_agree(
    tmp_path: Path,
) -> None:
    console = Console(width=160, file=io.StringIO())
    async with running(FakeUpstream(believing)) as upstream:
        show = show_of(None, None, upstream.url, limit=1)
        await asyncio.to_thread(run, show, tmp_path / "own.png", console)
        questions = [
            body for body in upstream.calls if len(body["messages"]) == 1 and body["max_tokens"] == 256
        ]
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "asking 8 items of tinyworld-base" in said and "16 answers in" in said
    assert {body["model"] for body in questions} == {"tinyworld-base"}  # the first that is no adapter
    for kind in ("image-heavy, misleading description", "text-heavy, contradicting image", "vqa, clean"):
        assert said.count(f"│ {kind} ") == 2  # in both tables
    assert "tinyworld-base was asked too little about pictures to tell whether it sees" in said
    assert f"modint-guard serve --upstream {upstream.url}\n" in said
    assert said.rstrip().endswith("16 requests, every verdict counted once.")
    with Image.open(tmp_path / "own.png") as sheet:
        assert sheet.width == 8 * 204
