"""`modint-guard results detection`: our risk beside other detectors, on the same answers of the real engine.

Each case (`tinyworld.interference`) is asked through the gateway as a client would; then once more with its
views, so that every feature is known; then as the baselines want it: sampled, with blurred pictures and other
words, and how sure the model is. Every record is kept as it comes, so that a kill costs one. The figures are
made from the records alone (`detection_table`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from modint_guard import baselines
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.guard import Guard, reply_of
from modint_guard.item import is_right, same_as
from modint_guard.journal import Job, Journal, collect
from modint_guard.launch import serving
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.results import write_results
from modint_guard.runner import request_for
from modint_guard.types import JSON, Complete, Score
from modint_training import detection_table
from modint_training.calibrations import weights_of
from modint_training.detection_table import Answer, Cost
from modint_training.tinyworld.interference import Case, cases
from modint_training.tinyworld.tasks import reworded

SAMPLES = 5  # answers a request; two requests
VARIANTS = 5  # blurred and reworded
_SEEDS = 1000  # apart: the engine counts up from a request's seed, one a sample


def measure_detection(output: Path, *, raw: Path, count: int, seed: int, concurrency: int) -> None:
    """Ask every case of both bundled models and write the tables. ConfigError for a `raw` of another run."""
    asked = [*cases("validation", count, seed), *cases("test", count, seed)]
    made_by = {
        "run": "detection",
        "count": count,
        "seed": seed,
        "weights": [weights_of(bundled(name)) for name in (BASE, ADAPTER)],
    }
    with Journal(raw, made_by) as journal:
        missing = any(
            key_of(model, case) not in journal.records for model in (BASE, ADAPTER) for case in asked
        )
        if missing:
            with serving(["--adapter", ADAPTER]) as served:
                asyncio.run(_ask(served.url, asked, journal, concurrency, seed))
        answers = [
            Answer.from_json(journal.records[key_of(model, case)])
            for model in (BASE, ADAPTER)
            for case in asked
        ]
    write_tables(
        output, answers, command=f"modint-guard results detection --count {count} --seed {seed}", seed=seed
    )


def write_tables(output: Path, answers: Sequence[Answer], *, command: str, seed: int) -> None:
    """`output` and, beside it, the shares that are flagged by kind."""
    write_results(
        output,
        command=command,
        seeds=[seed],
        rows=list(detection_table.rows(answers, seed=seed)),
        title="Detection of wrong answers under interference",
        notes=detection_table.NOTES,
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


async def _ask(url: str, asked: Iterable[Case], journal: Journal, concurrency: int, seed: int) -> None:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        jobs: dict[str, Job] = {
            key_of(model, case): partial(record, case, model, endpoint.complete, seed=seed)
            for case in asked
            for model in (BASE, ADAPTER)
        }
        with tqdm(total=len(jobs), unit="case") as bar:

            def advance(_: str) -> None:
                bar.update()

            await collect(jobs, journal, concurrency=concurrency, done=advance)


async def record(
    case: Case, model: str, complete: Complete, *, seed: int, guard: Guard | None = None
) -> JSON:
    """All that is measured of one case, as `Answer` holds it. `complete` is the gateway; our own features are
    asked through it with the guard off. Raises EndpointError, and ConfigError where log-probabilities are
    missing.
    """
    unguarded = _without_guard(complete)
    relevant = {"relevant": case.relevant}
    # First, so that what the cache holds is what it would hold for a client.
    served = await complete(request_for(case.item, model, modint=relevant))
    score, top, said = await _features(case, model, unguarded, guard or Guard())
    sampled, five, ten = await _sampled(case, model, unguarded, seed)
    varied, varied_cost = await _varied(case, model, unguarded)
    stated, stated_cost = await _stated(case, model, unguarded, said)
    right = is_right(case.item, said)
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
        max_probability=baselines.max_probability(top),
        cells={
            name: {
                "js": cell.divergence,
                "margin": cell.margin,
                "pmi": cell.delta_logprob,
                "entropy": cell.entropy,
                "flip": float(cell.flip is True),
            }
            for name, cell in score.cells.items()
        },
        influence={"text": score.influence_text, "image": score.influence_image, "synergy": score.synergy},
        relative_entropy=score.relative_entropy,
        sampled=sampled,
        varied=varied,
        stated=stated,
        costs={
            **{probe["name"]: _probe_cost(probe) for probe in served["modint"]["probes"]},
            "semantic_entropy_5": five,
            "semantic_entropy_10": ten,
            "vl_uncertainty_5": varied_cost,
            "verbalised": stated_cost,
        },
    )
    return asdict(answer)


def _without_guard(complete: Complete) -> Complete:
    async def unguarded(body: JSON) -> JSON:
        return await complete({**body, "modint": {"mode": "off"}})

    return unguarded


async def _features(
    case: Case, model: str, complete: Complete, guard: Guard
) -> tuple[Score, dict[str, float], str]:
    plan = guard.plan(request_for(case.item, model, modint={"relevant": case.relevant}))
    answer, replies = await asyncio.gather(complete(guard.main_body(plan)), guard.probe(plan, complete))
    reply = reply_of(answer)
    score = guard.score(plan, reply, replies)
    if score is None or not reply.top:
        raise ConfigError(f"{case.key} could not be scored: does the endpoint give log-probabilities?")
    return score, dict(reply.top), reply.text


async def _right(case: Case, model: str, complete: Complete) -> bool:
    assert case.twin is not None
    return is_right(case.twin, reply_of(await complete(request_for(case.twin, model))).text)


async def _sampled(case: Case, model: str, complete: Complete, seed: int) -> tuple[list[str], Cost, Cost]:
    """Ten answers at T = 1, and what five and ten of them cost."""
    found: list[str] = []
    costs: list[Cost] = []
    for part in range(2):
        body = request_for(case.item, model, temperature=1.0, n=SAMPLES, seed=_SEEDS * seed + SAMPLES * part)
        completion, cost = await _timed(complete, body, calls=SAMPLES)
        found += [same_as(case.item, choice["message"]["content"] or "") for choice in completion["choices"]]
        costs.append(cost)
    return found, costs[0], costs[0] + costs[1]


async def _varied(case: Case, model: str, complete: Complete) -> tuple[list[str], Cost]:
    """Answers to a picture ever more blurred and a question in ever other words."""
    asked = [baselines.blurred(reworded(case.item, by), by) for by in range(1, VARIANTS + 1)]
    got = [await _timed(complete, request_for(item, model), calls=1) for item in asked]
    texts = [same_as(case.item, reply_of(completion).text) for completion, _ in got]
    return texts, sum((cost for _, cost in got[1:]), start=got[0][1])


async def _stated(case: Case, model: str, complete: Complete, answer: str) -> tuple[float | None, Cost]:
    """The confidence it states; None where it states none, or where its template knows no second turn."""
    try:
        completion, cost = await _timed(complete, baselines.how_sure(case.item, model, answer), calls=1)
    except EndpointError as exc:
        if exc.status != 400:
            raise
        return None, Cost()
    return baselines.stated_confidence(reply_of(completion).text), cost


async def _timed(complete: Callable[[JSON], Awaitable[JSON]], body: JSON, *, calls: int) -> tuple[JSON, Cost]:
    began = time.perf_counter()
    completion = await complete(body)
    usage = completion.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    spent = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return completion, Cost(calls, spent - cached, cached, 1000 * (time.perf_counter() - began))


def _probe_cost(probe: JSON) -> Cost:
    return Cost(1, probe["tokens"] - probe["cached_tokens"], probe["cached_tokens"], probe["ms"])
