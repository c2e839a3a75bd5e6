"""One example, labelled or not: what training, diagnosis, the demo and the result tables all work on."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

Family = Literal["image-heavy", "text-heavy", "vqa", "unknown"]
Form = Literal["word", "letter", "free"]

FAMILIES: tuple[Family, ...] = ("image-heavy", "text-heavy", "vqa")  # those that say what ought to decide
RELEVANT: dict[str, str] = {"image-heavy": "image", "text-heavy": "text", "vqa": "both", "unknown": "auto"}
FORMS: tuple[Form, ...] = ("word", "letter", "free")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Turn:
    """A turn before the question; `has_image` says that the item's picture stands there."""

    role: Literal["user", "assistant"]
    text: str
    has_image: bool = False


@dataclass(frozen=True)
class Item:
    """A question with its picture, its text and its truth.

    `family` names the modality that ought to decide (arXiv 2505.19616, section 3): the image, the text, or
    both; `unknown` items are never perturbed. `answer` and `wrong` are members of `choices`, or texts of
    their own where the form is `free`; `wrong` is the answer that a lie claims. Either is empty where nobody
    knows it: an item without an answer has no label. `claim` turns a choice into a phrase a caption can state
    ("the digit {}"); `lie` is a text of the data set's own that claims `wrong`. `agreeing` and
    `contradicting` are pictures that show `answer` and `wrong`, where the data set has them. `replies` are
    what a model says when it means each choice, where the question lists its options itself. `system` and
    `turns` came before the question. `source` is what intervals are clustered by.
    """

    id: str
    family: Family
    task: str
    form: Form
    question: str
    choices: tuple[str, ...] = ()
    answer: str = ""
    wrong: str = ""
    claim: str = "{}"
    context: str | None = None
    image: Image.Image | None = field(default=None, compare=False)
    agreeing: Image.Image | None = field(default=None, compare=False)
    contradicting: Image.Image | None = field(default=None, compare=False)
    held_out_wording: bool = False
    source: str = ""
    perturbation: str = "clean"
    lie: str = ""
    replies: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in RELEVANT or self.form not in FORMS:
            raise ValueError(f"item {self.id}: no family {self.family!r} in the form {self.form!r}")
        if (self.form == "free") == bool(self.choices):
            raise ValueError(f"item {self.id}: the form {self.form!r} does not go with {self.choices}")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"item {self.id}: a choice stands twice among {self.choices}")
        if self.replies and len(set(self.replies)) != len(self.choices):
            raise ValueError(f"item {self.id}: the replies {self.replies} do not tell its choices apart")
        if self.form == "letter" and not self.replies and len(self.choices) > len(LETTERS):
            raise ValueError(f"item {self.id}: at most {len(LETTERS)} lettered choices, not {self.choices}")
        if self.choices and not {self.answer, self.wrong} <= {*self.choices, ""}:
            raise ValueError(f"item {self.id}: answer and wrong must be among the choices {self.choices}")
        if self.answer and self.wrong and normalised(self.answer) == normalised(self.wrong):
            raise ValueError(f"item {self.id}: the lie {self.wrong!r} equals the truth")
        if _tells_the_truth(self):
            raise ValueError(
                f"item {self.id}: its lie names the truth {self.answer!r} and not {self.wrong!r}, which it "
                "is to claim: name that in it, or leave the text out"
            )

    @property
    def labelled(self) -> bool:
        """Whether the truth is known. Items without a label feed the consistency loss only."""
        return bool(self.answer)

    def replace(self, **changes: Any) -> "Item":
        """The same item with some fields changed."""
        return replace(self, **changes)


def asked(item: Item) -> str:
    """The question as the model reads it: with its lettered options, where the item has that form."""
    if item.form != "letter" or item.replies:
        return item.question
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return "\n".join((item.question, *options))


def prompt(item: Item) -> str:
    """The whole text beside the picture: context, if any, then question and options."""
    return f"{item.context}\n{asked(item)}" if item.context else asked(item)


def reply_for(item: Item, choice: str) -> str:
    """What a model answers when it means `choice`: the text itself, its letter, or what the data set says."""
    if item.replies:
        return item.replies[item.choices.index(choice)]
    return LETTERS[item.choices.index(choice)] if item.form == "letter" else choice


def is_right(item: Item, text: str) -> bool:
    """Whether a reply states the truth: of choices as `choice_of` reads it; of a free answer word for word,
    blanks and a final full stop aside.

    Never so for an item without a label: leave such items out of accuracies.
    """
    if item.choices:
        return item.labelled and choice_of(item, text) == item.answer
    return item.labelled and normalised(text) == normalised(item.answer)


def choice_of(item: Item, text: str) -> str | None:
    """The choice that a reply states: its word or letter and nothing else, blanks and a final full stop
    aside; or that after "the answer is", in brackets, or followed by the option's own text ("C. red", "(C)").
    None where it states none of them: no letter is looked for inside a sentence.
    """
    said = normalised(text)
    for given in (said, _UNTIL_ANSWER.sub("", said).strip("*_ ")):
        for choice in item.choices:
            reply = normalised(reply_for(item, choice))
            if given == reply or _with_its_text(given, reply, normalised(choice)):
                return choice
    return None


_UNTIL_ANSWER = re.compile(r"^.*\banswer(?:\s+is\s*:?|\s*:)\s*", re.DOTALL)
_LABEL = re.compile(r"[(\[]?(?P<label>[^()\[\].:,\s]+)[)\].:,]*(?P<rest>(?:\s.*)?)", re.DOTALL)


def _with_its_text(said: str, label: str, choice: str) -> bool:
    """Whether it is the label of a choice in brackets or with a mark, with the choice's text behind it or
    nothing: "(c)", "c) red", "c: red"."""
    found = _LABEL.fullmatch(said)
    return found is not None and found["label"] == label and found["rest"].strip() in ("", choice)


def same_as(item: Item, text: str) -> str:
    """A name that two replies share where they state the same: their choice, else their words."""
    choice = choice_of(item, text)
    return normalised(text) if choice is None else choice


def _tells_the_truth(item: Item) -> bool:
    """Whether the data set's own lie holds the right answer as whole words and the wrong one nowhere.

    An answer of one or two characters is not looked for: letters, digits and "no" stand in many a text that
    does not state them. Of the wrong one a beginning is enough, as in its plural, and no article is needed.
    """
    right, wrong = (" ".join(normalised(text).split()) for text in (item.answer, item.wrong))
    wrong = _ARTICLE.sub("", wrong)
    if not item.lie or not wrong or len(right) <= _TOO_SHORT:
        return False
    said = {text: re.escape(text).replace(r"\ ", r"\s+") for text in (right, wrong)}
    said[right] = rf"(?<!\w{_JOINT}){said[right]}(?!{_JOINT}?\w)"
    longest_first = "|".join(said[text] for text in sorted(said, key=len, reverse=True))
    found = re.findall(rf"(?<!\w)(?:{longest_first})", item.lie.casefold())
    named = {" ".join(text.split()) for text in found}
    return right in named and wrong not in named


_TOO_SHORT = 2
_ARTICLE = re.compile(r"^(an?|the) ")
_JOINT = "[-.,:/'’]"  # what stands within one word or number: "card-holder", "2,100"


def normalised(text: str) -> str:
    """A reply in the form that replies are compared in: without blanks around it, a final full stop and
    capitals."""
    return text.strip().removesuffix(".").strip().casefold()
