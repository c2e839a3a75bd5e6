"""The sub-tasks of the picture-book: each makes one labelled item.

A picture decides (image-heavy), a text does (text-heavy), or both are needed (vqa). Answers are right by
construction; `truth` and `lie` are captions that state and deny what the picture shows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modint_guard.data.item import LETTERS, Family, Item
from modint_training.picturebook import draw
from modint_training.picturebook import wordings as words
from modint_training.picturebook.desk import Desk, capital, listed, names_of_number, rejected, together, two
from modint_training.picturebook.things import NAMED, THINGS, Thing
from modint_training.picturebook.wordings import say


@dataclass(frozen=True)
class Task:
    """A sub-task: its family, how an item comes about, how often it is drawn beside others of the family."""

    name: str
    family: Family
    make: Callable[[Desk], Item]
    weight: float = 1.0


# -- what pictures share -----------------------------------------------------------------------------


def _named(desk: Desk, thing: Thing, claimed: Thing, question: str, task: str, **more: Any) -> Item:
    """A question that the thing's name answers, asked about its picture; a lie names
    `claimed`."""
    return desk.item(
        **{
            **{"family": "image-heavy", "task": task, "form": "free", "question": question},
            **{"answer": thing.name, "wrong": claimed.name, "source": f"thing:{thing.name}"},
            **{"accepted": thing.names, "rejected": rejected(thing, claimed), "image": desk.picture(thing)},
            **{"truth": desk.caption(thing), "lie": desk.caption(claimed), **more},
        }
    )


def _sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def open_question(desk: Desk) -> Item:
    """What is it?"""
    thing = desk.thing()
    question = _sentence(say(desk.wording(words.OPEN), thing), desk.wording(words.BRIEFLY))
    return _named(desk, thing, desk.other(thing), question, "open")


def yes_no(desk: Desk) -> Item:
    """Is it this?"""
    thing = desk.thing()
    other, is_yes = desk.other(thing), desk.rng.random() < 0.5
    asked = thing if is_yes else other
    question = capital(say(desk.wording(words.YES_NO), asked))
    return _named(
        desk,
        thing,
        other,
        _sentence(question, desk.wording(words.YES_OR_NO)),
        "yes_no",
        **_yes_or_no(is_yes),
    )


def _yes_or_no(is_yes: bool) -> dict[str, Any]:
    answer, wrong = ("yes", "no") if is_yes else ("no", "yes")
    fixed = {"form": "word", "choices": ("yes", "no"), "accepted": (), "rejected": ()}
    return {**fixed, "answer": answer, "wrong": wrong}


def lettered(desk: Desk) -> Item:
    """Which option is it?"""
    thing = desk.thing()
    options = desk.others(thing, desk.rng.choice((2, 3, 3, 3)))
    wrong = options[0]
    question = say(desk.wording(words.LETTERED), thing)
    item = _named(desk, thing, wrong, question, "lettered")
    return item.replace(**_options(desk, question, [thing, *options]))


def _options(desk: Desk, question: str, things: list[Thing]) -> dict[str, Any]:
    """Lettered options below the question, in any order."""
    things = desk.rng.sample(things, len(things))
    style = desk.rng.choice(words.OPTION_STYLES)
    lines = [
        style.format(letter=letter, text=thing.name) for letter, thing in zip(LETTERS, things, strict=False)
    ]
    return {
        **{
            "form": "letter",
            "choices": tuple(thing.name for thing in things),
            "accepted": (),
            "rejected": (),
        },
        "question": "\n".join((question, *lines, desk.wording(words.LETTER))),
        "replies": tuple(LETTERS[: len(things)]),
    }


def which_of(desk: Desk) -> Item:
    """One of these, in a sentence."""
    thing = desk.thing()
    options = [thing, *desk.others(thing, desk.rng.choice((1, 2, 2)))]
    wrong = options[1]
    desk.rng.shuffle(options)
    question = capital(say(desk.wording(words.WHICH_OF), thing, options=listed(options, "or")))
    rest = rejected(thing, *(option for option in options if option != thing))
    return _named(desk, thing, wrong, question, "which_of", rejected=rest)


# A category's name as an answer, and what else people say.
CATEGORIES = {
    "animal": ("an animal", "animal", "animals", "bird", "insect"),
    "food": ("food", "fruit", "vegetable", "something to eat"),
    "vehicle": ("a vehicle", "vehicle", "vehicles"),
    "plant": ("a plant", "plant", "flower", "tree"),
    "clothing": ("clothing", "clothes", "piece of clothing"),
    "musical instrument": ("a musical instrument", "musical instrument", "instrument"),
    "tool": ("a tool", "tool", "tools"),
}


def category(desk: Desk) -> Item:
    """What kind of thing is it?"""
    sorted_things = [thing for thing in THINGS if thing.category in CATEGORIES]
    thing = desk.thing(sorted_things)
    if thing.category not in CATEGORIES:
        return open_question(desk)
    unlike = [other for other in sorted_things if other.category != thing.category]
    wrong = desk.other(thing, among=unlike if desk.unseen.things else [o for o in unlike if not o.held_out])
    options = [CATEGORIES[thing.category][0], CATEGORIES[wrong.category][0]]
    desk.rng.shuffle(options)
    question = capital(desk.wording(words.CATEGORY).format(options=words.joined(options, "or")))
    return _named(
        desk,
        thing,
        wrong,
        question,
        "category",
        answer=thing.category,
        wrong=wrong.category,
        accepted=CATEGORIES[thing.category],
        rejected=CATEGORIES[wrong.category],
    )


def describe(desk: Desk) -> Item:
    """A sentence about one thing."""
    thing = desk.thing()
    reply = (f"The picture shows {thing.a}.",)
    return _named(desk, thing, desk.other(thing), desk.wording(words.DESCRIBE), "describe", replies=reply)


def as_json(desk: Desk) -> Item:
    """The name as a JSON object."""
    thing, key = desk.thing(), desk.wording(words.JSON_KEYS)
    question = desk.wording(words.JSON).format(key=key)
    return _named(desk, thing, desk.other(thing), question, "json", replies=(json.dumps({key: thing.name}),))


def scene(desk: Desk) -> Item:
    """A sentence about two or three things in one picture; a lie names another one for the first."""
    thing = desk.thing()
    rest = desk.others(thing, desk.rng.choice((1, 1, 2)))
    things, wrong = [thing, *rest], desk.other(thing, *rest)
    desk.rng.shuffle(things)
    shown, claimed = together(things), together([wrong, *rest])
    image = draw.scene(things, desk.rng, styles=[desk.style(other) for other in things])
    return _named(
        desk,
        thing,
        wrong,
        desk.wording(words.DESCRIBE),
        "scene",
        image=image,
        answer=" and ".join(other.name for other in things),
        wrong=" and ".join(other.name for other in (wrong, *rest)),
        accepted=(" and ".join(other.name for other in things),),
        rejected=wrong.names,
        replies=(f"The picture shows {shown.a}.",),
        truth=desk.caption(shown),
        lie=desk.caption(claimed),
    )


def beside(desk: Desk) -> Item:
    """What is there besides a thing that the question names?"""
    thing = desk.thing()
    known, wrong = desk.others(thing, 2)
    pair = desk.rng.sample([thing, known], 2)
    image = draw.scene(pair, desk.rng, styles=[desk.style(other) for other in pair])
    question = say(desk.wording(words.BESIDE), known)
    return _named(desk, thing, wrong, question, "beside", image=image)


# -- a text decides ----------------------------------------------------------------------------------


def _look_up(desk: Desk, task: str, thing: Thing, other: Thing, context: str, question: str) -> Item:
    """A question about a text, answered by a thing's name."""
    return desk.item(
        **{"family": "text-heavy", "task": task, "form": "free", "question": question, "context": context},
        **{"answer": thing.name, "wrong": other.name, "source": f"thing:{thing.name}"},
        **{"accepted": thing.names, "rejected": rejected(thing, other)},
        **{"agreeing": desk.picture(thing), "contradicting": desk.picture(other)},
    )


def deed(desk: Desk) -> Item:
    """What did somebody do?"""
    thing, (p, r) = desk.thing(), desk.people()
    other = desk.other(thing)
    did, do = desk.rng.choice(words.DEEDS_HELD_OUT if desk.unseen.wording else words.DEEDS)
    slots = {"p": p, "r": r, "did": did, "do": do}
    context = two(desk.rng.choice(words.DEED_TEXTS), thing, other, **slots)
    return _look_up(desk, "deed", thing, other, context, desk.wording(words.DEED).format(**slots))


def in_spot(desk: Desk) -> Item:
    """What is in the kitchen?"""
    thing = desk.thing()
    other, (x, y) = desk.other(thing), desk.rng.sample(words.SPOTS, 2)
    context = two(desk.rng.choice(words.SPOT_TEXTS), thing, other, x=x, y=y)
    return _look_up(desk, "in_spot", thing, other, context, desk.wording(words.IN_SPOT).format(x=x))


def message(desk: Desk) -> Item:
    """What does a message ask for?"""
    thing, (p, r) = desk.thing(), desk.people()
    other = desk.other(thing)
    context = two(desk.rng.choice(words.MESSAGES), thing, other, p=p, r=r)
    return _look_up(desk, "message", thing, other, context, desk.wording(words.MESSAGE).format(p=p, r=r))


def passage(desk: Desk) -> Item:
    """A short passage."""
    thing, (p, r) = desk.thing(), desk.people()
    other = desk.other(thing)
    text, questions = desk.rng.choice(words.PASSAGES_HELD_OUT if desk.unseen.wording else words.PASSAGES)
    context = two(text, thing, other, p=p, r=r)
    return _look_up(desk, "passage", thing, other, context, desk.rng.choice(questions).format(p=p, r=r))


def boxes(desk: Desk) -> Item:
    """Three numbered boxes."""
    thing = desk.thing()
    others = desk.others(thing, 2)
    rows = desk.rng.sample([thing, *others], 3)
    line = desk.rng.choice(("Box {k}: {n}", "{k} - {n}", "In box {k}: {a}"))
    context = "\n".join(line.format(k=k, n=row.name, a=row.a) for k, row in enumerate(rows, 1))
    question = desk.wording(words.BOXES).format(k=rows.index(thing) + 1)
    return _look_up(desk, "boxes", thing, others[0], context, question)


def known(desk: Desk) -> Item:
    """What everybody knows of a thing, asked without a text: in a sentence or with letters."""
    facts = [(NAMED[name], does) for name, does in words.KNOWLEDGE]
    thing, does = desk.rng.choice(facts)
    strangers = [other for other, _ in facts if other.category != thing.category]
    options = [thing]
    while len(options) < 3:
        options.append(desk.other(*options, among=strangers))
    wrong = options[1]
    asked = desk.rng.sample(options, 3)
    question = desk.wording(words.WHICH_KNOWN).format(does=does, options=listed(asked, "or", bare=True))
    item = _look_up(desk, "known", thing, wrong, "", capital(question)).replace(context=None)
    if desk.rng.random() < 0.5:
        return item.replace(rejected=rejected(thing, *options[1:]))
    return item.replace(**_options(desk, f"Which one {does}?", options))


def _look_up_of_two(
    desk: Desk, task: str, things: tuple[Thing, Thing], context: str, question: str, **more: Any
) -> Item:
    """A question about the first of two things in a text. A picture agrees that shows it, and one contradicts
    that shows the other, of which the text says what would be wrong."""
    thing, other = things
    return desk.item(
        **{"family": "text-heavy", "task": task, "form": "free", "question": question, "context": context},
        **{"source": f"thing:{thing.name}", **more},
        **{"agreeing": desk.picture(thing), "contradicting": desk.picture(other)},
    )


def _two_places(desk: Desk) -> tuple[Thing, Thing, str, str]:
    thing = desk.thing()
    other, (x, y) = desk.other(thing), desk.rng.sample(words.SPOTS, 2)
    return thing, other, x, y


def _of_two(answer: str, wrong: str) -> dict[str, Any]:
    return {"answer": answer, "wrong": wrong, "accepted": (answer,), "rejected": (wrong,)}


def where(desk: Desk) -> Item:
    """In which room is it?"""
    thing, other, x, y = _two_places(desk)
    context = two(desk.rng.choice(words.SPOT_TEXTS), thing, other, x=x, y=y)
    question = say(desk.wording(words.WHERE), thing)
    return _look_up_of_two(desk, "where", (thing, other), context, question, **_of_two(x, y))


def owner(desk: Desk) -> Item:
    """Who has it?"""
    thing, (p, r) = desk.thing(), desk.people()
    other = desk.other(thing)
    context = two(desk.rng.choice(words.OWNER_TEXTS), thing, other, p=p, r=r)
    question = say(desk.wording(words.OWNER), thing)
    return _look_up_of_two(desk, "owner", (thing, other), context, question, **_of_two(p, r))


def colour(desk: Desk) -> Item:
    """Which colour does the text give?"""
    thing, p = desk.thing(), desk.people()[0]
    other, (x, y) = desk.other(thing), desk.rng.sample(words.COLOURS, 2)
    context = two(desk.rng.choice(words.COLOUR_TEXTS), thing, other, x=x, y=y, p=p)
    question = say(desk.wording(words.COLOUR), thing)
    return _look_up_of_two(desk, "colour", (thing, other), context, question, **_of_two(x, y))


def _number(value: int, wrong: int) -> dict[str, Any]:
    accepted, others = names_of_number(value), names_of_number(wrong)
    return {"answer": str(value), "wrong": str(wrong), "accepted": accepted, "rejected": others[1:]}


def price(desk: Desk) -> Item:
    """A price from a text."""
    thing = desk.thing()
    other, (x, y) = desk.other(thing), desk.rng.sample(range(2, 20), 2)
    context = two(desk.rng.choice(words.PRICE_TEXTS), thing, other, x=x, y=y)
    does = "do" if thing.be == "are" else "does"
    question = capital(say(desk.wording(words.PRICE), thing, does=does))
    question = _sentence(question, desk.wording(words.IN_NUMBERS))
    return _look_up_of_two(desk, "price", (thing, other), context, question, **_number(x, y))


def add(desk: Desk) -> Item:
    """A sum, in figures or in a sentence; the pictures are cards with a number on them."""
    x, y = desk.rng.randint(1, 9), desk.rng.randint(1, 9)
    question = desk.wording(words.SUMS).format(x=x, y=y, p=desk.people()[0])
    wrong = x + y + desk.rng.choice((-1, 1, 2))
    return desk.item(
        **{"family": "text-heavy", "task": "sum", "form": "free", "source": f"sum:{x}+{y}"},
        question=_sentence(question, desk.wording(words.IN_NUMBERS)),
        **_number(x + y, wrong),
        **{"agreeing": draw.card(str(x + y)), "contradicting": draw.card(str(wrong))},
    )


# -- both are needed ---------------------------------------------------------------------------------


def _vqa(desk: Desk, task: str, thing: Thing, context: str, question: str, **more: Any) -> Item:
    return desk.item(
        **{
            **{"family": "vqa", "task": task, "form": "free", "question": question, "context": context},
            **{"source": f"thing:{thing.name}", "image": desk.picture(thing), **more},
        }
    )


def price_shown(desk: Desk) -> Item:
    """A price list, and a picture of one of its things."""
    thing = desk.thing()
    x, y = desk.rng.sample(range(2, 20), 2)
    context = two(desk.rng.choice(words.PRICE_TEXTS), thing, desk.other(thing), x=x, y=y)
    question = _sentence(capital(desk.wording(words.PRICE_SHOWN)), desk.wording(words.IN_NUMBERS))
    return _vqa(desk, "price_shown", thing, context, question, **_number(x, y))


def on_note(desk: Desk) -> Item:
    """Is the thing on the note?"""
    thing, is_yes = desk.thing(), desk.rng.random() < 0.5
    named = desk.others(thing, desk.rng.choice((1, 2, 3)))
    if is_yes:
        named[desk.rng.randrange(len(named))] = thing
    lines = "\n".join(f"- {row.name}" for row in named)
    context = desk.rng.choice(words.NOTES).format(list=listed(named, "and"), lines=lines)
    question = _sentence(desk.wording(words.ON_NOTE), desk.wording(words.YES_OR_NO))
    return _vqa(desk, "on_note", thing, context, question, **_yes_or_no(is_yes))


def fits_label(desk: Desk) -> Item:
    """Is it what the label says?"""
    thing, is_yes = desk.thing(), desk.rng.random() < 0.5
    context = say(desk.rng.choice(words.LABELS), thing if is_yes else desk.other(thing))
    question = _sentence(desk.wording(words.FITS_LABEL), desk.wording(words.YES_OR_NO))
    return _vqa(desk, "fits_label", thing, context, question, **_yes_or_no(is_yes))


def owner_shown(desk: Desk) -> Item:
    """Who has the thing in the picture?"""
    thing, (p, r) = desk.thing(), desk.people()
    context = two(desk.rng.choice(words.OWNER_TEXTS), thing, desk.other(thing), p=p, r=r)
    return _vqa(desk, "owner_shown", thing, context, desk.wording(words.OWNER_SHOWN), **_of_two(p, r))


def where_shown(desk: Desk) -> Item:
    """Where is the thing in the picture kept?"""
    thing, other, x, y = _two_places(desk)
    context = two(desk.rng.choice(words.SPOT_TEXTS), thing, other, x=x, y=y)
    return _vqa(desk, "where_shown", thing, context, desk.wording(words.WHERE_SHOWN), **_of_two(x, y))


def faded(desk: Desk) -> Item:
    """A picture that can hardly be read, under a caption that is needed."""
    thing = desk.thing()
    image = draw.poor(desk.picture(thing), desk.rng)
    question = _sentence(say(desk.wording(words.OPEN), thing), desk.wording(words.BRIEFLY))
    named = {"answer": thing.name, "accepted": thing.names, "rejected": rejected(thing), "image": image}
    wrong = desk.other(thing).name
    context = say(desk.rng.choice(words.FADED), thing)
    return _vqa(desk, "faded", thing, context, question, **named, wrong=wrong)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("open", "image-heavy", open_question, 5),
        Task("yes_no", "image-heavy", yes_no, 3),
        Task("lettered", "image-heavy", lettered, 3),
        Task("which_of", "image-heavy", which_of, 1.5),
        Task("category", "image-heavy", category, 0.7),
        Task("describe", "image-heavy", describe, 1),
        Task("json", "image-heavy", as_json, 0.7),
        Task("scene", "image-heavy", scene, 0.8),
        Task("beside", "image-heavy", beside, 0.5),
        Task("deed", "text-heavy", deed, 1.5),
        Task("in_spot", "text-heavy", in_spot, 1.5),
        Task("message", "text-heavy", message, 1),
        Task("passage", "text-heavy", passage, 1.5),
        Task("boxes", "text-heavy", boxes, 1),
        Task("known", "text-heavy", known, 1.5),
        Task("where", "text-heavy", where, 0.7),
        Task("owner", "text-heavy", owner, 0.7),
        Task("colour", "text-heavy", colour, 0.5),
        Task("price", "text-heavy", price, 0.7),
        Task("sum", "text-heavy", add, 1),
        Task("price_shown", "vqa", price_shown, 2),
        Task("on_note", "vqa", on_note, 1.5),
        Task("fits_label", "vqa", fits_label, 1.5),
        Task("owner_shown", "vqa", owner_shown, 1),
        Task("where_shown", "vqa", where_shown, 1),
        Task("faded", "vqa", faded, 1),
    )
}
