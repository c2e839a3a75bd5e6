"""What is known of the engine: up or not and why, which models it serves, what it can do."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from modint_guard.calibration import Calibration, check_for
from modint_guard.errors import ConfigError, EndpointError, RequestError
from modint_guard.types import CELLS
from modint_server.errors import of_endpoint, unavailable
from modint_server.logs import event
from modint_server.metrics import NONE, OTHER, Metrics, Served
from modint_server.upstream import Capabilities, Model, Upstream, check_capabilities, models_of

REFRESH_S = 1.0  # a flood of unknown names asks the engine at most this often


class Attachment:
    """Watches one upstream; every answer comes from memory but for a name not yet seen."""

    def __init__(
        self,
        upstream: Upstream,
        metrics: Metrics,
        *,
        poll_s: float,
        capability_timeout_s: float,
        max_adapters: int,
        calibrations: Mapping[Path, Calibration] | None = None,
    ) -> None:
        self.capabilities: Capabilities | None = None
        self.models: tuple[Model, ...] = ()
        self.problem: str | None = "the engine has not answered yet"
        self._upstream = upstream
        self._metrics = metrics
        self._poll_s = poll_s
        self._capability_timeout_s = capability_timeout_s
        self._max_adapters = max_adapters
        self._calibrations = calibrations or {}
        self._served: dict[str, Served] = {}
        self._refreshed = float("-inf")
        self._begun = asyncio.Event()
        self._begun.set()

    @property
    def ready(self) -> bool:
        return self.problem is None

    @property
    def top_logprobs(self) -> int | None:
        """What the engine takes at most; None while it was not asked yet."""
        return self.capabilities.top_logprobs if self.capabilities else None

    @property
    def teacher_forcing(self) -> bool:
        """Whether the engine showed that it can score a given answer."""
        return self.capabilities is not None and self.capabilities.teacher_forcing

    def hold(self, problem: str) -> None:
        """Leaves the engine in peace until `begin`: it is known not to answer yet, and why."""
        self.problem = problem
        self._begun.clear()

    def begin(self) -> None:
        self._begun.set()

    async def watch(self) -> None:
        """Runs until cancelled; asks anew what the engine can do after it was away."""
        await self._begun.wait()
        while True:
            await self.look()
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        try:
            if self.ready:
                self._know(models_of(await self._upstream.models()))
            else:
                await self._attach()
        except EndpointError as exc:
            self._lost(exc)
        except ConfigError as exc:
            self._unfit(str(exc))

    async def served(self, name: str) -> Served:
        """The label values of a model; raises RequestError 404 naming those served, 503 if none is known."""
        due = self._begun.is_set() and time.monotonic() - self._refreshed > REFRESH_S
        if name not in self._served and due:
            await self._refresh()
        if (served := self._served.get(name)) is not None:
            return served
        if not self._served:
            raise unavailable("the engine is not ready yet: see /readyz", "not_ready")
        self._metrics.overflow.labels("model").inc()
        names = ", ".join(list(self._served)[:20])
        raise RequestError(
            f"the model does not exist; served here: {names}",
            param="model",
            code="model_not_found",
            status=404,
        )

    @asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[Served]:
        """`served`, and one more request in flight for that model meanwhile."""
        served = await self.served(name)
        with self._metrics.in_flight.labels(served.model).track_inprogress():
            yield served

    async def _attach(self) -> None:
        self._check_calibrations(models_of(await self._upstream.models()))
        found = await check_capabilities(self._upstream, timeout_s=self._capability_timeout_s)
        self._know(found.models)
        self.capabilities, self.problem = found, None
        self._metrics.upstream_is(True)
        event("attached", **found.to_json(), problems=list(found.problems))

    def _check_calibrations(self, models: tuple[Model, ...]) -> None:
        """Raises ConfigError where a calibration was made for a model that is not served."""
        served = {model.id: model.parent for model in models}
        for path, calibration in self._calibrations.items():
            check_for(calibration, path, models=served, probes=CELLS)

    async def _refresh(self) -> None:
        self._refreshed = time.monotonic()
        try:
            self._know(models_of(await self._upstream.models()))
        except EndpointError as exc:
            event("models_unknown", problem=str(exc))

    def _know(self, models: tuple[Model, ...]) -> None:
        if models == self.models:
            return
        self.models = models
        self._served = self._label_values(models)
        self._metrics.know(self._served.values())

    def _label_values(self, models: tuple[Model, ...]) -> dict[str, Served]:
        """One label value a base, and one an adapter up to the bound; the rest share one and are counted."""
        served = {model.id: Served(model.id) for model in models if model.parent is None}
        adapters = [model for model in models if model.parent is not None]
        for place, model in enumerate(adapters):
            within = place < self._max_adapters and model.id not in (NONE, OTHER)
            served[model.id] = Served(model.parent or model.id, model.id if within else OTHER)
            if not within:
                self._metrics.overflow.labels("adapter").inc()
        return served

    def _unfit(self, problem: str) -> None:
        """The engine answers, but with what it serves this gateway must not: not ready, and why."""
        if problem != self.problem:
            event("not_ready", problem=problem)
        self.problem = problem

    def _lost(self, exc: EndpointError) -> None:
        problem = of_endpoint(exc).message if exc.status else str(exc)
        if problem != self.problem:
            event("engine_not_ready", problem=problem)
        self.problem = problem
        self._metrics.upstream_is(False)
