"""Requests and tokens a minute for each key, counted in fixed windows by the library `limits`, in memory."""

import math
import time
from collections.abc import Mapping

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from modint_guard.chat.reply import usage_of
from modint_guard.errors import RequestError
from modint_server.request.keys import Client

REQUESTS, TOKENS = "requests", "tokens"


class RateLimitError(RequestError):
    """A client that has used up its minute: 429, with the headers that say when it may go on."""

    def __init__(self, what: str, limit: int, headers: Mapping[str, str]) -> None:
        super().__init__(
            f"the limit of {limit} {what} a minute is reached for this key: "
            f"try again in {headers['retry-after']} s",
            code="rate_limit_exceeded",
            status=429,
            type=what,
        )
        self.headers = dict(headers)


class RateLimits:
    """What each client has used in its current minute; each gateway counts by itself."""

    def __init__(self) -> None:
        self._windows = FixedWindowRateLimiter(MemoryStorage())

    async def admit(self, client: Client) -> dict[str, str]:
        """Counts a request. The headers that tell the client what is left to it; none if it has no limit.

        Raises RateLimitError if this request, or any further token, would be beyond a limit.
        """
        if not (client.requests_per_minute or client.tokens_per_minute):
            return {}
        for what, item in _items(client):
            if not await self._windows.test(item, client.digest, what):
                raise RateLimitError(what, item.amount, await self._headers(client, refused=what))
        if client.requests_per_minute:
            await self._windows.hit(
                RateLimitItemPerMinute(client.requests_per_minute), client.digest, REQUESTS
            )
        return await self._headers(client)

    async def spend(self, client: Client, usage: object) -> None:
        """Counts the tokens of an answer, by its OpenAI `usage` object; of an answer without one nothing."""
        if not client.tokens_per_minute or usage is None:
            return
        used = usage_of({"usage": usage})
        if tokens := used.prompt_tokens + used.completion_tokens:
            item = RateLimitItemPerMinute(client.tokens_per_minute)
            await self._windows.hit(item, client.digest, TOKENS, cost=tokens)

    async def _headers(self, client: Client, *, refused: str | None = None) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, and with `refused` when that window ends."""
        headers = {}
        for what, item in _items(client):
            stats = await self._windows.get_window_stats(item, client.digest, what)
            left_s = max(0.0, stats.reset_time - time.time())
            headers[f"x-ratelimit-limit-{what}"] = str(item.amount)
            headers[f"x-ratelimit-remaining-{what}"] = str(stats.remaining)
            headers[f"x-ratelimit-reset-{what}"] = f"{left_s:.3f}s"
            if what == refused:
                headers["retry-after"] = str(max(1, math.ceil(left_s)))
        return headers


def _items(client: Client) -> list[tuple[str, RateLimitItemPerMinute]]:
    limits = ((REQUESTS, client.requests_per_minute), (TOKENS, client.tokens_per_minute))
    return [(what, RateLimitItemPerMinute(limit)) for what, limit in limits if limit]
