"""`python -m bench detection`: our risk and other detectors on the same answers of the real engine.

A pilot on other validation items finds out in which sub-tasks the model is misled by pictures, and which
models can state a confidence. Then each case (`detection.inputs`) is asked through the gateway as a client
would ask it; once more with all its views, so that every feature is known; and as the baselines need it:
sampled, with blurred pictures and other wordings, and how sure the model is. Every record is written at once,
so that a killed run loses only the cases under way. The figures are computed from the records alone
(`detection.table`, `detection.report`).
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
from bench.detection.inputs import DetectionCase, cases, pilot, rarely_misled
from bench.detection.table import ENOUGH_STATED, Answer, Cost
from modint_guard.chat.reply import reply_of
from modint_guard.data.item import Item, answer_key, is_right
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

SAMPLES = 5  # answers of one request; there are two requests
VARIANTS = 5  # blurred pictures with reworded questions
PILOT = 32  # items of each sub-task
ADAPTER_SHARE = 2  # the adapter gets one in so many of the base's cases: the goals are the base's
_SEED_STEP = 1000  # between runs: the engine counts up from a request's seed, by one for each sample


@dataclass(frozen=True)
class PilotResult:
    """The sub-tasks that are thinned, and the models that can state a confidence."""

    thinned: frozenset[str]
    state_confidence: frozenset[str]

    def cases(self, model: str, count: int, seed: int) -> list[DetectionCase]:
        """All cases of a model."""
        share = count if model == BASE else max(1, count // ADAPTER_SHARE)
        splits = (cases(split, share, seed, thinned=self.thinned) for split in ("validation", "test"))
        return [case for split in splits for case in split]


def measure_detection(output: Path, *, raw: Path, count: int, seed: int, concurrency: int) -> None:
    """Ask both bundled models every case, and write the tables. ConfigError if `raw` belongs to another
    run."""
    made_by = {
        "run": "detection",
        "count": count,
        "seed": seed,
        "weights": [weights_of(bundled(name)) for name in (BASE, ADAPTER)],
        "judged_by": judged_by(),
    }
    with Journal(raw, made_by) as journal:
        pilot_result = pilot_result_of(journal.records, seed)
        if pilot_result is None or any(
            key_of(model, case) not in journal.records
            for model in (BASE, ADAPTER)
            for case in pilot_result.cases(model, count, seed)
        ):
            with serving(["--adapter", ADAPTER]) as served:
                pilot_result = asyncio.run(_ask(served.url, journal, count, seed, concurrency))
        answers = [
            Answer.from_json(journal.records[key_of(model, case)])
            for model in (BASE, ADAPTER)
            for case in pilot_result.cases(model, count, seed)
        ]
    command = f"python -m bench detection --count {count} --seed {seed}"
    write_tables(output, answers, thinned=pilot_result.thinned, command=command, seed=seed)


def judged_by() -> str:
    """A digest of what verdicts depend on besides the answers: the bundled calibrations and the defaults.
    Records of other verdicts are not reused."""
    files = (bundled(model) / CALIBRATION for model in (BASE, ADAPTER))
    texts = [file.read_text("utf-8") if file.exists() else "" for file in files]
    return sha256(repr([Thresholds(), *texts]).encode()).hexdigest()


def write_tables(
    output: Path, answers: Sequence[Answer], *, thinned: frozenset[str], command: str, seed: int
) -> None:
    """Write `output` and, beside it, the table of flags by kind of input."""
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


def key_of(model: str, case: DetectionCase) -> str:
    """The key of a case's record in the journal."""
    return f"{model}/{case.key}"


async def _ask(url: str, journal: Journal, count: int, seed: int, concurrency: int) -> PilotResult:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        pilot_result = await run_pilot(endpoint.complete, journal, seed, concurrency)
        guards = {model: guard_of(model) for model in (BASE, ADAPTER)}
        jobs: dict[str, Job] = {
            key_of(model, case): partial(
                record,
                case,
                model,
                endpoint.complete,
                seed=seed,
                guard=guards[model],
                states_confidence=model in pilot_result.state_confidence,
            )
            for model in (BASE, ADAPTER)
            for case in pilot_result.cases(model, count, seed)
        }
        with tqdm(total=len(jobs), unit="case") as bar:

            def advance(_: str) -> None:
                bar.update()

            await collect(jobs, journal, concurrency=concurrency, done=advance)
    return pilot_result


async def run_pilot(complete: Complete, journal: Journal, seed: int, concurrency: int) -> PilotResult:
    """Let the base answer each pilot item under its lying picture, and ask each model how sure it is."""
    unguarded = without_guard(complete)
    items = pilot(PILOT, seed)
    jobs: dict[str, Job] = {_misled_key(item): partial(_pilot_answer, item, unguarded) for item in items}
    for model in (BASE, ADAPTER):
        for item in items[:PILOT]:
            jobs[_confidence_key(item, model)] = partial(_pilot_confidence, item, model, unguarded)
    await collect(jobs, journal, concurrency=concurrency)
    pilot_result = pilot_result_of(journal.records, seed)
    assert pilot_result is not None
    return pilot_result


def pilot_result_of(records: Mapping[str, JSON], seed: int) -> PilotResult | None:
    """The result of the pilot from its records; None if some are missing."""
    items = pilot(PILOT, seed)
    confidence = {
        model: [_confidence_key(item, model) for item in items[:PILOT]] for model in (BASE, ADAPTER)
    }
    if any(key not in records for key in (*map(_misled_key, items), *confidence[BASE], *confidence[ADAPTER])):
        return None
    wrong: dict[str, list[bool]] = {}
    for item in items:
        wrong.setdefault(item.task, []).append(records[_misled_key(item)]["wrong"])
    state_confidence = (
        model
        for model, keys in confidence.items()
        if sum(records[key]["stated"] for key in keys) >= ENOUGH_STATED * len(keys)
    )
    return PilotResult(rarely_misled(wrong), frozenset(state_confidence))


def _misled_key(item: Item) -> str:
    return f"pilot/{item.id}"


def _confidence_key(item: Item, model: str) -> str:
    return f"pilot/{model}/{item.id}"


async def _pilot_answer(item: Item, complete: Complete) -> JSON:
    reply = reply_of(await complete(request_for(item, BASE)))
    return {"task": item.task, "wrong": not is_right(item, reply.text)}


async def _pilot_confidence(item: Item, model: str, complete: Complete) -> JSON:
    answer = item.choices[0]
    return {"stated": (await _stated(item, model, complete, answer))[0] is not None}


def guard_of(model: str) -> Guard:
    """A guard like the gateway's, with the bundled calibration if there is one."""
    file = bundled(model) / CALIBRATION
    return Guard(calibrations=[read_calibration(file)] if file.exists() else [])


async def record(
    case: DetectionCase,
    model: str,
    complete: Complete,
    *,
    seed: int,
    guard: Guard | None = None,
    states_confidence: bool = True,
) -> JSON:
    """All measurements of one case, as the JSON of an `Answer`.

    `complete` is the gateway; the views are asked through it with the guard off. A confidence is only asked
    of models that state one. Raises EndpointError, also for a failed view, and ConfigError if
    log-probabilities are missing.
    """
    guard, unguarded = guard or Guard(), without_guard(complete)
    relevant = {"relevant": case.relevant}
    # First, so that the cache holds what it would hold for a client.
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
    stated, stated_cost = (
        await _stated(case.item, model, unguarded, reply.text) if states_confidence else (None, Cost())
    )
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
            **probed,  # these were asked first, so their cached tokens are those that a client would see
            "gateway": served_cost(probed, plan.schedule.may_be_saved),
            "semantic_entropy_5": five,
            "semantic_entropy_10": ten,
            "vl_uncertainty_5": varied_cost,
            "verbalised": stated_cost,
        },
    )
    return asdict(answer)


def served_cost(probed: Mapping[str, Cost], later: frozenset[str]) -> Cost:
    """The cost of what the gateway asked: with the request and, after an early stop's wait, once the answer
    was complete."""
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


async def _right(case: DetectionCase, model: str, complete: Complete) -> bool:
    assert case.twin is not None
    return is_right(case.twin, reply_of(await complete(request_for(case.twin, model))).text)


async def _sampled(
    case: DetectionCase, model: str, complete: Complete, seed: int
) -> tuple[list[str], Cost, Cost]:
    """Ten answers at T = 1 by their clusters, and the costs of five and of all ten."""
    bodies = [
        request_for(case.item, model, temperature=1.0, n=SAMPLES, seed=_SEED_STEP * seed + SAMPLES * part)
        for part in range(2)
    ]
    (first, five), (second, more) = await asyncio.gather(
        *(_timed(complete, body, calls=SAMPLES) for body in bodies)
    )
    choices = [*first["choices"], *second["choices"]]
    clusters = [answer_key(case.item, choice["message"]["content"] or "") for choice in choices]
    return clusters, five, five.beside(more)


async def _varied(case: DetectionCase, model: str, complete: Complete) -> tuple[list[str], Cost]:
    """The clusters of answers to more and more blurred pictures and other wordings, and their cost."""
    variants = [baselines.blurred(reworded(case.item, by), by) for by in range(1, VARIANTS + 1)]
    answers = await asyncio.gather(
        *(_timed(complete, request_for(item, model), calls=1) for item in variants)
    )
    clusters = [answer_key(case.item, reply_of(completion).text) for completion, _ in answers]
    return clusters, reduce(Cost.beside, (cost for _, cost in answers))


async def _stated(item: Item, model: str, complete: Complete, answer: str) -> tuple[float | None, Cost]:
    """The confidence that the model states; None if it states none, or if its template takes no second
    turn."""
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
