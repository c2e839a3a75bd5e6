"""POST /v1/responses: the guarded route of OpenAI's newer API, whole and streamed."""

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway

router = APIRouter()


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "responses", gateway.responses.answer)
