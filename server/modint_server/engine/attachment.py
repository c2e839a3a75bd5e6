"""What the gateway knows of its engine: whether it is up and why not, its models, what these can do."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

from modint_guard.errors import ConfigError, EndpointError, EndpointTimeout, RequestError
from modint_guard.judging.calibration import Calibration, check_for
from modint_guard.types import CELLS, JSON
from modint_server.adapters.folders import PART_NAMES, TAKES_OVER
from modint_server.boundary import boundary
from modint_server.engine.capabilities import (
    PROBE_PRIORITY,
    Capabilities,
    Model,
    check_capabilities,
    models_of,
)
from modint_server.engine.selftest import RETRY_S, SelfTest
from modint_server.engine.upstream import Upstream
from modint_server.errors import of_endpoint, unavailable
from modint_server.logs import event
from modint_server.metrics import NOBODY, NONE, OTHER, Metrics, Served

REFRESH_TIMEOUT_S = 2.0  # that a client with an unknown name waits for the engine's list
REFRESH_S = 1.0  # at most this often is the engine asked for its models because of an unknown name
Testing = Literal["require", "report", "off"]  # what follows if an adapter fails the self-test


class Attachment:
    """Watches one engine. Questions are answered from memory; only an unknown model name asks the engine.

    poll_s: between two looks at the engine. poll_timeout_s: for its list of models; later, it hangs.
    max_adapters: label values for adapters in the metrics.
    testing: "require" refuses requests to an adapter that failed the self-test, "report" only says so.
    forcing_beside_adapters: whether an engine with adapters may be asked to score a given answer.
    """

    def __init__(
        self,
        upstream: Upstream,
        metrics: Metrics,
        *,
        poll_s: float,
        poll_timeout_s: float = 10.0,
        capability_timeout_s: float,
        max_adapters: int,
        calibrations: Mapping[Path, Calibration] | None = None,
        testing: Testing = "off",
        forcing_beside_adapters: bool = False,
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
        self._poll_timeout_s = poll_timeout_s
        self._forcing_beside_adapters = forcing_beside_adapters
        self._retry_at = self._halted_until = float("-inf")
        self._served: dict[str, Served] = {}
        self._refreshed = float("-inf")
        self._begun = asyncio.Event()
        self._begun.set()

    @property
    def ready(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why requests should go to another gateway; empty if this one is ready."""
        if self.problem is not None:
            return [self.problem]
        return self.adapter_problems if self._testing == "require" else []

    @property
    def adapter_problems(self) -> list[str]:
        """A sentence for each adapter with a name that vLLM misreads, or that failed the self-test, or is
        still to be tested.
        """
        named = [
            f"adapter {name!r}: {TAKES_OVER}: serve it under another name"
            for name in self._adapters()
            if name in PART_NAMES
        ]
        return [*named, *self._untested()]

    def _untested(self) -> list[str]:
        if not self._can_test():
            return []
        untested = [name for name in self._adapters() if name not in self.selftest.adapters]
        problems = [f"adapter {name!r} is being tested" for name in untested]
        results = self.selftest.adapters.items()
        problems += [f"adapter {name!r}: {result.problem}" for name, result in results if not result.ok]
        mixed = self.selftest.mixed
        return [*problems, *([mixed.problem] if mixed is not None and mixed.problem else [])]

    @property
    def top_logprobs(self) -> int | None:
        """The most alternatives of a token that the engine lists; None before it was asked."""
        return self.capabilities.top_logprobs if self.capabilities else None

    @property
    def probe_options(self) -> JSON:
        """Fields of every probe call: behind clients' requests, where the engine takes priorities."""
        known = self.capabilities is not None and self.capabilities.priority
        return {"priority": PROBE_PRIORITY} if known else {}

    @property
    def teacher_forcing(self) -> bool:
        """Whether the engine showed that it can score an answer given to it."""
        return self.capabilities is not None and self.capabilities.teacher_forcing

    @property
    def last_rows(self) -> bool:
        """Whether the engine showed that it can be asked to score the end of a prompt alone."""
        return self.capabilities is not None and self.capabilities.last_rows

    def hold(self, problem: str) -> None:
        """Not ready, because of `problem`; the engine is not called before `begin`."""
        self.problem = problem
        self._begun.clear()

    def begin(self) -> None:
        """Starts to watch an engine that was held."""
        self._begun.set()

    async def watch(self) -> None:
        """Looks at the engine, and tests its adapters, every `poll_s` seconds until cancelled.

        Both go on by themselves: a test that takes long does not hide that the engine is gone.
        """
        await self._begun.wait()
        async with asyncio.TaskGroup() as tasks:
            for step in (self._poll, self._test_adapters):
                tasks.create_task(self._repeat(step))

    async def look(self) -> None:
        """Asks the engine for its models, and after an outage what it can do; tests adapters that are new."""
        await self._once(self._poll)
        await self._once(self._test_adapters)

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._once(step)
            await asyncio.sleep(self._poll_s)

    async def _once(self, step: Callable[[], Awaitable[None]]) -> None:
        """One look or test. A fault of ours in it is logged and counted, and the next one follows."""
        with boundary(self._metrics, "watching"):
            try:
                await step()
            except EndpointError as exc:
                self._lost(exc)
            except ConfigError as exc:
                self._unsuitable(str(exc))

    async def _poll(self) -> None:
        if self.problem is None:
            self._know(await self._listed(self._poll_timeout_s))
        else:
            await self._attach()

    async def _listed(self, timeout_s: float) -> tuple[Model, ...]:
        """The engine's models. Raises EndpointError, also if the list does not come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return models_of(await self._upstream.models())
        except TimeoutError as exc:
            raise EndpointTimeout(f"the engine did not list its models within {timeout_s:g} s") from exc

    def only_base(self) -> str:
        """The model of a request that names none. Raises RequestError: 400 if several bases are served, 503
        while not ready.
        """
        if not self.models:
            raise unavailable("the engine is not ready yet: see /readyz", "not_ready")
        bases = [model.id for model in self.models if model.parent is None]
        if len(bases) != 1:
            raise RequestError(
                "model must name one of the served models: see /v1/models",
                param="model",
                code="invalid_model",
            )
        return bases[0]

    async def served(self, name: str) -> Served:
        """The label values of a model. Raises RequestError: 404 for an unknown name, 503 while not ready."""
        due = self._begun.is_set() and time.monotonic() - self._refreshed > REFRESH_S
        if name not in self._served and due:
            await self._refresh()
        if (served := self._served.get(name)) is not None:
            self._check_tested(name)
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

    def label_of(self, name: str) -> Served | None:
        """The label values of a model; None if it is not served."""
        return self._served.get(name)

    def usable(self, name: str) -> bool:
        """Whether a model is served and did not fail the self-test (then its answers would be the base's)."""
        result = self.selftest.adapters.get(name)
        return name in self._served and (result is None or result.ok)

    @asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[Served]:
        """As `served`; counts one more request in flight for the model inside the block."""
        served = await self.served(name)
        with self._metrics.in_flight.labels(served.model).track_inprogress():
            yield served

    @contextmanager
    def queueing(self, name: str) -> Iterator[None]:
        """Counts one more call that waits for a slot inside the block."""
        with self._metrics.queue.labels(self._served.get(name, NOBODY).model).track_inprogress():
            yield

    def _check_tested(self, name: str) -> None:
        """Raises RequestError 503 for an adapter that failed: its answers would be the base's."""
        result = self.selftest.adapters.get(name)
        if self._testing == "require" and result is not None and not result.ok:
            raise unavailable(f"adapter {name!r}: {result.problem}", "not_ready")

    async def _attach(self) -> None:
        self._check_calibrations(await self._listed(self._poll_timeout_s))
        self.selftest.forget()
        capabilities = await check_capabilities(
            self._upstream,
            forcing_beside_adapters=self._forcing_beside_adapters,
            timeout_s=self._capability_timeout_s,
        )
        self._know(capabilities.models)
        self.capabilities, self.problem = capabilities, None
        self._metrics.upstream_is(True)
        event("attached", **capabilities.to_json(), problems=list(capabilities.problems))

    def _check_calibrations(self, models: tuple[Model, ...]) -> None:
        """Raises ConfigError if a calibration was made for a model that is not served."""
        served = {model.id: model.parent for model in models}
        for path, calibration in self._calibrations.items():
            check_for(calibration, path, models=served, probes=CELLS)

    async def _test_adapters(self) -> None:
        """Tests new adapters, and from time to time those that could not be tested.

        Raises EndpointError if the engine fails and adapters have to be tested.
        """
        if self.problem is not None or time.monotonic() < self._halted_until:
            return
        names = self._adapters()
        self.selftest.keep(names)
        due = self.selftest.missing(names)
        if time.monotonic() < self._retry_at:
            due = [name for name in due if name not in self.selftest.adapters]
        if not due or not self._can_test() or self.capabilities is None:
            return
        self._retry_at = time.monotonic() + RETRY_S
        base = next(model.id for model in self.models if model.parent is None)
        capabilities = self.capabilities
        try:
            await self.selftest.examine(base, due, top=capabilities.top_logprobs, images=capabilities.images)
        except EndpointError as exc:
            if self._testing == "require":
                raise
            self._halted_until = time.monotonic() + RETRY_S
            event("adapters_not_tested", level=logging.WARNING, problem=str(exc))
            return
        if self.capabilities is capabilities:
            self._report_tests(base, due)
        else:
            self.selftest.forget()  # meanwhile it has become another engine

    def _report_tests(self, base: str, names: list[str]) -> None:
        for name in self._served.keys() & set(names):  # others were unloaded during the test
            result = self.selftest.adapters[name]
            self._metrics.examined(self._served[name], result.ok, result.divergence)
            level = logging.INFO if result.ok else logging.WARNING
            event("adapter_tested", level=level, adapter=name, **result.to_json())
        if (mixed := self.selftest.mixed) is not None:
            self._metrics.mixed(base, mixed.ok)
            if not mixed.ok:
                event("base_beside_adapters", level=logging.WARNING, problem=mixed.problem)

    def _can_test(self) -> bool:
        """Whether adapters are tested: not without log-probabilities, which the test compares."""
        return self._testing != "off" and bool(self.top_logprobs)

    def _adapters(self) -> list[str]:
        return [model.id for model in self.models if model.parent is not None]

    async def _refresh(self) -> None:
        self._refreshed = time.monotonic()
        try:
            self._know(await self._listed(min(REFRESH_TIMEOUT_S, self._poll_timeout_s)))
        except EndpointError as exc:
            event("models_unknown", problem=str(exc))

    def _know(self, models: tuple[Model, ...]) -> None:
        """Takes over the engine's list of models, and prepares their metrics."""
        if models == self.models:
            return
        self.models = models
        before, self._served = self._served, self._label_values(models)
        self._metrics.gone(set(before.values()) - set(self._served.values()))
        self._metrics.know(self._served.values())

    def _label_values(self, models: tuple[Model, ...]) -> dict[str, Served]:
        """A label value for each base and for the first `max_adapters` adapters; the rest share one."""
        served = {model.id: Served(model.id) for model in models if model.parent is None}
        adapters = [model for model in models if model.parent is not None]
        for number, model in enumerate(adapters):
            has_label = number < self._max_adapters and model.id not in (NONE, OTHER)
            served[model.id] = Served(model.parent or model.id, model.id if has_label else OTHER)
            if not has_label:
                self._metrics.overflow.labels("adapter").inc()
        return served

    def _unsuitable(self, problem: str) -> None:
        """The engine answers, but a setting of this gateway does not fit its models: not ready, and why."""
        if problem != self.problem:
            event("not_ready", problem=problem)
        self.problem = problem

    def _lost(self, exc: EndpointError) -> None:
        """The engine does not answer: not ready, and why."""
        problem = of_endpoint(exc).message if exc.status else str(exc)
        if problem != self.problem:
            event("engine_not_ready", problem=problem)
        self.problem = problem
        self._metrics.upstream_is(False)
