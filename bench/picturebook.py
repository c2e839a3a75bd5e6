"""`python -m bench picturebook`: the picture-book's base and an adapter through vLLM and the gateway."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import Row, run, without_guard
from modint_guard.types import JSON
from modint_training.picturebook.conditions import BARS, Condition, breakdown, every_condition
from modint_training.picturebook.documents import documents

NOTES = """\
Greedy answers through vLLM and the gateway; the client names `relevant`. Intervals: 95 %, bootstrap clustered
by thing. The guard judges the first `judged` answers of a row: of them `flagged_rate` is the share flagged as
interference, right or wrong, `flagged_right` that of the right ones, of which there are `judged_right`, and
`neglect_rate` the share flagged because the picture or the text that was named had no influence, which is no
interference. Text-heavy items without a picture and image-heavy ones without a caption have little or nothing
to probe. The others pass the gateway with the guard off. `held_out` says what no training has seen: `wording`
of questions, `captions` in other words, `style` of drawing, `things`, `placement` of the caption,
`perturbation`, or `no`. `placement` is where the caption stands: `before` the question as a text of its own,
`above` it in the same text, `after` it, `within` its sentence, in an `earlier` turn or in the `system` text.
`task`: one sub-task, or `all` in their mixture; `self_ask` asks whether the picture is needed. Rows with the
placement `document` show a receipt, a letter, a chart or a screen, whose text is in the picture. This base
cannot read it: its answers are guesses, and right ones come from the true description beside it, so that
their accuracy says nothing. Nothing lies there, and `flagged_right` ought to be 0."""


@dataclass(frozen=True)
class Run:
    """What is measured: a model, perhaps with an adapter, on `count` items under each condition, of which the
    first `judged` pass the guard."""

    model: str
    adapter: str | None
    count: int
    judged: int
    seed: int
    concurrency: int


def measure_picturebook(output: Path, raw: Path, setup: Run) -> None:
    """Base and adapter on the test split under every condition. The rows of each condition are kept in `raw`
    as they come, and the same call goes on from them."""
    options = ["--model", setup.model, *(["--adapter", setup.adapter] if setup.adapter else [])]
    made_by: JSON = {"run": "picturebook", **asdict(setup), "concurrency": None}
    with Journal(raw, made_by) as journal, serving(options) as served:
        rows = asyncio.run(_ask(served.url, setup, journal))
    adapter = f" --adapter {setup.adapter}" if setup.adapter else ""
    write_results(
        output,
        command=f"python -m bench picturebook --model {setup.model}{adapter} --count {setup.count} "
        f"--judged {setup.judged} --seed {setup.seed}",
        seeds=[setup.seed],
        rows=rows,
        title="Picture-book: accuracy and flags by condition",
        notes=NOTES,
    )


async def _ask(url: str, setup: Run, journal: Journal) -> list[dict[str, Any]]:
    # By name, for some bars are conditions of their own; None: documents.
    conditions = [*{each.name: each for each in (*every_condition(), *BARS.values())}.values(), None]
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        names = [str(listed["id"]) for listed in await endpoint.models()]
        jobs = [(name, condition) for name in names for condition in conditions]
        for name, condition in tqdm(jobs, unit="condition"):
            key = f"{name}: {condition.name if condition else 'documents'}"
            if key not in journal.records:
                journal.write(key, {"rows": await _rows(endpoint, name, condition, setup)})
    return [row for record in journal.records.values() for row in record["rows"]]


async def _rows(
    endpoint: Endpoint, name: str, condition: Condition | None, setup: Run
) -> list[dict[str, Any]]:
    ask = partial(run, model=name, concurrency=setup.concurrency)
    if condition is None:
        documented = documents("test", setup.count, seed=setup.seed)
        return list(document_rows(name, await ask(documented, endpoint.complete)))
    items = condition.items("test", setup.count, setup.seed)
    judged = await ask(items[: setup.judged], endpoint.complete)
    others = await ask(items[setup.judged :], without_guard(endpoint.complete))
    return [table_row(name, condition, [*judged, *others])]


def table_row(model: str, condition: Condition, answered: Sequence[Row]) -> dict[str, Any]:
    """The row of a condition: accuracy over all answers, flags over those that the guard has judged."""
    judged = [row for row in answered if row.modint is not None]
    flagged = [row.flagged and not row.neglected for row in judged]
    of_right = [flag for row, flag in zip(judged, flagged, strict=True) if row.right]
    row = next(breakdown(condition, [row.item for row in answered], [row.right for row in answered]))
    return {
        "model": model,
        **row,
        "task": condition.task or row["task"],
        "judged": len(judged),
        "flagged_rate": sum(flagged) / len(judged),
        "judged_right": len(of_right),
        "flagged_right": sum(of_right) / len(of_right) if of_right else None,
        "neglect_rate": sum(row.neglected for row in judged) / len(judged),
    }


def document_rows(model: str, answered: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Rows of documents, by the words beside them: flags alone, no accuracy."""
    by_words = sorted(answered, key=lambda row: row.item.perturbation)
    for beside, group in itertools.groupby(by_words, key=lambda row: row.item.perturbation):
        unread = {"placement": "document", "accuracy": None, "ci_low": None, "ci_high": None}
        yield {**table_row(model, Condition("image-heavy", beside), list(group)), **unread}


def print_bars(model: str, adapter: str | None, count: int) -> None:
    """Print the figures by which a base is chosen, from a local model, as they come."""
    from modint_training.models.loading import loaded
    from modint_training.picturebook.source import bars

    for name, accuracy in bars(*loaded(model, adapter), count):
        print(f"{accuracy:5.2f}  {name}", flush=True)
