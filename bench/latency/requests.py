"""What is asked: questions of a world with something beside them, in three arms that differ in the guard.

off    the guard is switched off for the request (`modint.mode`)
on     every request is judged
tenth  the gateway draws which one is judged, one in ten (`MODINT_SAMPLE=0.1`)

Of the answers every other one is streamed, so that both kinds meet the same engine. No item comes twice:
neither arm profits from what a cache has of the other.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bench.detection.inputs import LYING, NEEDED, NEUTRAL, NOTHING, TRUE, World, cases
from bench.spans.lengths import of_length
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.runner import request_for
from modint_guard.models import BASE
from modint_guard.types import JSON

MODELS: dict[World, str] = {"tinyworld": BASE, "picturebook": "picturebook-base"}
KINDS = (LYING, TRUE, NEEDED, NEUTRAL)  # all are judged
OFF, ON, TENTH = ARMS = ("off", "on", "tenth")
SHARES = {ON: 1.0, TENTH: 0.1}  # of the requests that are judged
_MODE: dict[str, JSON] = {OFF: {"mode": "off"}, ON: {"mode": "on"}, TENTH: {}}
_DRAWN = (6, 13)  # of twenty requests: a whole answer and a streamed one


@dataclass(frozen=True)
class Request:
    """A chat body, and the trace context that is sent with it, by which the gateway draws requests."""

    body: JSON
    headers: dict[str, str]

    @property
    def streamed(self) -> bool:
        """Whether the answer comes as a stream."""
        return bool(self.body.get("stream"))


def request_pool(world: World, seed: int) -> Iterator[JSON]:
    """Chat bodies without end, no item twice, with kinds and settings mixed. They say what is relevant, so
    that every one can be judged.
    """
    for pool_seed in itertools.count(seed):
        drawn = cases("test", 24, pool_seed, world)
        shuffled = [case for case in drawn if case.held_out == NOTHING and case.kind in KINDS]
        seeded("latency", pool_seed).shuffle(shuffled)
        for case in shuffled:
            yield request_for(case.item, MODELS[world], modint={"relevant": case.relevant})


def drawn(pool: Iterator[JSON], count: int, tokens: int, arm: str, first: int = 0) -> list[Request]:
    """The next `count` requests for answers of so many tokens, every other one streamed. first: the number of
    the first; a number has one fate in every arm.
    """
    numbered = enumerate(itertools.islice(pool, count), first)
    return [_request(body, number, tokens, arm) for number, body in numbered]


def _request(body: JSON, number: int, tokens: int, arm: str) -> Request:
    stream: JSON = {"stream": True} if number % 2 else {}
    # A share of the traffic is drawn by the last 56 bits of a trace's id; here exactly a tenth is.
    bits = ("f" if number % 20 in _DRAWN else "0") * 14
    trace = f"00-{1:018x}{bits}-{number + 1:016x}-00"
    return Request(
        {**body, **of_length(tokens), **stream, "modint": {**body["modint"], **_MODE[arm]}},
        {"traceparent": trace},
    )
