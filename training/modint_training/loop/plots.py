"""A run's pictures: the terms of the loss, the size of the noise and the figures of the validation split by
step; and the gradient conflict of each module by step."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modint_training.loop.trainer import VALIDATION, read_log
from modint_training.method.conflict import QUANTILE, Conflict, Summary, summary_of

TERMS = ("loss", "sft", "adv", "cons")
NOISE = ("delta_rms", "delta_relative")
FLIPS = "/flips"
NAMED = 80  # so many modules have room for their names beside a map
OUTSIDE = {"fontsize": "x-small", "loc": "center left", "bbox_to_anchor": (1, 0.5)}


def draw_curves(log: Path, picture: Path, *, window: int = 20) -> bool:
    """Draw `log.jsonl` as a PNG, each curve of the training as a moving mean over `window` steps. Returns
    whether it was drawn: not without steps, nor, with a line on stderr, without matplotlib or disk space."""
    lines = read_log(log)
    return bool(lines) and _draw(picture, lambda: _figure(lines, window))


def draw_conflict(records: Sequence[Conflict], picture: Path) -> bool:
    """Draw gradient conflict as a PNG: for each contrast a map of modules by step, of their cosines. Returns
    whether it was drawn, as `draw_curves` does."""
    summaries = summary_of(records)
    return bool(summaries) and _draw(picture, lambda: _maps(records, summaries))


def _draw(picture: Path, figure: Callable[[], Any]) -> bool:
    try:
        figure().savefig(picture, dpi=120)
    except ModuleNotFoundError:
        _report(picture, "it needs: pip install 'modint-guard[report]'")
        return False
    except OSError as exc:
        _report(picture, str(exc))
        return False
    return True


def _report(picture: Path, why: str) -> None:
    print(f"{picture} is not drawn: {why}", file=sys.stderr, flush=True)


def _figure(lines: Sequence[dict[str, float]], window: int) -> Any:
    from matplotlib.figure import Figure

    evaluated = list(dict.fromkeys(name for line in lines for name in line if name.startswith(VALIDATION)))
    figure = Figure(figsize=(16 if evaluated else 8, 4), layout="constrained")
    losses, noise, *shares = figure.subplots(1, 3 if evaluated else 2)
    for axes, names in ((losses, TERMS), (noise, NOISE)):
        for name in names:
            steps, values = curve(lines, name)
            if steps:
                axes.plot(steps, smooth(values, window), label=name)
    if f"{VALIDATION}loss" in evaluated:
        losses.plot(*curve(lines, f"{VALIDATION}loss"), "k.-", label="validation")
    for axes in shares:
        _draw_shares(axes, lines, [name for name in evaluated if name != f"{VALIDATION}loss"])
        axes.set_ylabel("share of validation items")
    for axes in (losses, noise, *shares):
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(**(OUTSIDE if axes in shares else {"loc": "upper right"}))
    losses.set_ylabel("nats a token")
    noise.set_ylabel("noise, root mean square")
    return figure


def _draw_shares(axes: Any, lines: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    """Accuracy by condition and, dashed in the same colour, the share of answers that the condition flips."""
    conditions = list(dict.fromkeys(name.removesuffix(FLIPS) for name in names))
    for name in names:
        style = ".--" if name.endswith(FLIPS) else ".-"
        colour = f"C{conditions.index(name.removesuffix(FLIPS)) % 10}"
        axes.plot(*curve(lines, name), style, color=colour, label=name.removeprefix(VALIDATION))


def curve(lines: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The steps that have the figure `name`, and its values."""
    with_figure = [line for line in lines if name in line]
    return [line["step"] for line in with_figure], [line[name] for line in with_figure]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """A moving mean: of each value and those before it, at most `window` in all."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


def _maps(records: Sequence[Conflict], summaries: dict[str, Summary]) -> Any:
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(record["block"] for record in records))
    steps = sorted({record["step"] for record in records})
    height = max(3.0, min(40.0, 0.16 * len(blocks)))
    figure = Figure(figsize=(3 + 4 * len(summaries), height), layout="constrained")
    every = figure.subplots(1, len(summaries), squeeze=False, sharey=True)[0]
    for axes, (contrast, summary) in zip(every, summaries.items(), strict=True):
        found = {(each["block"], each["step"]): each for each in records if each["contrast"] == contrast}
        values = [[_cosine(found.get((block, step))) for step in steps] for block in blocks]
        image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(steps)), steps, rotation=90, fontsize="x-small")
        axes.set_xlabel("step")
        axes.set_title(
            f"{contrast}: {summary['rate']:.0%} below {summary['null_quantile']:.2f}\n"
            f"(of halves of one kind: {QUANTILE:.0%})",
            fontsize="small",
        )
    names = blocks if len(blocks) <= NAMED else []
    every[0].set_yticks(range(len(names)), names, fontsize="xx-small")
    figure.colorbar(image, ax=list(every), label="cosine of the gradients")
    return figure


def _cosine(record: Conflict | None) -> float:
    value = record["cosine"] if record else None
    return float("nan") if value is None else value
