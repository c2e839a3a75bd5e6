"""The pictures of the picture-book: one to three drawings on a light ground, and pictures hard to read."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from modint_training.picturebook.drawings import HELD_OUT_STYLE, drawing, styles_of
from modint_training.picturebook.things import Thing

SIZE = 64  # of a picture's side, in pixels


def style_for(thing: Thing, rng: random.Random, *, held_out: bool = False) -> str:
    """A style that has the thing: a trained one, or the one kept out."""
    return HELD_OUT_STYLE if held_out else rng.choice(styles_of(thing.code))


def picture(thing: Thing, rng: random.Random, *, style: str | None = None) -> Image.Image:
    """The thing by itself, a little shifted and scaled, mostly on white."""
    return scene([thing], rng, styles=[style or style_for(thing, rng)])


def scene(things: Sequence[Thing], rng: random.Random, *, styles: Sequence[str]) -> Image.Image:
    """One to three things side by side, from left to right; several are drawn smaller."""
    ground = (255, 255, 255) if rng.random() < 0.6 else tuple(rng.randrange(205, 256) for _ in range(3))
    canvas = Image.new("RGB", (SIZE, SIZE), ground)
    share = SIZE / max(1, len(things)) if len(things) < 3 else SIZE / 2
    for number, (thing, style) in enumerate(zip(things, styles, strict=True)):
        side = round(share * rng.uniform(0.84, 0.98))
        drawn = Image.fromarray(drawing(thing.code, style)).resize((side, side), Image.Resampling.LANCZOS)
        left, top = _corner(number, len(things), side, rng)
        canvas.paste(drawn, (left, top), drawn)
    return canvas


def _corner(number: int, count: int, side: int, rng: random.Random) -> tuple[int, int]:
    """Where a drawing's upper left corner lies: side by side, the third below the others."""
    if count == 3 and number == 2:
        return (SIZE - side) // 2 + rng.randint(-4, 4), SIZE - side
    width = SIZE // min(count, 2)
    slack = max(0, width - side)
    height = SIZE // 2 if count == 3 else SIZE
    return number * width + rng.randint(0, slack), rng.randint(0, max(0, height - side))


def card(text: str) -> Image.Image:
    """A white card with a few large characters on it."""
    canvas = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    font = ImageFont.load_default(SIZE // 2)
    ImageDraw.Draw(canvas).text((SIZE / 2, SIZE / 2), text, fill=(25, 30, 40), font=font, anchor="mm")
    return canvas


def poor(clear: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as it is hard to read: blurred, faded, grainy, or largely covered."""
    kind = rng.choice(("blurred", "faded", "grainy", "covered"))
    if kind == "blurred":
        return clear.filter(ImageFilter.GaussianBlur(rng.uniform(4, 7)))
    pixels = np.asarray(clear, dtype=np.float64)
    noise = np.random.default_rng(rng.getrandbits(32))
    if kind == "faded":
        pixels = 235 + (pixels - 235) * rng.uniform(0.05, 0.15) + noise.normal(0, 6, pixels.shape)
    elif kind == "grainy":
        pixels = pixels * 0.3 + noise.uniform(0, 255, pixels.shape) * 0.7
    else:
        start = rng.randrange(0, SIZE // 5)
        pixels = pixels.copy()
        pixels[start : start + round(SIZE * rng.uniform(0.75, 0.85))] = rng.randrange(60, 200)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
