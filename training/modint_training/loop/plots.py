"""A run's curves as one picture: the parts of the loss, the size of the noise and the figures of the
validation split, by step."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modint_training.loop.trainer import SEEN, read_log

PARTS = ("loss", "sft", "adv", "cons")
NOISE = ("delta_rms", "delta_relative")
FLIPS = "/flips"
BESIDE = {"fontsize": "x-small", "loc": "center left", "bbox_to_anchor": (1, 0.5)}


def draw_curves(log: Path, picture: Path, *, window: int = 20) -> bool:
    """Draw `log.jsonl` as a PNG, each curve of the training a moving mean over `window` steps; False without
    steps, and, with a line on stderr, where there is no matplotlib or no room."""
    lines = read_log(log)
    if not lines:
        return False
    try:
        _figure(lines, window).savefig(picture, dpi=120)
    except ModuleNotFoundError:
        _say(picture, "it needs: pip install 'modint-guard[report]'")
        return False
    except OSError as exc:
        _say(picture, str(exc))
        return False
    return True


def _say(picture: Path, why: str) -> None:
    print(f"{picture} is not drawn: {why}", file=sys.stderr, flush=True)


def _figure(lines: Sequence[dict[str, float]], window: int) -> Any:
    from matplotlib.figure import Figure

    seen = list(dict.fromkeys(name for line in lines for name in line if name.startswith(SEEN)))
    figure = Figure(figsize=(16 if seen else 8, 4), layout="constrained")
    losses, noise, *shares = figure.subplots(1, 3 if seen else 2)
    for axes, names in ((losses, PARTS), (noise, NOISE)):
        for name in names:
            steps, values = curve(lines, name)
            if steps:
                axes.plot(steps, smooth(values, window), label=name)
    if f"{SEEN}loss" in seen:
        losses.plot(*curve(lines, f"{SEEN}loss"), "k.-", label="validation")
    for axes in shares:
        _draw_shares(axes, lines, [name for name in seen if name != f"{SEEN}loss"])
        axes.set_ylabel("share of validation items")
    for axes in (losses, noise, *shares):
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(**(BESIDE if axes in shares else {"loc": "upper right"}))
    losses.set_ylabel("nats a token")
    noise.set_ylabel("noise, root mean square")
    return figure


def _draw_shares(axes: Any, lines: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    """Accuracy by condition, and dashed in the same colour the share of answers that the condition flips."""
    conditions = list(dict.fromkeys(name.removesuffix(FLIPS) for name in names))
    for name in names:
        style = ".--" if name.endswith(FLIPS) else ".-"
        colour = f"C{conditions.index(name.removesuffix(FLIPS)) % 10}"
        axes.plot(*curve(lines, name), style, color=colour, label=name.removeprefix(SEEN))


def curve(lines: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The steps that tell a figure, and what they tell."""
    known = [line for line in lines if name in line]
    return [line["step"] for line in known], [line[name] for line in known]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` at most."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
