"""The live self-test: an adapter must change the engine's answers, and must leave the base's as they are.

    the base alone, three times → each adapter alone → base and adapters at once

The requests are fixed and small, two tokens each. Log-probabilities at the first content position are
compared. The test finds two faults of vLLM that no error shows: it loads an adapter whose names fit nothing
and answers as the base; and its CPU runner may compute base requests with an adapter if both meet in a batch.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from modint_guard.chat.reply import reply_of
from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.judging.divergence import js_lower_bound
from modint_guard.types import JSON, Complete
from modint_server.engine.questions import COLOUR, IN_WORDS, WHAT, about_a_picture

LEAST_SHIFT = 1e-6  # nats: below it two log-probabilities are the same (float32 and a reordered sum)
NOISE_MARGIN = 4.0  # an adapter's effect must be this many times the engine's difference from itself
REPEATS = 3  # of the base alone: the first round finds an empty prefix cache, the others a full one
AT_ONCE = 8  # base requests, with as many of adapters: together one batch of vLLM's CPU runner
RETRY_S = 30.0  # after this time an adapter whose requests failed is tested again

Top = Mapping[str, float]  # token -> natural log-probability


@dataclass(frozen=True)
class SelfTestResult:
    """The result of one adapter, or of the mixed batch; `problem` is None if it passed."""

    divergence: float | None = None  # largest Jensen-Shannon divergence, base 2, from the base; None: unknown
    problem: str | None = None
    final: bool = True  # False: the engine refused the requests, so they are sent again later

    @property
    def ok(self) -> bool:
        return self.problem is None

    def to_json(self) -> JSON:
        return {"ok": self.ok, "selftest_divergence": self.divergence, "problem": self.problem}


@dataclass
class SelfTest:
    """The results so far, and the base's answers that adapters are compared with."""

    complete: Complete  # the engine
    timeout_s: float = 120.0  # for each request
    adapters: dict[str, SelfTestResult] = field(default_factory=dict)
    mixed: SelfTestResult | None = None  # None: not tested, as no adapter had an effect
    _base_alone: list[Top] = field(default_factory=list)  # one a request
    _adapter_alone: dict[str, list[Top]] = field(default_factory=dict)  # the same, by adapter
    _noise: float = 0.0  # nats

    def missing(self, adapters: Sequence[str]) -> list[str]:
        """The adapters without a final result."""
        return [name for name in adapters if (result := self.adapters.get(name)) is None or not result.final]

    def forget(self) -> None:
        """Drops every result: after an outage it may be another engine."""
        self.adapters.clear()
        self.mixed = None
        self._base_alone.clear()
        self._adapter_alone.clear()

    def keep(self, adapters: Sequence[str]) -> None:
        """Drops the results of all but `adapters`: a name that comes back may be another adapter."""
        for name in self.adapters.keys() - set(adapters):
            self.adapters.pop(name)
            self._adapter_alone.pop(name, None)

    async def examine(self, base: str, adapters: Sequence[str], *, top: int, images: bool) -> None:
        """Tests each of `adapters` alone, then base and adapters at once. Raises EndpointError.

        top: how many alternatives of a token to compare. images: whether to ask about a picture as well.
        All results change together, at the end.
        """
        bodies = requests(top, images)
        if not self._base_alone:
            await self._measure_base(base, bodies)
        results = {name: await self._test(name, bodies) for name in adapters}
        passed = [
            name
            for name, result in {**self.adapters, **results}.items()
            if result.ok and name in self._adapter_alone
        ]
        mixed = await self._mix_all(base, bodies, passed) if passed else None
        self.adapters.update(results)
        self.mixed = mixed

    async def _measure_base(self, base: str, bodies: Sequence[JSON]) -> None:
        rounds = [[await self._ask(base, body) for body in bodies] for _ in range(REPEATS)]
        self._noise = max(
            shift(first, again) for later in rounds[1:] for first, again in zip(rounds[0], later, strict=True)
        )
        self._base_alone = rounds[0]

    async def _test(self, name: str, bodies: Sequence[JSON]) -> SelfTestResult:
        try:
            answers = [await self._ask(name, body) for body in bodies]
        except EndpointError as exc:
            if exc.status is None:
                raise  # the engine is gone, not the adapter
            return SelfTestResult(problem=f"the engine answers {exc.status} to a request for it", final=False)
        self._adapter_alone[name] = answers
        pairs = list(zip(self._base_alone, answers, strict=True))
        divergence = max(js_lower_bound(base, adapter) for base, adapter in pairs)
        if max(shift(base, adapter) for base, adapter in pairs) > self._least():
            return SelfTestResult(divergence)
        return SelfTestResult(
            divergence,
            "it answers exactly as the base: the engine applies nothing of it "
            "(`modint-guard adapters doctor` says why)",
        )

    def _least(self) -> float:
        """The change of a log-probability, nats, that is more than noise."""
        return max(LEAST_SHIFT, NOISE_MARGIN * self._noise)

    async def _mix_all(self, base: str, bodies: Sequence[JSON], adapters: Sequence[str]) -> SelfTestResult:
        """The result of `_mix` for `AT_ONCE` adapters at a time, up to the first fault."""
        result = SelfTestResult()
        for first in range(0, len(adapters), AT_ONCE):
            result = await self._mix(base, bodies, adapters[first : first + AT_ONCE])
            if not result.ok:
                break
        return result

    async def _mix(self, base: str, bodies: Sequence[JSON], adapters: Sequence[str]) -> SelfTestResult:
        """Base requests at once with those of adapters: none may come back as an adapter's answer.

        The request is the one in which base and adapters differ most.
        """
        number = max(range(len(bodies)), key=lambda n: self._least_distance(n, adapters))
        models = [name for n in range(AT_ONCE) for name in (base, adapters[n % len(adapters)])]
        try:
            async with _one_task_group() as group:
                calls = [group.create_task(self._ask(model, bodies[number])) for model in models]
        except EndpointError as exc:
            if exc.status is None:
                raise
            problem = f"the engine answers {exc.status} when base and adapters are asked at once"
            return SelfTestResult(problem=problem, final=False)
        answers = [call.result() for model, call in zip(models, calls, strict=True) if model == base]
        return self._mixed_result(answers, number, adapters)

    def _mixed_result(self, answers: Sequence[Top], number: int, adapters: Sequence[str]) -> SelfTestResult:
        """The result of base answers to request `number`, given beside adapter traffic."""
        wrong = [answer for answer in answers if not self._is_of_base(answer, number, adapters)]
        divergence = max(
            (js_lower_bound(self._base_alone[number], answer) for answer in answers), default=0.0
        )
        if not wrong:
            return SelfTestResult(divergence)
        return SelfTestResult(
            divergence,
            f"{len(wrong)} of {len(answers)} base answers beside adapter traffic were an adapter's: start "
            "the engine with --max-loras of one more than its adapters",
        )

    def _least_distance(self, number: int, adapters: Sequence[str]) -> float:
        """How far the adapter that differs least is from the base in request `number`."""
        base = self._base_alone[number]
        return min(distance(base, self._adapter_alone[name][number]) for name in adapters)

    def _is_of_base(self, answer: Top, number: int, adapters: Sequence[str]) -> bool:
        """Whether an answer to request `number` is nearer to the base's than to every adapter's."""
        to_base = distance(answer, self._base_alone[number])
        return to_base <= min(distance(answer, self._adapter_alone[name][number]) for name in adapters)

    async def _ask(self, model: str, body: JSON) -> Top:
        """The log-probabilities at the first content position; empty if the answer has none."""
        try:
            async with asyncio.timeout(self.timeout_s):
                completion = await self.complete({**body, "model": model})
        except TimeoutError as exc:
            raise EndpointTimeout(
                f"the engine did not answer the self-test within {self.timeout_s:g} s"
            ) from exc
        return reply_of(completion).top or {}


def requests(top: int, images: bool) -> list[JSON]:
    """The bodies, without a model: two questions in words, and one about a picture if `images` is true."""
    contents: list[object] = [IN_WORDS, COLOUR, *([about_a_picture(WHAT)] if images else [])]
    common = {"max_tokens": 2, "temperature": 0, "logprobs": True, "top_logprobs": top}
    return [{"messages": [{"role": "user", "content": content}], **common} for content in contents]


def shift(one: Top, other: Top) -> float:
    """The largest change of a token's log-probability, nats; infinite if the lists share no token."""
    shared = one.keys() & other.keys()
    if not one and not other:
        return 0.0
    return max((abs(one[token] - other[token]) for token in shared), default=math.inf)


def distance(one: Top, other: Top) -> float:
    """Total variation, in [0, 1]: half the sum of changes of probabilities; an unlisted token counts as 0."""
    tokens = one.keys() | other.keys()
    return sum(abs(_p(one, token) - _p(other, token)) for token in tokens) / 2


def _p(top: Top, token: str) -> float:
    return math.exp(min(0.0, top[token])) if token in top else 0.0


@contextlib.asynccontextmanager
async def _one_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup out of which a failure comes as itself, so that callers can catch it by its type."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
