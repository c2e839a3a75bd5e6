"""Errors of writing to a disk as one sentence, whichever library raised them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from modint_guard.errors import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EEXIST, errno.ENOTDIR)
# torch writes without Python's files; its messages about a file that did not grow as it should:
TORCH = ("inline_container", "PytorchStreamWriter", "iostream error", "No space left")


@contextmanager
def disk_errors_as_sentences(what: str, then: str) -> Iterator[None]:
    """ConfigError if `what` cannot be written in the block; `then` is what to do once it can. Every other
    error is raised unchanged."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as exc:
        number = error_number(exc)
        if number not in (*FULL, *CLOSED):
            raise
        remedy = "make room" if number in FULL else "let it be written"
        raise ConfigError(f"{what} cannot be written ({os.strerror(number)}): {remedy}, and {then}") from exc


def error_number(exc: BaseException | None) -> int | None:
    """The `errno` of an error of writing, whichever library raised it; None for errors of another kind."""
    if isinstance(exc, OSError):
        return exc.errno
    if isinstance(exc, SafetensorError):
        number = re.search(r"\(os error (\d+)\)", str(exc))
        return int(number[1]) if number else None
    if isinstance(exc, RuntimeError) and any(words in str(exc) for words in TORCH):
        return error_number(exc.__cause__ or exc.__context__) or errno.ENOSPC
    return None
