"""A long run's records as JSON lines: each is kept as soon as it is there, and none is asked for twice.

The first line says what made the file; every other one is a record under its key. A line that a kill cut
short is dropped when the file is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Self

from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_guard.evaluation.asking import ask_each
from modint_guard.types import JSON

Job = Callable[[], Awaitable[JSON]]


class Journal:
    """`with Journal(path, made_by) as journal: ...`; `records` holds what is there, by key.

    made_by: what the records depend on (model, data, seed); a file of another run is refused, and so is one
    that is no journal. Raises ConfigError.
    """

    def __init__(self, path: Path, made_by: JSON) -> None:
        self.path = path
        self.records: dict[str, JSON] = {}
        self._made_by: JSON = json.loads(json.dumps(made_by))  # as it comes back from a file
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        whole = self._read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        if not whole:
            self._append({"made_by": self._made_by})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, key: str, record: JSON) -> None:
        """Keep one record."""
        self.records[key] = record
        self._append({"key": key, "record": record})

    def _append(self, line: JSON) -> None:
        assert self._file is not None, "a journal is used inside `with`"
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> int:
        """Read what is there; gives the length of all whole lines, in bytes."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            return 0
        try:
            head, *records = (json.loads(line) for line in lines)
            same = head["made_by"] == self._made_by
            self.records = {each["key"]: each["record"] for each in records}
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{self.path} is no journal of an earlier run: name another file, or remove it"
            ) from exc
        if not same and not self.records:
            return 0  # it began, and nothing is lost
        if not same:
            differing = sorted(
                name
                for name in self._made_by.keys() | head["made_by"].keys()
                if self._made_by.get(name) != head["made_by"].get(name)
            )
            raise ConfigError(
                f"{self.path} holds another run ({', '.join(differing)} differ): name another file, or remove"
                " it"
            )
        return len(whole)


def digest_of(asked: Iterable[tuple[str, Item]]) -> str:
    """What is asked, by key, as one hexadecimal number: words and pictures."""
    digest = hashlib.sha256()
    for key, item in asked:
        words = item.replace(image=None, agreeing=None, contradicting=None)
        digest.update(f"{key}\x1f{words!r}\x1f".encode(errors="replace"))
        for picture in (item.image, item.agreeing, item.contradicting):
            digest.update(b"" if picture is None else picture.tobytes())
    return digest.hexdigest()


async def collect(
    jobs: Mapping[str, Job],
    journal: Journal,
    *,
    concurrency: int = 8,
    done: Callable[[str], None] = lambda key: None,
) -> dict[str, JSON]:
    """The record of every job, at most `concurrency` under way; those in the journal are not run again.

    `done` is called with each key whose record is there. The first error ends the run as itself; what was
    complete by then is kept.
    """

    def keep(key: str, record: JSON) -> None:
        journal.write(key, record)
        done(key)

    for key in jobs:
        if key in journal.records:
            done(key)
    missing = {key: job for key, job in jobs.items() if key not in journal.records}
    await ask_each(missing, concurrency=concurrency, done=keep)
    return {key: journal.records[key] for key in jobs}
