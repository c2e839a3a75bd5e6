"""Builds the ASGI app from the settings; tests pass in an upstream or a registry of their own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modint_guard.chat.images import ImageLimits
from modint_guard.chat.relevance_rules import read_rules
from modint_guard.config import GuardConfig
from modint_guard.guard import Guard
from modint_guard.judging.calibration import read_calibration
from modint_guard.mitigation.policy import Policy, read_policies
from modint_guard.probing.probe import cancel_and_wait
from modint_server import errors
from modint_server.adapters.folders import Adapter, card
from modint_server.engine.attachment import Attachment
from modint_server.engine.noise import NoiseFloor
from modint_server.engine.nulls import Nulls
from modint_server.engine.upstream import Upstream
from modint_server.metrics import Metrics
from modint_server.request.answer_lengths import AnswerLengths
from modint_server.request.budgets import TokenBudget
from modint_server.request.gateway import Gateway
from modint_server.request.image_hosts import ImageHosts
from modint_server.request.intake import request_id
from modint_server.request.keys import Keys
from modint_server.request.measuring import Measuring
from modint_server.request.messages import Messages
from modint_server.request.passing import Passing
from modint_server.request.pictures import Pictures
from modint_server.request.pipeline import Pipeline
from modint_server.request.places import Places
from modint_server.request.rate_limits import RateLimits
from modint_server.request.responses import Responses
from modint_server.request.sampling import Sample
from modint_server.request.second_tries import SecondTries
from modint_server.request.workers import Workers
from modint_server.routes import chat, completions, guard, health, messages, models, passing, responses
from modint_server.routes.pages import RESTS, Page
from modint_server.settings import PASSED_GET, Settings, secret

# What scripts of web pages may read of an answer, besides its body.
READABLE_HEADERS = (
    "x-request-id",
    "x-modint-verdict",
    "x-modint-risk",
    "x-modint-reason",
    "x-modint-schema",
    "x-modint-action",
    "x-modint-rungs",
    "x-modint-mitigation-tokens",
    "x-modint-detail",
    *(
        f"x-ratelimit-{of}-{what}"
        for what in ("requests", "tokens")
        for of in ("limit", "remaining", "reset")
    ),
    "retry-after",
    "x-should-retry",
)

QUIET = 0.1  # of max_in_flight: with more requests under way the null is not measured


def create_app(
    settings: Settings,
    *,
    upstream: Upstream | None = None,
    registry: CollectorRegistry | None = None,
    adapters: Sequence[Adapter] = (),
) -> FastAPI:
    """The ASGI app. Its lifespan opens the upstream and watches it.

    adapters: those whose folders lie on this machine; the metrics show their cards. Raises ConfigError for a
    setting's file that cannot be used, AdapterError for an adapter's damaged run record.
    """
    metrics = Metrics(
        registry if registry is not None else CollectorRegistry(),
        cards={adapter.name: card(adapter) for adapter in adapters},
        settings={"guard": settings.guard, "adapter_selftest": settings.adapter_selftest},
    )
    gateway = build(settings, upstream or upstream_of(settings), metrics)
    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.gateway = gateway
    page = partial(asyncio.to_thread, generate_latest, metrics.registry)
    app.state.metrics_page = Page(page, rests=RESTS)
    app.state.engine_metrics_page = Page(gateway.pipeline.upstream.metrics, rests=RESTS)
    app.state.passed_pages = {
        path: Page(partial(gateway.pipeline.upstream.page, path)) for path in PASSED_GET
    }
    for route in (chat, completions, responses, messages, models, guard, health):
        app.include_router(route.router)
    app.include_router(passing.router_of(settings.pass_routes))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,  # a page of a listed origin may ask a gateway on this machine
            expose_headers=READABLE_HEADERS,
        )
    app.add_middleware(RequestIds)
    errors.install(app)
    return app


def upstream_of(settings: Settings) -> Upstream:
    """The client of the engine that the settings name; raises ConfigError if its key cannot be read."""
    return Upstream(
        settings.upstream_url,
        uds=settings.upstream_uds,
        api_key=secret(settings.upstream_api_key, settings.upstream_api_key_file),
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )


def guard_config(settings: Settings) -> GuardConfig:
    """The guard's part of the settings; raises ConfigError for a bad file of relevance rules or policies."""
    limits = ImageLimits(
        settings.max_image_bytes, settings.max_image_pixels, settings.max_images, settings.max_request_pixels
    )
    rules, policies = settings.relevance_rules_file, settings.policies_file
    return GuardConfig(
        deadline_s=settings.probe_deadline_s,
        image_limits=limits,
        relevance_rules=read_rules(rules) if rules else (),
        self_ask=settings.self_ask,
        regenerate=settings.regenerate == "auto",
        teacher_forcing=settings.teacher_forcing != "off",
        image_attention=settings.image_attention,
        alpha=settings.alpha,
        policies=(*(read_policies(policies) if policies else ()), Policy(settings.action)),
    )


def build(settings: Settings, upstream: Upstream, metrics: Metrics) -> Gateway:
    """The gateway, without routes. Raises ConfigError for a bad file of rules, policies or a calibration, and
    for hosts of pictures that are none.
    """
    upstream.on_failure = metrics.upstream_failed
    calibrations = {path: read_calibration(path) for path in settings.calibrations}
    attachment = Attachment(
        upstream,
        metrics,
        calibrations=calibrations,
        poll_s=settings.upstream_poll_s,
        poll_timeout_s=settings.upstream_poll_timeout_s,
        capability_timeout_s=settings.capability_timeout_s,
        max_adapters=settings.max_adapter_labels,
        testing="report" if settings.adapter_selftest == "auto" else settings.adapter_selftest,
        forcing_beside_adapters=settings.teacher_forcing == "on",
    )
    keys = Keys(settings)
    nulls = Nulls(settings.null_file, several=keys.are_several)
    guard = Guard(guard_config(settings), calibrations=calibrations.values(), nulls=nulls)
    places = _shared(settings.max_in_flight, settings, keys)
    metrics.set_alpha(settings.alpha)
    metrics.sample.set(settings.sample)
    pipeline = Pipeline(
        guard=guard,
        upstream=upstream,
        attachment=attachment,
        metrics=metrics,
        settings=settings,
        noise=NoiseFloor(settings.noop_every),
        lengths=AnswerLengths(),
        budget=TokenBudget(settings.mitigation_tokens_per_minute),
        second_tries=SecondTries(),
        keys=keys,
        places=places,
        measuring=Measuring(
            guard,
            nulls,
            attachment,
            upstream,
            metrics,
            every=settings.null_every if settings.guard == "on" else 0,
            checkup=settings.null_checkup == "on" and settings.guard == "on",
            is_busy=lambda: places.held > max(1, settings.max_in_flight * QUIET),
            idle_s=lambda: places.idle_s,
        ),
        probe_slots=_shared(settings.max_probes_in_flight, settings, keys),
        rung_slots=_shared(settings.max_rungs_in_flight, settings, keys),
        workers=Workers(
            settings.image_threads, _shared(settings.image_threads, settings, keys), settings.image_timeout_s
        ),
        pictures=Pictures(
            ImageHosts.of(settings.image_hosts),
            max_images=settings.max_images,
            max_bytes=settings.max_image_bytes,
            max_body_bytes=settings.max_body_bytes,
            timeout_s=settings.image_fetch_timeout_s,
        ),
        sample=Sample(settings.sample),
    )
    return Gateway(
        settings,
        metrics,
        attachment,
        pipeline,
        Responses(pipeline),
        Messages(pipeline),
        Passing(pipeline),
        keys,
        RateLimits(),
    )


def _shared(total: int, settings: Settings, keys: Keys) -> Places:
    """Places of which each client may have its share; all of them where there is one client only."""
    share = max(1, int(total * settings.max_share_per_key))
    return Places(total, lambda: share if keys.are_several else total)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    async with gateway.pipeline.upstream, gateway.pipeline.pictures:
        background = [
            asyncio.create_task(gateway.attachment.watch()),
            asyncio.create_task(gateway.pipeline.measuring.run()),
        ]
        try:
            yield
        finally:
            gateway.draining = True
            await cancel_and_wait(background)
            gateway.pipeline.workers.close()


class RequestIds:
    """Gives every request an id, and sends it back as `x-request-id`: the client's own if it is harmless."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = identifier

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identifier.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)
