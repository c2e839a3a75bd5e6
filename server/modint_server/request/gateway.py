"""What every route shares: the key check, admission, the boundary for errors, metrics and the log line."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modint_guard.errors import ConfigError, EndpointError, RequestError
from modint_server import errors
from modint_server.boundary import boundary
from modint_server.engine.attachment import Attachment
from modint_server.logs import LOGGER, event
from modint_server.metrics import NOBODY, Metrics
from modint_server.request.exchange import Record, Wire, unless_client_leaves
from modint_server.request.intake import ClientLeft, read_body, trace_of
from modint_server.request.keys import Keys
from modint_server.request.messages import Messages
from modint_server.request.passing import Passing
from modint_server.request.pipeline import Pipeline
from modint_server.request.rate_limits import RateLimitError, RateLimits
from modint_server.request.responses import Responses
from modint_server.settings import Settings

PAUSE_S = 0.25  # before a key that has its share is refused more
Work = Callable[[bytes, Mapping[str, str], Record, Wire], Coroutine[Any, Any, None]]


@dataclass
class Gateway:
    """The app's state. While `draining` is set, /readyz says so and new requests are turned away."""

    settings: Settings
    metrics: Metrics
    attachment: Attachment
    pipeline: Pipeline
    responses: Responses
    messages: Messages
    passing: Passing
    keys: Keys
    limits: RateLimits
    draining: bool = False

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return self.pipeline.places.held

    def reload_keys(self) -> None:
        """Reads the file of keys again; one that cannot be used is logged, and the keys stay as they were."""
        try:
            event("keys_reloaded", keys=self.keys.reload())
        except ConfigError as exc:
            event("keys_not_reloaded", level=logging.ERROR, problem=str(exc))

    async def answer(self, route: str, scope: Scope, receive: Receive, send: Send, work: Work) -> None:
        """Answers one request. Whatever happens, the client gets an envelope, and one outcome is counted."""
        headers = Headers(scope=scope)
        record = Record(route, scope["state"]["request_id"], trace_of(headers))
        wire = Wire(scope, receive, send, partial(self._answered, record))
        try:
            record.client = self.keys.check(headers)
            await self._slow_down(record.key_digest)
            wire.headers = await self._within_limits(record)
            with self._admitted(record):
                raw = await read_body(receive, headers, self.settings)
                await unless_client_leaves(receive, work(raw, headers, record, wire))
        except ClientLeft:
            self._close(record, "cancelled", None)
        except asyncio.CancelledError:
            self._close(record, "cancelled", None)
            raise
        except RequestError as exc:
            if isinstance(exc, RateLimitError):
                wire.headers = exc.headers
            outcome = "rejected" if exc.status in (429, 503) else "client_error"
            await self._fail(record, wire, errors.of_request(exc), outcome)
        except EndpointError as exc:
            failure = errors.of_endpoint(exc)
            outcome = "client_error" if failure.status < 500 else "upstream_error"
            await self._fail(record, wire, failure, "interrupted" if wire.streaming else outcome)
        except Exception:  # noqa: BLE001 - the edge: a bug ends in the log and in an envelope, too
            LOGGER.exception("internal_error", extra={"fields": {"request_id": record.request_id}})
            await self._fail(record, wire, errors.INTERNAL, "internal_error")
        finally:
            self._close(record, "internal_error", 500)

    async def _slow_down(self, key_digest: str) -> None:
        """Lets a key that has all it may have wait a little: who does not wait before asking again, does so
        here, and takes less of the time of others.
        """
        places = self.pipeline.places
        if not places.may_take(key_digest) and not places.is_full() and not self.draining:
            await asyncio.sleep(PAUSE_S)

    async def _within_limits(self, record: Record) -> dict[str, str]:
        """What is left to the client, as headers. Raises RateLimitError."""
        try:
            return await self.limits.admit(record.client)
        except RateLimitError:
            self.metrics.rejected("rate_limit")
            raise

    async def _answered(self, record: Record, status: int) -> None:
        with boundary(self.metrics, "counting"):
            await self.limits.spend(record.client, record.usage)
        self._close(record, "ok", status)

    @contextlib.contextmanager
    def _admitted(self, record: Record) -> Iterator[None]:
        key_digest = record.key_digest
        if self.draining:
            self.metrics.rejected("draining")
            raise errors.unavailable("the gateway is shutting down: try again", "draining")
        places = self.pipeline.places
        if not places.may_take(key_digest):
            self.metrics.rejected("in_flight" if places.is_full() else "key_share")
            raise errors.unavailable("too many requests in flight: try again", "overloaded")
        places.take(key_digest)
        record.is_busy = places.is_busy(key_digest, self.settings.shed_probes_at)
        try:
            yield
        finally:
            places.give_back(key_digest)

    async def _fail(self, record: Record, wire: Wire, failure: errors.ErrorAnswer, outcome: str) -> None:
        record.outcome, record.status, record.code = outcome, failure.status, failure.code
        await wire.fail(failure)

    def _close(self, record: Record, outcome: str, status: int | None) -> None:
        """Counts and logs the request; only the first call does, with the outcome known by then."""
        if record.closed:
            return
        record.closed = True
        record.outcome = record.outcome or outcome
        record.status = record.status or status
        with boundary(self.metrics, "counting"):
            count(self.metrics, record)
        with boundary(self.metrics, "logging"):
            log(record)


def log(record: Record) -> None:
    """Writes one line about a finished request."""
    report = record.report
    verdict = report.verdict if report else None
    event(
        "request",
        request_id=record.request_id,
        route=record.route,
        key=record.client.name or None,
        model=record.served.model,
        adapter=record.served.adapter,
        stream=record.stream,
        outcome=record.outcome,
        status=record.status,
        code=record.code,
        images=record.images,
        verdict=verdict.state.value if verdict else None,
        cause=verdict.cause.value if verdict and verdict.cause else None,
        reason=verdict.reason if verdict else None,
        risk=verdict.risk if verdict else None,
        action=report.action if report else None,
        probes=len(report.probes) if report else 0,
        ms=round(record.elapsed_s() * 1000, 1),
    )


def count(metrics: Metrics, record: Record) -> None:
    """Counts one finished request in every metric that it concerns."""
    served, ma = record.served, (record.served.model, record.served.adapter)
    metrics.requests.labels(*ma, record.route, record.outcome).inc()
    metrics.overhead.labels(record.route).observe(max(0.0, record.elapsed_s() - record.waited_s))
    metrics.duration.labels(*ma).observe(record.elapsed_s())
    if record.images and served is not NOBODY:
        metrics.images.labels(*ma, "input").inc(record.images)
    metrics.used(served, record.usage)
    if record.first_token_s is not None:
        metrics.first_token.labels(*ma).observe(record.first_token_s)
    if record.coverage is not None:
        metrics.coverage.labels(served.model).observe(record.coverage)
    if record.report is not None:
        metrics.judged(served, record.report)
        tried = [each.mitigation for each in (record.report, *record.others) if each.mitigation is not None]
        for mitigation in {id(each): each for each in tried}.values():  # answers of the same words share one
            metrics.mitigated(served, mitigation)


class Exchange(Response):
    """A response that reads and answers its request itself, so that it can notice when the client leaves."""

    def __init__(self, gateway: Gateway, route: str, work: Work) -> None:
        self._gateway, self._route, self._work = gateway, route, work
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway.answer(self._route, scope, receive, send, self._work)
