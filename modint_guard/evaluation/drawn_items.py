"""Coloured shapes, drawn anew: questions for the null, of which the packaged check-up has too few.

A null at alpha needs 1/alpha - 1 sources, and the check-up has 50 that something could be planted into.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded

COLOURS = {
    "red": (205, 40, 40),
    "blue": (40, 70, 205),
    "green": (40, 150, 60),
    "yellow": (230, 200, 40),
    "black": (20, 20, 20),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIDE = 336  # pixels


def drawn_items(count: int, *, seed: int = 0) -> list[Item]:
    """So many items, each with a picture of its own; half ask for the colour, half for the shape."""
    return [_item(number, seeded("drawn", seed, number)) for number in range(count)]


def _item(number: int, rng: random.Random) -> Item:
    colour, other_colour = rng.sample(list(COLOURS), 2)
    shape, other_shape = rng.sample(SHAPES, 2)
    asks_colour = number % 2 == 0
    answer, wrong = (colour, other_colour) if asks_colour else (shape, other_shape)
    return Item(
        id=f"drawn-{number}",
        family="image-heavy",
        task="drawn",
        form="free",
        question=f"What colour is the {shape}?" if asks_colour else "What shape is in the picture?",
        answer=answer,
        wrong=wrong,
        claim=f"a {{}} {shape}" if asks_colour else f"a {colour} {{}}",
        image=_picture(shape, COLOURS[colour], rng),
        accepted=(answer,),
        rejected=(wrong,),
    )


def _picture(shape: str, colour: tuple[int, int, int], rng: random.Random) -> Image.Image:
    """The shape on a light ground, of any size and at any place that leaves it whole."""
    picture = Image.new("RGB", (SIDE, SIDE), (rng.randrange(225, 256),) * 3)
    draw, size = ImageDraw.Draw(picture), rng.randrange(SIDE // 4, 3 * SIDE // 4)
    left, top = rng.randrange(SIDE - size), rng.randrange(SIDE - size)
    right, bottom, third = left + size, top + size, size // 3
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "triangle":
        draw.polygon(((left, bottom), (right, bottom), (left + size // 2, top)), fill=colour)
    else:
        draw.rectangle((left + third, top, right - third, bottom), fill=colour)
        draw.rectangle((left, top + third, right, bottom - third), fill=colour)
    return picture
