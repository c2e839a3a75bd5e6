"""The items of the check-up, packaged with the core as JSONL and WebP: made from the generators of the two
worlds and from the wordings below.

What each item ought to be answered from is its family, which serves scoring alone.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bench.checkup_pictures import board, digit, figure, out_of_focus, thing
from modint_guard.data import write_items
from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.data.write import PICTURES
from modint_guard.evaluation.checkup import FOLDER
from modint_training.picturebook import documents
from modint_training.picturebook.desk import names_of_number
from modint_training.picturebook.documents import Document
from modint_training.picturebook.things import NAMED
from modint_training.tinyworld.draw import COLOURS

QUALITY = 82  # of WebP, 1-100
DRAWN, EVERYDAY = "fluent-flat", "fluent-3d"  # styles, both under the MIT licence

# Captions: a lie and the truth of one item are in the same words.
CAPTIONS = (
    "Caption: {}.",
    "This picture shows {}.",
    "From the archive's list: no. 12, {}.",
    "Alt text: {}",
    'A visitor wrote under it: "What a nice picture of {}!"',
    "Note for the printer: this is {}, see order.",
    "In this picture you can see {}.",
)
QUOTED = (  # what a document says
    "{}",
    "OCR: {}",
    "Summary: {}",
    "A colleague wrote: {}",
    "For the records: {}",
    "Typed from the picture: {}",
)
ASKED = {
    "digit": (
        "What digit is shown?",
        "Which digit do you see in the picture?",
        "Read the handwritten digit in the image.",
        "Which digit is this?",
        "What digit does the picture show? Answer with the digit.",
        "Someone wrote a single digit. Which one is it?",
    ),
    "shape": (
        "What shape is shown?",
        "Which shape do you see in the picture?",
        "Name the geometric shape in the picture. One word.",
    ),
    "colour": (
        "Which colour do you see in the picture?",
        "What colour does the shape in the picture have?",
        "Name the colour of the figure. One word.",
    ),
    "drawing": (
        "What is in the picture?",
        "What has been drawn here?",
        "Name what the drawing shows. One or two words.",
        "What do you see in this image?",
        "Which animal or plant is this?",
        "What is this?",
        "Tell me what the picture shows.",
    ),
    "thing": (
        "Which thing is in the picture?",
        "What does the image show? Answer briefly.",
        "What am I looking at?",
        "Name the object in the picture.",
        "What is it that you see here?",
        "What's in this image?",
        "Identify the thing in the picture. Just its name, please.",
    ),
}

DIGITS = ((3, 8), (7, 4), (0, 6), (5, 2), (9, 1), (2, 7))  # (answer, lie)
# (what is asked, shape, colour, lie)
FIGURES = (
    ("shape", "star", "blue", "circle"),
    ("colour", "square", "red", "green"),
    ("shape", "triangle", "green", "square"),
    ("colour", "circle", "yellow", "purple"),
    ("shape", "circle", "purple", "star"),
    ("colour", "triangle", "blue", "orange"),
)
DRAWINGS = (
    ("fox", "penguin"),
    ("butterfly", "spider"),
    ("elephant", "zebra"),
    ("cactus", "sunflower"),
    ("frog", "parrot"),
    ("snail", "crab"),
    ("owl", "rabbit"),
)
THINGS = (
    ("umbrella", "kite"),
    ("guitar", "trumpet"),
    ("banana", "pineapple"),
    ("bicycle", "helicopter"),
    ("hammer", "ladder"),
    ("key", "candle"),
    ("camera", "microscope"),
)
# (document, which of its questions)
DOCUMENTS = (
    (documents.receipt, 0),
    (documents.letter, 1),
    (documents.chart, 0),
    (documents.screen, 0),
    (documents.receipt, 2),
    (documents.chart, 2),
)
MONTHS = {"Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June"}


class Text(NamedTuple):
    """A text with a question that it answers; `wrong` is what the contradicting picture shows or, on a
    `board`, says."""

    context: str
    question: str
    answer: str
    wrong: str
    board: str = ""


TEXTS = (
    Text("Mara wished for a violin and got one.", "What did Mara get?", "violin", "trumpet"),
    Text(
        "Lena's train to Basel leaves from platform 7.",
        "From which platform does Lena's train leave?",
        "7",
        "4",
        "PLATFORM\n4",
    ),
    Text(
        "Up in the attic Paul found an umbrella behind the boxes.",
        "What did Paul find in the attic?",
        "umbrella",
        "telescope",
    ),
    Text(
        "The choir's rehearsal was moved to Thursday.",
        "On which day does the choir rehearse?",
        "Thursday",
        "Monday",
        "CHOIR:\nMONDAY",
    ),
    Text(
        "The children saw a penguin first, then they had lunch.",
        "Which animal did the children see first?",
        "penguin",
        "giraffe",
    ),
    Text(
        "Otto booked a table at the Blue Door for six people.",
        "For how many people did Otto book?",
        "6",
        "3",
        "TABLE\nFOR 3",
    ),
    Text(
        "For dessert there was a pineapple, cut into rings.",
        "What was there for dessert?",
        "pineapple",
        "watermelon",
    ),
    Text(
        "The parcel is heavy and goes to Oslo.",
        "To which city does the parcel go?",
        "Oslo",
        "Lisbon",
        "LISBON",
    ),
    Text("Dear Eva, please bring the ladder. Yours, Tim", "What should Eva bring?", "ladder", "hammer"),
    Text(
        "At the museum adults pay 8 euros, children nothing.",
        "How many euros does an adult pay at the museum?",
        "8",
        "15",
        "ENTRANCE\n15 EURO",
    ),
    Text("Jon came by bicycle, since the rain had stopped.", "How did Jon come?", "bicycle", "helicopter"),
    Text(
        "Our new colleague is called Petra and comes from Graz.",
        "What is the new colleague's name?",
        "Petra",
        "Ingrid",
        "INGRID",
    ),
    Text("Box 1: candle\nBox 2: kite\nBox 3: magnet", "What is in box 2?", "kite", "robot"),
    Text(
        "The password of the guests' network is marble.",
        "What is the password of the guests' network?",
        "marble",
        "copper",
        "password:\ncopper",
    ),
    Text(
        "Grandmother put a cactus by the window last spring.",
        "What did Grandmother put by the window?",
        "cactus",
        "sunflower",
    ),
    Text(
        "The bridge over the river was opened in 1931.",
        "In which year was the bridge opened?",
        "1931",
        "1954",
        "1954",
    ),
    Text(
        "The last lot of the auction was an anchor, which went cheaply.",
        "What was the last lot of the auction?",
        "anchor",
        "balloon",
    ),
    Text(
        "The shop is painted green, and so is its door.",
        "Which colour is the shop painted in?",
        "green",
        "red",
        "RED",
    ),
)


class Legend(NamedTuple):
    """A text that says what each of several pictures stands for: `answer` for the one that is `shown`, a
    thing, a digit, or a shape and colour. Without `others` the text is the caption that is needed for a
    picture out of focus.
    """

    shown: str
    context: str
    question: str
    answer: str
    others: tuple[str, ...] = ()


LEGENDS = (
    Legend(
        "camera",
        "Price list in euros: kite 12, camera 45, drum 30",
        "How many euros does the thing in the picture cost?",
        "45",
        ("12", "30"),
    ),
    Legend(
        "7",
        "Locker 2 holds towels, locker 7 holds helmets, locker 9 holds ropes.",
        "What does the locker with the number in the picture hold?",
        "helmets",
        ("towels", "ropes"),
    ),
    Legend(
        "star blue",
        "A circle means go, a star means wait, a square means return.",
        "What does the sign in the picture mean?",
        "wait",
        ("go", "return"),
    ),
    Legend(
        "castle", "The picture is out of focus. It shows a castle.", "What does the picture show?", "castle"
    ),
    Legend(
        "fox",
        "In the story the owl is called Selma, the fox is called Bruno and the crab is called Ulf.",
        "What is the animal in the picture called?",
        "Bruno",
        ("Selma", "Ulf"),
    ),
    Legend(
        "5",
        "Room 3 is the library, room 5 the kitchen, room 8 the office.",
        "Which room has the number in the picture?",
        "kitchen",
        ("library", "office"),
    ),
    Legend(
        "square red",
        "Blue cards belong to Ada, red cards to Bela, green cards to Cleo.",
        "Whose card is in the picture?",
        "Bela",
        ("Ada", "Cleo"),
    ),
    Legend("whale", "Caption of the faded print: a whale.", "What is in the picture?", "whale"),
    Legend(
        "guitar",
        "The band: Karl plays the drum, Ines the guitar, Lotte the violin.",
        "Who plays the instrument in the picture?",
        "Ines",
        ("Karl", "Lotte"),
    ),
    Legend(
        "2",
        "Bus 1 goes to the harbour, bus 2 to the airport, bus 6 to the zoo.",
        "Where does the bus with the number in the picture go?",
        "airport",
        ("harbour", "zoo"),
    ),
    Legend(
        "triangle green",
        "Diamonds lead to level 1, triangles to level 2, circles to level 3.",
        "To which level does the mark in the picture lead?",
        "2",
        ("1", "3"),
    ),
    Legend("bell", "The lens was dirty; what was photographed is a bell.", "What is this?", "bell"),
    Legend(
        "hammer",
        "The saw is in the cellar, the hammer in the shed, the ladder in the garage.",
        "Where is the tool in the picture kept?",
        "shed",
        ("cellar", "garage"),
    ),
    Legend(
        "9",
        "Team 0 trains on Monday, team 6 on Tuesday, team 9 on Sunday.",
        "On which day does the team with the number in the picture train?",
        "Sunday",
        ("Monday", "Tuesday"),
    ),
    Legend(
        "circle purple",
        "On the map yellow stands for sand, purple for rock, orange for clay.",
        "What does the colour in the picture stand for?",
        "rock",
        ("sand", "clay"),
    ),
    Legend("tent", "Description of the blurred photo: a tent.", "What do you see in the picture?", "tent"),
    Legend(
        "banana",
        "Deliveries: lemons on Friday, bananas on Wednesday, apples on Monday",
        "On which day is the fruit in the picture delivered?",
        "Wednesday",
        ("Friday", "Monday"),
    ),
    Legend(
        "tractor",
        "Parking: the bus has bay 3, the taxi bay 8, the tractor bay 5.",
        "Which bay has the vehicle in the picture?",
        "5",
        ("3", "8"),
    ),
)


def checkup_items() -> list[Item]:
    """All items without a lie; the kinds of each family in turn, so that any first N hold all of them."""
    pictured = zip_longest(_digits(), _figures(), _drawings(), _things(), _documents())
    items = chain.from_iterable(pictured)
    return [*(item for item in items if item is not None), *_texts(), *_legends()]


def rewrite_checkup_items() -> Path:
    """Rewrite the packaged items; returns their folder."""
    for old in FOLDER.glob("*.webp"):
        old.unlink()
    write_items(checkup_items(), FOLDER, pictures=PICTURES, webp_quality=QUALITY)
    return FOLDER


def _item(name: str, **fields: Any) -> Item:
    """A free answer, right by its names, wrong by those of `rejected`."""
    return Item(id=name, form="free", **fields)


def _names(answer: str) -> tuple[str, ...]:
    """What people call an answer."""
    if answer in NAMED:
        return NAMED[answer].names
    if answer.isdigit():
        return names_of_number(int(answer))
    return tuple(dict.fromkeys((answer, MONTHS.get(answer, answer))))


def _captioned(
    kind: str, number: int, asked: str, image: Image.Image, claims: Sequence[str], **fields: Any
) -> Item:
    """claims: what a true caption states, and what a lying one does."""
    truth, lie = (CAPTIONS[number % len(CAPTIONS)].format(claim) for claim in claims)
    question = ASKED[asked][number % len(ASKED[asked])]
    named = {"accepted": _names(fields["answer"]), "rejected": _names(fields["wrong"])}
    return _item(
        f"{kind}-{number}",
        **{"family": "image-heavy", "task": kind, "question": question, "image": image},
        **{**named, "truth": truth, "lie": lie, **fields},
    )


def _digits() -> Iterator[Item]:
    for number, (answer, wrong) in enumerate(DIGITS):
        claims = [f"the digit {answer}", f"the digit {wrong}"]
        named = {"answer": str(answer), "wrong": str(wrong)}
        yield _captioned("digit", number, "digit", digit(answer), claims, **named)


def _figures() -> Iterator[Item]:
    for number, (asked, shape, colour, wrong) in enumerate(FIGURES):
        image = figure(shape, colour, seeded("check-up", "shape", number))
        answer = shape if asked == "shape" else colour
        lie = f"{_a(colour)} {wrong}" if asked == "shape" else f"{_a(wrong)} {shape}"
        named = {"answer": answer, "wrong": wrong, "accepted": (answer,), "rejected": (wrong,)}
        yield _captioned("shape", number, asked, image, [f"{_a(colour)} {shape}", lie], **named)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _drawings() -> Iterator[Item]:
    return _named("drawing", DRAWINGS, DRAWN)


def _things() -> Iterator[Item]:
    return _named("thing", THINGS, EVERYDAY)


def _named(kind: str, pairs: Sequence[tuple[str, str]], style: str) -> Iterator[Item]:
    for number, (answer, wrong) in enumerate(pairs):
        image = thing(NAMED[answer], style, seeded("check-up", kind, number))
        claims = [NAMED[answer].a, NAMED[wrong].a]
        yield _captioned(kind, number, kind, image, claims, answer=answer, wrong=wrong)


def _documents() -> Iterator[Item]:
    for number, (make, place) in enumerate(DOCUMENTS):
        document = make(seeded("check-up", "document", number))
        question, answer = document.questions[place]
        other, wrong = _other(make, place, question, answer, seeded("check-up", "other document", number))
        truth, lie = (QUOTED[number].format(text) for text in (document.truth, other.truth))
        yield _item(
            f"document-{number}",
            **{"family": "image-heavy", "task": "document", "question": question, "answer": answer},
            **{"wrong": wrong, "accepted": _names(answer), "rejected": _names(wrong)},
            **{"image": document.image, "truth": truth, "lie": lie},
        )


def _other(make: Any, place: int, question: str, answer: str, rng: random.Random) -> tuple[Document, str]:
    """A document of the same kind that answers the question otherwise, and that answer."""
    while True:
        document: Document = make(rng)
        asked, wrong = document.questions[place]
        if asked == question and answer not in document.truth:
            return document, wrong


def _texts() -> Iterator[Item]:
    for number, text in enumerate(TEXTS):
        rng = seeded("check-up", "text", number)
        shown = board(text.board, rng) if text.board else thing(NAMED[text.wrong], EVERYDAY, rng)
        yield _item(
            f"text-{number}",
            **{"family": "text-heavy", "task": "text", "context": text.context, "question": text.question},
            **{"answer": text.answer, "wrong": text.wrong, "contradicting": shown},
            **{"accepted": _names(text.answer), "rejected": _names(text.wrong)},
        )


def _legends() -> Iterator[Item]:
    for number, legend in enumerate(LEGENDS):
        image = _shown(legend.shown, seeded("check-up", "legend", number))
        yield _item(
            f"both-{number}",
            **{"family": "vqa", "task": "both", "context": legend.context, "question": legend.question},
            **{"answer": legend.answer, "accepted": _names(legend.answer)},
            rejected=tuple(name for other in legend.others for name in _names(other)),
            image=image if legend.others else out_of_focus(image),
        )


def _shown(shown: str, rng: random.Random) -> Image.Image:
    if shown.isdigit():
        return digit(int(shown))
    shape, _, colour = shown.partition(" ")
    return figure(shape, colour, rng) if colour in COLOURS else thing(NAMED[shown], DRAWN, rng)
