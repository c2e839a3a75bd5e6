"""A disk that cannot be written to, said in one sentence, whichever library met it."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from modint_guard.errors import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EEXIST, errno.ENOTDIR)
# torch writes past Python, and says of a file that did not grow as it should:
TORCH = ("inline_container", "PytorchStreamWriter", "iostream error", "No space left")


@contextmanager
def written(what: str, then: str) -> Iterator[None]:
    """ConfigError where `what` cannot be written within the block, and what to do `then`; every other error
    stays what it is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as exc:
        number = error_number(exc)
        if number not in (*FULL, *CLOSED):
            raise
        remedy = "make room" if number in FULL else "let it be written"
        raise ConfigError(f"{what} cannot be written ({os.strerror(number)}): {remedy}, and {then}") from exc


def error_number(exc: BaseException | None) -> int | None:
    """The system's number of the error that a library met when it wrote; None for errors of another kind."""
    if isinstance(exc, OSError):
        return exc.errno
    if isinstance(exc, SafetensorError):
        told = re.search(r"\(os error (\d+)\)", str(exc))
        return int(told[1]) if told else None
    if isinstance(exc, RuntimeError) and any(words in str(exc) for words in TORCH):
        return error_number(exc.__cause__ or exc.__context__) or errno.ENOSPC
    return None
