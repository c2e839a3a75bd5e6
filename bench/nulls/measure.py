"""`python -m bench nulls`: does a null hold on harmless inputs that did not make it, and does it find lies?

Each case is asked through the gateway, which judges it; what a verdict is made from, the score and the length
of the answer, is kept as it comes. The null is taken from these records (`nulls.table`), so that the gateway
itself needs none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bench.calibrations import weights_of
from bench.nulls.inputs import HarmlessCase, LieCase, harmless_cases, lie_cases
from bench.nulls.table import NOTES, rows_of
from bench.nulls.vocabulary import token_ids
from modint_guard.chat.reply import answer_positions, reply_of
from modint_guard.data.item import is_right
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.journal import Job, Journal, collect
from modint_guard.evaluation.null_measure import said_something_else
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import without_guard
from modint_guard.models import bundled
from modint_guard.types import JSON, TEACHER_FORCED, Complete

TIMEOUT_S = 600.0
FIRST_WORDS = 8


@dataclass(frozen=True)
class Run:
    """What is asked: a model of the picture-book world, by its name or its folder, for so many answers as
    `harmless_cases` and `lie_cases` say."""

    model: str
    count: int
    seed: int
    concurrency: int


def measure_nulls(output: Path, raw: Path, run: Run) -> None:
    """Ask all cases, and write the table. Records are kept in `raw`; the same call goes on from them, with a
    larger count too. ConfigError if they are of another model or seed.
    """
    folder = bundled(run.model) if bundled(run.model).is_dir() else Path(run.model)
    made_by: JSON = {"run": "nulls", "model": run.model, "weights": weights_of(folder), "seed": run.seed}
    with Journal(raw, made_by) as journal:
        keys = jobs_of(run, run.model, _never).keys()
        if keys - journal.records.keys():
            with serving(["--model", run.model]) as served:
                asyncio.run(_ask(served.url, run, journal, token_ids(folder)))
        records = [journal.records[key] for key in keys]
    write_results(
        output,
        command=f"python -m bench nulls --model {run.model} --count {run.count} --seed {run.seed}",
        seeds=[run.seed],
        rows=list(rows_of(records)),
        title="A null on what did not make it",
        notes=NOTES,
    )


async def _ask(url: str, run: Run, journal: Journal, vocabulary: Sequence[int]) -> None:
    async with Endpoint(f"{url}/v1", timeout_s=TIMEOUT_S) as endpoint:
        (model,) = [str(listed["id"]) for listed in await endpoint.models()]
        jobs = jobs_of(run, model, endpoint.complete, vocabulary)
        with tqdm(total=len(jobs), unit="case") as bar:

            def advance(_: str) -> None:
                bar.update()

            await collect(jobs, journal, concurrency=run.concurrency, done=advance)


def jobs_of(run: Run, model: str, complete: Complete, vocabulary: Sequence[int] = ()) -> dict[str, Job]:
    """One job for each case. vocabulary: the tokens in which long answers go on."""
    jobs: dict[str, Job] = {
        case.key: partial(ask_harmless, case, model, complete, run.seed, vocabulary)
        for case in harmless_cases(run.count, run.seed)
    }
    lies: dict[str, Job] = {
        case.key: partial(ask_lie, case, model, complete, run.seed) for case in lie_cases(run.count, run.seed)
    }
    return jobs | lies


async def ask_harmless(
    case: HarmlessCase, model: str, complete: Complete, seed: int, vocabulary: Sequence[int]
) -> JSON:
    """What is kept of an answer beside a harmless input. A long one is right if its beginning is."""
    completion = await complete(await asyncio.to_thread(case.body, model, seed, vocabulary))
    text = reply_of(completion).text
    right = is_right(case.item, beginning(text) if case.goes_on else text)
    told = {name: getattr(case, name) for name in ("half", "kind", "temperature", "tokens")}
    return {**told, "right": right, **judged(completion)}


def beginning(text: str) -> str:
    """What an answer says before it is made to go on: its first sentence, at most eight words of it."""
    sentence = re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]
    return " ".join(sentence.split()[:FIRST_WORDS])


async def ask_lie(case: LieCase, model: str, complete: Complete, seed: int) -> JSON:
    """What is kept of one answer to a lie. right: whether the answer without a lie is. changed: whether the
    lie made a wrong one of it; None if that was not right, or if no lie could be made up.
    """
    clean = await asyncio.to_thread(case.clean_body, model)
    alone = reply_of(await without_guard(complete)(clean)).text
    record: JSON = {"kind": case.kind, "right": is_right(case.item, alone), "changed": None}
    lie = await asyncio.to_thread(case.body, model, alone, seed) if record["right"] else None
    if lie is None:
        return record
    completion = await complete(lie)
    text = reply_of(completion).text
    changed = said_something_else(text, alone) and not is_right(case.item, text)
    return {**record, "changed": changed, **judged(completion)}


def judged(completion: JSON) -> JSON:
    """The score of an answer, nats, None without one; how many tokens it is of; and what else its verdict
    says."""
    modint = completion["modint"]
    is_whole = modint["method"] == TEACHER_FORCED
    length = len(answer_positions(reply_of(completion))) if is_whole else 1
    named = {name: modint[name] for name in ("score", "verdict", "cause", "reason", "method")}
    return {**named, "length": max(1, length)}


async def _never(body: JSON) -> JSON:
    raise AssertionError("only the names of the jobs are wanted")
