"""From a row to a sample: its options are found, its lie is planted, its pictures are located, all of it is
checked.

This is the same for every format. What a row leaves open is filled in by rules that depend on its own id
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modint_guard.chat.images import ImageLimits
from modint_guard.chat.option_block import OptionBlock
from modint_guard.chat.sentences import options_in
from modint_guard.data.formats import FORMATS, Columns, Draft
from modint_guard.data.item import FAMILIES, LETTERS, Family, Form, Item, Turn, normalised
from modint_guard.data.perturb import seeded
from modint_guard.data.pictures import Picture, locate_picture
from modint_guard.data.rows import Row, excerpt
from modint_guard.errors import nearest
from modint_guard.types import JSON

Choices = tuple[tuple[str, str], ...]  # (label, text) of each
KNOWN: tuple[Family, ...] = (*FAMILIES, "unknown")
DONORS = ("agreeing", "contradicting")
# The keys of a row's `modint` object, except for the pictures.
EXTRA = (
    *("family", "task", "choices", "answer", "wrong", "lie", "truth", "claim", "context", "source"),
    *("accepted", "rejected", "held_out_wording"),
)
_LISTS = ("choices", "replies", "accepted", "rejected")  # fields of `Item` that are lists of texts
EXTRA_KEYS = (*EXTRA, "perturbation", *DONORS)
# How an answer may name an option; the first template that gives the answer as it is written decides.
_REPLIES = (
    "{label}",
    "{label}.",
    "({label})",
    "{label})",
    "{label}:",
    "{text}",
    "{text}.",
    "{label}. {text}",
    "{label}. {text}.",
    "{label}: {text}",
    "({label}) {text}",
    "{label}) {text}",
)
_WORDS = ("{text}", "{text}.")  # if the question lists no labels


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    image_root: the folder of pictures with relative paths. family: of rows that do not name theirs.
    number_rows: name samples by the number of their row, whatever their `id`.
    """

    format: str
    columns: Columns
    image_root: Path
    limits: ImageLimits = field(default_factory=ImageLimits)
    family: Family = "unknown"
    number_rows: bool = False


@dataclass(frozen=True)
class Sample:
    """A row of a data set: its item without pictures, and these, not yet decoded, by field of `Item`."""

    row: Row = field(repr=False)
    item: Item
    pictures: Mapping[str, Picture]

    def load(self) -> Item:
        """The item with its pictures. Raises DataError if one of them cannot be decoded."""
        return self.item.replace(**{name: picture.load() for name, picture in self.pictures.items()})


def read_sample(row: Row, number: int, reading: Reading) -> Sample:
    """Row `number` (from 0) as a sample. Raises DataError with file, line, sample id and remedy."""
    row_name = f"{row.file.stem}-{number}"
    id_ = row_name if reading.number_rows or row.values.get("id") is None else str(row.values["id"])
    try:
        draft = FORMATS[reading.format](row.values, reading.columns)
        draft = replace(draft, id=row_name if reading.number_rows or draft.id is None else draft.id)
        item = _as_it_is(row.values, draft) if reading.format == "items" else _item(draft, reading)
        values = _picture_values(item, draft)
    except ValueError as exc:
        raise row.error(_without_item(str(exc), id_), id_) from exc
    pictures = {
        name: locate_picture(value, row, item.id, reading.image_root, reading.limits)
        for name, value in values.items()
    }
    return Sample(row, item, pictures)


def _picture_values(item: Item, draft: Draft) -> dict[str, Any]:
    """What the row holds as pictures, by field of `Item`."""
    values = {"image": next(iter(draft.pictures), None), **{name: draft.extra.get(name) for name in DONORS}}
    if values["image"] is None and item.family in ("image-heavy", "vqa"):
        raise ValueError(
            f"has no picture, which the family {item.family} needs: add it, or name another family"
        )
    return {name: value for name, value in values.items() if value is not None}


def _without_item(problem: str, id_: str) -> str:
    """A problem without the id that `Item` begins it with: the row's error names it already."""
    return problem.removeprefix(f"item {id_}: ")


def _as_it_is(values: JSON, draft: Draft) -> Item:
    """The item of a row in our own format."""
    entries = {key: value for key, value in values.items() if key not in ("image", *DONORS)} | {
        "id": draft.id
    }
    for key, value in entries.items():
        kind = {**dict.fromkeys((*_LISTS, "turns"), list), "held_out_wording": bool}.get(key, str)
        if not isinstance(value, kind) and not (key == "context" and value is None):
            raise ValueError(f"`{key}` must be {_KIND_NAMES[kind]}, not {excerpt(value)}")
    for key in _LISTS:
        if not all(isinstance(text, str) for text in entries.get(key, ())):
            raise ValueError(f"`{key}` must be a list of texts, not {excerpt(entries[key])}")
    try:
        turns = tuple(Turn(**turn) for turn in entries.get("turns", ()))
    except TypeError as exc:
        raise ValueError(f"a turn has role, text and has_image, not {excerpt(entries['turns'])}") from exc
    texts = {key: tuple(entries.get(key, ())) for key in _LISTS}
    return Item(**{**entries, **texts, "turns": turns})


def _item(draft: Draft, reading: Reading) -> Item:
    extra = _checked(draft.extra)
    context, question = _context(draft, extra.get("context"))
    if not question.strip():
        raise ValueError("asks nothing: its last user turn is empty")
    choices = draft.choices
    if "choices" in extra:
        choices = tuple(zip(_written_labels(question, extra["choices"]), extra["choices"], strict=True))
    answers = _answers(question, draft.reply, choices, lettered=draft.lettered)
    if answers.form == "free" and "answer" in extra:
        replies = (answers.answer,) if answers.answer else ()
        answers = replace(answers, answer=extra["answer"], replies=replies)
    wrong, lie = _lie(draft, answers, extra)
    turns = draft.turns[:-1]
    return Item(
        id=str(draft.id),
        family=family_named(extra.get("family", draft.family), reading.family),
        task=extra.get("task", ""),
        form=answers.form,
        question=answers.question,
        choices=answers.choices,
        answer=answers.answer,
        wrong=wrong,
        claim=extra.get("claim", "{}"),
        context=context,
        held_out_wording=extra.get("held_out_wording", False),
        source=extra.get("source", _source(draft)),
        perturbation=extra.get("perturbation", "clean"),
        lie=lie,
        replies=answers.replies,
        system=draft.system,
        turns=turns,
        truth=extra.get("truth", ""),
        accepted=tuple(extra.get("accepted", ())),
        rejected=tuple(extra.get("rejected", ())),
    )


def _source(draft: Draft) -> str:
    """The source of a row without one: its picture file, because rows about the same picture are not
    independent observations; otherwise its id.
    """
    picture = next(iter(draft.pictures), None)
    return picture if isinstance(picture, str) and picture[:5].lower() != "data:" else str(draft.id)


def family_named(named: Any, otherwise: Family = "unknown") -> Family:
    """The family by its name in a data set ("image_heavy", "VQA"), or `otherwise`. Raises ValueError."""
    if named is None or named == "":
        return otherwise
    name = str(named).strip().lower().replace("_", "-").replace(" ", "-")
    for family in KNOWN:
        if name == family:
            return family
    raise ValueError(f"unknown family {excerpt(named)}: name one of {', '.join(FAMILIES)}, or none")


def _checked(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = {**dict.fromkeys(_LISTS, list), "held_out_wording": bool}
    for key, value in extra.items():
        if key not in EXTRA_KEYS:
            near = nearest(key, EXTRA_KEYS)
            raise ValueError(f"`modint.{key}` is not a key of `modint`: did you mean `{near}`?")
        kind = kinds.get(key, str)
        if key not in DONORS and not isinstance(value, kind):
            raise ValueError(f"`modint.{key}` must be {_KIND_NAMES[kind]}, not {excerpt(value)}")
    for key in _LISTS:
        if not all(isinstance(text, str) and text.strip() for text in extra.get(key, ())):
            raise ValueError(f"`modint.{key}` must be a list of texts")
    if "claim" in extra and extra["claim"].count("{}") != 1:
        raise ValueError(f"`modint.claim` must hold one {{}} for the choice, not {excerpt(extra['claim'])}")
    return extra


_KIND_NAMES = {list: "a list", bool: "true or false", str: "a text"}


def _context(draft: Draft, named: str | None) -> tuple[str | None, str]:
    """Context and question of the last user turn, separated by its text parts or by `modint.context`."""
    text, context = draft.turns[-1].text, named or draft.context
    if not context:
        return None, text
    if not text.startswith(f"{context}\n"):
        raise ValueError(
            "`modint.context` does not begin the last user turn: repeat its words as they are written there, "
            "and let a new line follow"
        )
    return context, text[len(context) + 1 :]


# -- options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """A question with its possible answers; the fields are those of `Item`."""

    question: str
    form: Form
    choices: tuple[str, ...] = ()
    answer: str = ""
    replies: tuple[str, ...] = ()


def _answers(
    question: str,
    reply: str | None,
    choices: Choices | None,
    *,
    lettered: bool,
) -> Answers:
    """The choices that the row names, or those of an option block that the answer refers to, or none."""
    reply = None if reply is None else reply.strip() or None
    if choices is not None:
        return _own_answers(question, reply, choices, lettered=lettered)
    block = options_in(question)
    listed = tuple((option.label, option.text) for option in block.options) if block else ()
    meant = _meant(reply, listed) if len({text for _, text in listed}) == len(listed) > 0 else None
    if meant is None or not all(text for _, text in listed):
        return Answers(question, "free", answer=reply or "")
    return _listed_answers(question, listed, *meant)


def _own_answers(question: str, reply: str | None, choices: Choices, *, lettered: bool) -> Answers:
    """The choices that the row names itself."""
    texts = tuple(text for _, text in choices)
    listed = _lists(question, texts)
    meant = _meant(reply, choices, _REPLIES if listed or lettered else _WORDS)
    if meant is None:
        raise ValueError(
            f"the answer {excerpt(reply)} is not among the choices {_some(texts)}: correct one of them"
        )
    answer, replies = meant
    if listed:
        return _listed_answers(question, choices, answer, replies)
    if lettered:
        below = "\n".join((question, *(f"{label}. {text}" for label, text in choices)))
        return _listed_answers(below, choices, answer, _labels_of(choices))
    return Answers(question, "word", texts, answer, () if reply in (None, answer) else replies)


def _listed_answers(question: str, choices: Choices, answer: str, replies: tuple[str, ...]) -> Answers:
    """The choices that a question lists. If it lists them as we do, the list is taken out of the question."""
    texts = tuple(text for _, text in choices)
    labels = _labels_of(choices)
    listing = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    if labels == tuple(LETTERS[: len(texts)]) == replies and question.endswith(listing):
        return Answers(question[: -len(listing)], "letter", texts, answer)
    in_words = [normalised(reply) for reply in replies] == [normalised(text) for text in texts]
    return Answers(question, "word" if in_words else "letter", texts, answer, replies)


def _meant(
    reply: str | None, choices: Choices, templates: Sequence[str] = _REPLIES
) -> tuple[str, tuple[str, ...]] | None:
    """The choice that an answer means, and the answer that would mean each choice; None if it means none."""
    if reply is None:
        return "", _labels_of(choices)
    for template in templates:
        replies = [template.format(label=label, text=text) for label, text in choices]
        same = [n for n, text in enumerate(replies) if text.casefold() == reply.casefold()]
        if same:
            replies[same[0]] = reply
            return choices[same[0]][1], tuple(replies)
    return None


def _labels_of(choices: Choices) -> tuple[str, ...]:
    return tuple(label for label, _ in choices)


def _lists(question: str, texts: Sequence[str]) -> bool:
    """Whether the question lists these choices, in an option block of any style or as we do."""
    return _block(question, texts) is not None or question.endswith(
        "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    )


def _block(question: str, texts: Sequence[str]) -> OptionBlock | None:
    block = options_in(question)
    listed = [normalised(option.text) for option in block.options] if block else []
    return block if listed == [normalised(text) for text in texts] else None


def _written_labels(question: str, texts: Sequence[str]) -> list[str]:
    """The labels that the question gives these choices, or letters if it gives none."""
    if block := _block(question, texts):
        return [option.label for option in block.options]
    return [LETTERS[n] if n < len(LETTERS) else str(n + 1) for n in range(len(texts))]


def _some(texts: Sequence[str]) -> str:
    return ", ".join(excerpt(text) for text in texts[:8]) + (" …" if len(texts) > 8 else "")


# -- the lie -----------------------------------------------------------------------------------------


def _lie(draft: Draft, answers: Answers, extra: Mapping[str, Any]) -> tuple[str, str]:
    """The wrong answer that a lie claims, and the data set's own text for it.

    The row names both, or one of the other choices is drawn by a generator that depends on the sample's id
    alone.
    """
    wrong, lie = extra.get("wrong", ""), extra.get("lie", "")
    if not wrong and draft.lies:
        wrong, lie = next(iter(draft.lies.items()))
    if wrong and wrong not in answers.choices:
        wrong = next((choice for choice in answers.choices if normalised(choice) == normalised(wrong)), wrong)
    if lie and not wrong:
        raise ValueError("has a lie and does not say which answer it claims: add `modint.wrong`")
    if wrong and answers.choices and wrong not in answers.choices:
        raise ValueError(
            f"the lie claims {excerpt(wrong)}, which is not among the choices {_some(answers.choices)}"
        )
    if not wrong and answers.answer and answers.choices:
        others = [choice for choice in answers.choices if normalised(choice) != normalised(answers.answer)]
        wrong = seeded("wrong", draft.id).choice(others) if others else ""
    return wrong, lie
