"""GET /livez (the process runs), /readyz (it answers requests, or why not), /metrics, /engine/metrics."""

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from modint_guard.errors import EndpointError
from modint_guard.types import JSON
from modint_server.errors import of_endpoint
from modint_server.request.gateway import Gateway
from modint_server.routes import READ
from modint_server.routes.pages import Page

router = APIRouter()


@router.api_route("/livez", methods=READ)
async def livez() -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.api_route("/readyz", methods=READ)
async def readyz(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    attachment = gateway.attachment
    reasons = ["the gateway is shutting down"] if gateway.draining else []
    reasons += attachment.reasons
    capabilities = attachment.capabilities
    problems = capabilities.problems if capabilities else ()
    notes = [*problems, *attachment.adapter_problems, *_gain_notes(gateway)]
    body = {
        "status": "not ready" if reasons else "ok",
        "reasons": reasons,
        "capabilities": capabilities.to_json() if capabilities else None,
        "adapters": {name: result.to_json() for name, result in attachment.selftest.adapters.items()},
        "null": _null_of(gateway),
        "notes": [note for note in notes if note not in reasons],
    }
    return Response(orjson.dumps(body), 503 if reasons else 200, media_type="application/json")


def _null_of(gateway: Gateway) -> JSON:
    """What flags promise: alpha, and of each served model the size of its null and its power."""
    measuring = gateway.pipeline.measuring
    nulls = {model.id: measuring.nulls.of(model.id) for model in gateway.attachment.models}
    models = {
        name: {"n": len(null.scores), "source": null.source, "power": null.power, "sure": null.sure}
        for name, null in nulls.items()
    }
    return {"alpha": gateway.pipeline.guard.config.alpha, "models": models}


def _gain_notes(gateway: Gateway) -> list[str]:
    gain = gateway.settings.image_attention
    return [] if gain == 1.0 else [f"attention to pictures is scaled by {gain:g} (experimental)"]


def _check_key(gateway: Gateway, request: Request) -> None:
    """Raises RequestError 401 if the pages of metrics ask for a key and none is shown."""
    if gateway.settings.metrics_need_key:
        gateway.keys.check(request.headers)


@router.api_route("/metrics", methods=READ)
async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    _check_key(gateway, request)
    page: Page[bytes] = request.app.state.metrics_page
    return Response(await page.get(), headers={"content-type": CONTENT_TYPE_LATEST})


@router.api_route("/engine/metrics", methods=READ)
async def engine_metrics(request: Request) -> Response:
    """vLLM's own metrics: no scraper reaches the private socket of an engine that `serve` started."""
    gateway: Gateway = request.app.state.gateway
    _check_key(gateway, request)
    try:
        page: Page[bytes] = request.app.state.engine_metrics_page
        text = await page.get()
    except EndpointError as exc:
        return of_endpoint(exc).response()
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
