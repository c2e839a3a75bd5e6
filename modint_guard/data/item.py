"""One example, labelled or not: what training, diagnosis, the demo and the result tables all work on."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from modint_guard.data.naming import names, value_in

Family = Literal["image-heavy", "text-heavy", "vqa", "unknown"]
Form = Literal["word", "letter", "free"]

FAMILIES: tuple[Family, ...] = ("image-heavy", "text-heavy", "vqa")  # those that name what ought to decide
RELEVANT: dict[str, str] = {"image-heavy": "image", "text-heavy": "text", "vqa": "both", "unknown": "auto"}
FORMS: tuple[Form, ...] = ("word", "letter", "free")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Turn:
    """A turn before the question; `has_image` if the item's picture is in it."""

    role: Literal["user", "assistant"]
    text: str
    has_image: bool = False


@dataclass(frozen=True)
class Item:
    """A question with its picture, its text and the true answer. Raises ValueError if its fields contradict
    each other.

    family: the modality that ought to decide (arXiv 2505.19616, section 3): the image, the text, or both
    (vqa). Items of unknown family are never perturbed. form: whether the answer is one of `choices` in words,
    one of them by its letter, or a free text. answer, wrong: the true answer and the one that a lie claims;
    members of `choices`, or texts of their own if the form is free. Either is empty if it is not known; an
    item without an answer has no label. claim: turns a choice into a phrase that a caption can state ("the
    digit {}"). lie: a text of the data set's own that claims `wrong`. agreeing, contradicting: pictures that
    show `answer` and `wrong`, if the data set has them. truth: a text of the data set's own that states
    `answer`. replies: what a model replies for each choice, if the question itself lists the options; for a
    free answer, the one text to learn that states it. accepted, rejected: names by which a free answer is
    right and names that make it wrong, as `naming.names` reads them. system, turns: what precedes the
    question. source: items with the same source are not independent; confidence intervals are clustered by
    it.
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
    truth: str = ""
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in RELEVANT or self.form not in FORMS:
            raise ValueError(f"item {self.id}: no family {self.family!r} in the form {self.form!r}")
        if (self.form == "free") == bool(self.choices):
            raise ValueError(f"item {self.id}: the form {self.form!r} does not go with {self.choices}")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"item {self.id}: a choice appears twice among {self.choices}")
        if self.replies and len(set(self.replies)) != (len(self.choices) or 1):
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
        """Whether the true answer is known. Items without a label are used for the consistency loss only."""
        return bool(self.answer)

    def replace(self, **changes: Any) -> "Item":
        """The same item with some fields changed. Raises ValueError as `Item` does."""
        return replace(self, **changes)


def question_text(item: Item) -> str:
    """The question as the model reads it: with its lettered options below it, if the item has that form."""
    if item.form != "letter" or item.replies:
        return item.question
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return "\n".join((item.question, *options))


def prompt(item: Item) -> str:
    """All text beside the picture: the context, if there is one, then the question with its options."""
    return f"{item.context}\n{question_text(item)}" if item.context else question_text(item)


def reply_for(item: Item, choice: str) -> str:
    """What a model replies if it means `choice`: the text itself, its letter, or what the data set says."""
    if not item.choices:
        return item.replies[0] if item.replies and choice == item.answer else choice
    if item.replies:
        return item.replies[item.choices.index(choice)]
    return LETTERS[item.choices.index(choice)] if item.form == "letter" else choice


def is_right(item: Item, text: str) -> bool:
    """Whether a reply gives the true answer: the right choice as `choice_of` reads it, or the same words as a
    free answer, ignoring case, surrounding white space and a final full stop, or one of its accepted names.

    Always False for an item without a label: leave such items out of accuracies.
    """
    if item.choices:
        return item.labelled and choice_of(item, text) == item.answer
    if not item.labelled:
        return False
    return normalised(text) == normalised(item.answer) or names(text, item.accepted, item.rejected)


def choice_of(item: Item, text: str) -> str | None:
    """The choice that a reply gives; None if it gives none.

    It is the choice's word or letter alone, ignoring case, surrounding white space and a final full stop. It
    may follow "the answer is", be in brackets, or be followed by the option's own text ("C. red", "(C)"). A
    JSON object is read by its values, and more may follow yes or no ("Yes, it is."). No letter is looked for
    inside a sentence.
    """
    whole = normalised(value_in(text))
    first = _YES_OR_NO.sub(r"\1", whole) if set(map(normalised, item.choices)) == {"yes", "no"} else whole
    for candidate in (whole, first, _UNTIL_ANSWER.sub("", whole).strip("*_ ")):
        for choice in item.choices:
            reply = normalised(reply_for(item, choice))
            if candidate == reply or _is_label_with_text(candidate, reply, normalised(choice)):
                return choice
    return None


_UNTIL_ANSWER = re.compile(r"^.*\banswer(?:\s+is\s*:?|\s*:)\s*", re.DOTALL)
_YES_OR_NO = re.compile(r"^(yes|no)[,.;:!].*$", re.DOTALL)
_LABEL = re.compile(r"[(\[]?(?P<label>[^()\[\].:,\s]+)[)\].:,]*(?P<rest>(?:\s.*)?)", re.DOTALL)


def _is_label_with_text(text: str, label: str, choice: str) -> bool:
    """Whether a text is this label, in brackets or with punctuation, alone or followed by the choice's text:
    "(c)", "c) red", "c: red".
    """
    match = _LABEL.fullmatch(text)
    return match is not None and match["label"] == label and match["rest"].strip() in ("", choice)


def answer_key(item: Item, text: str) -> str:
    """A key that is the same for two replies that give the same answer: their choice, or else their words."""
    choice = choice_of(item, text)
    return normalised(text) if choice is None else choice


def _tells_the_truth(item: Item) -> bool:
    """Whether the data set's own lie holds the right answer as whole words, and does not hold the wrong one.

    Answers of one or two characters are not looked for, because many texts hold letters, digits and "no"
    without stating them. The wrong answer may be the beginning of a word, as in a plural, and needs no
    article.
    """
    right, wrong = (" ".join(normalised(text).split()) for text in (item.answer, item.wrong))
    wrong = _ARTICLE.sub("", wrong)
    if not item.lie or not wrong or len(right) <= _TOO_SHORT:
        return False
    patterns = {text: re.escape(text).replace(r"\ ", r"\s+") for text in (right, wrong)}
    patterns[right] = rf"(?<!\w{_JOINT}){patterns[right]}(?!{_JOINT}?\w)"
    longest_first = "|".join(patterns[text] for text in sorted(patterns, key=len, reverse=True))
    matches = re.findall(rf"(?<!\w)(?:{longest_first})", item.lie.casefold())
    named = {" ".join(text.split()) for text in matches}
    return right in named and wrong not in named


_TOO_SHORT = 2
_ARTICLE = re.compile(r"^(an?|the) ")
_JOINT = "[-.,:/'’]"  # signs within one word or number: "card-holder", "2,100"


def normalised(text: str) -> str:
    """A text in the form in which replies are compared: without surrounding white space, a final full stop
    and capitals.
    """
    return text.strip().removesuffix(".").strip().casefold()
