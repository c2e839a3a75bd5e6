"""`modint-guard results NAME`: each result table has one command that rewrites it through the real engine."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.data import write_items
from modint_guard.demo import ITEMS as DEMO_ITEMS
from modint_guard.endpoint import Endpoint
from modint_guard.item import FAMILIES, Family, Item
from modint_guard.launch import serving
from modint_guard.models import ADAPTER, BASE
from modint_guard.perturb import REGISTRY, applicable
from modint_guard.results import write_results
from modint_guard.runner import Row, run
from modint_guard.statistics import cluster_interval
from modint_training.tinyworld import suite
from modint_training.tinyworld.demo_items import demo_items

# Besides the trained wordings, these conditions are asked in the held-out ones.
HELD_OUT_WORDINGS: tuple[tuple[Family, str], ...] = (
    ("image-heavy", "clean"),
    ("image-heavy", "misleading_description"),
    ("text-heavy", "no_image"),
    ("text-heavy", "contradicting_image"),
    ("vqa", "clean"),
)


@dataclass(frozen=True)
class Condition:
    """One cell of the table: a family under a perturbation, in trained or held-out wordings."""

    family: Family
    perturbation: str
    held_out_wording: bool

    @property
    def held_out(self) -> str:
        """What no training run has seen: `wording`, `perturbation`, or `no` where nothing is held out."""
        if self.held_out_wording:
            return "wording"
        kind = REGISTRY.get(self.perturbation)
        return "perturbation" if kind and kind.role == "held_out" else "no"

    def items(self, count: int, seed: int) -> list[Item]:
        """The test items of this cell."""
        clean = suite.items(self.family, "test", count, seed=seed, held_out=self.held_out_wording)
        return [suite.perturbed(item, self.perturbation, seed=seed) for item in clean]


def conditions() -> Iterator[Condition]:
    """Every family clean and under every perturbation that fits it, then the held-out wordings."""
    for family in FAMILIES:
        names = [kind.name for kind in applicable(family)]
        for name in names if family == "text-heavy" else ["clean", *names]:
            yield Condition(family, name, held_out_wording=False)
    yield from (Condition(family, name, held_out_wording=True) for family, name in HELD_OUT_WORDINGS)


def measure_tinyworld(output: Path, *, count: int, seed: int, concurrency: int) -> None:
    """Base and robust-lora on the test split under every perturbation, through vLLM and the gateway."""
    cells = list(conditions())
    with serving(["--adapter", ADAPTER]) as served:
        rows = asyncio.run(_ask(served.url, cells, count, seed, concurrency))
    write_results(
        output,
        command=f"modint-guard results tinyworld --count {count} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="TinyWorld: accuracy and flags by perturbation",
        notes=NOTES,
    )


NOTES = """\
Greedy answers through vLLM and the gateway; the client names `relevant`. Intervals: 95 %, bootstrap clustered
by source digit. `flagged_rate` is the share of all answers flagged, right or wrong; text-heavy items without
a picture and image-heavy ones without a caption have little or nothing to probe. `held_out` says what no
training has seen: `perturbation`, `wording`, or `no`."""


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
                items = cell.items(count, seed)
                found = await run(items, endpoint.complete, model, concurrency=concurrency, done=advance)
                rows += table_rows(model, cell, found)
    return rows


def table_rows(model: str, cell: Condition, found: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One row for both forms together and one for each."""
    for form in ("all", "word", "letter"):
        chosen = [row for row in found if form in ("all", row.item.form)]
        low, high = cluster_interval(
            [float(row.right) for row in chosen], [row.item.source for row in chosen]
        )
        yield {
            "model": model,
            "family": cell.family,
            "perturbation": cell.perturbation,
            "held_out": cell.held_out,
            "form": form,
            "n": len(chosen),
            "accuracy": _share(row.right for row in chosen),
            "ci_low": low,
            "ci_high": high,
            "flagged_rate": _share(row.flagged for row in chosen),
        }


def _share(hits: Iterable[bool]) -> float:
    values = [float(hit) for hit in hits]
    return sum(values) / len(values)


def rewrite_demo_items() -> Path:
    """Rewrite the items that ship with the package."""
    write_items(demo_items(), DEMO_ITEMS)
    return DEMO_ITEMS
