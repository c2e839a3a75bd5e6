"""The report on detection: first whether each goal is met, then the tables that show why. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.detection.inputs import HELD_OUT, IMAGE_DRIVEN, SETTINGS, TEXT_DRIVEN
from bench.detection.table import BASELINES, BOTH_SETTINGS, INTERFERENCE, PROBES, WRONG
from modint_guard.evaluation.results import table

AUROC = {TEXT_DRIVEN: 0.95, IMAGE_DRIVEN: 0.90}
MACRO_F1 = 0.9
FPR = 0.05
SAME = 0.005  # AUROCs that differ by less count as equal
OTHERS = (*BASELINES, "vauq")
COLUMNS = (
    *("auprc", "fpr_at_95", "risk_at_80", "macro_f1"),
    *("probes", "new_tokens", "cached_tokens", "ms_p50", "latency_ratio"),
)

TableRow = Mapping[str, Any]


@dataclass(frozen=True)
class ModelRows:
    """The rows of one model, to be looked up by score and group."""

    rows: Sequence[TableRow]

    def get(
        self, score: str, setting: str, truth: str = INTERFERENCE, held_out: str = "no"
    ) -> TableRow | None:
        """The row of a score; None if its group holds one class only."""
        group = {"score": score, "setting": setting, "truth": truth, "held_out": held_out}.items()
        return next((row for row in self.rows if group <= row.items()), None)

    def scores(self) -> list[str]:
        """The names of all scores, in their order."""
        return list(dict.fromkeys(row["score"] for row in self.rows))


def markdown(rows: Sequence[TableRow], model: str) -> str:
    """Markdown: the goals of `model`, its scores by setting, all held-out parts in short, and the other
    models."""
    model_rows = ModelRows([row for row in rows if row["model"] == model])
    others = [name for name in dict.fromkeys(row["model"] for row in rows) if name != model]
    parts = [f"## Goals, on {model}", table(list(goals(model_rows)))]
    for setting in SETTINGS:
        lines = [_line(row) for score in model_rows.scores() if (row := model_rows.get(score, setting))]
        parts += [f"## {model}, {setting}: wrong under interference", table(lines)] if lines else []
    parts.append("## Wrong against right, and what was held out")
    for name in (model, *others):
        lines = list(in_short(ModelRows([row for row in rows if row["model"] == name]), name))
        parts += [table(lines)] if lines else []
    return "\n\n".join(part.strip() for part in parts if part)


def goals(model_rows: ModelRows) -> Iterator[dict[str, str]]:
    """Each goal with its figure and whether it is met; a missing figure meets no goal."""
    for setting in SETTINGS:
        row = model_rows.get("risk", setting)
        bar = AUROC[setting]
        yield _goal(f"AUROC {setting} at least {bar:.2f}", _interval(row), bool(row and row["auroc"] >= bar))
        best = _best(model_rows, setting)
        figure = f"{row['gain']:+.3f}, at least {row['gain_low']:+.3f} ({best})" if row else "–"
        yield _goal(f"{setting} above the best other detector", figure, bool(row and row["gain_low"] > 0.0))
    for score in ("risk", "gateway"):
        row = model_rows.get(score, BOTH_SETTINGS)
        value = row["macro_f1"] if row else None
        yield _goal(
            f"macro-F1 of the cause at least {MACRO_F1} ({score})", _number(value), _reaches(value, MACRO_F1)
        )
    row = model_rows.get("risk", TEXT_DRIVEN)
    value = row["fpr_at_95"] if row else None
    met = value is not None and value <= FPR
    yield _goal(f"false alarms at 95 % found, {TEXT_DRIVEN}, at most {FPR:.0%}", _number(value), met)
    early, whole = model_rows.get("risk_early_stop", BOTH_SETTINGS), model_rows.get("risk", BOTH_SETTINGS)
    yield _goal(
        f"at most {PROBES} probes on average at equal AUROC",
        f"{early['probes']:.2f} at {early['auroc']:.3f} ({whole['auroc']:.3f})" if early and whole else "–",
        bool(early and whole and early["probes"] <= PROBES and abs(early["auroc"] - whole["auroc"]) <= SAME),
    )


def in_short(model_rows: ModelRows, model: str) -> Iterator[dict[str, Any]]:
    """The AUROC of our risk, of the verdicts as served and of the best other detector, for every group."""
    for truth in (INTERFERENCE, WRONG):
        for setting in (*SETTINGS, BOTH_SETTINGS):
            for held_out in HELD_OUT:
                row = model_rows.get("risk", setting, truth, held_out)
                if row is None:
                    continue
                served = model_rows.get("gateway", setting, truth, held_out)
                best = _best(model_rows, setting, truth, held_out)
                other = model_rows.get(best, setting, truth, held_out)
                yield {
                    "model": model,
                    "truth": truth,
                    "setting": setting,
                    "held_out": held_out,
                    "n": row["n"],
                    "positives": row["positives"],
                    "risk": _interval(row),
                    "gateway": _interval(served),
                    "best other": f"{_interval(other)} {best}",
                    "gain at least": row["gain_low"],
                }


def _best(model_rows: ModelRows, setting: str, truth: str = INTERFERENCE, held_out: str = "no") -> str:
    rows = (model_rows.get(name, setting, truth, held_out) for name in OTHERS)
    areas = {row["score"]: row["auroc"] for row in rows if row and row["auroc"] is not None}
    return max(areas, key=areas.__getitem__) if areas else "none"


def _line(row: TableRow) -> dict[str, Any]:
    return {"score": row["score"], "auroc": _interval(row), **{name: row[name] for name in COLUMNS}}


def _interval(row: TableRow | None) -> str:
    if row is None or row["auroc"] is None:
        return "–"
    return f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _reaches(value: float | None, bar: float) -> bool:
    return value is not None and value >= bar


def _goal(goal: str, figure: str, met: bool) -> dict[str, str]:
    return {"goal": goal, "figure": figure, "met": "yes" if met else "no"}
