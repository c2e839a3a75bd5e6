"""The pictures of TinyWorld: 40x40 RGB, drawn from a seed, with pixel noise."""

import math
import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SIZE = 40
NOISE = 9.0  # standard deviation of the pixel noise, in grey levels of 255
_OVERSAMPLE = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 48, 44),
    "green": (46, 164, 66),
    "blue": (48, 84, 214),
    "yellow": (232, 216, 56),
    "purple": (142, 58, 172),
    "orange": (240, 134, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")

Pixels = npt.NDArray[np.float32]


@cache
def _digit_source() -> tuple[Pixels, npt.NDArray[np.int64]]:
    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


@cache
def digit_split(split: str) -> dict[int, tuple[int, ...]]:
    """Indices of UCI digits by label. The three splits share no source digit."""
    _, labels = _digit_source()
    order = np.random.default_rng(20505).permutation(len(labels))
    part = {"train": order[:1297], "validation": order[1297:1497], "test": order[1497:]}[split]
    return {digit: tuple(int(i) for i in part if labels[i] == digit) for digit in range(10)}


def digit(source: int, rng: random.Random, *, spread: float = 1.0) -> Image.Image:
    """UCI digit number `source`, slightly rotated, scaled and shifted; `spread` widens these ranges."""
    glyphs, _ = _digit_source()
    angle = math.radians(rng.uniform(-8, 8) * spread)
    scale = 4.0 * (1 + rng.uniform(-0.08, 0.08) * spread)
    shift_x, shift_y = (rng.uniform(-2, 2) * spread for _ in range(2))
    stretch = 1 + rng.uniform(-0.06, 0.06) * spread
    centre = (SIZE - 1) / 2
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - centre
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    u = (x - shift_x) * cos * stretch + (y - shift_y) * sin + 3.5
    v = -(x - shift_x) * sin + (y - shift_y) * cos + 3.5
    ink = _bilinear(glyphs[source], u, v)[..., None]
    dark, light = rng.uniform(10, 55), rng.uniform(205, 245)
    return _finish(dark + (light - dark) * np.repeat(ink, 3, axis=2), rng)


def _bilinear(glyph: Pixels, u: Pixels, v: Pixels) -> Pixels:
    padded = np.pad(glyph, 2)
    u, v = np.clip(u + 2, 0, 10.999), np.clip(v + 2, 0, 10.999)
    left, top = u.astype(int), v.astype(int)
    a, b = u - left, v - top
    above = padded[top, left] * (1 - a) + padded[top, left + 1] * a
    below = padded[top + 1, left] * (1 - a) + padded[top + 1, left + 1] * a
    return np.asarray(above * (1 - b) + below * b, dtype=np.float32)


def shapes(figures: Sequence[tuple[str, str]], rng: random.Random) -> Image.Image:
    """The given (shape, colour) pairs: one large, two side by side, or up to nine in a loose grid."""
    picture = _background(rng)
    for (name, colour), (x, y, radius) in zip(figures, _places(len(figures), rng), strict=True):
        mask = _mask(name, x, y, radius * rng.uniform(0.9, 1.1), rng.uniform(-0.2, 0.2))
        paint = np.array([level + rng.uniform(-14, 14) for level in COLOURS[colour]], dtype=np.float32)
        picture = picture * (1 - mask) + paint * mask
    return _finish(picture, rng)


def poor(picture: Image.Image, another: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as in a poor print: faded, with a part of it lost, or double-exposed with another one."""
    values = np.asarray(picture, dtype=np.float32)
    kind = rng.random()
    if kind < 0.25:
        values = _faded(values, rng)
    elif kind < 0.5:
        values = _covered(values, rng)
    else:
        values = _exposed_twice(values, np.asarray(another, dtype=np.float32), rng)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _exposed_twice(values: Pixels, another: Pixels, rng: random.Random) -> Pixels:
    """A double exposure in which the other picture is at least as strong."""
    share = rng.uniform(0.15, 0.5)
    return share * values + (1 - share) * another


def _faded(values: Pixels, rng: random.Random) -> Pixels:
    """Little contrast and much grain, but never a plain grey like the probe's neutral picture."""
    grey = float(values.mean())
    return grey + rng.uniform(0.03, 0.5) * (values - grey) + _grain(values, rng, rng.uniform(NOISE, 40))


def _covered(values: Pixels, rng: random.Random) -> Pixels:
    """A third to four fifths of the picture, from one side, replaced by its background."""
    lost = round(SIZE * rng.uniform(0.35, 0.8))
    turns = rng.randrange(4)
    turned = np.rot90(values, turns).copy()
    turned[:lost] = np.median(values[[0, -1]], axis=(0, 1)) + _grain(turned[:lost], rng, NOISE)
    return np.rot90(turned, -turns)


def _grain(values: Pixels, rng: random.Random, deviation: float) -> Pixels:
    normal = np.random.default_rng(rng.getrandbits(63)).normal(0, deviation, values.shape)
    return normal.astype(np.float32)


def blank(rng: random.Random) -> Image.Image:
    """An empty background."""
    return _finish(_background(rng), rng)


def _places(count: int, rng: random.Random) -> list[tuple[float, float, float]]:
    if count == 1:
        return [(20 + rng.uniform(-4, 4), 20 + rng.uniform(-4, 4), 12.0)]
    if count == 2:
        return [(x + rng.uniform(-1, 1), 20 + rng.uniform(-6, 6), 8.0) for x in (10.5, 29.5)]
    cells = [(7 + 13 * column, 7 + 13 * row) for row in range(3) for column in range(3)]
    return [(x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), 5.2) for x, y in rng.sample(cells, count)]


def _background(rng: random.Random) -> Pixels:
    level = rng.uniform(10, 60) if rng.random() < 0.5 else rng.uniform(190, 240)
    return np.full((SIZE, SIZE, 3), level, dtype=np.float32)


def _mask(name: str, x: float, y: float, radius: float, turn: float) -> Pixels:
    canvas = Image.new("L", (SIZE * _OVERSAMPLE,) * 2)
    draw = ImageDraw.Draw(canvas)
    if name == "circle":
        box = tuple(_OVERSAMPLE * value for value in (x - radius, y - radius, x + radius, y + radius))
        draw.ellipse(box, fill=255)
    else:
        corners = [(r * radius, a + turn) for r, a in OUTLINES[name]]
        draw.polygon(
            [(_OVERSAMPLE * (x + r * math.sin(a)), _OVERSAMPLE * (y - r * math.cos(a))) for r, a in corners],
            fill=255,
        )
    return np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32)[..., None] / 255.0


def _cross() -> tuple[tuple[float, float], ...]:
    arm = 0.32
    corners = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    corners += [(-x, -y) for x, y in corners]
    return tuple((math.hypot(x, y), math.atan2(x, y)) for x, y in corners)


# Corners as (radius, angle clockwise from the top).
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": tuple((1.1, math.pi * (0.25 + 0.5 * k)) for k in range(4)),
    "triangle": tuple((1.15, math.tau * k / 3) for k in range(3)),
    "star": tuple((1.2 if k % 2 == 0 else 0.48, math.tau * k / 10) for k in range(10)),
    "cross": _cross(),
    "diamond": ((1.2, 0.0), (0.72, math.pi / 2), (1.2, math.pi), (0.72, 1.5 * math.pi)),
}


def _finish(picture: Pixels, rng: random.Random) -> Image.Image:
    grain = np.random.default_rng(rng.getrandbits(63)).normal(0, NOISE, picture.shape)
    return Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8))
