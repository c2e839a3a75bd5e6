"""`python -m bench tinyworld`: base and robust-lora under every perturbation, through vLLM and the
gateway."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.results import table, write_results
from modint_guard.evaluation.runner import Row, run
from modint_guard.models import ADAPTER, BASE
from modint_training.tinyworld.conditions import Condition, breakdown, every_condition

NOTES = """\
Greedy answers through vLLM and the gateway; the client names `relevant`. Intervals: 95 %, bootstrap clustered
by source digit. `flagged_rate` is the share of all answers flagged, right or wrong; text-heavy items without
a picture and image-heavy ones without a caption have little or nothing to probe. `held_out` says what no
training has seen: `perturbation`, `wording`, or `no`. Rows of the task
`self_ask` ask whether the picture is needed."""


def measure_tinyworld(output: Path, *, count: int, seed: int, concurrency: int) -> None:
    """Ask both models `count` test items under each condition, and write the table."""
    conditions = list(every_condition())
    with serving(["--adapter", ADAPTER]) as served:
        rows = asyncio.run(_measure(served.url, conditions, count, seed, concurrency))
    write_results(
        output,
        command=f"python -m bench tinyworld --count {count} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="TinyWorld: accuracy and flags by perturbation",
        notes=tinyworld_notes(rows),
    )


def tinyworld_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text above the rows: both models side by side, then how to read all rows."""
    return "\n\n".join(("## Side by side", side_by_side(rows).rstrip(), "## All rows", NOTES))


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of accuracy with its interval and the share flagged, over all forms and sub-tasks."""
    whole = [row for row in rows if (row["form"], row["task"]) == ("all", "all")]
    by_condition: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in whole:
        condition = (row["family"], row["perturbation"], row["held_out"])
        by_condition.setdefault(condition, {})[row["model"]] = row
    models = (BASE, ADAPTER)
    return table(
        [
            {
                **dict(zip(("family", "perturbation", "held out"), condition, strict=True)),
                **{model: _interval(by_model[model]) for model in models},
                **{f"{model} flagged": by_model[model]["flagged_rate"] for model in models},
            }
            for condition, by_model in by_condition.items()
        ]
    )


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


async def _measure(
    url: str, conditions: Sequence[Condition], count: int, seed: int, concurrency: int
) -> list[dict[str, Any]]:
    parts = [(model, condition) for model in (BASE, ADAPTER) for condition in conditions]
    rows: list[dict[str, Any]] = []
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        with tqdm(total=len(parts) * count, unit="item") as bar:

            def advance(_: Row) -> None:
                bar.update()

            for model, condition in parts:
                bar.set_postfix_str(f"{model} {condition.family} {condition.perturbation}")
                items = condition.items("test", count, seed)
                answers = await run(items, endpoint.complete, model, concurrency=concurrency, done=advance)
                rows += table_rows(model, condition, answers)
    return rows


def table_rows(model: str, condition: Condition, answers: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Rows for all items, each form and each sub-task."""
    items = [answer.item for answer in answers]
    flagged = [answer.flagged for answer in answers]
    for row in breakdown(condition, items, [answer.right for answer in answers], flagged=flagged):
        yield {"model": model, **row}
