"""The curves of a calibration as one picture: reliability, ROC, risk over coverage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from modint_guard.evaluation import curves


@dataclass(frozen=True)
class Judged:
    """Risks in [0, 1] of answers with their truth, and the threshold that was set."""

    risks: Sequence[float]
    wrong: Sequence[bool]
    flag_at: float


def draw_curves(picture: Path, judged: Mapping[str, Judged]) -> bool:
    """Draw all curves, one line for each name, the threshold as a dot; False without matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    reliability, roc, coverage = figure.subplots(1, 3)
    for name, each in judged.items():
        bins = curves.reliability(each.risks, each.wrong)
        reliability.plot([one.said for one in bins], [one.wrong for one in bins], "o-", label=name)
        (line,) = roc.plot(*zip(*curves.roc(each.risks, each.wrong), strict=True), label=name)
        roc.plot(*at_threshold(each), "o", color=line.get_color())
        coverage.plot(*zip(*curves.risk_coverage(each.risks, each.wrong), strict=True), label=name)
    for axes in (reliability, roc):
        axes.plot([0, 1], [0, 1], ":", color="grey")
    for axes, x, y in (
        (reliability, "risk said", "share wrong"),
        (roc, "right answers flagged", "wrong answers flagged"),
        (coverage, "coverage", "share wrong of the covered"),
    ):
        axes.set(xlabel=x, ylabel=y)
        axes.legend()
    figure.savefig(picture, dpi=120)
    return True


def at_threshold(judged: Judged) -> tuple[float, float]:
    """(false positive rate, true positive rate) of flagging from the threshold on."""
    flagged = [risk >= judged.flag_at for risk in judged.risks]
    wrong = sum(judged.wrong)
    hits = sum(flag and bad for flag, bad in zip(flagged, judged.wrong, strict=True))
    return (sum(flagged) - hits) / (len(flagged) - wrong), hits / wrong
