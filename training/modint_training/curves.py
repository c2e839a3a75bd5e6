"""A run's curves as one picture: the parts of the loss and the size of the noise, by step."""

from importlib.util import find_spec
from pathlib import Path

from modint_training.trainer import read_log

PARTS = ("loss", "sft", "adv", "cons")


def draw_curves(log: Path, picture: Path, *, window: int = 20) -> bool:
    """Draw `log.jsonl` as a PNG, each curve a moving mean over `window` steps; False without matplotlib or
    steps."""
    lines = read_log(log)
    if not lines or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    losses, noise = figure.subplots(1, 2)
    for axes, names in ((losses, PARTS), (noise, ("delta_rms", "delta_relative"))):
        for name in names:
            known = [(line["step"], line[name]) for line in lines if name in line]
            if known:
                steps, values = zip(*known, strict=True)
                axes.plot(steps, smooth(values, window), label=name)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend()
    losses.set_ylabel("nats a token")
    noise.set_ylabel("noise, root mean square")
    figure.savefig(picture, dpi=120)
    return True


def smooth(values: tuple[float, ...], window: int) -> list[float]:
    """The mean of each value and those before it, `window` at most."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
