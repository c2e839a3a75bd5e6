"""The nulls of the served models: read by the guard for every answer, kept in a file across restarts."""

import logging
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from threading import Lock

from modint_guard.errors import ConfigError
from modint_guard.judging.null import CLIENT_SHARE, Null
from modint_guard.judging.null_file import read_nulls, write_nulls
from modint_server.logs import event


class Nulls(Mapping[str, Null]):
    """By served name. file: where they are kept; None for nowhere. several: whether there are several keys:
    one of them then has at most its share of the scores.
    """

    def __init__(self, file: Path | None, *, several: bool) -> None:
        self.empty = Null(client_share=CLIENT_SHARE if several else 1.0)
        self._file = file
        self._nulls = self._restored()
        self._writing = Lock()

    def __getitem__(self, model: str) -> Null:
        return self._nulls[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nulls)

    def __len__(self) -> int:
        return len(self._nulls)

    def of(self, model: str) -> Null:
        """The null of a model, with nothing in it if it has none."""
        return self._nulls.get(model, self.empty)

    def put(self, model: str, null: Null) -> None:
        """Replaces a model's null."""
        self._nulls = {**self._nulls, model: null}

    def save(self) -> None:
        """Writes the file, if there is one. A failure is logged and costs nothing else."""
        if self._file is None:
            return
        try:
            with self._writing:
                write_nulls(self._file, self._nulls)
        except OSError as exc:
            event("null_not_saved", level=logging.WARNING, problem=f"{self._file}: {exc.strerror}")

    def _restored(self) -> dict[str, Null]:
        try:
            return read_nulls(self._file, self.empty) if self._file is not None else {}
        except ConfigError as exc:
            event("null_not_restored", level=logging.WARNING, problem=str(exc))
            return {}


def origin_of(key_digest: str) -> str:
    """A name for a client that says nothing of its key, not even to who knows other digests of it."""
    return sha256(f"null of {key_digest}".encode()).hexdigest()[:12]
