"""Measures the nulls in the background: packaged items after attaching, and inputs planted into requests.

One call at a time, and none while the gateway is busy: no client waits for it. What fails is tried again or
left out, and costs no answer.
"""

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from modint_guard.errors import EndpointError, RequestError
from modint_guard.evaluation.null_measure import checkup_null, examined, is_flagged, said_something_else
from modint_guard.evaluation.planting import Planted, harmless, lying
from modint_guard.guard import Guard
from modint_guard.judging.null import CHECKUP, Null, NullScore, with_lie, with_score
from modint_guard.probing.views import full_body
from modint_guard.report import Report
from modint_guard.types import JSON, Plan, Relevant, Reply, State
from modint_server.boundary import boundary
from modint_server.engine.attachment import Attachment
from modint_server.engine.capabilities import Capabilities
from modint_server.engine.nulls import Nulls, origin_of
from modint_server.engine.upstream import Upstream
from modint_server.logs import event
from modint_server.metrics import Metrics

WAITING = 8  # requests that wait to have something planted into them; more are left out
PAUSE_S = 0.2  # between two looks at whether there is something to do, or whether the gateway is still busy
RETRY_S = 60.0  # after packaged items that the engine failed
QUIET_S = 2.0  # without a request, before the engine is asked
PATIENCE_S = 60.0  # from the attaching on; later it is asked without that


@dataclass(frozen=True)
class Task:
    """A judged request that something is to be planted into. alone: what the model says if what ought to
    decide is asked alone.
    """

    plan: Plan
    alone: str
    key_digest: str
    lies: bool


class Measuring:
    """Keeps the nulls up to date. every: one judged request in so many, for each key and model; 0: none.
    checkup: whether packaged items are asked. is_busy: whether clients need the engine. idle_s: for how many
    seconds no client has asked anything.
    """

    def __init__(
        self,
        guard: Guard,
        nulls: Nulls,
        attachment: Attachment,
        upstream: Upstream,
        metrics: Metrics,
        *,
        every: int,
        checkup: bool,
        is_busy: Callable[[], bool],
        idle_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.nulls = nulls
        self._guard = guard
        self._attachment = attachment
        self._upstream = upstream
        self._metrics = metrics
        self._every = every
        self._checkup = checkup
        self._is_busy = is_busy
        self._idle_s = idle_s
        self._engine: tuple[Capabilities | None, float] | None = None  # and since when it is known
        self._seen: Counter[tuple[str, str]] = Counter()
        self._asked: dict[
            str, Capabilities
        ] = {}  # by model, the engine that its packaged items were asked of
        self._shown: dict[str, Null] = {}
        self._failed_at: dict[str, float] = {}
        self._tasks: asyncio.Queue[Task] = asyncio.Queue(WAITING)

    def offer(self, key_digest: str, plan: Plan, answer: Reply, report: Report) -> None:
        """Takes a judged request for planting, if it is its turn and something can be planted into it."""
        model = str(plan.body.get("model"))
        alone = _alone(plan, answer, report)
        if not self._every or alone is None or not self.nulls.of(model).origins[CHECKUP]:
            return
        self._seen[key_digest, model] += 1
        turn, remainder = divmod(self._seen[key_digest, model], self._every)
        if remainder == 0 and not self._tasks.full():
            self._tasks.put_nowait(Task(plan, alone, key_digest, lies=turn % 2 == 0))

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            with boundary(self._metrics, "measuring"):
                await self.step()
            await asyncio.sleep(PAUSE_S)

    async def step(self) -> None:
        """The packaged items of one model, and what waits to be planted."""
        self._show()
        if self._checkup and (model := self._to_check()) is not None:
            await self._ask_checkup(model)
        while not self._tasks.empty():
            await self._plant(self._tasks.get_nowait())

    def _show(self) -> None:
        """Sets the metrics of nulls that are new, a restored one among them."""
        for model, null in self.nulls.items():
            served = self._attachment.label_of(model)
            if served is not None and self._shown.get(model) is not null:
                self._metrics.null(served, null)
                self._shown[model] = null

    def _to_check(self) -> str | None:
        """A model whose packaged items are to be asked: of each engine anew, which may be another one."""
        able = self._attachment.capabilities
        if not self._attachment.ready or able is None or not (able.top_logprobs and able.images):
            return None
        if not self._is_quiet():
            return None
        now = asyncio.get_running_loop().time()
        return next(
            (
                model.id
                for model in self._attachment.models
                if self._asked.get(model.id) is not able
                and now - self._failed_at.get(model.id, -RETRY_S) >= RETRY_S
                and self._attachment.usable(model.id)
                and model.id not in self._guard.judge.calibrations
            ),
            None,
        )

    def _is_quiet(self) -> bool:
        """Whether no client has asked anything for QUIET_S, or the engine has been known for PATIENCE_S:
        those who come first are not to find it at work on packaged items.
        """
        able, now = self._attachment.capabilities, asyncio.get_running_loop().time()
        if self._engine is None or self._engine[0] is not able:
            self._engine = (able, now)
        known_s = now - self._engine[1]
        return min(known_s, self._idle_s()) >= QUIET_S or known_s >= PATIENCE_S

    async def _ask_checkup(self, model: str) -> None:
        able = self._attachment.capabilities
        assert able is not None
        try:
            null = await checkup_null(
                self.nulls.of(model),
                self._guard,
                self._complete,
                model,
                max_top_logprobs=self._attachment.top_logprobs,
                forcing=self._attachment.teacher_forcing,
                last_rows=self._attachment.last_rows,
                concurrency=1,
            )
        except EndpointError as exc:
            self._failed_at[model] = asyncio.get_running_loop().time()
            event("null_not_measured", level=logging.WARNING, model=model, problem=str(exc))
            return
        self._asked[model] = able
        await self._put(model, null)
        event("null_measured", model=model, n=len(null.scores), power=null.power, sure=null.sure)

    async def _plant(self, task: Task) -> None:
        """One harmless input, and now and then a lie, in a request of a client."""
        model, rng = str(task.plan.body["model"]), random.Random()
        plant = lying if task.lies else harmless
        # Pictures are drawn and hashed: off the loop.
        planted = await asyncio.to_thread(plant, task.plan.chat, task.plan.relevant, task.alone, rng)
        if planted is None:
            return
        try:
            found = await self._examined(planted, task.plan.relevant)
        except (EndpointError, RequestError) as exc:
            event("null_not_measured", level=logging.WARNING, model=model, problem=str(exc))
            return
        if found is None or found[1].statistic is None:
            return
        reply, report = found
        null = self.nulls.of(model)
        if not task.lies:
            statistic = report.statistic
            assert statistic is not None
            source = await asyncio.to_thread(_source, task.plan)
            score = NullScore(statistic.value, statistic.length, origin_of(task.key_digest), source)
            await self._put(model, with_score(null, score))
        elif said_something_else(reply.text, task.alone):
            await self._put(model, with_lie(null, flagged=is_flagged(report, null, self._guard)))

    async def _examined(self, planted: Planted, relevant: Relevant) -> tuple[Reply, Report] | None:
        return await examined(
            self._guard,
            self._complete,
            full_body(planted.body),
            relevant,
            planted.context,
            max_top_logprobs=self._attachment.top_logprobs,
            forcing=self._attachment.teacher_forcing,
            last_rows=self._attachment.last_rows,
        )

    async def _put(self, model: str, null: Null) -> None:
        self.nulls.put(model, null)
        self._show()
        await asyncio.to_thread(self.nulls.save)

    async def _complete(self, body: JSON) -> JSON:
        """A call of the engine, once no client needs it."""
        while self._is_busy() or not self._is_quiet():  # noqa: ASYNC110 - nothing tells when no client needs it
            await asyncio.sleep(PAUSE_S)
        return await self._upstream.complete(body)


def _alone(plan: Plan, answer: Reply, report: Report) -> str | None:
    """What the model says if what ought to decide is asked alone; None if nothing can be planted."""
    is_text = not answer.reasoning and not answer.calls
    is_judged = report.verdict.state in (State.PASS, State.FLAGGED) and is_text
    if not is_judged or plan.relevant not in (Relevant.IMAGE, Relevant.TEXT):
        return None
    if plan.relevant is Relevant.TEXT:
        return report.text_only or ""
    return (report.image_only if plan.chat.context is not None else answer.text) or ""


def _source(plan: Plan) -> str:
    """A digest of a request's pictures and question: the same ones asked again are one source."""
    urls = [image.url for image in plan.chat.images]
    return sha256("\x1f".join([*urls, plan.chat.question]).encode(errors="replace")).hexdigest()[:16]
