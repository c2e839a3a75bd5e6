"""What a reader wants of `detection`'s rows first: is each goal met, then the tables that say why. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.detection.inputs import HELD_OUT, IMAGE_DRIVEN, SETTINGS, TEXT_DRIVEN
from bench.detection.table import BASELINES, BOTH_SETTINGS, INTERFERENCE, PROBES, WRONG
from modint_guard.evaluation.results import table

AUROC = {TEXT_DRIVEN: 0.95, IMAGE_DRIVEN: 0.90}
MACRO_F1 = 0.9
FPR = 0.05
SAME = 0.005  # AUROCs nearer than this are equal
OTHERS = (*BASELINES, "vauq")
COLUMNS = (
    *("auprc", "fpr_at_95", "risk_at_80", "macro_f1"),
    *("probes", "new_tokens", "cached_tokens", "ms_p50", "latency_ratio"),
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one model, found by what they are of."""

    rows: Sequence[Row]

    def get(self, score: str, setting: str, truth: str = INTERFERENCE, held_out: str = "no") -> Row | None:
        """The row of a score; None where its group had one class alone."""
        wanted = {"score": score, "setting": setting, "truth": truth, "held_out": held_out}.items()
        return next((row for row in self.rows if wanted <= row.items()), None)

    def scores(self) -> list[str]:
        """The names of all scores, as they come."""
        return list(dict.fromkeys(row["score"] for row in self.rows))


def markdown(rows: Sequence[Row], model: str) -> str:
    """The goals of `model`, its scores by setting, all held-out parts in short, and the other models."""
    found = Rows([row for row in rows if row["model"] == model])
    others = [name for name in dict.fromkeys(row["model"] for row in rows) if name != model]
    parts = [f"## Goals, on {model}", table(list(goals(found)))]
    for setting in SETTINGS:
        lines = [_line(row) for score in found.scores() if (row := found.get(score, setting))]
        parts += [f"## {model}, {setting}: wrong under interference", table(lines)] if lines else []
    parts.append("## Wrong against right, and what was held out")
    for name in (model, *others):
        lines = list(in_short(Rows([row for row in rows if row["model"] == name]), name))
        parts += [table(lines)] if lines else []
    return "\n\n".join(part.strip() for part in parts if part)


def goals(found: Rows) -> Iterator[dict[str, str]]:
    """Each goal with its figure and whether it is met; a figure that could not be had meets none."""
    for setting in SETTINGS:
        row = found.get("risk", setting)
        bar = AUROC[setting]
        yield _goal(f"AUROC {setting} at least {bar:.2f}", _interval(row), bool(row and row["auroc"] >= bar))
        best = _best(found, setting)
        said = f"{row['gain']:+.3f}, at least {row['gain_low']:+.3f} ({best})" if row else "–"
        yield _goal(f"{setting} above the best other detector", said, bool(row and row["gain_low"] > 0.0))
    for score in ("risk", "gateway"):
        row = found.get(score, BOTH_SETTINGS)
        value = row["macro_f1"] if row else None
        yield _goal(
            f"macro-F1 of the cause at least {MACRO_F1} ({score})", _number(value), _reaches(value, MACRO_F1)
        )
    row = found.get("risk", TEXT_DRIVEN)
    value = row["fpr_at_95"] if row else None
    met = value is not None and value <= FPR
    yield _goal(f"false alarms at 95 % found, {TEXT_DRIVEN}, at most {FPR:.0%}", _number(value), met)
    early, whole = found.get("risk_early_stop", BOTH_SETTINGS), found.get("risk", BOTH_SETTINGS)
    yield _goal(
        f"at most {PROBES} probes on average at equal AUROC",
        f"{early['probes']:.2f} at {early['auroc']:.3f} ({whole['auroc']:.3f})" if early and whole else "–",
        bool(early and whole and early["probes"] <= PROBES and abs(early["auroc"] - whole["auroc"]) <= SAME),
    )


def in_short(found: Rows, model: str) -> Iterator[dict[str, Any]]:
    """The AUROC of our risk, of the verdicts as served and of the best other detector, for every part."""
    for truth in (INTERFERENCE, WRONG):
        for setting in (*SETTINGS, BOTH_SETTINGS):
            for held_out in HELD_OUT:
                row = found.get("risk", setting, truth, held_out)
                if row is None:
                    continue
                served = found.get("gateway", setting, truth, held_out)
                best = _best(found, setting, truth, held_out)
                other = found.get(best, setting, truth, held_out)
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


def _best(found: Rows, setting: str, truth: str = INTERFERENCE, held_out: str = "no") -> str:
    rows = (found.get(name, setting, truth, held_out) for name in OTHERS)
    able = {row["score"]: row["auroc"] for row in rows if row and row["auroc"] is not None}
    return max(able, key=able.__getitem__) if able else "none"


def _line(row: Row) -> dict[str, Any]:
    return {"score": row["score"], "auroc": _interval(row), **{name: row[name] for name in COLUMNS}}


def _interval(row: Row | None) -> str:
    if row is None or row["auroc"] is None:
        return "–"
    return f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _reaches(value: float | None, bar: float) -> bool:
    return value is not None and value >= bar


def _goal(goal: str, figure: str, met: bool) -> dict[str, str]:
    return {"goal": goal, "figure": figure, "met": "yes" if met else "no"}
