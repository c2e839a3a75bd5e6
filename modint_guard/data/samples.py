"""From a row to a sample: options found, the lie planted, pictures located, everything checked.

The same for every format; what a row leaves open is filled in by rules that depend on its own id alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modint_guard.chat.images import ImageLimits
from modint_guard.chat.option_block import OptionBlock
from modint_guard.chat.question import options_in
from modint_guard.data.formats import FORMATS, Columns, Draft
from modint_guard.data.item import FAMILIES, LETTERS, Family, Form, Item, Turn, normalised
from modint_guard.data.perturb import seeded
from modint_guard.data.pictures import Picture, picture
from modint_guard.data.rows import Row, excerpt
from modint_guard.types import JSON

KNOWN: tuple[Family, ...] = (*FAMILIES, "unknown")
DONORS = ("agreeing", "contradicting")
# What a row's `modint` object may say, beside the pictures.
EXTRA = ("family", "task", "choices", "wrong", "lie", "claim", "context", "source", "held_out_wording")
EXTRA_KEYS = (*EXTRA, "perturbation", *DONORS)
# How an answer may name an option: the first that gives the answer as written decides.
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
_WORDS = ("{text}", "{text}.")  # where the question lists no labels


@dataclass(frozen=True)
class Reading:
    """How rows are read: format, columns, where pictures lie, and what holds for rows that do not say it."""

    format: str
    columns: Columns
    image_root: Path
    limits: ImageLimits = field(default_factory=ImageLimits)
    family: Family = "unknown"
    number_rows: bool = False


@dataclass(frozen=True)
class Sample:
    """A row of a data set: its item without pictures, and these not yet decoded, by field of `Item`."""

    row: Row = field(repr=False)
    item: Item
    pictures: Mapping[str, Picture]

    def load(self) -> Item:
        """The item with its pictures. Raises DataError for one that cannot be decoded."""
        return self.item.replace(**{name: held.load() for name, held in self.pictures.items()})


def sample(row: Row, number: int, how: Reading) -> Sample:
    """Row `number` (from 0) as a sample. Raises DataError with file, line, sample id and remedy."""
    name = f"{row.file.stem}-{number}"
    known = name if how.number_rows or row.values.get("id") is None else str(row.values["id"])
    try:
        draft = FORMATS[how.format](row.values, how.columns)
        draft = replace(draft, id=name if how.number_rows or draft.id is None else draft.id)
        item = _as_it_is(row.values, draft) if how.format == "items" else _item(draft, how)
        held = _held_pictures(item, draft)
    except ValueError as exc:
        raise row.error(_without_item(str(exc), known), known) from exc
    found = {name: picture(value, row, item.id, how.image_root, how.limits) for name, value in held.items()}
    return Sample(row, item, found)


def _held_pictures(item: Item, draft: Draft) -> dict[str, Any]:
    """What the row has as pictures, by field of `Item`."""
    held = {"image": next(iter(draft.pictures), None), **{name: draft.extra.get(name) for name in DONORS}}
    if held["image"] is None and item.family in ("image-heavy", "vqa"):
        raise ValueError(
            f"has no picture, which the family {item.family} needs: add it, or name another family"
        )
    return {name: value for name, value in held.items() if value is not None}


def _without_item(problem: str, known: str) -> str:
    """`Item` names itself in what it refuses; the row's error does so already."""
    return problem.removeprefix(f"item {known}: ")


def _as_it_is(values: JSON, draft: Draft) -> Item:
    held = {key: value for key, value in values.items() if key not in ("image", *DONORS)} | {"id": draft.id}
    for key, value in held.items():
        kind = {"choices": list, "replies": list, "turns": list, "held_out_wording": bool}.get(key, str)
        if not isinstance(value, kind) and not (key == "context" and value is None):
            raise ValueError(f"`{key}` must be {_KIND_NAMES[kind]}, not {excerpt(value)}")
    for key in ("choices", "replies"):
        if not all(isinstance(text, str) for text in held.get(key, ())):
            raise ValueError(f"`{key}` must be a list of texts, not {excerpt(held[key])}")
    try:
        turns = tuple(Turn(**turn) for turn in held.get("turns", ()))
    except TypeError as exc:
        raise ValueError(f"a turn has role, text and has_image, not {excerpt(held['turns'])}") from exc
    texts = {key: tuple(held.get(key, ())) for key in ("choices", "replies")}
    return Item(**{**held, **texts, "turns": turns})


def _item(draft: Draft, how: Reading) -> Item:
    extra = _checked(draft.extra)
    context, question = _context(draft, extra.get("context"))
    if not question.strip():
        raise ValueError("asks nothing: its last user turn is empty")
    choices = draft.choices
    if "choices" in extra:
        choices = tuple(zip(_written_labels(question, extra["choices"]), extra["choices"], strict=True))
    options = _options(question, draft.reply, choices, lettered=draft.lettered)
    wrong, lie = _lie(draft, options, extra)
    turns = draft.turns[:-1]
    return Item(
        id=str(draft.id),
        family=family_named(extra.get("family", draft.family), how.family),
        task=extra.get("task", ""),
        form=options.form,
        question=options.question,
        choices=options.choices,
        answer=options.answer,
        wrong=wrong,
        claim=extra.get("claim", "{}"),
        context=context,
        held_out_wording=extra.get("held_out_wording", False),
        source=extra.get("source", _source(draft)),
        perturbation=extra.get("perturbation", "clean"),
        lie=lie,
        replies=options.replies,
        system=draft.system,
        turns=turns,
    )


def _source(draft: Draft) -> str:
    """Rows about the same picture file are no independent observations."""
    held = next(iter(draft.pictures), None)
    return held if isinstance(held, str) and held[:5].lower() != "data:" else str(draft.id)


def family_named(named: Any, otherwise: Family = "unknown") -> Family:
    """The family of a name as data sets write it ("image_heavy", "VQA"). Raises ValueError."""
    if named is None or named == "":
        return otherwise
    plain = str(named).strip().lower().replace("_", "-").replace(" ", "-")
    for family in KNOWN:
        if plain == family:
            return family
    raise ValueError(f"unknown family {excerpt(named)}: name one of {', '.join(FAMILIES)}, or none")


def _checked(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = {"choices": list, "held_out_wording": bool}
    for key, value in extra.items():
        if key not in EXTRA_KEYS:
            near = difflib.get_close_matches(key, EXTRA_KEYS, n=1, cutoff=0.0)[0]
            raise ValueError(f"`modint.{key}` is no key of `modint`: did you mean `{near}`?")
        kind = kinds.get(key, str)
        if key not in DONORS and not isinstance(value, kind):
            raise ValueError(f"`modint.{key}` must be {_KIND_NAMES[kind]}, not {excerpt(value)}")
    if not all(isinstance(choice, str) and choice.strip() for choice in extra.get("choices", ())):
        raise ValueError("`modint.choices` must be a list of texts")
    if "claim" in extra and extra["claim"].count("{}") != 1:
        raise ValueError(f"`modint.claim` must hold one {{}} for the choice, not {excerpt(extra['claim'])}")
    return extra


_KIND_NAMES = {list: "a list", bool: "true or false", str: "a text"}


def _context(draft: Draft, named: str | None) -> tuple[str | None, str]:
    """Context and question of the last user turn: several text parts tell them apart, or `modint.context`."""
    text, context = draft.turns[-1].text, named or draft.context
    if not context:
        return None, text
    if not text.startswith(f"{context}\n"):
        raise ValueError(
            "`modint.context` does not begin the last user turn: repeat its words as they are written, and "
            "let a new line follow"
        )
    return context, text[len(context) + 1 :]


# -- options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """The question with what may be answered."""

    question: str
    form: Form
    choices: tuple[str, ...] = ()
    answer: str = ""
    replies: tuple[str, ...] = ()


def _options(
    question: str,
    reply: str | None,
    own: tuple[tuple[str, str], ...] | None,
    *,
    lettered: bool,
) -> Options:
    """Choices named by the row, else an option block in the question that the answer refers to, else none."""
    reply = None if reply is None else reply.strip() or None
    if own is not None:
        return _own(question, reply, own, lettered=lettered)
    block = options_in(question)
    listed = tuple((option.label, option.text) for option in block.options) if block else ()
    found = _reply(reply, listed) if len({text for _, text in listed}) == len(listed) > 0 else None
    if found is None or not all(text for _, text in listed):
        return Options(question, "free", answer=reply or "")
    return _plain(question, listed, *found)


def _own(question: str, reply: str | None, own: tuple[tuple[str, str], ...], *, lettered: bool) -> Options:
    texts = tuple(text for _, text in own)
    listed = _lists(question, texts)
    found = _reply(reply, own, _REPLIES if listed or lettered else _WORDS)
    if found is None:
        raise ValueError(f"the answer {excerpt(reply)} is not among the choices {_some(texts)}: mend either")
    answer, replies = found
    if listed:
        return _plain(question, own, answer, replies)
    if lettered:
        below = "\n".join((question, *(f"{label}. {text}" for label, text in own)))
        return _plain(below, own, answer, _labels_of(own))
    return Options(question, "word", texts, answer, () if reply in (None, answer) else replies)


def _plain(question: str, own: tuple[tuple[str, str], ...], answer: str, replies: tuple[str, ...]) -> Options:
    """The lettered form where the question lists its options as we do, else the question as it is written."""
    texts = tuple(text for _, text in own)
    labels = _labels_of(own)
    listing = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    if labels == tuple(LETTERS[: len(texts)]) == replies and question.endswith(listing):
        return Options(question[: -len(listing)], "letter", texts, answer)
    in_words = [normalised(said) for said in replies] == [normalised(text) for text in texts]
    return Options(question, "word" if in_words else "letter", texts, answer, replies)


def _reply(
    reply: str | None, own: tuple[tuple[str, str], ...], templates: Sequence[str] = _REPLIES
) -> tuple[str, tuple[str, ...]] | None:
    """The choice that an answer means and what each choice would be answered by; None where it means none."""
    if reply is None:
        return "", _labels_of(own)
    for template in templates:
        said = [template.format(label=label, text=text) for label, text in own]
        same = [n for n, text in enumerate(said) if text.casefold() == reply.casefold()]
        if same:
            said[same[0]] = reply
            return own[same[0]][1], tuple(said)
    return None


def _labels_of(own: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(label for label, _ in own)


def _lists(question: str, texts: Sequence[str]) -> bool:
    """Whether the question lists these choices, in a block of any style or as we do."""
    return _block(question, texts) is not None or question.endswith(
        "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    )


def _block(question: str, texts: Sequence[str]) -> OptionBlock | None:
    block = options_in(question)
    listed = [normalised(option.text) for option in block.options] if block else []
    return block if listed == [normalised(text) for text in texts] else None


def _written_labels(question: str, texts: Sequence[str]) -> list[str]:
    """The labels that the question gives these choices, else letters."""
    if block := _block(question, texts):
        return [option.label for option in block.options]
    return [LETTERS[n] if n < len(LETTERS) else str(n + 1) for n in range(len(texts))]


def _some(texts: Sequence[str]) -> str:
    return ", ".join(excerpt(text) for text in texts[:8]) + (" …" if len(texts) > 8 else "")


# -- the lie -----------------------------------------------------------------------------------------


def _lie(draft: Draft, options: Options, extra: Mapping[str, Any]) -> tuple[str, str]:
    """The wrong answer that a lie claims, and the data set's own text for it.

    Said by the row, or one of the other choices by a generator that depends on the sample's id alone.
    """
    wrong, lie = extra.get("wrong", ""), extra.get("lie", "")
    if not wrong and draft.lies:
        wrong, lie = next(iter(draft.lies.items()))
    if wrong and wrong not in options.choices:
        wrong = next((choice for choice in options.choices if normalised(choice) == normalised(wrong)), wrong)
    if lie and not wrong:
        raise ValueError("has a lie and does not say which answer it claims: add `modint.wrong`")
    if wrong and options.choices and wrong not in options.choices:
        raise ValueError(
            f"the lie claims {excerpt(wrong)}, which is not among the choices {_some(options.choices)}"
        )
    if not wrong and options.answer and options.choices:
        others = [choice for choice in options.choices if normalised(choice) != normalised(options.answer)]
        wrong = seeded("wrong", draft.id).choice(others) if others else ""
    return wrong, lie
