"""A task group that fails with the error itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def one_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup out of which a failure comes as itself, so that callers can catch it by its type."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
