"""A run's curves as one picture: the terms of the loss, the size of the noise and the figures of the
validation split, by step."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modint_training.loop.trainer import VALIDATION, read_log

TERMS = ("loss", "sft", "adv", "cons")
NOISE = ("delta_rms", "delta_relative")
FLIPS = "/flips"
OUTSIDE = {"fontsize": "x-small", "loc": "center left", "bbox_to_anchor": (1, 0.5)}


def draw_curves(log: Path, picture: Path, *, window: int = 20) -> bool:
    """Draw `log.jsonl` as a PNG, each curve of the training as a moving mean over `window` steps. Returns
    whether it was drawn: not without steps, nor, with a line on stderr, without matplotlib or disk space."""
    lines = read_log(log)
    if not lines:
        return False
    try:
        _figure(lines, window).savefig(picture, dpi=120)
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
