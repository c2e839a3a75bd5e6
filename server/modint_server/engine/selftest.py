"""The live self-test: an adapter must change the engine's answers, and the base's must stay what they are.

    the base alone, three times → each adapter alone → base and adapters at once

Fixed small requests, two tokens each; what is compared are log-probabilities at the first content position.
vLLM loads an adapter that fits nothing and answers as the base, and on its CPU runner rows without an adapter
may be computed with one where both meet in a batch. Either makes an adapter's figures mean nothing, silently.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from modint_guard.chat.images import neutral_image
from modint_guard.chat.reply import reply_of
from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.judging.divergence import js_lower_bound
from modint_guard.types import JSON, Complete

LEAST_SHIFT = 1e-6  # nats: below it two log-probabilities are the same (float32 and a reordered sum)
NOISE_MARGIN = 4.0  # an engine that differs from itself by x shows an adapter's effect above 4x only
REPEATS = 3  # of the base alone: the first finds an empty prefix cache, the others a full one
AT_ONCE = 8  # base requests, beside as many of adapters: together what vLLM's CPU runner batches by default
RETRY_S = 30.0  # for an adapter whose requests failed

Top = Mapping[str, float]  # token -> natural log-probability


@dataclass(frozen=True)
class Examined:
    """What the self-test found of one adapter; `problem` is None where it passed."""

    divergence: float | None = None  # the largest JS, base 2, of adapter against base; None: not measured
    problem: str | None = None
    final: bool = True  # False: the engine did not answer, so it is asked again later

    @property
    def ok(self) -> bool:
        return self.problem is None

    def to_json(self) -> JSON:
        return {"ok": self.ok, "selftest_divergence": self.divergence, "problem": self.problem}


@dataclass
class SelfTest:
    """The results so far. `complete` is the engine; an EndpointError means that it is gone."""

    complete: Complete
    timeout_s: float = 120.0
    adapters: dict[str, Examined] = field(default_factory=dict)
    mixed: Examined | None = None  # None: no adapter with an effect was there to mix with
    _alone: list[Top] = field(default_factory=list)
    _theirs: dict[str, list[Top]] = field(default_factory=dict)
    _noise: float = 0.0

    def missing(self, adapters: Sequence[str]) -> list[str]:
        """Those not examined yet, or to be asked again."""
        return [name for name in adapters if (known := self.adapters.get(name)) is None or not known.final]

    def forget(self) -> None:
        """After an outage it may be another engine."""
        self.adapters.clear()
        self.mixed = None
        self._alone.clear()
        self._theirs.clear()

    def keep(self, adapters: Sequence[str]) -> None:
        """Drops what is no longer served: a name that comes back may be another adapter."""
        for name in self.adapters.keys() - set(adapters):
            self.adapters.pop(name)
            self._theirs.pop(name, None)

    async def examine(self, base: str, adapters: Sequence[str], *, top: int, images: bool) -> None:
        """Examines the adapters named, then base and adapters at once; raises EndpointError.

        The results change together, at the end: what is half examined counts as not examined.
        """
        asked = requests(top, images)
        if not self._alone:
            await self._measure_base(base, asked)
        found = {name: await self._one(name, asked) for name in adapters}
        passed = [name for name, one in {**self.adapters, **found}.items() if one.ok and name in self._theirs]
        mixed = await self._mix(base, asked, passed) if passed else None
        self.adapters.update(found)
        self.mixed = mixed

    async def _measure_base(self, base: str, asked: Sequence[JSON]) -> None:
        rounds = [[await self._ask(base, body) for body in asked] for _ in range(REPEATS)]
        self._noise = max(
            shift(first, again) for later in rounds[1:] for first, again in zip(rounds[0], later, strict=True)
        )
        self._alone = rounds[0]

    async def _one(self, name: str, asked: Sequence[JSON]) -> Examined:
        try:
            theirs = [await self._ask(name, body) for body in asked]
        except EndpointError as exc:
            if exc.status is None:
                raise  # the engine is gone, not the adapter
            return Examined(problem=f"the engine answers {exc.status} to a request for it", final=False)
        self._theirs[name] = theirs
        moved = max(shift(ours, other) for ours, other in zip(self._alone, theirs, strict=True))
        divergence = max(js_lower_bound(ours, other) for ours, other in zip(self._alone, theirs, strict=True))
        if moved > self._least():
            return Examined(divergence)
        return Examined(
            divergence,
            "it answers exactly as the base: the engine applies nothing of it "
            "(`modint-guard adapters doctor` says why)",
        )

    def _least(self) -> float:
        return max(LEAST_SHIFT, NOISE_MARGIN * self._noise)

    async def _mix(self, base: str, asked: Sequence[JSON], telling: Sequence[str]) -> Examined:
        """Base requests beside those of adapters: none may come back as an adapter's answer."""
        place = max(range(len(asked)), key=lambda at: self._telling(at, telling))
        beside = [telling[number % len(telling)] for number in range(max(AT_ONCE, len(telling)))]
        models = [name for pair in zip_longest([base] * AT_ONCE, beside) for name in pair if name is not None]
        try:
            async with _one_task_group() as group:
                calls = [group.create_task(self._ask(model, asked[place])) for model in models]
        except EndpointError as exc:
            if exc.status is None:
                raise
            said = f"the engine answers {exc.status} when base and adapters are asked at once"
            return Examined(problem=said, final=False)
        own = [call.result() for model, call in zip(models, calls, strict=True) if model == base]
        return self._judged(own, place, telling)

    def _judged(self, own: Sequence[Top], place: int, adapters: Sequence[str]) -> Examined:
        wrong = [found for found in own if not self._is_own(found, place, adapters)]
        divergence = max((js_lower_bound(self._alone[place], found) for found in own), default=0.0)
        if not wrong:
            return Examined(divergence)
        return Examined(
            divergence,
            f"{len(wrong)} of {len(own)} base answers beside adapter traffic were an adapter's: start the "
            "engine with --max-loras of one more than its adapters",
        )

    def _telling(self, place: int, adapters: Sequence[str]) -> float:
        """How far the least different adapter is from the base in one request."""
        return min(distance(self._alone[place], self._theirs[name][place]) for name in adapters)

    def _is_own(self, found: Top, place: int, adapters: Sequence[str]) -> bool:
        """Whether a base answer is nearer to the base alone than to every adapter."""
        own = distance(found, self._alone[place])
        return own <= min(distance(found, self._theirs[name][place]) for name in adapters)

    async def _ask(self, model: str, body: JSON) -> Top:
        try:
            async with asyncio.timeout(self.timeout_s):
                completion = await self.complete({**body, "model": model})
        except TimeoutError as exc:
            raise EndpointTimeout(
                f"the engine did not answer the self-test within {self.timeout_s:g} s"
            ) from exc
        return reply_of(completion).top or {}


def requests(top: int, images: bool) -> list[JSON]:
    """What is asked: two questions in words, and one about a picture where the engine takes them."""
    picture = {"type": "image_url", "image_url": {"url": neutral_image((64, 64))}}
    contents: list[object] = ["What is two and two?", "Name a colour."]
    if images:
        contents.append([picture, {"type": "text", "text": "What is this?"}])
    common = {"max_tokens": 2, "temperature": 0, "logprobs": True, "top_logprobs": top}
    return [{"messages": [{"role": "user", "content": content}], **common} for content in contents]


def shift(one: Top, other: Top) -> float:
    """The largest change of a token's log-probability, nats; infinite where the lists share no token."""
    shared = one.keys() & other.keys()
    if not one and not other:
        return 0.0
    return max((abs(one[token] - other[token]) for token in shared), default=math.inf)


def distance(one: Top, other: Top) -> float:
    """Half the summed change of the listed tokens' probabilities, in [0, 1]; an unlisted one counts as 0."""
    tokens = one.keys() | other.keys()
    return sum(abs(_p(one, token) - _p(other, token)) for token in tokens) / 2


def _p(top: Top, token: str) -> float:
    return math.exp(top[token]) if token in top else 0.0


@contextlib.asynccontextmanager
async def _one_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup out of which a failure comes as itself, so that callers can catch it by its type."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
