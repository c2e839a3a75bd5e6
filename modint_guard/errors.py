"""Every error that modint-guard raises on purpose, as one tree.

ModintError
├─ RequestError            a client's request is wrong: becomes OpenAI's error envelope
│  └─ ImageError           an image cannot be used: not an image, truncated, too large or remote
├─ ConfigError             a setting, flag, file or path is wrong: the process stops with exit code 2
│  ├─ AdapterError         an adapter folder is missing or holds no PEFT adapter
│  └─ DataError            a line of a data set is wrong
├─ EndpointError           the upstream answered with an error
│  ├─ EndpointTimeout      it did not answer in time
│  └─ EndpointUnreachable  no connection could be made, or it broke
├─ EngineError             our own vLLM child died or never became ready
└─ TrainingStopped         a training was asked to stop, and can be resumed

`str(error)` is one sentence that names the offending value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ModintError(Exception):
    """The root of the tree: catch it to catch everything that modint-guard raises on purpose."""


class RequestError(ModintError):
    """A request that a client must change, with what OpenAI's error envelope holds.

    param: the field that is wrong. code: a stable name of the problem. status: the HTTP status of the
    response.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_request",
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.type = type

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error body: {"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ImageError(RequestError):
    """An image that cannot be used; `code` says why."""

    def __init__(
        self, message: str, *, param: str | None = "messages", code: str = "invalid_image", status: int = 400
    ) -> None:
        super().__init__(message, param=param, code=code, status=status)


class ConfigError(ModintError):
    """A setting, flag, file or path that stops the process (exit code 2)."""


class AdapterError(ConfigError):
    """An adapter folder that is missing, or that does not hold a PEFT adapter."""


class DataError(ConfigError):
    """A row of a data set that cannot be used; the message names the file, the line, the sample's id and the
    remedy.

    The attributes hold the same, as far as it is known: `file`; `line`, from 1 (in Parquet and Arrow files
    the row, from 1); `sample`; and `problem`, the sentence without these.
    """

    def __init__(
        self, problem: str, *, file: str | None = None, line: int | None = None, sample: str | None = None
    ) -> None:
        where = f"{file}:{line}: " if line is not None else f"{file}: " if file else ""
        super().__init__(
            f"{where}sample {sample!r}: {problem}" if sample is not None else f"{where}{problem}"
        )
        self.problem = problem
        self.file = file
        self.line = line
        self.sample = sample


class EndpointError(ModintError):
    """The upstream answered with an error; `status` and `body` are those of its answer, if there was one, and
    `retry_after` is its header, which holds seconds or a date.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: bytes = b"",
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


class EndpointTimeout(EndpointError):  # noqa: N818 - "timeout" says it all
    """The upstream did not answer in time."""


class EndpointUnreachable(EndpointError):  # noqa: N818
    """No connection to the upstream could be made, or it broke."""


class EngineError(ModintError):
    """Our vLLM child died or never became ready; the message holds its last output and the likely remedy."""


class TrainingStopped(ModintError):  # noqa: N818 - nothing is wrong
    """A training stopped on SIGTERM after saving a checkpoint; the message says how to resume it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one, for messages that ask "did you mean …?".

    known: one or more names.
    """
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
