"""Evaluate a model against interference: items clean and perturbed, through any `Complete`.

Clean is what the paper compares with: no caption for image-heavy items, no picture for text-heavy ones
(arXiv 2505.19616, section 3). Items that need both modalities are asked as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modint_guard.data.item import Family, Item, reply_for
from modint_guard.data.perturb import CLEAN, REGISTRY, clean_view, fitting, held_out, perturb
from modint_guard.data.severity import FULL, at_severity
from modint_guard.errors import ConfigError
from modint_guard.evaluation.effects import EFFECTS, Answered, effect, shares, sources
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import Row, run
from modint_guard.evaluation.statistics import mcnemar, paired_interval
from modint_guard.judging.divergence import option_distribution
from modint_guard.judging.risk import Thresholds
from modint_guard.types import Complete


@dataclass(frozen=True)
class Cell:
    """A condition: a family under a perturbation at a severity, in trained or held-out wordings."""

    family: Family
    perturbation: str
    held_out_wording: bool = False
    severity: int = FULL  # of the perturbation: see `severity.at_severity`

    @property
    def dose(self) -> int:
        """The severity, 0 where nothing is perturbed."""
        return 0 if self.perturbation == CLEAN else self.severity

    @property
    def held_out(self) -> str:
        """As `perturb.held_out`."""
        return held_out(self.perturbation, wording=self.held_out_wording)

    @property
    def clean(self) -> Cell:
        """The cell it is compared with."""
        return Cell(self.family, CLEAN, self.held_out_wording)


Found = dict[Cell, list[Answered]]


def cells_of(
    items: Sequence[Item],
    *,
    seed: int = 0,
    perturbations: Sequence[str] | None = None,
    severities: Sequence[int] = (FULL,),
) -> dict[Cell, list[Item]]:
    """Labelled items by cell: clean, then under each perturbation that fits them (all, or those named), at
    each severity, the same for every model asked with this seed. Controls are asked at full severity alone.

    Raises ConfigError for an unknown perturbation or severity, and where no item has a label.
    """
    outside = [severity for severity in severities if not 1 <= severity <= FULL]
    if outside:
        raise ConfigError(f"a severity lies between 1 and {FULL}, not at {outside[0]}")
    unknown = [name for name in perturbations or () if name not in REGISTRY]
    if unknown:
        raise ConfigError(f"unknown perturbation {unknown[0]!r}; known: {', '.join(REGISTRY)}")
    labelled = [item for item in items if item.labelled]
    if not labelled:
        raise ConfigError(f"none of {len(items)} items has an answer to compare with: give labelled ones")
    cells: dict[Cell, list[Item]] = {}
    for item in labelled:
        cells.setdefault(Cell(item.family, CLEAN, item.held_out_wording), []).append(clean_view(item))
    for kind in REGISTRY.values():
        if kind.name == "no_image" or (perturbations is not None and kind.name not in perturbations):
            continue  # without a picture a text-heavy item is clean
        for severity in [FULL] if kind.role == "control" else sorted(set(severities)):
            for item in labelled:
                if kind in fitting(item):
                    cell = Cell(item.family, kind.name, item.held_out_wording, severity)
                    given = at_severity(perturb(item, kind.name, seed=seed), severity, seed=seed)
                    cells.setdefault(cell, []).append(given)
    return cells


async def ask(
    cells: Mapping[Cell, Sequence[Item]],
    complete: Complete,
    model: str,
    *,
    top_logprobs: int = 20,
    concurrency: int = 8,
    done: Callable[[Row], None] = lambda row: None,
) -> Found:
    """Ask every item of every cell; `top_logprobs` 0 asks for none. Raises EndpointError."""
    wanted = {"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {}

    async def plain(body: dict[str, Any]) -> dict[str, Any]:
        return await complete({key: value for key, value in body.items() if key != "modint"})

    return {
        cell: [
            answered_of(row)
            for row in await run(items, plain, model, concurrency=concurrency, done=done, **wanted)
        ]
        for cell, items in cells.items()
    }


def answered_of(row: Row) -> Answered:
    """A row with the probabilities of its options, where the first token's list tells them all."""
    options = None
    if row.top and row.item.choices:
        labels = {reply_for(row.item, choice): choice for choice in row.item.choices}
        found = option_distribution(row.top, labels, Thresholds().min_option_mass)
        options = found and {labels[label]: share for label, share in found.items()}
    return Answered(row.item, row.answer, options, row.top)


AGAINST = ("gain", "gain_low", "gain_high", "only_this", "only_other", "mcnemar_p")


def rows_of(model: str, found: Found, other: Found | None = None) -> Iterator[dict[str, Any]]:
    """A row for each cell: accuracy, the effect of the perturbation, and, where another model was asked the
    same, how much more often this one is right, with McNemar's exact test."""
    for cell, answers in found.items():
        by_id = {each.item.id: each for each in found[cell.clean]}
        clean = [by_id[each.item.id] for each in answers]
        yield {
            "model": model,
            "family": cell.family,
            "perturbation": cell.perturbation,
            "severity": cell.dose,
            "held_out": cell.held_out,
            **shares(answers),
            **(dict.fromkeys(EFFECTS) if cell == cell.clean else effect(clean, answers)),
            **(dict.fromkeys(AGAINST) if other is None else _against(answers, other[cell])),
        }


def _against(ours: Sequence[Answered], theirs: Sequence[Answered]) -> dict[str, float]:
    right, other = [each.right for each in ours], [each.right for each in theirs]
    low, high = paired_interval(other, right, sources(ours))
    test = mcnemar(right, other)
    return {
        "gain": (sum(right) - sum(other)) / len(right),
        "gain_low": low,
        "gain_high": high,
        "only_this": test.only_first,
        "only_other": test.only_second,
        "mcnemar_p": test.p,
    }


NOTES = """\
`severity`: 5 is the perturbation itself, 0 none of it; below 5 a picture is mixed with grey, and of a text
fewer words stay.
`unparsable` answers state none of the options and count as wrong. `change`, the flips, `js` (base 2) and the
changes of log-probability (nats) are against the same items clean: without a caption, or without a picture.
`js_exact` is the share of divergences over the options; the others are lower bounds from top-k lists. `gain`
is against the other model on the same items, with McNemar's exact test of who alone is right. Intervals:
95 %, bootstrap clustered by source."""


def write_evaluation(path: Path, rows: Sequence[Mapping[str, Any]], *, command: str, seed: int) -> list[Path]:
    """The rows as JSON, a Markdown table beside it, and figures where matplotlib is there; the files."""
    from modint_guard.evaluation.figures import draw

    write_results(
        path, command=command, seeds=[seed], rows=rows, title="Accuracy under interference", notes=NOTES
    )
    return [path, path.with_suffix(".md"), *draw(rows, path.with_suffix(""))]
