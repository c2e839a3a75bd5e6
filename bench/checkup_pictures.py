"""The pictures of the check-up: 384 x 384 pixels, drawn large or enlarged from the worlds' small sources.

Shapes and boards are drawn at this size. Digits (8 x 8 pixels) and drawings (72 x 72) are enlarged smoothly,
without the grain of the worlds: models for real pictures read them better so. Documents keep their own size.
"""

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.datasets import load_digits

from modint_training.picturebook.drawings import drawing
from modint_training.picturebook.things import Thing
from modint_training.tinyworld.draw import COLOURS, OUTLINES, digit_split

SIDE = 384
_OVERSAMPLE = 3
_GROUNDS = ((255, 255, 255), (246, 243, 234), (236, 242, 248), (243, 238, 246))
_BOARDS = ((34, 84, 61), (40, 62, 110), (96, 52, 44), (60, 60, 66))
BLUR = 34.0  # pixels, of a picture out of focus: nothing of it can be read


def digit(label: int) -> Image.Image:
    """The most typical test digit of that label, light on dark, its edges sharpened after enlarging."""
    images = load_digits().images / 16.0
    sources = np.array(digit_split("test")[label])
    middle = images[sources].mean(axis=0)
    typical = images[sources[np.abs(images[sources] - middle).sum(axis=(1, 2)).argmin()]]
    levels = Image.fromarray(np.uint8(255 * np.pad(typical, 2)))
    large = levels.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sharper = [min(235, max(35, round(120 + 2.5 * (level - 120)))) for level in range(256)]
    return large.point(sharper).convert("RGB")


def figure(shape: str, colour: str, rng: random.Random) -> Image.Image:
    """One shape of TinyWorld in one of its colours, on a light ground."""
    large = SIDE * _OVERSAMPLE
    canvas = Image.new("RGB", (large, large), rng.choice(_GROUNDS))
    draw, radius = ImageDraw.Draw(canvas), 0.32 * large
    x, y = (large / 2 + rng.uniform(-0.06, 0.06) * large for _ in range(2))
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[colour])
    else:
        corners = [(r * radius, angle) for r, angle in OUTLINES[shape]]
        draw.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for r, a in corners], COLOURS[colour])
    return canvas.reduce(_OVERSAMPLE)


def thing(shown: Thing, style: str, rng: random.Random) -> Image.Image:
    """A drawing of the picture-book, on a light ground."""
    canvas = Image.new("RGB", (SIDE, SIDE), rng.choice(_GROUNDS))
    side = rng.randrange(290, 340)
    drawn = Image.fromarray(drawing(shown.code, style)).resize((side, side), Image.Resampling.BICUBIC)
    left, top = (rng.randrange(10, SIDE - side - 10) for _ in range(2))
    canvas.paste(drawn, (left, top), drawn)
    return canvas


def out_of_focus(clear: Image.Image) -> Image.Image:
    """The picture so blurred that a caption is needed."""
    return clear.filter(ImageFilter.GaussianBlur(BLUR))


def board(text: str, rng: random.Random) -> Image.Image:
    """A board with a few large words, a line each."""
    canvas = Image.new("RGB", (SIDE, SIDE), (224, 222, 216))
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((24, 84, SIDE - 24, SIDE - 84), 18, rng.choice(_BOARDS), (250, 250, 250), 5)
    size = min(72.0, 470 / max(len(line) for line in text.split("\n")))
    draw.multiline_text(
        (SIDE / 2, SIDE / 2), text, (250, 250, 250), ImageFont.load_default(size), "mm", align="center"
    )
    return canvas
