"""A journal keeps what is there: a run that was killed goes on, another run's file is refused."""

import asyncio
import json
from pathlib import Path

import pytest

from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.journal import Job, Journal, collect
from modint_guard.types import JSON

MADE_BY = {"model": "m", "seed": 0, "kinds": ("a", "b")}


def jobs(*names: str, asked: list[str], broken: str = "") -> dict[str, Job]:
    def job(name: str) -> Job:
        async def ask() -> JSON:
            await asyncio.sleep(0)
            asked.append(name)
            if name == broken:
                raise EndpointError("the engine is gone: start it again")
            return {"said": name}

        return ask

    return {name: job(name) for name in names}


async def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    path, asked = tmp_path / "runs" / "run.jsonl", list[str]()
    with Journal(path, MADE_BY) as journal:
        await collect(jobs("one", "two", asked=asked), journal)
    with Journal(path, MADE_BY) as journal:
        done: list[str] = []
        found = await collect(jobs("one", "two", "three", asked=asked), journal, done=done.append)
    assert asked == ["one", "two", "three"]
    assert done == ["one", "two", "three"]
    assert list(found) == ["one", "two", "three"] and found["two"] == {"said": "two"}


async def test_an_error_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    asked: list[str] = []
    with (
        Journal(tmp_path / "run.jsonl", MADE_BY) as journal,
        pytest.raises(EndpointError, match="the engine is gone"),
    ):
        await collect(jobs("one", "two", "three", asked=asked, broken="two"), journal, concurrency=1)
    with Journal(tmp_path / "run.jsonl", MADE_BY) as journal:
        assert list(journal.records) == ["one"]
        await collect(jobs("one", "two", "three", asked=asked), journal, concurrency=1)
    assert asked == ["one", "two", "two", "three"]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, MADE_BY) as journal:
        journal.write("one", {"x": 1})
    with path.open("ab") as file:
        file.write(b'{"key": "two", "rec')
    with Journal(path, MADE_BY) as journal:
        assert journal.records == {"one": {"x": 1}}
        journal.write("two", {"x": 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("key") for line in lines] == [None, "one", "two"]


def test_another_runs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, MADE_BY) as journal:
        journal.write("one", {"x": 1})
    with pytest.raises(ConfigError, match=r"holds another run \(seed differ\): name another file"):
        Journal(path, {**MADE_BY, "seed": 1}).__enter__()


def test_a_run_that_kept_nothing_gives_way(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.jsonl", MADE_BY):
        pass
    with Journal(tmp_path / "run.jsonl", {**MADE_BY, "seed": 1}) as journal:
        journal.write("one", {"x": 1})
    with Journal(tmp_path / "run.jsonl", {**MADE_BY, "seed": 1}) as journal:
        assert journal.records == {"one": {"x": 1}}


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"rows": []}\n'])
def test_a_file_that_is_no_journal_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no journal of an earlier run"):
        Journal(path, MADE_BY).__enter__()
    assert path.read_text() == text
