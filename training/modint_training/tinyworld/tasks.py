"""The sub-tasks of TinyWorld: each makes labelled items from a seeded generator.

image-heavy: digit, shape, colour, count · text-heavy: arithmetic, lookup, ordering · vqa: digit_plus,
is_colour, shape_of_colour, count_of_colour. Every sub-task has trained and held-out wordings; the held-out
ones recombine words of the trained ones.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from modint_guard.data.item import Family, Form, Item
from modint_training.tinyworld import draw

DIGITS = tuple("0123456789")
COUNTS = tuple("23456")
COLOURS = tuple(draw.COLOURS)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("Ann", "Ben", "Eve", "Kim", "Sam", "Tom")
LETTERED_CHOICES = 4


@dataclass(frozen=True)
class Draft:
    """An item before its form and its wrong answer are chosen."""

    fields: dict[str, object]
    answer: str
    image: Image.Image | None
    source: str
    context: str | None = None


@dataclass(frozen=True)
class Task:
    """A sub-task: its wordings, its answers, the phrase that claims an answer, the function that drafts an
    item and, for text-heavy ones, the function that shows an answer as a picture."""

    name: str
    family: Family
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    choices: tuple[str, ...]
    claim: str
    make: Callable[[random.Random, str], Draft]
    show: Callable[[str, random.Random, str], tuple[Image.Image, str]] | None = None


def build(
    task: Task, item_id: str, rng: random.Random, split: str, *, form: Form, held_out: bool = False
) -> Item:
    """One clean item of `task`: image-heavy without a caption, text-heavy without a picture."""
    draft = task.make(rng, split)
    wrong = rng.choice([choice for choice in task.choices if choice != draft.answer])
    agreeing = contradicting = None
    if task.family == "text-heavy" and task.show:
        agreeing, contradicting = (task.show(choice, rng, split)[0] for choice in (draft.answer, wrong))
    return Item(
        id=item_id,
        family=task.family,
        task=task.name,
        form=form,
        question=rng.choice(task.held_out if held_out else task.wordings).format(**draft.fields),
        choices=_choices(task.choices, draft.answer, wrong, form, rng),
        answer=draft.answer,
        wrong=wrong,
        claim=task.claim,
        context=draft.context,
        image=draft.image,
        agreeing=agreeing,
        contradicting=contradicting,
        held_out_wording=held_out,
        source=draft.source or item_id,
    )


def reworded(item: Item, by: int = 1) -> Item:
    """The same item in another wording of its kind (trained or held out), `by` wordings further on in the
    task's list.

    Raises ValueError if the item's question is no wording of its task.
    """
    task = TASKS[item.task]
    wordings = task.held_out if item.held_out_wording else task.wordings
    for index, wording in enumerate(wordings):
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(wording))
        if match := re.fullmatch(pattern, item.question):
            another = wordings[(index + by) % len(wordings)]
            return item.replace(question=another.format(**match.groupdict()))
    raise ValueError(f"item {item.id} asks {item.question!r}, which is no wording of {item.task}")


def _choices(
    every: Sequence[str], answer: str, wrong: str, form: Form, rng: random.Random
) -> tuple[str, ...]:
    if form == "word" or len(every) <= 2:
        return tuple(every)
    others = [choice for choice in every if choice not in (answer, wrong)]
    listed = [answer, wrong, *rng.sample(others, LETTERED_CHOICES - 2)]
    rng.shuffle(listed)
    return tuple(listed)


def show_digit(choice: str, rng: random.Random, split: str) -> tuple[Image.Image, str]:
    """A picture of the digit, and its source; training pictures vary more."""
    source = rng.choice(draw.digit_split(split)[int(choice)])
    return draw.digit(source, rng, spread=1.5 if split == "train" else 1.0), f"digit:{source}"


def _show_shape(choice: str, rng: random.Random, split: str) -> tuple[Image.Image, str]:
    return draw.shapes([(choice, rng.choice(COLOURS))], rng), ""


def _show_colour(choice: str, rng: random.Random, split: str) -> tuple[Image.Image, str]:
    return draw.shapes([(rng.choice(draw.SHAPES), choice)], rng), ""


def _show_count(choice: str, rng: random.Random, split: str) -> tuple[Image.Image, str]:
    colour, shape = rng.choice(COLOURS), rng.choice(draw.SHAPES)
    return draw.shapes([(shape, colour)] * int(choice), rng), ""


def _seen(
    show: Callable[[str, random.Random, str], tuple[Image.Image, str]], choices: Sequence[str]
) -> Callable[[random.Random, str], Draft]:
    def make(rng: random.Random, split: str) -> Draft:
        answer = rng.choice(choices)
        image, source = show(answer, rng, split)
        return Draft({}, answer, image, source)

    return make


def _arithmetic(rng: random.Random, split: str) -> Draft:
    answer = rng.randrange(10)
    if rng.random() < 0.5:
        a = rng.randrange(answer + 1)
        b, sign = answer - a, "plus"
    else:
        b = rng.randrange(10 - answer)
        a, sign = answer + b, "minus"
    words = rng.random() < 0.25
    shown = (NUMBER_WORDS[a], NUMBER_WORDS[b]) if words else (str(a), str(b))
    return Draft({"a": shown[0], "b": shown[1], "sign": sign}, str(answer), None, "")


def _lookup(kind: str) -> Callable[[random.Random, str], Draft]:
    def make(rng: random.Random, split: str) -> Draft:
        people = rng.sample(NAMES, 3)
        owned = [(rng.choice(COLOURS), rng.choice(draw.SHAPES)) for _ in people]
        context = " ".join(
            f"{who} has a {colour} {shape}." for who, (colour, shape) in zip(people, owned, strict=True)
        )
        asked = rng.randrange(3)
        answer = owned[asked][0 if kind == "colour" else 1]
        return Draft({"who": people[asked]}, answer, None, "", context)

    return make


def _ordering(rng: random.Random, split: str) -> Draft:
    numbers = rng.sample(range(10), 3)
    most = rng.random() < 0.5
    answer = max(numbers) if most else min(numbers)
    a, b, c = numbers
    return Draft({"a": a, "b": b, "c": c, "most": "largest" if most else "smallest"}, str(answer), None, "")


def _digit_plus(rng: random.Random, split: str) -> Draft:
    answer = rng.randrange(10)
    added = rng.randrange(answer + 1)
    image, source = show_digit(str(answer - added), rng, split)
    return Draft({"n": NUMBER_WORDS[added]}, str(answer), image, source)


def _two(rng: random.Random) -> tuple[list[str], list[str]]:
    return rng.sample(draw.SHAPES, 2), rng.sample(COLOURS, 2)


def _is_colour(rng: random.Random, split: str) -> Draft:
    named, colours = _two(rng)
    which, says_yes = rng.randrange(2), rng.random() < 0.5
    colour = colours[which] if says_yes else rng.choice([c for c in COLOURS if c != colours[which]])
    image = draw.shapes(list(zip(named, colours, strict=True)), rng)
    return Draft({"shape": named[which], "colour": colour}, "yes" if says_yes else "no", image, "")


def _shape_of_colour(rng: random.Random, split: str) -> Draft:
    named, colours = _two(rng)
    which = rng.randrange(2)
    image = draw.shapes(list(zip(named, colours, strict=True)), rng)
    return Draft({"colour": colours[which]}, named[which], image, "")


def _count_of_colour(rng: random.Random, split: str) -> Draft:
    shape, (colour, other) = rng.choice(draw.SHAPES), rng.sample(COLOURS, 2)
    wanted, rest = rng.randrange(1, 5), rng.randrange(1, 4)
    figures = [(shape, colour)] * wanted + [(shape, other)] * rest
    rng.shuffle(figures)
    return Draft({"colour": colour}, str(wanted), draw.shapes(figures, rng), "")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "digit",
            "image-heavy",
            (
                "What digit is shown?",
                "Which digit do you see in the picture?",
                "What digit does the picture show?",
                "Which digit is this?",
            ),
            ("Which digit does the picture show?", "What digit do you see?"),
            DIGITS,
            "the digit {}",
            _seen(show_digit, DIGITS),
        ),
        Task(
            "shape",
            "image-heavy",
            (
                "What shape is shown?",
                "Which shape do you see in the picture?",
                "What shape does the picture show?",
                "Which shape is this?",
            ),
            ("Which shape does the picture show?", "What shape do you see?"),
            draw.SHAPES,
            "the shape {}",
            _seen(_show_shape, draw.SHAPES),
        ),
        Task(
            "colour",
            "image-heavy",
            (
                "What colour is the shape shown?",
                "Which colour do you see in the picture?",
                "What colour does the shape in the picture have?",
                "Which colour is this shape?",
            ),
            ("Which colour does the shape shown have?", "What colour do you see in the picture?"),
            COLOURS,
            "the colour {}",
            _seen(_show_colour, COLOURS),
        ),
        Task(
            "count",
            "image-heavy",
            (
                "How many shapes are shown?",
                "How many shapes do you see in the picture?",
                "How many shapes does the picture show?",
                "How many shapes are in this picture?",
            ),
            ("How many shapes are shown in this picture?", "How many shapes do you see?"),
            COUNTS,
            "{} shapes",
            _seen(_show_count, COUNTS),
        ),
        Task(
            "arithmetic",
            "text-heavy",
            (
                "What is {a} {sign} {b}?",
                "How much is {a} {sign} {b}?",
                "What do you get for {a} {sign} {b}?",
                "What number is {a} {sign} {b}?",
            ),
            ("How much do you get for {a} {sign} {b}?", "Which number is {a} {sign} {b}?"),
            DIGITS,
            "the digit {}",
            _arithmetic,
            show_digit,
        ),
        Task(
            "lookup_colour",
            "text-heavy",
            (
                "According to the text, what colour is the shape of {who}?",
                "From the text, which colour does the shape of {who} have?",
                "What colour did the text give for {who}?",
            ),
            (
                "According to the text, which colour does the shape of {who} have?",
                "From the text, what colour is the shape of {who}?",
            ),
            COLOURS,
            "the colour {}",
            _lookup("colour"),
            _show_colour,
        ),
        Task(
            "lookup_shape",
            "text-heavy",
            (
                "According to the text, what shape does {who} have?",
                "From the text, which shape is that of {who}?",
                "What shape did the text give for {who}?",
            ),
            (
                "According to the text, which shape is that of {who}?",
                "From the text, what shape does {who} have?",
            ),
            draw.SHAPES,
            "the shape {}",
            _lookup("shape"),
            _show_shape,
        ),
        Task(
            "ordering",
            "text-heavy",
            (
                "Which number is the {most} of {a}, {b} and {c}?",
                "Of {a}, {b} and {c}, what is the {most} number?",
                "What is the {most} of {a}, {b} and {c}?",
            ),
            (
                "What number is the {most} of {a}, {b} and {c}?",
                "Of {a}, {b} and {c}, which number is the {most}?",
            ),
            DIGITS,
            "the digit {}",
            _ordering,
            show_digit,
        ),
        Task(
            "digit_plus",
            "vqa",
            (
                "What is the digit shown plus {n}?",
                "How much is the digit in the picture plus {n}?",
                "What number is the digit shown plus {n}?",
            ),
            ("How much is the digit shown plus {n}?", "What is the digit in the picture plus {n}?"),
            DIGITS,
            "the digit {}",
            _digit_plus,
        ),
        Task(
            "is_colour",
            "vqa",
            (
                "Is the {shape} shown {colour}?",
                "Is the {shape} in the picture {colour}?",
                "Does the picture show a {colour} {shape}?",
            ),
            ("Does this picture show a {colour} {shape}?", "Is the {shape} in this picture {colour}?"),
            ("yes", "no"),
            "{}",
            _is_colour,
        ),
        Task(
            "shape_of_colour",
            "vqa",
            (
                "What shape in the picture is {colour}?",
                "Which shape is {colour} in the picture?",
                "What is the {colour} shape shown?",
            ),
            ("Which shape in the picture is {colour}?", "What shape is {colour} in the picture?"),
            draw.SHAPES,
            "the shape {}",
            _shape_of_colour,
        ),
        Task(
            "count_of_colour",
            "vqa",
            (
                "How many {colour} shapes are shown?",
                "How many {colour} shapes do you see in the picture?",
                "How many of the shapes in the picture are {colour}?",
            ),
            ("How many {colour} shapes are in the picture?", "How many of the shapes shown are {colour}?"),
            tuple("1234"),
            "{} shapes",
            _count_of_colour,
        ),
    )
}
