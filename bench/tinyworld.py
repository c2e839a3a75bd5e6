"""`python -m bench NAME`: each result table has one command that rewrites it through the real engine."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.demo_items import demo_items
from modint_guard.data import write_items
from modint_guard.demo.launch import serving
from modint_guard.demo.run import ITEMS as DEMO_ITEMS
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.results import table, write_results
from modint_guard.evaluation.runner import Row, run
from modint_guard.models import ADAPTER, BASE
from modint_training.tinyworld.conditions import SELF_ASK, Condition, breakdown, every_condition


def measure_tinyworld(output: Path, *, count: int, seed: int, concurrency: int) -> None:
    """Base and robust-lora on the test split under every perturbation, through vLLM and the gateway."""
    cells = list(every_condition())
    with serving(["--adapter", ADAPTER]) as served:
        rows = asyncio.run(_ask(served.url, cells, count, seed, concurrency))
    write_results(
        output,
        command=f"python -m bench tinyworld --count {count} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="TinyWorld: accuracy and flags by perturbation",
        notes=tinyworld_notes(rows),
    )


NOTES = """\
Greedy answers through vLLM and the gateway; the client names `relevant`. Intervals: 95 %, bootstrap clustered
by source digit. `flagged_rate` is the share of all answers flagged, right or wrong; text-heavy items without
a picture and image-heavy ones without a caption have little or nothing to probe. `held_out` says what no
training has seen: `perturbation`, `wording`, or `no`. Rows of the task
`self_ask` ask whether the picture is needed."""


def tinyworld_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands above the rows: both models side by side, then how to read all of it."""
    return "\n\n".join(("## Side by side", side_by_side(rows).rstrip(), "## All rows", NOTES))


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of accuracy with its interval and the share flagged, over all forms and sub-tasks."""
    whole = [row for row in rows if (row["form"], row["task"]) == ("all", "all")]
    cells: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in whole:
        cells.setdefault((row["family"], row["perturbation"], row["held_out"]), {})[row["model"]] = row
    models = (BASE, ADAPTER)
    return table(
        [
            {
                **dict(zip(("family", "perturbation", "held out"), cell, strict=True)),
                **{model: _interval(by_model[model]) for model in models},
                **{f"{model} flagged": by_model[model]["flagged_rate"] for model in models},
            }
            for cell, by_model in cells.items()
        ]
    )


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


async def _ask(
    url: str, cells: Sequence[Condition], count: int, seed: int, concurrency: int
) -> list[dict[str, Any]]:
    asked = [(model, cell) for model in (BASE, ADAPTER) for cell in cells]
    rows: list[dict[str, Any]] = []
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        with tqdm(total=len(asked) * count, unit="item") as bar:

            def advance(_: Row) -> None:
                bar.update()

            for model, cell in asked:
                bar.set_postfix_str(f"{model} {cell.family} {cell.perturbation}")
                items = cell.items("test", count, seed)
                found = await run(items, endpoint.complete, model, concurrency=concurrency, done=advance)
                rows += table_rows(model, cell, found)
    return rows


def table_rows(model: str, cell: Condition, found: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Rows for all items, each form and each sub-task."""
    items = [row.item for row in found]
    flagged = [row.flagged for row in found]
    for row in breakdown(cell, items, [row.right for row in found], flagged=flagged):
        yield {"model": model, **row}


def collect_base(output: Path, runs: Sequence[Path]) -> None:
    """The base's figures of every training seed, from the records beside the weights they are of.

    ConfigError for a record that another recipe made, seed and name apart, and for one seed twice.
    """
    records = [(path, json.loads(path.read_text("utf-8"))) for path in runs]
    for path, record in records:
        if _but_for_seed(record) != _but_for_seed(records[0][1]):
            raise ConfigError(
                f"{path} was made by another recipe or other data than {runs[0]}; train it again"
            )
    seeds = [int(record["seed"]) for _, record in records]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"two records of one seed among {', '.join(map(str, runs))}; name each seed once")
    rows = [{"seed": record["seed"], **row} for _, record in records for row in record["test"]]
    write_results(
        output,
        command="python -m bench base",
        seeds=seeds,
        rows=rows,
        title="The base on the test split, by training seed",
        notes=base_notes(rows),
    )


BASE_NOTES = """\
Greedy first tokens in transformers, measured at the end of each training run and kept in its `run.json`; a
test compares vLLM with transformers. Intervals: 95 %, bootstrap clustered by source digit. `held_out` is
`wording` where the question is worded as no training item is. Rows of the task `self_ask` ask whether the
picture is needed. The first seed is the one that ships."""


def base_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands above the rows: the figures in short, then how to read all of it."""
    return "\n\n".join(("## In short", base_table(rows).rstrip(), "## All rows", BASE_NOTES))


def base_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The base's figures in short: accuracy in trained wordings, a column for each seed."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    found = {f"seed {seed}": _base_figures([row for row in rows if row["seed"] == seed]) for seed in seeds}
    asked = next(iter(found.values()))
    return table([{"asked": what, **{seed: own[what] for seed, own in found.items()}} for what in asked])


def _base_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    known = {
        (row["family"], row["perturbation"], row["task"]): float(row["accuracy"])
        for row in rows
        if (row["held_out"], row["form"]) == ("no", "all")
    }
    clean = {"image-heavy": "clean", "text-heavy": "no_image", "vqa": "clean"}
    tasks = {key: value for key, value in known.items() if clean[key[0]] == key[1]}
    beside = {task: value for (_, kind, task), value in known.items() if kind == "contradicting_image"}
    return {
        **{family: known[family, kind, "all"] for family, kind in clean.items()},
        "the weakest sub-task": min(value for key, value in tasks.items() if key[2] != SELF_ASK),
        "whether the picture is needed": min(value for key, value in known.items() if key[2] == SELF_ASK),
        "image-heavy under a lying caption": known["image-heavy", "misleading_description", "all"],
        "text-heavy beside a contradicting picture": beside["all"],
        "… that is lost by it": known["text-heavy", "no_image", "all"] - beside["all"],
        **{f"… {task}": value for task, value in beside.items() if task not in ("all", SELF_ASK)},
    }


def _but_for_seed(record: dict[str, Any]) -> tuple[dict[str, Any], str]:
    recipe = {key: value for key, value in record["recipe"].items() if key != "seed"}
    return recipe, record["data_sha256"]


def rewrite_demo_items() -> Path:
    """Rewrite the items that ship with the package."""
    write_items(demo_items(), DEMO_ITEMS)
    return DEMO_ITEMS
