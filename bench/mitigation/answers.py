"""One item under every policy and control: each distinct call is made once, and all judge the same replies.

Controls, as arXiv 2504.10020 demands them: `greedy`; `constant_bias` (a constant for each label, fitted on
validation, added to its log-probability); `plausibility_only` (a draw among the answers of at least a tenth
of the best one's probability, without any contrast); `always_neutralise` and `always_escalate`, whatever the
verdict.
"""

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from modint_guard.chat.reply import reply_of
from modint_guard.config import GuardConfig
from modint_guard.data.item import Item, is_right, reply_for
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.runner import request_for
from modint_guard.examination import mitigate, probe
from modint_guard.guard import Guard
from modint_guard.judging.calibration import CALIBRATION, read_calibration
from modint_guard.judging.divergence import option_distribution, word_distribution
from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.mitigation.ladder import Meter
from modint_guard.mitigation.policy import Form, Policy
from modint_guard.mitigation.rungs import form_of, has_ended
from modint_guard.models import ADAPTER, bundled
from modint_guard.probing.views import full_body
from modint_guard.report import Report
from modint_guard.types import ANNOTATE, JSON, RUNGS, Complete, Plan, Replies, Reply, RungOutcome, State

PLAUSIBLE = 0.1  # of the best answer's probability
# Without limits: the table compares answers, not deadlines.
PATIENT: dict[str, Any] = {"max_tokens": 10_000_000, "deadline_s": 600.0}
CONTROLS = ("greedy", "constant_bias", "plausibility_only", "always_neutralise", "always_escalate")
_SETTLING = (RungOutcome.MENDED, RungOutcome.CONFIRMED, RungOutcome.ABSTAINED)


def asked_once(complete: Complete, journal: Journal) -> Complete:
    """The same `Complete`, but each distinct body is asked once and its completion kept in the journal.

    Completions are kept as text: tens of thousands of them as objects would need ten times the memory.
    """
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ask(body: JSON) -> JSON:
        key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        async with locks[key]:
            if key not in journal.records:
                journal.write(key, {"completion": json.dumps(await complete(body))})
        completion: JSON = json.loads(journal.records[key]["completion"])
        return completion

    return ask


@dataclass(frozen=True)
class ServedAnswer:
    """What one policy served for one item. `tokens` are those of all calls, prompts included; `settled`:
    whether the policy's last rung settled the answer.
    """

    text: str
    right: bool
    abstained: bool
    tokens: int
    main_tokens: int
    settled: bool = False


@dataclass(frozen=True)
class ItemAnswers:
    """One item and what each policy served for it; `report` is the guard's report on the greedy answer, from
    the cells that a correcting policy asks, or from every cell if all were asked.
    """

    item: Item
    reply: Reply
    report: Report
    form: Form | None
    served: Mapping[str, ServedAnswer]

    @property
    def flagged(self) -> bool:
        """Whether the greedy answer was flagged."""
        return self.report.verdict.state is State.FLAGGED


def served_guard(models: Sequence[str]) -> Guard:
    """A guard as it is served: with the bundled calibrations of these models, if there are any."""
    files = (bundled(name) / CALIBRATION for name in models)
    calibrations = [read_calibration(file) for file in files if file.is_file()]
    return Guard(GuardConfig(deadline_s=60.0), calibrations=calibrations)


def shipped_policies(robust: str = ADAPTER) -> dict[str, Policy]:
    """Every rung alone, the ladder, and two variants of the ladder, with the shipped settings but without
    their limits on tokens and time. `robust` is the adapter that they ask."""
    shared: dict[str, Any] = {**PATIENT, "robust": robust}
    policies = {name: Policy(name, **shared) for name in (*RUNGS, "ladder")}
    return {
        **policies,
        "ladder_abstain": Policy("ladder", otherwise="abstain", **shared),
        "ladder_trusting": Policy("ladder", trust_guess=True, **shared),  # if nobody says what is relevant
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
    robust: str = ADAPTER,
    whole: bool = False,
) -> ItemAnswers:
    """One item under `annotate`, every policy and every control; `robust` is the control's adapter.

    whole: the policies see every cell, also those that an early stop would save.
    """
    body = request_for(item, model, modint={"relevant": relevant})
    noted, meter = guard.plan(body), Meter(complete)
    plan = noted if whole else correcting(guard).plan(body)
    reply = await greedy(noted, meter)
    main = meter.tokens
    cells, spent = await _probed(guard, noted, reply, complete, whole=whole)
    served = {ANNOTATE: _answer(item, reply.text, main + spent, main)}
    replies, spent = await _probed(guard, plan, reply, complete, whole=whole)
    report = guard.judge.report(plan, reply, replies)
    for name, policy in policies.items():
        meter = Meter(complete)
        corrected = await mitigate(plan, guard.judge, reply, replies, report, meter, policy=policy)
        served[name] = _corrected(item, reply, corrected, main + spent + meter.tokens, main)
    for name in CONTROLS:
        meter = Meter(complete)
        text = await control(name, item, noted, reply, cells, meter, bias or {}, robust)
        served[name] = _answer(item, text, meter.tokens or main, main)
    return ItemAnswers(item, reply, report, form_of(reply, noted.chat), served)


async def greedy(plan: Plan, complete: Complete, model: str | None = None) -> Reply:
    """The greedy answer to a request with its log-probabilities; of another model if one is named."""
    listed = {"logprobs": True, "top_logprobs": plan.schedule.top_logprobs}
    return reply_of(await complete({**plan.body, **listed, **({"model": model} if model else {})}))


def correcting(guard: Guard) -> Guard:
    """The same guard under a policy that corrects answers, whose plans ask as few cells as possible."""
    return Guard(
        replace(guard.config, policies=(Policy("ladder"),)), calibrations=guard.judge.calibrations.values()
    )


async def _probed(
    guard: Guard, plan: Plan, reply: Reply, complete: Complete, *, whole: bool
) -> tuple[Replies, int]:
    """The replies to the cells that a plan asks for this answer, or to all its cells, and their tokens."""
    answered: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
    answered.set_result(reply)
    meter = Meter(complete)
    replies = await probe(plan, guard.judge, meter, future_answer=None if whole else answered)
    return replies, meter.tokens


def _answer(item: Item, text: str, tokens: int, main: int) -> ServedAnswer:
    return ServedAnswer(text, is_right(item, text), False, tokens, main)


def _corrected(item: Item, reply: Reply, report: Report, tokens: int, main: int) -> ServedAnswer:
    mitigation = report.mitigation
    text = mitigation.answer if mitigation and mitigation.answer is not None else reply.text
    abstained = mitigation is not None and mitigation.finish_reason == "content_filter"
    rungs = mitigation.rungs if mitigation is not None else ()
    settled = bool(rungs) and rungs[-1].outcome in _SETTLING
    return ServedAnswer(text, not abstained and is_right(item, text), abstained, tokens, main, settled)


async def control(
    name: str,
    item: Item,
    plan: Plan,
    reply: Reply,
    cells: Replies,
    complete: Complete,
    bias: Mapping[str, float],
    robust: str,
) -> str:
    """The text that a control answers."""
    if name == "constant_bias":
        return with_constant(item, reply, bias)
    if name == "plausibility_only":
        return plausible(item, reply)
    if name == "always_escalate":
        return (await greedy(plan, complete, robust)).text
    body = None if name == "greedy" else neutral_body(plan)
    if body is None:
        return reply.text
    cell = cells.get(WITHOUT_IRRELEVANT[plan.relevant])
    if isinstance(cell, Reply) and has_ended(cell):
        return cell.text  # greedy as well, and at its end
    return reply_of(await complete(body)).text


def neutral_body(plan: Plan) -> JSON | None:
    """The request without the irrelevant modality; None if there is none."""
    name = WITHOUT_IRRELEVANT.get(plan.relevant)
    view = next((view for view in plan.views if view.name == name), None)
    return None if view is None else {**full_body(plan.body), "messages": view.body["messages"]}


def with_constant(item: Item, reply: Reply, bias: Mapping[str, float]) -> str:
    """argmax over the item's answers of log p + the label's constant; the reply's text if they are not all
    listed.
    """
    probabilities = over_answers(item, reply)
    if probabilities is None:
        return reply.text
    return max(probabilities, key=lambda label: probabilities[label] * math.exp(bias.get(label, 0.0)))


def plausible(item: Item, reply: Reply) -> str:
    """A draw from the answers of at least a tenth of the best one's probability, seeded by the item. An
    answer in words of its own stays: only its first word's alternatives are known."""
    if item.form == "free":
        return reply.text
    probabilities = over_answers(item, reply) or word_distribution(reply.top or {})
    if not probabilities:
        return reply.text
    least = PLAUSIBLE * max(probabilities.values())
    candidates = {label: p for label, p in probabilities.items() if p >= least}
    return seeded("plausible", item.id).choices(list(candidates), list(candidates.values()))[0]


def over_answers(item: Item, reply: Reply) -> Mapping[str, float] | None:
    """The reply's distribution over the item's answers; None if they are not all listed."""
    return option_distribution(reply.top or {}, [reply_for(item, choice) for choice in item.choices], 0.0)
