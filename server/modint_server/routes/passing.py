"""The engine's further routes, passed through under an allow-list; those that administer it never are."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from modint_guard.errors import EndpointError
from modint_server.errors import of_endpoint, unavailable
from modint_server.request.gateway import Exchange, Gateway
from modint_server.request.passing import known_to_the_engine
from modint_server.routes import READ
from modint_server.routes.pages import Page
from modint_server.settings import PASSED_GET


def router_of(paths: Sequence[str]) -> APIRouter:
    """One route for each path of the setting `MODINT_PASS_ROUTES`."""
    router = APIRouter()
    for path in paths:
        if path in PASSED_GET:
            router.add_api_route(path, _page, methods=READ)
        else:
            router.add_api_route(path, _passed, methods=["POST"])
    return router


async def _passed(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Exchange(gateway, "passed", gateway.passing.answer_to(request.url.path))


async def _page(request: Request) -> Response:
    """A page of the engine, which asks for no key and so takes nobody's place."""
    if request.app.state.gateway.draining:
        raise unavailable("the gateway is shutting down: try again", "draining")
    page: Page[tuple[str, bytes]] = request.app.state.passed_pages[request.url.path]
    try:
        with known_to_the_engine(request.url.path):
            kind, data = await page.get()
    except EndpointError as exc:
        return of_endpoint(exc).response()
    return Response(data, headers={"content-type": kind})
