"""What is known of the engine: up or not and why, which models it serves, what it and its adapters can do."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

from modint_guard.errors import ConfigError, EndpointError, RequestError
from modint_guard.judging.calibration import Calibration, check_for
from modint_guard.types import CELLS
from modint_server.engine.selftest import RETRY_S, SelfTest
from modint_server.engine.upstream import Capabilities, Model, Upstream, check_capabilities, models_of
from modint_server.errors import of_endpoint, unavailable
from modint_server.logs import event
from modint_server.metrics import NOBODY, NONE, OTHER, Metrics, Served

REFRESH_S = 1.0  # a flood of unknown names asks the engine at most this often
Testing = Literal["require", "report", "off"]  # what becomes of an adapter that fails the self-test


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
        testing: Testing = "off",
    ) -> None:
        self.capabilities: Capabilities | None = None
        self.models: tuple[Model, ...] = ()
        self.problem: str | None = "the engine has not answered yet"
        self.selftest = SelfTest(upstream.complete, capability_timeout_s)
        self._upstream = upstream
        self._metrics = metrics
        self._poll_s = poll_s
        self._capability_timeout_s = capability_timeout_s
        self._max_adapters = max_adapters
        self._calibrations = calibrations or {}
        self._testing = testing
        self._retry_at = float("-inf")
        self._served: dict[str, Served] = {}
        self._refreshed = float("-inf")
        self._begun = asyncio.Event()
        self._begun.set()

    @property
    def ready(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why requests should go elsewhere; empty when ready."""
        if self.problem is not None:
            return [self.problem]
        return self.adapter_problems if self._testing == "require" else []

    @property
    def adapter_problems(self) -> list[str]:
        """A sentence for each adapter that failed the self-test, and for what is still to be tested."""
        if not self._can_test():
            return []
        waiting = [name for name in self._adapters() if name not in self.selftest.adapters]
        problems = [f"adapter {name!r} is being tested" for name in waiting]
        examined = self.selftest.adapters.items()
        problems += [f"adapter {name!r}: {found.problem}" for name, found in examined if not found.ok]
        mixed = self.selftest.mixed
        return [*problems, *([mixed.problem] if mixed is not None and mixed.problem else [])]

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
            if self.problem is None:
                self._know(models_of(await self._upstream.models()))
            else:
                await self._attach()
            await self._test_adapters()
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
            self._refuse_failed(name)
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

    def usable(self, name: str) -> bool:
        """Whether a model is served and no adapter that failed the self-test: its answers are the base's."""
        found = self.selftest.adapters.get(name)
        return name in self._served and (found is None or found.ok)

    @asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[Served]:
        """`served`, and one more request in flight for that model meanwhile."""
        served = await self.served(name)
        with self._metrics.in_flight.labels(served.model).track_inprogress():
            yield served

    @contextmanager
    def queueing(self, name: str) -> Iterator[None]:
        """One more call waiting for a slot meanwhile."""
        with self._metrics.queue.labels(self._served.get(name, NOBODY).model).track_inprogress():
            yield

    def _refuse_failed(self, name: str) -> None:
        """Its answers would be the base's under an adapter's name."""
        found = self.selftest.adapters.get(name)
        if self._testing == "require" and found is not None and not found.ok:
            raise unavailable(f"adapter {name!r}: {found.problem}", "not_ready")

    async def _attach(self) -> None:
        self._check_calibrations(models_of(await self._upstream.models()))
        self.selftest.forget()
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

    async def _test_adapters(self) -> None:
        """Tests what was not tested yet, and now and then what could not be; raises EndpointError."""
        names = self._adapters()
        self.selftest.keep(names)
        due = self.selftest.missing(names)
        if time.monotonic() < self._retry_at:
            due = [name for name in due if name not in self.selftest.adapters]
        if not due or not self._can_test() or self.capabilities is None:
            return
        self._retry_at = time.monotonic() + RETRY_S
        base = next(model.id for model in self.models if model.parent is None)
        can = self.capabilities
        await self.selftest.examine(base, due, top=can.top_logprobs, images=can.images)
        self._report_tests(base, due)

    def _report_tests(self, base: str, names: list[str]) -> None:
        for name in names:
            found = self.selftest.adapters[name]
            self._metrics.examined(self._served[name], found.ok, found.divergence)
            level = logging.INFO if found.ok else logging.WARNING
            event("adapter_tested", level=level, adapter=name, **found.to_json())
        if (mixed := self.selftest.mixed) is not None:
            self._metrics.mixed(base, mixed.ok)
            if not mixed.ok:
                event("base_beside_adapters", level=logging.WARNING, problem=mixed.problem)

    def _can_test(self) -> bool:
        """Without log-probabilities there is nothing to compare."""
        return self._testing != "off" and bool(self.top_logprobs)

    def _adapters(self) -> list[str]:
        return [model.id for model in self.models if model.parent is not None]

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
        before, self._served = self._served, self._label_values(models)
        self._metrics.gone(set(before.values()) - set(self._served.values()))
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
