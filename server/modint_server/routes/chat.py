"""POST /v1/chat/completions: the guarded route, whole and streamed."""

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "chat", gateway.pipeline.chat)
