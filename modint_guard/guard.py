"""The guard: send a request and its perturbed views, compare the answers, say which modality decided.

Start reading here. `Guard.inspect` is the whole flow; the gateway walks the same steps one by one.
"""

from __future__ import annotations

import asyncio

from modint_guard.config import GuardConfig
from modint_guard.types import JSON, Complete, Inspection, ModintOptions, Plan, Replies, Reply, Report


class Guard:
    """Examines chat completions for modality interference. Holds no state besides its configuration."""

    def __init__(self, config: GuardConfig = GuardConfig()) -> None:  # noqa: B008 - frozen
        self.config = config

    async def inspect(
        self, body: JSON, complete: Complete, options: ModintOptions | None = None
    ) -> Inspection:
        """Answer `body` through `complete` and judge the answer."""
        raise NotImplementedError

    def plan(self, body: JSON, options: ModintOptions | None = None) -> Plan:
        """Split the request, decide which modality ought to decide it, and prepare the views. Raises RequestError."""
        raise NotImplementedError

    def main_body(self, plan: Plan) -> JSON:
        """The client's body as it goes upstream: log-probabilities added, `modint` removed."""
        raise NotImplementedError

    async def probe(self, plan: Plan, complete: Complete, *, answered: asyncio.Event | None = None) -> Replies:
        """Send all views at once; never raises but for cancellation. The deadline counts from `answered`."""
        raise NotImplementedError

    def judge(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Score the replies against the answer and decide. Pure."""
        raise NotImplementedError
