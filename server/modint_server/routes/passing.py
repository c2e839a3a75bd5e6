"""The engine's further routes, passed through under an allow-list; those that administer it never are."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from modint_server.request.gateway import Exchange, Gateway
from modint_server.settings import PASSED_GET


def router_of(paths: Sequence[str]) -> APIRouter:
    """One route for each path of the setting `MODINT_PASS_ROUTES`."""
    router = APIRouter()
    for path in paths:
        methods = ["GET", "HEAD"] if path in PASSED_GET else ["POST"]
        router.add_api_route(path, _passed, methods=methods)
    return router


async def _passed(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "passed", gateway.passing.answer_to(request.method, request.url.path))
