"""One item under every policy and control: each distinct call is asked once, and all judge the same replies.

Controls, as arXiv 2504.10020 asks for them: `greedy`; `constant_bias` (a constant for each label, fitted on
validation, added to its log-probability); `plausibility_only` (a draw among the answers of at least a tenth
of the best one's probability, without any contrast); `always_neutralise` and `always_escalate`, whatever the
verdict.
"""

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from modint_guard.chat.reply import reply_of
from modint_guard.config import GuardConfig
from modint_guard.data.item import Item, is_right, reply_for
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.runner import request_for
from modint_guard.examination import mitigate, probe
from modint_guard.guard import Guard
from modint_guard.judging.calibration import CALIBRATION, read_calibration
from modint_guard.judging.divergence import option_distribution, word_distribution
from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.mitigation.ladder import Meter
from modint_guard.mitigation.policy import Form, Policy
from modint_guard.mitigation.rungs import form_of, has_ended
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.probing.views import full_body
from modint_guard.types import (
    ANNOTATE,
    JSON,
    RUNGS,
    Complete,
    Plan,
    Replies,
    Reply,
    Report,
    RungOutcome,
    State,
)

PLAUSIBLE = 0.1  # of the best answer's probability
PATIENT: dict[str, Any] = {
    "max_tokens": 10_000_000,
    "deadline_s": 600.0,
}  # the table compares answers, not deadlines
CONTROLS = ("greedy", "constant_bias", "plausibility_only", "always_neutralise", "always_escalate")
_SETTLING = (RungOutcome.MENDED, RungOutcome.CONFIRMED, RungOutcome.ABSTAINED)


class Recorded:
    """A `Complete` that asks each body once and keeps the completion in a JSONL file, and as text in memory:
    tens of thousands of them are ten times as large as objects.
    """

    def __init__(self, complete: Complete, path: Path) -> None:
        self._complete, self._path = complete, path
        self._known = dict(_lines(path))
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, body: JSON) -> JSON:
        key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        async with self._locks[key]:
            if key not in self._known:
                completion = await self._complete(body)
                line = {"key": key, "model": body.get("model"), "completion": completion}
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                self._known[key] = json.dumps(completion)
        known: JSON = json.loads(self._known[key])
        return known


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """What an earlier run kept; a last line that was cut short is left out."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    whole = path.read_text("utf-8").rpartition("\n")[0]
    path.write_text(whole + "\n" if whole else "", "utf-8")
    for line in whole.splitlines():
        held = json.loads(line)
        yield held["key"], json.dumps(held["completion"])


@dataclass(frozen=True)
class Outcome:
    """What one policy served for one item. `tokens` are those of all calls, prompts included; `settled` says
    whether its one rung ended there.
    """

    text: str
    right: bool
    abstained: bool
    tokens: int
    main_tokens: int
    settled: bool = False


@dataclass(frozen=True)
class Asked:
    """One item and what each policy served; `report` is the guard's on the greedy answer, under a policy that
    mends, or with every cell where `policies` were asked so.
    """

    item: Item
    reply: Reply
    report: Report
    form: Form | None
    served: Mapping[str, Outcome]

    @property
    def flagged(self) -> bool:
        """Whether the greedy answer was flagged."""
        return self.report.verdict.state is State.FLAGGED


def judging() -> Guard:
    """The guard as it is served: with the bundled calibrations, where there are any."""
    files = (bundled(name) / CALIBRATION for name in (BASE, ADAPTER))
    calibrations = [read_calibration(file) for file in files if file.is_file()]
    return Guard(GuardConfig(deadline_s=60.0), calibrations=calibrations)


def shipped() -> dict[str, Policy]:
    """Every rung alone, the ladder, and the ladder that ends in abstaining, as they ship but for the limits
    of tokens and time."""
    named = {name: Policy(name, **PATIENT) for name in (*RUNGS, "ladder")}
    return {
        **named,
        "ladder_abstain": Policy("ladder", otherwise="abstain", **PATIENT),
        "ladder_trusting": Policy("ladder", trust_guess=True, **PATIENT),  # of what nobody named
    }


async def ask_item(
    item: Item,
    relevant: str,
    model: str,
    complete: Complete,
    policies: Mapping[str, Policy],
    guard: Guard,
    *,
    bias: Mapping[str, float] | None = None,
    whole: bool = False,
) -> Asked:
    """One item under annotate, every policy and control.

    whole: the policies see every cell, also those that their early stop would save.
    """
    body = request_for(item, model, modint={"relevant": relevant})
    noted, meter = guard.plan(body), Meter(complete)
    plan = noted if whole else mending(guard).plan(body)
    reply = await greedy(noted, meter)
    main = meter.tokens
    cells, spent = await _probed(guard, noted, reply, complete, whole=whole)
    served = {ANNOTATE: _outcome(item, reply.text, main + spent, main)}
    replies, spent = await _probed(guard, plan, reply, complete, whole=whole)
    report = guard.judge.report(plan, reply, replies)
    for name, policy in policies.items():
        meter = Meter(complete)
        found = await mitigate(plan, guard.judge, reply, replies, report, meter, policy=policy)
        served[name] = _mended(item, reply, found, main + spent + meter.tokens, main)
    for name in CONTROLS:
        meter = Meter(complete)
        said = await control(name, item, noted, reply, cells, meter, bias or {})
        served[name] = _outcome(item, said, meter.tokens or main, main)
    return Asked(item, reply, report, form_of(reply, noted.chat), served)


async def greedy(plan: Plan, complete: Complete, model: str | None = None) -> Reply:
    """The answer to a request, with all that is listed beside it; of another model where one is named."""
    listed = {"logprobs": True, "top_logprobs": plan.schedule.top_logprobs}
    return reply_of(await complete({**plan.body, **listed, **({"model": model} if model else {})}))


def mending(guard: Guard) -> Guard:
    """The same guard under a policy that mends, whose plans ask as few cells as they need."""
    return Guard(
        replace(guard.config, policies=(Policy("ladder"),)), calibrations=guard.judge.calibrations.values()
    )


async def _probed(
    guard: Guard, plan: Plan, reply: Reply, complete: Complete, *, whole: bool
) -> tuple[Replies, int]:
    """The cells that a plan asks of this answer, or all it has, and their tokens."""
    answered: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
    answered.set_result(reply)
    meter = Meter(complete)
    replies = await probe(plan, guard.judge, meter, future_answer=None if whole else answered)
    return replies, meter.tokens


def _outcome(item: Item, text: str, tokens: int, main: int) -> Outcome:
    return Outcome(text, is_right(item, text), False, tokens, main)


def _mended(item: Item, reply: Reply, report: Report, tokens: int, main: int) -> Outcome:
    found = report.mitigation
    text = found.answer if found and found.answer is not None else reply.text
    abstained = found is not None and found.finish_reason == "content_filter"
    settled = found is not None and bool(found.rungs) and found.rungs[-1].outcome in _SETTLING
    return Outcome(text, not abstained and is_right(item, text), abstained, tokens, main, settled)


async def control(
    name: str,
    item: Item,
    plan: Plan,
    reply: Reply,
    cells: Replies,
    complete: Complete,
    bias: Mapping[str, float],
) -> str:
    """What a control answers."""
    if name == "constant_bias":
        return with_constant(item, reply, bias)
    if name == "plausibility_only":
        return plausible(item, reply)
    if name == "always_escalate":
        return (await greedy(plan, complete, ADAPTER)).text
    body = None if name == "greedy" else neutral_body(plan)
    if body is None:
        return reply.text
    cell = cells.get(WITHOUT_IRRELEVANT[plan.relevant])
    if isinstance(cell, Reply) and has_ended(cell):
        return cell.text  # greedy as well, and at its end
    return reply_of(await complete(body)).text


def neutral_body(plan: Plan) -> JSON | None:
    """The request without the irrelevant modality; None where there is none."""
    name = WITHOUT_IRRELEVANT.get(plan.relevant)
    view = next((view for view in plan.views if view.name == name), None)
    return None if view is None else {**full_body(plan.body), "messages": view.body["messages"]}


def with_constant(item: Item, reply: Reply, bias: Mapping[str, float]) -> str:
    """argmax over the item's answers of log p + the label's constant; the reply's own where they are not all
    listed.
    """
    known = over_answers(item, reply)
    if known is None:
        return reply.text
    return max(known, key=lambda label: known[label] * math.exp(bias.get(label, 0.0)))


def plausible(item: Item, reply: Reply) -> str:
    """A draw from the answers of at least a tenth of the best one's probability, seeded by the item."""
    known = over_answers(item, reply) or word_distribution(reply.top or {})
    if not known:
        return reply.text
    least = PLAUSIBLE * max(known.values())
    kept = {label: p for label, p in known.items() if p >= least}
    return seeded("plausible", item.id).choices(list(kept), list(kept.values()))[0]


def over_answers(item: Item, reply: Reply) -> Mapping[str, float] | None:
    """The reply's distribution over the item's answers; None where they are not all listed."""
    return option_distribution(reply.top or {}, [reply_for(item, choice) for choice in item.choices], 0.0)
