"""POST /v1/guard/check: judges an answer that another server gave."""

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway

router = APIRouter()


@router.post("/v1/guard/check")
async def guard_check(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "guard_check", gateway.pipeline.check)
