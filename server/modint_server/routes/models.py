"""GET /v1/models: the base and its adapters; an adapter's `parent` is the base."""

import orjson
from fastapi import APIRouter, Request, Response

from modint_guard.errors import RequestError
from modint_server.engine.capabilities import Model
from modint_server.errors import unavailable
from modint_server.request.gateway import Gateway
from modint_server.routes import READ

router = APIRouter()


@router.api_route("/v1/models", methods=READ)
async def models(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    client = gateway.keys.check(request.headers)
    listed = [model.to_json() for model in await _known(gateway) if client.may_ask(model.id)]
    return Response(orjson.dumps({"object": "list", "data": listed}), media_type="application/json")


@router.api_route("/v1/models/{name:path}", methods=READ)
async def model(request: Request, name: str) -> Response:
    gateway: Gateway = request.app.state.gateway
    gateway.keys.check(request.headers).check_model(name)
    for known in await _known(gateway):
        if known.id == name:
            return Response(orjson.dumps(known.to_json()), media_type="application/json")
    await gateway.attachment.served(name)  # raises the 404 that names those served
    raise RequestError("the model does not exist", param="model", code="model_not_found", status=404)


async def _known(gateway: Gateway) -> tuple[Model, ...]:
    if not gateway.attachment.models:
        raise unavailable("the engine is not ready yet: see /readyz", "not_ready")
    return gateway.attachment.models
