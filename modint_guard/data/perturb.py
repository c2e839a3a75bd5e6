"""The one registry of perturbations: seeded and pure, shared by training, result tables, metric labels and
cards.

A text perturbation replaces the context of an item whose picture ought to decide. An image perturbation
replaces the picture of an item whose text ought to decide. Items that need both are never perturbed (arXiv
2505.19616). A lie claims the item's `wrong` choice and never states the true answer.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from modint_guard.data.item import Item

Modality = Literal["text", "image"]
CLEAN = "clean"  # the name in tables for no perturbation
Role = Literal["trained", "held_out", "control"]

# Captions that state a claim. No training run, of a base model or an adapter, ever sees the held-out ones.
CLAIMS = (
    "The picture shows {claim}.",
    "Caption: {claim}.",
    "This is a picture of {claim}.",
    "You can see {claim} here.",
    "A note says: {claim}.",
)
HELD_OUT_CLAIMS = ("Here you can see {claim}.", "The note of this picture says: {claim}.")

FACTS = (
    "Cats sleep most of the day.",
    "The river runs to the sea.",
    "Bread is made of flour and water.",
    "The moon goes around the earth.",
    "Trains are faster than bikes.",
    "Milk comes from cows.",
    "The old tower has a clock.",
    "Birds fly south in winter.",
    "Salt is found in the sea.",
    "A violin is made of wood.",
    "The library opens in the morning.",
    "Rain fell on the hills.",
)
NEUTRAL = (
    "This line says nothing of note.",
    "There is a line of text here.",
    "Some text stands above the question.",
    "The text of this line is of no use.",
)
OCR_ALPHABET = "abcdefghijklmnopqrstuvwxyz.,:;|/-_ "


@dataclass(frozen=True)
class Perturbation:
    """A named change of one modality.

    role: `trained` kinds may be trained on, `held_out` kinds never; `control` kinds are harmless
    counterparts, which show the effect of the changed input alone. apply: makes the perturbed item, by a
    seeded generator. needs: the field that an item must have, besides its family.
    """

    name: str
    modality: Modality
    role: Role
    apply: Callable[[Item, random.Random], Item]
    needs: Literal["", "answer", "wrong", "agreeing", "contradicting"] = ""


def seeded(*parts: object) -> random.Random:
    """A random generator that depends on `parts` alone, so that two models see the same inputs."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def perturb(item: Item, name: str, *, seed: int = 0) -> Item:
    """Apply the registered perturbation `name` to `item`, seeded by (seed, name, item id).

    Raises KeyError for an unknown name, and ValueError if the perturbation does not apply to the item's
    family or the item lacks what it needs.
    """
    kind = REGISTRY[name]
    if kind not in applicable(item.family):
        raise ValueError(
            f"{name} changes the {kind.modality}, which an item of the family {item.family} "
            + ("may need: name its family" if item.family == "unknown" else "needs")
        )
    if kind not in fitting(item):
        raise ValueError(f"item {item.id} has no {_NEEDED[kind.needs].format(item)}")
    return kind.apply(item, seeded(seed, name, item.id)).replace(perturbation=name)


def clean_view(item: Item) -> Item:
    """The item without the modality that ought not to decide: an image-heavy item has no context, a
    text-heavy one no picture. The paper compares with this (arXiv 2505.19616, section 3).
    """
    if item.family == "image-heavy":
        return item.replace(context=None)
    return item.replace(image=None) if item.family == "text-heavy" else item


def held_out(perturbation: str, *, wording: bool = False) -> str:
    """What no training run has seen in a cell of a table: "wording", "perturbation", or "no" if nothing is
    held out.

    perturbation: its name; "no" for `clean` and other names that are not in the registry. wording: whether
    the wording of the items is held out.
    """
    if wording:
        return "wording"
    kind = REGISTRY.get(perturbation)
    return "perturbation" if kind and kind.role == "held_out" else "no"


def applicable(family: str) -> tuple[Perturbation, ...]:
    """The perturbations of the modality that a family does not need; none for `vqa` and "unknown"."""
    changed = {"image-heavy": "text", "text-heavy": "image"}.get(family)
    return tuple(kind for kind in REGISTRY.values() if kind.modality == changed)


def fitting(item: Item) -> tuple[Perturbation, ...]:
    """The applicable perturbations for which the item has what they need, such as a planted lie."""
    return tuple(
        kind
        for kind in applicable(item.family)
        if not kind.needs or getattr(item, kind.needs) not in (None, "")
    )


def claim(item: Item, choice: str, template: str) -> str:
    """A caption that claims `choice`.

    template: one of `CLAIMS` or `HELD_OUT_CLAIMS`.
    """
    return template.format(claim=item.claim.format(choice))


def _with_context(context: Callable[[Item, random.Random], str]) -> Callable[[Item, random.Random], Item]:
    return lambda item, rng: item.replace(context=context(item, rng))


def _with_image(
    picture: Callable[[tuple[int, int], random.Random], Image.Image],
) -> Callable[[Item, random.Random], Item]:
    return lambda item, rng: item.replace(image=_drawn(picture, _size(item), rng))


def _drawn(
    picture: Callable[[tuple[int, int], random.Random], Image.Image],
    size: tuple[int, int],
    rng: random.Random,
) -> Image.Image:
    """A picture of that size; one too small to draw in, such as a stand-in of 1 x 1, is cut from a larger."""
    width, height = size
    drawn = picture((max(MIN_SIDE, width), max(MIN_SIDE, height)), rng)
    return drawn if drawn.size == size else drawn.crop((0, 0, width, height))


MIN_SIDE = 8  # pixels that drawings need


def _size(item: Item) -> tuple[int, int]:
    picture = item.image or item.agreeing or item.contradicting
    return picture.size if picture else (336, 336)


def _claims(item: Item) -> tuple[str, ...]:
    return HELD_OUT_CLAIMS if item.held_out_wording else CLAIMS


def misleading_description(item: Item, rng: random.Random) -> str:
    """A caption that claims the planted wrong choice: the data set's own text, if it has one."""
    return item.lie or claim(item, item.wrong, rng.choice(_claims(item)))


def true_description(item: Item, rng: random.Random) -> str:
    """A caption that claims the right choice: the data set's own, where it brings one."""
    return item.truth or claim(item, item.answer, rng.choice(_claims(item)))


def unrelated_facts(item: Item, rng: random.Random) -> str:
    """Two true sentences about something else."""
    return " ".join(rng.sample(FACTS, 2))


def ocr_noise(item: Item, rng: random.Random) -> str:
    """What a poor text recogniser makes of noise: 24 random characters."""
    return "".join(rng.choice(OCR_ALPHABET) for _ in range(24)).strip() or "|"


def neutral_text(item: Item, rng: random.Random) -> str:
    """A sentence as long as a caption that says nothing: is it the text that matters, or what it says?"""
    return rng.choice(NEUTRAL)


def noise(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Uniform noise in every pixel and channel."""
    values = np.random.default_rng(rng.getrandbits(63)).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    return Image.fromarray(values)


def uniform_grey(level: int) -> Callable[[tuple[int, int], random.Random], Image.Image]:
    """A picture of one grey level in [0, 255]."""
    return lambda size, rng: Image.new("RGB", size, (level,) * 3)


def screenshot(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A drawn user interface: a title bar, lines of text, a button."""
    width, height = size
    picture = Image.new("RGB", size, (236, 238, 242))
    draw = ImageDraw.Draw(picture)
    bar = max(3, height // 7)
    draw.rectangle(
        (0, 0, width, bar), fill=(rng.randrange(40, 90), rng.randrange(70, 120), rng.randrange(130, 200))
    )
    for top in range(bar + 3, height - bar, max(4, height // 8)):
        draw.rectangle(
            (2, top, 2 + rng.randrange(width // 3, width - 4), top + max(1, height // 40)), fill=(110,) * 3
        )
    draw.rectangle((width // 2, height - bar, width - 3, height - 3), fill=(70, 130, 90))
    return picture


def irrelevant_image(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A landscape that answers no question: sky, ground and a hill."""
    width, height = size
    picture = Image.new("RGB", size, (rng.randrange(110, 160), rng.randrange(160, 210), 235))
    draw = ImageDraw.Draw(picture)
    horizon = rng.randrange(height // 3, 2 * height // 3)
    draw.rectangle((0, horizon, width, height), fill=(rng.randrange(70, 120), rng.randrange(100, 150), 70))
    peak = rng.randrange(width)
    draw.polygon(
        ((peak - width // 2, horizon), (peak, horizon - height // 4), (peak + width // 2, horizon)),
        fill=(95, 90, 85),
    )
    return picture


_NEEDED = {
    "answer": "answer that a caption could state",
    "wrong": "planted wrong answer that a lie could claim",
    "agreeing": "picture that shows its answer {0.answer!r}",
    "contradicting": "picture that shows its wrong choice {0.wrong!r}",
}

REGISTRY: dict[str, Perturbation] = {
    kind.name: kind
    for kind in (
        Perturbation(
            "misleading_description", "text", "trained", _with_context(misleading_description), "wrong"
        ),
        Perturbation("unrelated_facts", "text", "trained", _with_context(unrelated_facts)),
        Perturbation("ocr_noise", "text", "held_out", _with_context(ocr_noise)),
        Perturbation("neutral_text", "text", "control", _with_context(neutral_text)),
        Perturbation("true_description", "text", "control", _with_context(true_description), "answer"),
        Perturbation(
            "contradicting_image",
            "image",
            "trained",
            lambda item, rng: item.replace(image=item.contradicting),
            "contradicting",
        ),
        Perturbation("noise", "image", "trained", _with_image(noise)),
        Perturbation("black", "image", "trained", _with_image(uniform_grey(0))),
        Perturbation("irrelevant_image", "image", "held_out", _with_image(irrelevant_image)),
        Perturbation("white", "image", "held_out", _with_image(uniform_grey(255))),
        Perturbation("screenshot", "image", "held_out", _with_image(screenshot)),
        Perturbation("grey", "image", "control", _with_image(uniform_grey(128))),
        Perturbation(
            "agreeing_image",
            "image",
            "control",
            lambda item, rng: item.replace(image=item.agreeing),
            "agreeing",
        ),
        Perturbation("no_image", "image", "control", lambda item, rng: item.replace(image=None)),
    )
}
