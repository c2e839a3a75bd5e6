"""`python -m bench detection`: verdicts and other detectors on the same answers of the real engine.

Each case (`detection.inputs`) is asked through the gateway as a client asks it: once without a word on what
ought to decide (`auto`), and once naming it (`named`). Then its clean twin is asked, and what baselines need:
as many further calls as the guard makes, sampled or with blurred pictures. Every record is written at once,
so that a killed run loses only the cases under way. The figures are computed from the records alone
(`detection.table`).
"""

import asyncio
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from bench.calibrations import weights_of
from bench.detection import baselines, table
from bench.detection.inputs import WORLDS, DetectionCase, World, cases
from bench.detection.table import Answer, Judged, View
from modint_guard.chat.reply import reply_of
from modint_guard.data.item import answer_key, is_right
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.journal import Job, Journal, collect
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import request_for, without_guard
from modint_guard.judging.risk import Thresholds
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import JSON, Complete

CALLS = 3  # of a baseline that asks again: as many as the guard has cells
LONGEST = 64  # tokens of an answer in words of its own
# The models of a world, and one case in how many each is asked.
MODELS: dict[World, dict[str, int]] = {
    "tinyworld": {BASE: 2, ADAPTER: 2},
    "picturebook": {"picturebook-base": 1},
}
SERVED: dict[World, list[str]] = {
    "tinyworld": ["--adapter", ADAPTER],
    "picturebook": ["--model", "picturebook-base"],
}


@dataclass(frozen=True)
class Run:
    """What is asked: `count` lying cases of each setting and held-out part, in each of these worlds."""

    count: int
    seed: int
    concurrency: int
    worlds: tuple[World, ...] = WORLDS

    def cases(self, world: World, model: str) -> list[DetectionCase]:
        """All cases of a model, those of the validation split first."""
        count = max(1, self.count // MODELS[world][model])
        return [case for split in ("validation", "test") for case in cases(split, count, self.seed, world)]


def measure_detection(output: Path, raw: Path, run: Run) -> None:
    """Ask the models of each world every case, and write the tables. ConfigError if `raw` belongs to another
    run."""
    answers = list[Answer]()
    for world in run.worlds:
        models = tuple(MODELS[world])
        made_by: JSON = {
            "run": "detection",
            "count": run.count,
            "seed": run.seed,
            "weights": [weights_of(bundled(model)) for model in models],
            "judged_by": sha256(repr(Thresholds()).encode()).hexdigest(),
        }
        asked = {key_of(model, case): case for model in models for case in run.cases(world, model)}
        with Journal(raw.with_stem(f"{raw.stem}-{world}"), made_by) as journal:
            if asked.keys() - journal.records.keys():
                with serving(SERVED[world]) as served:
                    asyncio.run(_ask(served.url, journal, world, run))
            answers += [Answer.from_json(journal.records[key]) for key in asked]
    write_results(
        output,
        command=f"python -m bench detection --count {run.count} --seed {run.seed}",
        seeds=[run.seed],
        rows=(rows := list(table.rows(answers, seed=run.seed))),
        title="Detection of wrong answers under interference",
        notes=table.NOTES,
        shown=table.markdown(rows),
    )


def key_of(model: str, case: DetectionCase) -> str:
    """The key of a case's record in the journal."""
    return f"{model}/{case.key}"


async def _ask(url: str, journal: Journal, world: World, run: Run) -> None:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        jobs: dict[str, Job] = {
            key_of(model, case): partial(record, case, model, endpoint.complete, seed=run.seed)
            for model in MODELS[world]
            for case in run.cases(world, model)
        }
        with tqdm(total=len(jobs), unit="case") as bar:

            def advance(_: str) -> None:
                bar.update()

            await collect(jobs, journal, concurrency=run.concurrency, done=advance)


async def record(case: DetectionCase, model: str, complete: Complete, *, seed: int) -> JSON:
    """All measurements of one case, as the JSON of an `Answer`. Raises EndpointError."""
    unguarded = without_guard(complete)
    fields: JSON = {"max_tokens": LONGEST} if case.item.form == "free" else {}
    asked = partial(request_for, case.item, model, logprobs=True, top_logprobs=20, **fields)
    judged: dict[str, Judged] = {}
    for mode, relevant in (("auto", "auto"), ("named", case.relevant)):
        completion = await complete(asked(modint={"relevant": relevant}))
        judged[mode] = _judged(completion["modint"])
    reply = reply_of(completion)
    logprobs = [token["logprob"] for token in completion["choices"][0]["logprobs"]["content"]]
    sampled, varied = await asyncio.gather(
        unguarded(request_for(case.item, model, temperature=1.0, n=CALLS, seed=1000 * seed, **fields)),
        asyncio.gather(
            *(
                unguarded(request_for(baselines.blurred(case.item, by), model, **fields))
                for by in range(1, CALLS + 1)
            )
        ),
    )
    texts = [choice["message"]["content"] or "" for choice in sampled["choices"]]
    right = is_right(case.item, reply.text)
    clean = reply_of(await unguarded(request_for(case.twin, model, **fields))) if case.twin else None
    answer = Answer(
        world=case.world,
        model=model,
        split=case.split,
        setting=case.setting,
        kind=case.kind,
        held_out=case.held_out,
        placement=case.placement,
        source=case.item.source,
        task=case.item.task,
        length=len(logprobs),
        right=right,
        right_when_clean=is_right(case.twin, clean.text) if case.twin and clean else right,
        judged=judged,
        surprise=-sum(logprobs) / len(logprobs) if logprobs else 0.0,
        entropy=baselines.first_entropy(reply.top or {}),
        sampled=[answer_key(case.item, text) for text in texts],
        varied=[answer_key(case.item, reply_of(each).text) for each in varied],
    )
    return asdict(answer)


def _judged(modint: JSON) -> Judged:
    """What a verdict says, and what its probes found."""
    views = {
        probe["name"]: View(bool(probe["flip"]), probe["divergence"] or 0.0, probe["delta_logprob"] or 0.0)
        for probe in modint["probes"]
    }
    return Judged(
        verdict=modint["verdict"],
        cause=modint["cause"],
        reason=modint["reason"],
        score=modint["score"],
        neglect=modint["neglect"],
        relevant=modint["relevant"],
        relevant_source=modint["relevant_source"],
        calibrated=modint["calibrated"],
        views=views,
        tokens=sum(probe["tokens"] - (probe["cached_tokens"] or 0) for probe in modint["probes"]),
    )
