"""POST /v1/messages: Anthropic's API of vLLM, passed through; its answers are not judged."""

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway

router = APIRouter()


@router.post("/v1/messages")
@router.post("/v1/messages/count_tokens")
async def create_message(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "messages", gateway.messages.answer_to(request.url.path))
