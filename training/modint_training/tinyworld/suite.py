"""The items of each split, and the mixture that the base model is trained on.

Splits differ in their source digits (UCI digits by index) and in the ids of their items, which seed them.
"""

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from modint_guard.chat.relevance import SELF_ASK as SELF_ASK
from modint_guard.data.item import FAMILIES, Family, Form, Item
from modint_guard.data.perturb import CLAIMS, FACTS, claim, perturb, seeded
from modint_training.tinyworld import draw
from modint_training.tinyworld.tasks import LETTERED_CHOICES, TASKS, Task, build

Split = Literal["train", "validation", "test"]


def tasks_of(family: Family) -> tuple[Task, ...]:
    """The sub-tasks of one family."""
    return tuple(task for task in TASKS.values() if task.family == family)


def items(family: Family, split: Split, count: int, *, seed: int = 0, held_out: bool = False) -> list[Item]:
    """`count` clean items of a family: sub-tasks and forms take turns, labels are drawn at random."""
    return [item(family, split, index, seed=seed, held_out=held_out) for index in range(count)]


def item(family: Family, split: Split, index: int, *, seed: int = 0, held_out: bool = False) -> Item:
    """Clean item number `index` of a split; the same arguments always give the same item."""
    tasks = tasks_of(family)
    form: Form = "word" if (index // len(tasks)) % 2 == 0 else "letter"
    wording = "held-out" if held_out else "trained"
    item_id = f"{split}-{seed}-{wording}-{family}-{index}"
    return build(tasks[index % len(tasks)], item_id, seeded(item_id), split, form=form, held_out=held_out)


def perturbed(clean: Item, name: str, *, seed: int = 0) -> Item:
    """The item under a registered perturbation; unchanged for the name "clean"."""
    return clean if name == "clean" else perturb(clean, name, seed=seed)


@dataclass(frozen=True)
class Mixture:
    """The proportions of the base model's training data. Captions are mostly true and pictures mostly agree
    with the text, as on the web. A label follows the modality that ought to decide, and never a lie."""

    families: tuple[float, float, float] = (0.28, 0.38, 0.34)  # image-heavy, text-heavy, vqa
    captioned: float = 0.65  # of image-heavy items
    caption_true: float = 0.92  # of captions; the others are unrelated or lie
    caption_unrelated: float = 0.08
    caption_poor: float = 0.60  # of true captions; their picture is hard to read
    pictured: float = 0.30  # of text-heavy items
    picture_agrees: float = 0.90  # of these pictures; the others show something else or contradict
    picture_other: float = 0.10
    letter: float = 0.55  # of items are lettered; the others are answered in one word
    self_ask: float = 0.04  # of items ask whether the picture is needed
    late: bool = False  # draw the sub-tasks that are learned last more often
    letter_drill: float = 0.05  # of items ask which letter stands for a named option


# How much more often than others of its family a sub-task is drawn: at first those whose pictures or sums are
# hard, later those that a model learns last: looking something up by name.
HARD_TASKS = {"digit": 1.6, "digit_plus": 2.2, "count_of_colour": 1.3, "arithmetic": 1.3}
LATE_TASKS = {
    **{"digit": 1.6, "digit_plus": 2.0, "count_of_colour": 1.5, "arithmetic": 2.0},
    **{"lookup_colour": 1.5, "lookup_shape": 1.5, "is_colour": 3.0, "shape_of_colour": 3.0},
}


def training_item(index: int, *, seed: int, mixture: Mixture) -> Item:
    """Item number `index` of the base model's endless training stream."""
    rng = seeded("base", seed, index)
    family = rng.choices(FAMILIES, mixture.families)[0]
    tasks = tasks_of(family)
    weights = LATE_TASKS if mixture.late else HARD_TASKS
    task = rng.choices(tasks, [weights.get(task.name, 1.0) for task in tasks])[0]
    form: Form = "letter" if rng.random() < mixture.letter else "word"
    clean = build(task, f"train-{seed}-base-{index}", rng, "train", form=form)
    if rng.random() < mixture.letter_drill:
        return letter_drill(clean, rng)
    dressed = _dress(clean, rng, mixture)
    return self_ask(dressed) if rng.random() < mixture.self_ask else dressed


def letter_drill(item: Item, rng: random.Random) -> Item:
    """Names an option and asks for its letter: teaches the lettered form, which is otherwise learned late."""
    listed = tuple(rng.sample(item.choices, min(len(item.choices), LETTERED_CHOICES)))
    named, other = rng.sample(listed, 2)
    return item.replace(
        family="text-heavy",
        task="letter_drill",
        form="letter",
        question=f"Which letter stands for {named}?",
        choices=listed,
        answer=named,
        wrong=other,
        image=None,
        context=None,
    )


def self_ask(item: Item) -> Item:
    """The item's question followed by one about relevance: is the picture needed to answer?"""
    return item.replace(
        question=f"{item.question}\n{SELF_ASK}",
        form="word",
        task="self_ask",
        choices=("yes", "no"),
        answer="no" if item.family == "text-heavy" else "yes",
        wrong="yes" if item.family == "text-heavy" else "no",
    )


def _dress(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    """Add the other modality: a caption to image-heavy items, a picture to text-heavy ones."""
    if clean.family == "image-heavy" and rng.random() < mixture.captioned:
        return _caption(clean, rng, mixture)
    if clean.family == "text-heavy" and rng.random() < mixture.pictured:
        return _picture(clean, rng, mixture)
    return clean


def _caption(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    draw_ = rng.random()
    if draw_ < mixture.caption_true:
        return _truly_captioned(clean, rng, mixture)
    if draw_ < mixture.caption_true + mixture.caption_unrelated:
        return clean.replace(context=" ".join(rng.sample(FACTS, rng.randint(1, 2))))
    return clean.replace(context=claim(clean, clean.wrong, rng.choice(CLAIMS)))


def _truly_captioned(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    captioned = clean.replace(context=claim(clean, clean.answer, rng.choice(CLAIMS)))
    if clean.image and mixture.caption_poor and rng.random() < mixture.caption_poor:
        another = TASKS[clean.task].make(rng, "train").image
        assert another is not None  # every image-heavy sub-task draws one
        return captioned.replace(image=draw.poor(clean.image, another, rng))
    return captioned


def _picture(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    draw_ = rng.random()
    if draw_ < mixture.picture_agrees:
        return clean.replace(image=clean.agreeing)
    if draw_ < mixture.picture_agrees + mixture.picture_other:
        return clean.replace(image=_unrelated_picture(rng))
    return clean.replace(image=clean.contradicting)


def _unrelated_picture(rng: random.Random) -> Image.Image:
    """A picture that has nothing to do with the text: an empty background, or two shapes."""
    if rng.random() < 0.4:
        return draw.blank(rng)
    return draw.shapes([(rng.choice(draw.SHAPES), rng.choice(list(draw.COLOURS))) for _ in range(2)], rng)
