"""`python -m bench locate`: where interference sits in the base and in the shipped adapter."""

from pathlib import Path

from modint_guard.evaluation.results import table, write_results
from modint_guard.models import ADAPTER, BASE
from modint_training.locate.located import Located
from modint_training.locate.report import Options, locate_interference

NOTES = """\
A site's recovery: of the moved twins' gap log p(true) - log p(lie), the share that returns if the lying run
gets the site's states from its truthful twin (docs/locate.md). `attribution` is the estimate on half of the
twins, `recovery` the exact one on n twins of the other half. Intervals: 95 %, bootstrap clustered by source.
Maps, curves and all other tables are on the two pages that the same command draws."""
GOALS = """\
Goals: ablated heads that remove at least 60 % of the flips and cost at most 2 points of accuracy without a
lie; adapter modules that carry at least 90 % of what the adapter gained."""


def measure_locate(output: Path, pages: Path, *, limit: int, seed: int) -> list[Path]:
    """Study base and adapter, write the table and draw the pages; gives the paths of the pages. The same call
    goes on from the records in `pages`."""
    studies: dict[str, Located] = {}
    for name, adapter in ((BASE, None), (ADAPTER, ADAPTER)):
        options = Options(BASE, "tinyworld", adapter, limit=limit, seed=seed)
        studies[name], _ = locate_interference(options, pages / name)
    rows = [
        {"model": name, **row}
        for name, study in studies.items()
        for row in study.rows
        if row["recovery"] is not None
    ]
    write_results(
        output,
        command=f"python -m bench locate --limit {limit} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="Where interference sits",
        notes="\n\n".join((NOTES, GOALS, *(_summary(name, study) for name, study in studies.items()))),
    )
    return [pages / name / "report.html" for name in studies]


def _summary(name: str, study: Located) -> str:
    parts = [f"## {name}", *study.finding]
    for title in ("twins", "ablation", "modules", "kept"):
        if rows := study.tables[title].rows:
            parts += [f"### {study.tables[title].heading}", table(rows), study.tables[title].note]
    return "\n\n".join(parts)
