"""POST /v1/completions: forwarded as it is, since it holds no image to examine."""

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "completions", gateway.pipeline.completion)
