"""`modint-guard results mitigation`: every rung and the ladder against controls, through the real engine.

Each distinct call is asked once and kept in a JSONL file; every policy then runs the guard's own code on
these answers, so that all policies judge the same items with the same replies, and a run that was stopped
goes on. Controls, as arXiv 2504.10020 asks for them: `greedy`; `constant_bias` (a constant for each label,
fitted on validation, added to its log-probability); `plausibility_only` (a draw among the answers of at least
a tenth of the best one's probability, without any contrast); `always_neutralise` and `always_escalate`,
whatever the verdict.
"""

import asyncio
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.config import GuardConfig
from modint_guard.divergence import option_distribution, word_distribution
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.guard import Guard
from modint_guard.item import RELEVANT, Family, Item, is_right, reply_for
from modint_guard.ladder import Meter
from modint_guard.launch import serving
from modint_guard.mitigation import Policy
from modint_guard.models import ADAPTER, BASE
from modint_guard.perturb import seeded
from modint_guard.reply import reply_of
from modint_guard.results import table, write_results
from modint_guard.risk import WITHOUT_IRRELEVANT
from modint_guard.runner import request_for
from modint_guard.types import ABSTAIN, JSON, RUNGS, Complete, Plan, Relevant, Reply, Report, State
from modint_guard.views import asked_whole
from modint_training.tinyworld import suite
from modint_training.tinyworld.conditions import Condition

CLEAN: dict[Family, str] = {"image-heavy": "clean", "text-heavy": "no_image", "vqa": "clean"}
SETTINGS = (
    Condition("image-heavy", "clean"),
    Condition("image-heavy", "misleading_description"),
    Condition("image-heavy", "unrelated_facts"),
    Condition("image-heavy", "ocr_noise"),
    Condition("image-heavy", "true_description"),
    Condition("image-heavy", "clean", held_out_wording=True),
    Condition("image-heavy", "misleading_description", held_out_wording=True),
    Condition("text-heavy", "no_image"),
    Condition("text-heavy", "contradicting_image"),
    Condition("text-heavy", "irrelevant_image"),
    Condition("text-heavy", "screenshot"),
    Condition("text-heavy", "agreeing_image"),
    Condition("text-heavy", "no_image", held_out_wording=True),
    Condition("text-heavy", "contradicting_image", held_out_wording=True),
    Condition("vqa", "clean"),
)
FITTED_ON = tuple(setting for setting in SETTINGS if setting.held_out == "no")
LAMBDAS = tuple(0.25 * step for step in range(0, 13))
SURENESSES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99)
PLAUSIBLE = 0.1  # of the best answer's probability
SMALLEST_GAP = 0.02  # below this interfered and clean accuracy are too near for a share of their distance
PATIENT: dict[str, Any] = {
    "max_tokens": 10_000_000,
    "deadline_s": 600.0,
}  # the table compares answers, not deadlines
CONTROLS = ("greedy", "constant_bias", "plausibility_only", "always_neutralise", "always_escalate")


class Recorded:
    """A `Complete` that asks each body once and keeps the completion in a JSONL file."""

    def __init__(self, complete: Complete, path: Path) -> None:
        self._complete, self._path = complete, path
        self._known = dict(_lines(path))
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, body: JSON) -> JSON:
        key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        async with self._locks[key]:
            if key not in self._known:
                self._known[key] = await self._complete(body)
                line = {"key": key, "model": body.get("model"), "completion": self._known[key]}
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        return self._known[key]


def _lines(path: Path) -> Iterator[tuple[str, JSON]]:
    """What an earlier run kept; a last line that was cut short is left out."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    whole = path.read_text("utf-8").rpartition("\n")[0]
    path.write_text(whole + "\n" if whole else "", "utf-8")
    for line in whole.splitlines():
        held = json.loads(line)
        yield held["key"], held["completion"]


@dataclass(frozen=True)
class Outcome:
    """What one policy served for one item. `tokens` are those of all calls, prompts included."""

    text: str
    right: bool
    abstained: bool
    flagged: bool
    tokens: int
    main_tokens: int


@dataclass(frozen=True)
class Asked:
    """One item and what each policy served; `report` is the guard's on the greedy answer."""

    item: Item
    reply: Reply
    report: Report
    served: Mapping[str, Outcome]


@dataclass(frozen=True)
class Fit:
    """What validation chose: the contrast's weight, the sureness, and a constant for each label."""

    debias_lambda: float
    accept_at: float
    bias: Mapping[str, float]


def measure_mitigation(
    output: Path, *, split: suite.Split, count: int, seed: int, concurrency: int, raw: Path, timed: int
) -> Path:
    """Fit on validation, or measure on test with what was fitted; returns the file written. ConfigError where
    the test split comes first.
    """
    fitted_at = output.with_name(f"{output.stem}_validation.json")
    fits = None if split == "validation" else read_fits(fitted_at)
    command = f"modint-guard results mitigation --split {split} --count {count} --seed {seed}"
    with serving(["--adapter", ADAPTER]) as served:
        rows = asyncio.run(_measure(served.url, split, count, seed, concurrency, raw, timed, fits))
    title = "Mitigation: what validation chose" if fits is None else "Mitigation on the test split"
    path = fitted_at if fits is None else output
    notes = FIT_NOTES if fits is None else NOTES
    write_results(path, command=command, seeds=[seed], rows=rows, title=title, notes=notes)
    if fits is not None and PAGE.exists():
        PAGE.write_text(rewritten(PAGE.read_text("utf-8"), rows), "utf-8")
    return path


NOTES = """\
Greedy answers through vLLM; the client names `relevant`. The same items for every policy, balanced over
their labels; every lettered item is asked in two orders of its options. `gap_closed`: of the distance between
greedy accuracy on the setting and on its clean twins; a dash where that is below 0.02. `clean_accuracy` is
the same policy's on the clean twins. Abstentions count as not right in `accuracy`, and not as
`changed_right_to_wrong`, a share of all items. `extra_tokens`: mean beyond the model's own answer, prompts
included, cached or not; the ratios are of all tokens to those of that answer. `ms_p50`: requests through the
gateway, one after another, each asked once before. TinyWorld's answers are short and adapters are served:
`rerank` never applies here."""
FIT_NOTES = """\
Chosen on the validation split, on settings that nothing holds out. `lambda` and `accept_at`: accuracy of
`debias` and `neutralise` over all settings, the largest chosen (of equals the smaller). `rung`: accuracy of
each rung on the flagged answers of this cause, relevance and form; chosen are those that beat `annotate`, and
their order is that of their accuracy. `constant_bias`: minus the label's mean log-probability."""
PAGE = Path("docs/mitigation.md")
BEGIN, END = "<!-- made by `make bench-mitigation` -->", "<!-- end of what is made -->"
SHOWN = ("model", "policy", "accuracy", "clean_accuracy", "gap_closed", "changed_right_to_wrong", "abstained")


def rewritten(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with a table of each policy's means over the interfered settings. ValueError where it has no
    place for it.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["gap_closed"] is not None:
            groups.setdefault((row["model"], row["policy"]), []).append(row)
    means = [
        {
            "model": model,
            "policy": policy,
            **{key: statistics.fmean(row[key] for row in group) for key in (*SHOWN[2:], "extra_tokens")},
        }
        for (model, policy), group in groups.items()
    ]
    head, begun, rest = page.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page needs {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{table(means) if means else ''}\n{END}{tail}"


async def _measure(
    url: str,
    split: suite.Split,
    count: int,
    seed: int,
    concurrency: int,
    raw: Path,
    timed: int,
    fits: Mapping[str, Fit] | None,
) -> list[dict[str, Any]]:
    settings = FITTED_ON if fits is None else SETTINGS
    items = {setting.name: setting_items(setting, split, count, seed) for setting in settings}
    rows: list[dict[str, Any]] = []
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:

        async def unguarded(body: JSON) -> JSON:
            return await endpoint.complete({**body, "modint": {"mode": "off"}})

        complete, slots = Recorded(unguarded, raw), asyncio.Semaphore(concurrency)
        for model in (BASE, ADAPTER):
            policies = grid() if fits is None else policies_of(fits[model])
            bias = {} if fits is None else fits[model].bias
            found: dict[str, list[Asked]] = {}
            for name, asked in items.items():
                with tqdm(total=len(asked), desc=f"{model} {name}", unit="item") as bar:
                    found[name] = await _answers(asked, model, complete, policies, bias, slots, bar)
            if fits is None:
                rows += fit_rows(model, [one for each in found.values() for one in each])
                continue
            for setting in settings:
                asked = items[setting.name][:timed]
                ms = {name: await _ms_p50(endpoint, asked, model, name) for name in (*CONTROLS, *policies)}
                rows += table_rows(model, setting, found, ms)
    return rows


async def _answers(
    items: Sequence[Item],
    model: str,
    complete: Complete,
    policies: Mapping[str, Policy],
    bias: Mapping[str, float],
    slots: asyncio.Semaphore,
    bar: "tqdm[Any]",
) -> list[Asked]:
    async def one(item: Item) -> Asked:
        async with slots:
            found = await ask_item(item, model, complete, policies, bias)
        bar.update()
        return found

    return list(await asyncio.gather(*(one(item) for item in items)))


# -- items -----------------------------------------------------------------------------------------


def setting_items(setting: Condition, split: suite.Split, count: int, seed: int) -> list[Item]:
    """`count` items of a setting, balanced over labels; each lettered one follows once more, its options
    moved on by one.
    """
    pool = suite.items(setting.family, split, 4 * count, seed=seed, held_out=setting.held_out_wording)
    chosen = [each for item in balanced(pool, count) for each in orders_of(item)]
    return [suite.perturbed(item, setting.perturbation, seed=seed) for item in chosen]


def balanced(pool: Iterable[Item], count: int) -> list[Item]:
    """`count` items in turn from each sub-task, form and label; of lettered items the letter of the truth
    goes round, whatever it was.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in pool:
        groups.setdefault((item.task, item.form, item.answer), []).append(item)
    taken: list[Item] = []
    for place in range(max(map(len, groups.values()))):
        taken += [group[place] for group in groups.values() if place < len(group)]
    lettered = 0
    found: list[Item] = []
    for item in taken[:count]:
        if item.form == "letter":
            item = moved(item, item.choices.index(item.answer) - lettered)
            lettered += 1
        found.append(item)
    return found


def orders_of(item: Item) -> tuple[Item, ...]:
    """A lettered item in two orders of its options; any other as it is."""
    if item.form != "letter":
        return (item,)
    return item, moved(item, -1).replace(id=f"{item.id}-moved")


def moved(item: Item, steps: int) -> Item:
    """The item with its options moved up by so many places, round and round."""
    steps %= len(item.choices)
    return item.replace(choices=item.choices[steps:] + item.choices[:steps])


# -- policies --------------------------------------------------------------------------------------


def policies_of(fit: Fit) -> dict[str, Policy]:
    """Every rung alone, the ladder, and the ladder that ends in abstaining, as they were fitted."""
    fitted: dict[str, Any] = {"debias_lambda": fit.debias_lambda, "accept_at": fit.accept_at, **PATIENT}
    named = {name: Policy(name, **fitted) for name in ("annotate", *RUNGS, "ladder")}
    return {**named, "ladder_abstain": Policy("ladder", otherwise="abstain", **fitted)}


def grid() -> dict[str, Policy]:
    """What validation compares: each rung alone, lambda and sureness along their grids."""
    rungs = {name: Policy(name, **PATIENT) for name in ("annotate", "neutralise", "escalate", "debias")}
    lambdas = {f"lambda={v:g}": Policy("debias", debias_lambda=v, **PATIENT) for v in LAMBDAS}
    sure = {f"accept_at={v:g}": Policy("neutralise", accept_at=v, **PATIENT) for v in SURENESSES}
    return {**rungs, **lambdas, **sure}


async def ask_item(
    item: Item,
    model: str,
    complete: Complete,
    policies: Mapping[str, Policy],
    bias: Mapping[str, float],
) -> Asked:
    """One item under every policy and control."""
    body, guard = request_for(item, model), Guard(GuardConfig(deadline_s=60.0))
    plan = guard.plan(body)
    meter = Meter(complete)
    reply = reply_of(await meter({**plan.body, "logprobs": True, "top_logprobs": guard.config.top_logprobs}))
    main, served = meter.tokens, {}
    report: Report | None = None
    for name, policy in policies.items():
        meter = Meter(complete)
        config = replace(guard.config, policies=(policy,))
        found = await Guard(config).inspect(body, meter)
        text = str(found.completion["choices"][0]["message"]["content"])
        served[name] = _outcome(item, text, found.report, meter.tokens, main)
        report = report or found.report
    assert report is not None
    for name in CONTROLS:
        meter = Meter(complete)
        said = await control(name, item, plan, reply, meter, bias)
        served[name] = _outcome(item, said, None, meter.tokens or main, main)
    return Asked(item, reply, report, served)


def _outcome(item: Item, text: str, report: Report | None, tokens: int, main: int) -> Outcome:
    abstained = report is not None and report.action == ABSTAIN
    flagged = report is not None and report.verdict.state is State.FLAGGED
    return Outcome(text, not abstained and is_right(item, text), abstained, flagged, tokens, main)


async def control(
    name: str, item: Item, plan: Plan, reply: Reply, complete: Complete, bias: Mapping[str, float]
) -> str:
    """What a control answers."""
    if name == "constant_bias":
        return with_constant(item, reply, bias)
    if name == "plausibility_only":
        return plausible(item, reply)
    if name == "greedy" or (body := control_body(name, item, plan)) is None:
        return reply.text
    return reply_of(await complete(body)).text


def control_body(name: str, item: Item, plan: Plan) -> JSON | None:
    """The request of the controls that ask otherwise; None where the model's own answer stands."""
    if name == "always_escalate":
        return {**asked_whole(plan.body), "model": ADAPTER}
    relevant = RELEVANT[item.family]
    cell = WITHOUT_IRRELEVANT.get(Relevant(relevant))
    view = next((view for view in plan.views if view.name == cell), None)
    if name != "always_neutralise" or view is None:
        return None
    return {**asked_whole(plan.body), "messages": view.body["messages"]}


def with_constant(item: Item, reply: Reply, bias: Mapping[str, float]) -> str:
    """argmax over the item's answers of log p + the label's constant; the reply's own where they are not all
    listed.
    """
    known = _over_answers(item, reply)
    if known is None:
        return reply.text
    return max(known, key=lambda label: math.log(known[label]) + bias.get(label, 0.0))


def plausible(item: Item, reply: Reply) -> str:
    """A draw from the answers of at least a tenth of the best one's probability, seeded by the item."""
    known = _over_answers(item, reply) or word_distribution(reply.top or {})
    if not known:
        return reply.text
    least = PLAUSIBLE * max(known.values())
    kept = {label: p for label, p in known.items() if p >= least}
    return seeded("plausible", item.id).choices(list(kept), list(kept.values()))[0]


def _over_answers(item: Item, reply: Reply) -> Mapping[str, float] | None:
    return option_distribution(reply.top or {}, [reply_for(item, choice) for choice in item.choices], 0.0)


# -- rows ------------------------------------------------------------------------------------------


def table_rows(
    model: str, setting: Condition, found: Mapping[str, Sequence[Asked]], ms: Mapping[str, float | None]
) -> Iterator[dict[str, Any]]:
    """One row a policy, with the same policy on the clean twins beside it."""
    own = found[setting.name]
    twins = found[replace(setting, perturbation=CLEAN[setting.family]).name]
    for policy in own[0].served:
        here = [one.served[policy] for one in own]
        greedy = [one.served["greedy"] for one in own]
        flags = [one.report.verdict.state is State.FLAGGED for one in own]
        before, ceiling = _share(greedy, "right"), _share([t.served["greedy"] for t in twins], "right")
        gap = ceiling - before
        yield {
            "model": model,
            "policy": policy,
            "setting": setting.name,
            "held_out": setting.held_out,
            "n": len(here),
            "accuracy": _share(here, "right"),
            "clean_accuracy": _share([twin.served[policy] for twin in twins], "right"),
            "gap_closed": (_share(here, "right") - before) / gap if gap >= SMALLEST_GAP else None,
            "changed_right_to_wrong": sum(
                was.right and not now.right and not now.abstained
                for was, now in zip(greedy, here, strict=True)
            )
            / len(here),
            "abstained": _share(here, "abstained"),
            "flagged": sum(flags) / len(flags),
            "extra_tokens": statistics.fmean(one.tokens - one.main_tokens for one in here),
            "ratio_flagged": _ratio([one for one, flag in zip(here, flags, strict=True) if flag]),
            "ratio_unflagged": _ratio([one for one, flag in zip(here, flags, strict=True) if not flag]),
            "ms_p50": ms.get(policy),
        }


def _share(outcomes: Sequence[Outcome], what: str) -> float:
    return sum(bool(getattr(one, what)) for one in outcomes) / len(outcomes)


def _ratio(outcomes: Sequence[Outcome]) -> float | None:
    main = sum(one.main_tokens for one in outcomes)
    return sum(one.tokens for one in outcomes) / main if main else None


def fit_rows(model: str, found: Sequence[Asked]) -> list[dict[str, Any]]:
    """What was compared on validation, and what is chosen."""
    rows = [*_grid_rows(model, "lambda", LAMBDAS, found), *_grid_rows(model, "accept_at", SURENESSES, found)]
    rows += _rung_rows(model, found)
    for label, value in sorted(constants(found).items()):
        rows.append(_fit_row(model, "constant_bias", label, value, len(found), None, True))
    return rows


def _grid_rows(
    model: str, kind: str, values: Sequence[float], found: Sequence[Asked]
) -> Iterator[dict[str, Any]]:
    shares = {value: _share([one.served[f"{kind}={value:g}"] for one in found], "right") for value in values}
    best = max(values, key=shares.__getitem__)
    for value in values:
        yield _fit_row(model, kind, kind, value, len(found), shares[value], value == best)


def _rung_rows(model: str, found: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    groups: dict[str, list[Asked]] = {}
    for one in found:
        if one.report.verdict.cause is not None:
            form = "options" if one.item.form == "letter" else "word"
            key = f"{one.report.verdict.cause.value}/{one.report.relevant.value}/{form}"
            groups.setdefault(key, []).append(one)
    for key, group in sorted(groups.items()):
        kept = _share([one.served["annotate"] for one in group], "right")
        for rung in ("annotate", "neutralise", "escalate", "debias"):
            share = _share([one.served[rung] for one in group], "right")
            yield _fit_row(model, "rung", f"{key}/{rung}", None, len(group), share, share > kept)


def _fit_row(
    model: str, kind: str, key: str, value: float | None, n: int, accuracy: float | None, chosen: bool
) -> dict[str, Any]:
    return {
        "model": model,
        "kind": kind,
        "key": key,
        "value": value,
        "n": n,
        "accuracy": accuracy,
        "chosen": chosen,
    }


def constants(found: Sequence[Asked]) -> dict[str, float]:
    """Minus each label's mean log-probability among the answers of its items: no label is preferred then."""
    seen: dict[str, list[float]] = {}
    for one in found:
        for label, p in (_over_answers(one.item, one.reply) or {}).items():
            seen.setdefault(label, []).append(math.log(p))
    return {label: -statistics.fmean(values) for label, values in seen.items()}


def read_fits(path: Path) -> dict[str, Fit]:
    """What a validation run chose, by model. Raises ConfigError where there was none."""
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
    except OSError as exc:
        raise ConfigError(
            f"{path} is not there: run `modint-guard results mitigation --split validation` first"
        ) from exc
    chosen = [row for row in rows if row["chosen"]]
    return {model: _fit_of(model, chosen) for model in dict.fromkeys(row["model"] for row in chosen)}


def _fit_of(model: str, chosen: Sequence[Mapping[str, Any]]) -> Fit:
    own = [row for row in chosen if row["model"] == model]
    value = {row["kind"]: row["value"] for row in own if row["kind"] in ("lambda", "accept_at")}
    bias = {row["key"]: row["value"] for row in own if row["kind"] == "constant_bias"}
    return Fit(value["lambda"], value["accept_at"], bias)


# -- time ------------------------------------------------------------------------------------------


async def _ms_p50(endpoint: Endpoint, items: Sequence[Item], model: str, policy: str) -> float | None:
    """The median of single requests, one after another; None without any."""
    taken: list[float] = []
    for item in items:
        body = timed_body(item, model, policy)
        await endpoint.complete(body)  # so that no policy pays for an empty prefix cache
        since = time.perf_counter()
        await endpoint.complete(body)
        taken.append((time.perf_counter() - since) * 1000)
    return statistics.median(taken) if taken else None


def timed_body(item: Item, model: str, policy: str) -> JSON:
    """What the gateway is sent for a policy's time. The ladder that may abstain takes the ladder's."""
    body = request_for(item, model)
    if policy not in CONTROLS:
        action = "ladder" if policy == "ladder_abstain" else policy
        return {**body, "modint": {**body["modint"], "action": action}}
    other = control_body(policy, item, Guard().plan(body)) if policy.startswith("always") else None
    return {**(other or body), "modint": {"mode": "off"}}
