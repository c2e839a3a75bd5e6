"""`python -m bench detection`: our risk beside other detectors, on the same answers of the real engine.

A pilot on validation items of its own says which sub-tasks give way to pictures and whether the model can
state a confidence. Then each case (`tinyworld.interference`) is asked through the gateway as a client would;
then once more with its views, so that every feature is known; then as the baselines want it: sampled, with
blurred pictures and other words, and how sure the model is. Every record is kept as it comes, so that a kill
costs one. The figures are made from the records alone (`detection_table`, `detection_report`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from bench.calibrations import weights_of
from bench.detection import baselines
from bench.detection import report as detection_report
from bench.detection import table as detection_table
from bench.detection.inputs import Case, cases, hardly_giving_way, pilot
from bench.detection.table import ABLE, Answer, Cost
from modint_guard.chat.reply import reply_of
from modint_guard.data.item import Item, is_right, same_as
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.journal import Job, Journal, collect
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import every_view, request_for, without_guard
from modint_guard.guard import Guard
from modint_guard.judging.calibration import CALIBRATION, read_calibration
from modint_guard.judging.risk import Thresholds
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.plan import main_body
from modint_guard.types import JSON, Complete, Reply, Score
from modint_training.tinyworld.tasks import reworded

SAMPLES = 5  # answers a request; two requests
VARIANTS = 5  # blurred and reworded
PILOT = 32  # items of each sub-task
ADAPTERS_SHARE = 2  # one in so many of the base's cases: the goals are the base's
_SEEDS = 1000  # apart: the engine counts up from a request's seed, one a sample


@dataclass(frozen=True)
class Asked:
    """What the pilot settled: which sub-tasks are asked more rarely, which models state a confidence."""

    thinned: frozenset[str]
    able: frozenset[str]

    def cases(self, model: str, count: int, seed: int) -> list[Case]:
        """All cases of a model."""
        share = count if model == BASE else max(1, count // ADAPTERS_SHARE)
        both = (cases(split, share, seed, thinned=self.thinned) for split in ("validation", "test"))
        return [case for split in both for case in split]


def measure_detection(output: Path, *, raw: Path, count: int, seed: int, concurrency: int) -> None:
    """Ask every case of both bundled models and write the tables. ConfigError for a `raw` of another run."""
    made_by = {
        "run": "detection",
        "count": count,
        "seed": seed,
        "weights": [weights_of(bundled(name)) for name in (BASE, ADAPTER)],
        "judged_by": judged_by(),
    }
    with Journal(raw, made_by) as journal:
        asked = looked(journal.records, seed)
        if asked is None or any(
            key_of(model, case) not in journal.records
            for model in (BASE, ADAPTER)
            for case in asked.cases(model, count, seed)
        ):
            with serving(["--adapter", ADAPTER]) as served:
                asked = asyncio.run(_ask(served.url, journal, count, seed, concurrency))
        answers = [
            Answer.from_json(journal.records[key_of(model, case)])
            for model in (BASE, ADAPTER)
            for case in asked.cases(model, count, seed)
        ]
    command = f"python -m bench detection --count {count} --seed {seed}"
    write_tables(output, answers, thinned=asked.thinned, command=command, seed=seed)


def judged_by() -> str:
    """A digest of what a gateway's verdict depends on beside the answers: the bundled calibrations and the
    defaults; records of other verdicts are not taken up."""
    files = (bundled(model) / CALIBRATION for model in (BASE, ADAPTER))
    kept = [file.read_text("utf-8") if file.exists() else "" for file in files]
    return sha256(repr([Thresholds(), *kept]).encode()).hexdigest()


def write_tables(
    output: Path, answers: Sequence[Answer], *, thinned: frozenset[str], command: str, seed: int
) -> None:
    """`output` and, beside it, the shares that are flagged by kind."""
    rows = list(detection_table.rows(answers, seed=seed))
    write_results(
        output,
        command=command,
        seeds=[seed],
        rows=rows,
        title="Detection of wrong answers under interference",
        notes=detection_table.NOTES.format(
            thinned=", ".join(sorted(thinned)) or "none",
            unfitted="; ".join(detection_table.unfitted(answers)) or "none",
        ),
        shown=detection_report.markdown(rows, BASE),
    )
    write_results(
        output.with_name(f"{output.stem}_flags.json"),
        command=command,
        seeds=[seed],
        rows=list(detection_table.flag_rows(answers)),
        title="Flags by kind of input",
        notes=detection_table.FLAG_NOTES,
    )


def key_of(model: str, case: Case) -> str:
    """The record's name in the journal."""
    return f"{model}/{case.key}"


async def _ask(url: str, journal: Journal, count: int, seed: int, concurrency: int) -> Asked:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        asked = await first_look(endpoint.complete, journal, seed, concurrency)
        guards = {model: guard_of(model) for model in (BASE, ADAPTER)}
        jobs: dict[str, Job] = {
            key_of(model, case): partial(
                record,
                case,
                model,
                endpoint.complete,
                seed=seed,
                guard=guards[model],
                states=model in asked.able,
            )
            for model in (BASE, ADAPTER)
            for case in asked.cases(model, count, seed)
        }
        with tqdm(total=len(jobs), unit="case") as bar:

            def advance(_: str) -> None:
                bar.update()

            await collect(jobs, journal, concurrency=concurrency, done=advance)
    return asked


async def first_look(complete: Complete, journal: Journal, seed: int, concurrency: int) -> Asked:
    """The pilot: each item answered by the base under a lying picture, and how sure each model says it is."""
    unguarded = without_guard(complete)
    items = pilot(PILOT, seed)
    jobs: dict[str, Job] = {_lied_to(item): partial(_pilot, item, unguarded) for item in items}
    for model in (BASE, ADAPTER):
        for item in items[:PILOT]:
            jobs[_how_sure(item, model)] = partial(_pilot_stated, item, model, unguarded)
    await collect(jobs, journal, concurrency=concurrency)
    asked = looked(journal.records, seed)
    assert asked is not None
    return asked


def looked(records: Mapping[str, JSON], seed: int) -> Asked | None:
    """What the pilot's records settle; None where some are missing."""
    items = pilot(PILOT, seed)
    sure = {model: [_how_sure(item, model) for item in items[:PILOT]] for model in (BASE, ADAPTER)}
    if any(key not in records for key in (*map(_lied_to, items), *sure[BASE], *sure[ADAPTER])):
        return None
    wrong: dict[str, list[bool]] = {}
    for item in items:
        wrong.setdefault(item.task, []).append(records[_lied_to(item)]["wrong"])
    able = (m for m, keys in sure.items() if sum(records[key]["stated"] for key in keys) >= ABLE * len(keys))
    return Asked(hardly_giving_way(wrong), frozenset(able))


def _lied_to(item: Item) -> str:
    return f"pilot/{item.id}"


def _how_sure(item: Item, model: str) -> str:
    return f"pilot/{model}/{item.id}"


async def _pilot(item: Item, complete: Complete) -> JSON:
    reply = reply_of(await complete(request_for(item, BASE)))
    return {"task": item.task, "wrong": not is_right(item, reply.text)}


async def _pilot_stated(item: Item, model: str, complete: Complete) -> JSON:
    answer = item.choices[0]
    return {"stated": (await _stated(item, model, complete, answer))[0] is not None}


def guard_of(model: str) -> Guard:
    """A guard as the gateway has it, with the bundled calibration where there is one."""
    file = bundled(model) / CALIBRATION
    return Guard(calibrations=[read_calibration(file)] if file.exists() else [])


async def record(
    case: Case, model: str, complete: Complete, *, seed: int, guard: Guard | None = None, states: bool = True
) -> JSON:
    """All that is measured of one case, as `Answer` holds it. `complete` is the gateway; our own features are
    asked through it with the guard off, a confidence only of a model that states one. Raises EndpointError,
    a failed view among them, and ConfigError where log-probabilities are missing.
    """
    guard, unguarded = guard or Guard(), without_guard(complete)
    relevant = {"relevant": case.relevant}
    # First, so that what the cache holds is what it would hold for a client.
    served = await complete(request_for(case.item, model, modint=relevant))
    probed = {probe["name"]: _probe_cost(probe) for probe in served["modint"]["probes"]}
    plan = guard.plan(request_for(case.item, model, modint=relevant))
    (completion, own), replies = await asyncio.gather(
        _timed(unguarded, main_body(plan), calls=1), every_view(plan, unguarded, case.key)
    )
    reply = reply_of(completion)
    score = guard.judge.score(plan, reply, replies)
    if score is None or not reply.top:
        raise ConfigError(f"{case.key} could not be scored: does the endpoint give log-probabilities?")
    (sampled, five, ten), (varied, varied_cost) = await asyncio.gather(
        _sampled(case, model, unguarded, seed), _varied(case, model, unguarded)
    )
    stated, stated_cost = await _stated(case.item, model, unguarded, reply.text) if states else (None, Cost())
    right = is_right(case.item, reply.text)
    answer = Answer(
        model=model,
        split=case.split,
        setting=case.setting,
        kind=case.kind,
        held_out=case.held_out,
        source=case.item.source,
        relevant=case.relevant,
        right=right,
        right_when_clean=right if case.twin is None else await _right(case, model, unguarded),
        verdict=served["modint"]["verdict"],
        cause=served["modint"]["cause"],
        risk=served["modint"]["risk"],
        entropy=score.entropy,
        max_probability=baselines.max_probability(reply.top),
        cells=_cells(score),
        influence={"text": score.influence_text, "image": score.influence_image, "synergy": score.synergy},
        relative_entropy=score.relative_entropy,
        sampled=sampled,
        varied=varied,
        stated=stated,
        answer_ms=own.ms,
        costs={
            **{name: _view_cost(view) for name, view in replies.items() if isinstance(view, Reply)},
            **probed,  # of those that were not asked before, what the cache held is what a client would find
            "gateway": served_cost(probed, plan.schedule.may_be_saved),
            "semantic_entropy_5": five,
            "semantic_entropy_10": ten,
            "vl_uncertainty_5": varied_cost,
            "verbalised": stated_cost,
        },
    )
    return asdict(answer)


def served_cost(probed: Mapping[str, Cost], later: frozenset[str]) -> Cost:
    """What the gateway asked: with the request, and with an early stop the rest once the answer was there."""
    first = reduce(Cost.beside, (cost for name, cost in probed.items() if name not in later), Cost())
    return first.then(reduce(Cost.beside, (cost for name, cost in probed.items() if name in later), Cost()))


def _cells(score: Score) -> dict[str, dict[str, float]]:
    return {
        name: {
            "js": cell.divergence,
            "margin": cell.margin,
            "pmi": cell.delta_logprob,
            "entropy": cell.entropy,
            "flip": float(cell.flip is True),
            "sure": cell.p_answer if cell.reproduces else 0.0,
        }
        for name, cell in score.cells.items()
    }


async def _right(case: Case, model: str, complete: Complete) -> bool:
    assert case.twin is not None
    return is_right(case.twin, reply_of(await complete(request_for(case.twin, model))).text)


async def _sampled(case: Case, model: str, complete: Complete, seed: int) -> tuple[list[str], Cost, Cost]:
    """Ten answers at T = 1, and what five and ten of them cost."""
    asked = [
        request_for(case.item, model, temperature=1.0, n=SAMPLES, seed=_SEEDS * seed + SAMPLES * part)
        for part in range(2)
    ]
    (first, five), (second, more) = await asyncio.gather(
        *(_timed(complete, body, calls=SAMPLES) for body in asked)
    )
    choices = [*first["choices"], *second["choices"]]
    found = [same_as(case.item, choice["message"]["content"] or "") for choice in choices]
    return found, five, five.beside(more)


async def _varied(case: Case, model: str, complete: Complete) -> tuple[list[str], Cost]:
    """Answers to a picture ever more blurred and a question in ever other words."""
    asked = [baselines.blurred(reworded(case.item, by), by) for by in range(1, VARIANTS + 1)]
    got = await asyncio.gather(*(_timed(complete, request_for(item, model), calls=1) for item in asked))
    texts = [same_as(case.item, reply_of(completion).text) for completion, _ in got]
    return texts, reduce(Cost.beside, (cost for _, cost in got))


async def _stated(item: Item, model: str, complete: Complete, answer: str) -> tuple[float | None, Cost]:
    """The confidence it states; None where it states none, or where its template knows no second turn."""
    try:
        completion, cost = await _timed(complete, baselines.how_sure(item, model, answer), calls=1)
    except EndpointError as exc:
        if exc.status != 400:
            raise
        return None, Cost()
    return baselines.stated_confidence(reply_of(completion).text), Cost().then(cost)


async def _timed(complete: Callable[[JSON], Awaitable[JSON]], body: JSON, *, calls: int) -> tuple[JSON, Cost]:
    began = time.perf_counter()
    completion = await complete(body)
    usage = completion.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    spent = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return completion, Cost(calls, spent - cached, cached, 1000 * (time.perf_counter() - began))


def _view_cost(view: Reply) -> Cost:
    spent = view.prompt_tokens + view.completion_tokens
    return Cost(1, spent - view.cached_tokens, view.cached_tokens, view.ms)


def _probe_cost(probe: JSON) -> Cost:
    return Cost(1, probe["tokens"] - probe["cached_tokens"], probe["cached_tokens"], probe["ms"])
