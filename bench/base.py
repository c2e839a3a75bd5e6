"""`python -m bench base`: the base model's figures for every training seed, from the records of its runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modint_guard.errors import ConfigError
from modint_guard.evaluation.results import table, write_results
from modint_training.tinyworld.conditions import CLEAN_KIND, SELF_ASK

NOTES = """\
Greedy first tokens in transformers, measured at the end of each training run and kept in its `run.json`; a
test compares vLLM with transformers. Intervals: 95 %, bootstrap clustered by source digit. `held_out` is
`wording` where the question is worded as no training item is. Rows of the task `self_ask` ask whether the
picture is needed. The first seed is the one that ships."""


def collect_base(output: Path, runs: Sequence[Path]) -> None:
    """Write the test rows of several `run.json` files as one table.

    Raises ConfigError if two records have the same seed, or differ in recipe or data apart from the seed.
    """
    records = [(path, json.loads(path.read_text("utf-8"))) for path in runs]
    for path, record in records:
        if _without_seed(record) != _without_seed(records[0][1]):
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


def _without_seed(record: dict[str, Any]) -> tuple[dict[str, Any], str]:
    recipe = {key: value for key, value in record["recipe"].items() if key != "seed"}
    return recipe, record["data_sha256"]


def base_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text above the rows: the figures in short, then how to read them all."""
    return "\n\n".join(("## In short", base_table(rows).rstrip(), "## All rows", NOTES))


def base_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The base's figures in short: accuracy in trained wordings, a column for each seed."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    by_seed = {f"seed {seed}": _figures([row for row in rows if row["seed"] == seed]) for seed in seeds}
    names = next(iter(by_seed.values()))
    return table(
        [{"asked": name, **{seed: figures[name] for seed, figures in by_seed.items()}} for name in names]
    )


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    accuracy = {
        (row["family"], row["perturbation"], row["task"]): float(row["accuracy"])
        for row in rows
        if (row["held_out"], row["form"]) == ("no", "all")
    }
    clean_tasks = {key: value for key, value in accuracy.items() if CLEAN_KIND[key[0]] == key[1]}
    contradicted = {
        task: value for (_, kind, task), value in accuracy.items() if kind == "contradicting_image"
    }
    return {
        **{family: accuracy[family, kind, "all"] for family, kind in CLEAN_KIND.items()},
        "the weakest sub-task": min(value for key, value in clean_tasks.items() if key[2] != SELF_ASK),
        "whether the picture is needed": min(value for key, value in accuracy.items() if key[2] == SELF_ASK),
        "image-heavy under a lying caption": accuracy["image-heavy", "misleading_description", "all"],
        "text-heavy beside a contradicting picture": contradicted["all"],
        "… that is lost by it": accuracy["text-heavy", "no_image", "all"] - contradicted["all"],
        **{f"… {task}": value for task, value in contradicted.items() if task not in ("all", SELF_ASK)},
    }
