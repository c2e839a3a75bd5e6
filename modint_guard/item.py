"""One labelled example: what training, diagnosis, the demo and the result tables all work on."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

Family = Literal["image-heavy", "text-heavy", "vqa"]
Form = Literal["word", "letter"]

FAMILIES: tuple[Family, ...] = ("image-heavy", "text-heavy", "vqa")
RELEVANT: dict[str, str] = {"image-heavy": "image", "text-heavy": "text", "vqa": "both"}
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Item:
    """A question with its picture, its text and its truth.

    `family` names the modality that ought to decide (arXiv 2505.19616, section 3): the image, the text, or
    both. `answer` and `wrong` are members of `choices`; `wrong` is the answer that a lie claims. `claim`
    turns a choice into a phrase a caption can state ("the digit {}"). `agreeing` and `contradicting` are
    pictures that show `answer` and `wrong`, where the data set has them. `source` is what intervals are
    clustered by.
    """

    id: str
    family: Family
    task: str
    form: Form
    question: str
    choices: tuple[str, ...]
    answer: str
    wrong: str
    claim: str = "{}"
    context: str | None = None
    image: Image.Image | None = field(default=None, compare=False)
    agreeing: Image.Image | None = field(default=None, compare=False)
    contradicting: Image.Image | None = field(default=None, compare=False)
    held_out_wording: bool = False
    source: str = ""
    perturbation: str = "clean"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or self.form not in ("word", "letter"):
            raise ValueError(f"item {self.id}: no family {self.family!r} in the form {self.form!r}")
        if self.form == "letter" and len(self.choices) > len(LETTERS):
            raise ValueError(f"item {self.id}: at most {len(LETTERS)} lettered choices, not {self.choices}")
        if self.answer not in self.choices or self.wrong not in self.choices:
            raise ValueError(f"item {self.id}: answer and wrong must be among the choices {self.choices}")
        if self.answer == self.wrong:
            raise ValueError(f"item {self.id}: the lie {self.wrong!r} equals the truth")

    def replace(self, **changes: Any) -> "Item":
        """The same item with some fields changed."""
        return replace(self, **changes)


def asked(item: Item) -> str:
    """The question as the model reads it: with its lettered options, where the item has that form."""
    if item.form == "word":
        return item.question
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return "\n".join((item.question, *options))


def prompt(item: Item) -> str:
    """The whole text beside the picture: context, if any, then question and options."""
    return f"{item.context}\n{asked(item)}" if item.context else asked(item)


def reply_for(item: Item, choice: str) -> str:
    """What a model answers when it means `choice`: the word itself, or its letter."""
    return choice if item.form == "word" else LETTERS[item.choices.index(choice)]


def is_right(item: Item, text: str) -> bool:
    """Whether a reply states the truth: exact match of word or letter, blanks and a final full stop aside."""
    return text.strip().removesuffix(".").strip().casefold() == reply_for(item, item.answer).casefold()
