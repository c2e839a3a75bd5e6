"""The formats of rows: how one is detected, and how each turns a row into a `Draft`.

A format is a function of one row. What is the same for all of them (options, the planted lie, pictures) is in
`data.samples`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from modint_guard.data.item import Item, Turn
from modint_guard.data.rows import excerpt
from modint_guard.data.tables import TablePicture
from modint_guard.errors import nearest
from modint_guard.types import JSON

MARK = "<image>"
MEDIA_MARKS = ("<video>", "<audio>")
# Columns that would be lost in silence, and what is wrong with a row that has one.
_UNREAD = {
    **dict.fromkeys(("video", "videos", "audio", "audios"), "and only pictures are read"),
    "tools": "and calls of tools are not read",
}
_NUMBERED_PICTURE = re.compile(r"image_?\d+")  # MMMU's image_1 … image_7, and <image 1> in its texts
_NUMBERED_MARK = re.compile(r"^<image[ _]?\d+>\s*|<image[ _]?(\d+)>")
# Qwen-VL's pictures: "Picture 1: <img>a.png</img>".
_PATH_MARK = re.compile(r"(?:Picture \d+:[ ]?)?<img>([^<>]+)</img>")
_PICTURE_COLUMN = re.compile(r"(?:^|_)(?:img|imgs|image|images|picture|pictures|photo|photos)(?:_|$)", re.I)
_PICTURE_FILE = re.compile(r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif)$", re.I)
_MARK = re.compile(r"^<image>\n?|\n?<image>$|<image>")


@dataclass(frozen=True)
class Draft:
    """One row in terms that all formats share.

    turns: the last one is the question. reply: the answer that the model should give; None without a label.
    pictures: as the row holds them. context: the beginning of the last turn, if the row tells it from the
    question. choices: (label, text) each; None if the row lists none of its own. lies: texts by the wrong
    choice that each claims. extra: the row's `modint` object.
    """

    turns: tuple[Turn, ...]
    reply: str | None
    id: str | None = None
    system: str = ""
    pictures: tuple[Any, ...] = ()
    context: str | None = None
    choices: tuple[tuple[str, str], ...] | None = None
    lettered: bool = False  # list the choices below the question
    lies: Mapping[str, str] = field(default_factory=dict)
    family: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """The columns of rows by LLaMA-Factory's names (`columns` and `tags` of its dataset_info.json)."""

    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"
    messages: str = "conversations"
    system: str = "system"
    images: str = "images"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    system_tag: str = "system"
    formatting: str = "alpaca"

    def changed(self, names: Mapping[str, str]) -> Columns:
        """The same columns with some names replaced. Raises ValueError for an unknown key."""
        known = [field.name for field in fields(self)]
        for key in names:
            if key not in known:
                near = nearest(key, known)
                raise ValueError(f"no column {key!r}: did you mean {near!r}? Known: {', '.join(known)}")
        return replace(self, **names)


# -- chats: LLaVA, ShareGPT, OpenAI messages ---------------------------------------------------------

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


class _RawTurn(NamedTuple):
    """One turn as it is in a row.

    context: the beginning of `text` if the row tells it from the question, otherwise empty.
    """

    role: str
    text: str
    context: str = ""


def llava(row: JSON, columns: Columns) -> Draft:
    """{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}]}."""
    if row.get("images") is not None:
        raise ValueError("has `images`, which ShareGPT rows have: give --format sharegpt")
    return _conversation(row, columns)


def sharegpt(row: JSON, columns: Columns) -> Draft:
    """{"conversations": [{"from", "value"}, …], "images": […], "system": "…"}."""
    if row.get("image") is not None:
        raise ValueError("has `image`, which LLaVA rows have: give --format llava")
    return _conversation(row, columns)


def _conversation(row: JSON, columns: Columns) -> Draft:
    tags = {columns.user_tag: "user", columns.assistant_tag: "assistant", columns.system_tag: "system"}
    role, content = columns.role_tag, columns.content_tag
    turns = [
        _RawTurn(_role(turn.get(role), tags), _text(turn.get(content), content))
        for turn in _turns(row.get(columns.messages), columns.messages)
    ]
    pictures = _pictures(row, columns.images)
    if not pictures:
        pictures = tuple(path for turn in turns for path in _PATH_MARK.findall(turn.text))
        turns = [turn._replace(text=_PATH_MARK.sub(MARK, turn.text)) for turn in turns]
    return _chat(row, turns, pictures, _optional_text(row, columns.system))


def openai(row: JSON, columns: Columns) -> Draft:
    """{"messages": [{"role": "user", "content": "…" or parts}, …]}, pictures as parts or in `images`."""
    turns: list[_RawTurn] = []
    inline: list[Any] = []
    for message in _turns(row.get("messages"), "messages"):
        if message.get("tool_calls"):
            raise ValueError("calls tools, which are not read: leave such rows out")
        _check_weight(message)
        texts, pictures = _parts(message.get("content"))
        inline += [picture for picture in pictures if picture is not None]
        marked = any(MARK in text for text in texts)
        marks = "" if marked else f"{MARK}\n" * len(pictures)
        context = "\n".join(texts[:-1])
        turns.append(_RawTurn(_role(message.get("role"), _ROLES), marks + "\n".join(texts), context))
    listed = _pictures(row, "images")
    if inline and listed:
        raise ValueError("has pictures both in its messages and in `images`: keep one of them")
    return _chat(row, turns, tuple(inline) or listed, _optional_text(row, "system"))


def _parts(content: Any) -> tuple[list[str], list[Any]]:
    """The texts and the pictures of one message. A picture is None if the row holds it in `images`."""
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        raise ValueError(f"`content` must be text or a list of parts, not {excerpt(content)}")
    texts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text(part.get("text"), "text"))
        elif kind in ("image", "image_url"):
            keys = ("image_url", "image", "url", "path")
            pictures.append(next((part[key] for key in keys if part.get(key)), None))
        else:
            raise ValueError(f"content parts are text, image_url or image, not {excerpt(kind)}")
    return texts or [""], pictures


def _chat(row: JSON, turns: Sequence[_RawTurn], pictures: tuple[Any, ...], system: str) -> Draft:
    """A draft of a conversation: a system text if there is one, then user and assistant in turn. The last
    user turn is the question, and an assistant turn after it is the answer. A greeting of the assistant's
    before the first question is left out, and several user turns in a row are one.
    """
    _check_nothing_is_lost(row, pictures)
    turns = list(turns)
    if turns and turns[0].role == "system":
        system = turns.pop(0).text
    while len(turns) > 1 and turns[0].role == "assistant":
        turns.pop(0)
    turns = _joined(turns)
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            raise ValueError(
                f"turn {number + 1} is the {turn.role}'s: user and assistant must take turns, a user first"
            )
    reply = turns.pop().text if turns and turns[-1].role == "assistant" else None
    if not turns:
        raise ValueError("has no user turn: there is nothing to ask")
    context = _MARK.sub("", turns[-1].context)
    draft = Draft(
        turns=tuple(Turn("user" if turn.role == "user" else "assistant", turn.text) for turn in turns),
        reply=reply,
        id=_id(row),
        system=system,
        context=context if context.strip() else None,
        extra=_extra(row),
    )
    return _with_pictures(draft, pictures)


def _joined(turns: Sequence[_RawTurn]) -> list[_RawTurn]:
    """The turns, with the user's own turns in a row as one."""
    joined: list[_RawTurn] = []
    for turn in turns:
        if turn.role == "user" and joined and joined[-1].role == "user":
            before = joined.pop()
            context = f"{before.text}\n{turn.context}" if turn.context else ""
            turn = _RawTurn("user", f"{before.text}\n{turn.text}", context)
        joined.append(turn)
    return joined


def _check_nothing_is_lost(row: JSON, pictures: tuple[Any, ...]) -> None:
    """Raises ValueError for a row with what is not read: clips, tools, weights, pictures in other columns."""
    _check_weight(row)
    for name, problem in _UNREAD.items():
        if row.get(name) not in (None, "", [], {}):
            raise ValueError(f"has `{name}`, {problem}: leave such rows out")
    if not pictures:
        for name, value in row.items():
            if _looks_like_picture(name, value):
                raise ValueError(
                    f"seems to have a picture in `{name}`, which is not read: call the column `image`, or "
                    f"name it (--column images={name})"
                )


def _looks_like_picture(name: str, value: Any) -> bool:
    if isinstance(value, bytes | TablePicture) or (
        isinstance(value, dict) and (value.get("bytes") or value.get("path"))
    ):
        return True
    if not isinstance(value, str):
        return False
    is_file = bool(_PICTURE_COLUMN.search(name) and _PICTURE_FILE.search(value))
    return is_file or value[:11].lower() == "data:image/"


def _check_weight(entry: JSON) -> None:
    if entry.get("weight") not in (None, 1):
        raise ValueError(
            f"has `weight` {excerpt(entry['weight'])}, and every row counts the same: leave it out"
        )


def _with_pictures(draft: Draft, pictures: tuple[Any, ...]) -> Draft:
    """The draft with its picture, and without the `<image>` marks, whose turn is noted in `has_image`."""
    marks = [turn.text.count(MARK) for turn in draft.turns]
    unmarked = (draft.reply or "", draft.system, *(t.text for t in draft.turns if t.role == "assistant"))
    for mark in MEDIA_MARKS:
        if any(mark in text for text in (*unmarked, *(turn.text for turn in draft.turns))):
            raise ValueError(f"holds {mark}, and only pictures are read: leave such rows out")
    if any(MARK in text for text in unmarked):
        raise ValueError(f"an answer or system text holds {MARK}, which means a picture: take it out")
    if len(pictures) > 1:
        raise ValueError(f"has {len(pictures)} pictures: only one per row is read; leave such rows out")
    if sum(marks) != len(pictures) and not (pictures and not any(marks)):
        raise ValueError(
            f"has {sum(marks)} {MARK} in its texts and {len(pictures)} pictures: correct one of them"
        )
    first = next((number for number, count in enumerate(marks) if count), 0)
    turns = tuple(
        replace(turn, text=_MARK.sub("", turn.text), has_image=bool(pictures) and number == first)
        for number, turn in enumerate(draft.turns)
    )
    return replace(draft, turns=turns, pictures=pictures)


# -- columns: LLaMA-Factory, multiple choice, items --------------------------------------------------


def llama_factory(row: JSON, columns: Columns) -> Draft:
    """{"instruction", "input", "output", "system", "history": [[asked, answered], …], "images": […]}."""
    if columns.formatting in ("sharegpt", "openai"):
        return _conversation(row, columns)
    instruction = _text(row.get(columns.prompt), columns.prompt)
    query = _optional_text(row, columns.query)
    turns = [
        _RawTurn(role, _text(text, columns.history))
        for pair in _list(row.get(columns.history), columns.history)
        for role, text in zip(("user", "assistant"), _pair(pair, columns.history), strict=True)
    ]
    turns.append(_RawTurn("user", f"{instruction}\n{query}" if query else instruction))
    if reply := _optional_text(row, columns.response):
        turns.append(_RawTurn("assistant", reply))
    return _chat(row, turns, _pictures(row, columns.images), _optional_text(row, columns.system))


def _list(value: Any, name: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ValueError(f"`{name}` must be a list, not {excerpt(value)}")
    return value or []


def _pair(pair: Any, name: str) -> Sequence[Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"`{name}` must hold pairs of prompt and answer, not {excerpt(pair)}")
    return pair


_PASSAGES = ("passage", "context", "hint")


def multiple_choice(row: JSON, columns: Columns) -> Draft:
    """The paper's rows (arXiv 2505.19616): {"id", "type", "image", "question", "answer", "facts"}.

    The options are in the question, or in `multiple_choices`, `choices` or `options`. `answer` is a label or
    a choice, or the index of one in a list. A text to be read before the question is in `passage`, `context`
    or `hint` (ScienceQA).
    """
    choices = _own_choices(row)
    passage = "\n".join(text for name in _PASSAGES if (text := _optional_text(row, name).strip()))
    question = _NUMBERED_MARK.sub(
        lambda mark: f"image {mark[1]}" if mark[1] else "", _text(row.get("question"), "question")
    )
    turns = [_RawTurn("user", f"{passage}\n{question}" if passage else question, passage)]
    if reply := _own_answer(row, choices):
        turns.append(_RawTurn("assistant", reply))
    draft = _chat(row, turns, _pictures(row, "images"), _optional_text(row, "system"))
    return replace(
        draft,
        choices=choices,
        lettered=choices is not None,
        lies=_lies(row.get("facts")),
        family=row.get("type"),
    )


def _own_answer(row: JSON, choices: tuple[tuple[str, str], ...] | None) -> str:
    answer = row.get("multiple_choices_answer") if row.get("answer") is None else row["answer"]
    if isinstance(answer, int) and not isinstance(answer, bool) and choices:
        if not 0 <= answer < len(choices):
            raise ValueError(f"`answer` is {answer}, and the choices are numbered 0 to {len(choices) - 1}")
        return choices[answer][0]
    return "" if answer is None else _text(answer, "answer")


def _own_choices(row: JSON) -> tuple[tuple[str, str], ...] | None:
    name = next((n for n in ("multiple_choices", "choices", "options") if row.get(n)), None)
    if name is None:
        return None
    choices = row[name]
    if not isinstance(choices, (dict, list)):
        raise ValueError(
            f"`{name}` must be a list of texts or an object of labels and texts, not {excerpt(choices)}"
        )
    pairs = choices.items() if isinstance(choices, dict) else zip(_labels(choices), choices, strict=True)
    return tuple((label, _text(text, name)) for label, text in pairs)


def _labels(choices: Sequence[Any]) -> list[str]:
    return [chr(ord("A") + n) if len(choices) <= 26 else str(n + 1) for n in range(len(choices))]


def _lies(facts: Any) -> dict[str, str]:
    """Texts by the wrong choice that each claims. Without any, lies are made from a template."""
    if facts is None or facts == []:
        return {}
    if not isinstance(facts, dict):
        raise ValueError(f"`facts` must be an object of wrong choices and texts, not {excerpt(facts)}")
    return {choice: _text(text, "facts") for choice, text in facts.items() if text is not None}


_ITEM_FIELDS = tuple(field.name for field in fields(Item))
_ITEM_NEEDS = ("id", "family", "task", "form", "question")


def items(row: JSON, columns: Columns) -> Draft:
    """Our own rows: the fields of `Item` one by one, which `data.samples` takes as they are."""
    for name in _ITEM_NEEDS:
        if name not in row:
            raise ValueError(f"has no {name!r}: an item needs {', '.join(_ITEM_NEEDS)}")
    for name in row:
        if name not in _ITEM_FIELDS:
            near = nearest(name, _ITEM_FIELDS)
            raise ValueError(f"{name!r} is not a field of an item: did you mean {near!r}?")
    question = Turn("user", _text(row["question"], "question"))
    return Draft((question,), None, id=_id(row), pictures=_pictures(row, "image"), extra=row)


# -- which format ------------------------------------------------------------------------------------

Format = Callable[[JSON, Columns], Draft]

FORMATS: dict[str, Format] = {
    "llava": llava,
    "sharegpt": sharegpt,
    "openai": openai,
    "llama-factory": llama_factory,
    "multiple-choice": multiple_choice,
    "items": items,
}
_SIGNS: dict[str, Callable[[set[str]], bool]] = {
    "llava": lambda keys: {"conversations", "image"} <= keys,
    "sharegpt": lambda keys: "conversations" in keys and ("images" in keys or "image" not in keys),
    "openai": lambda keys: "messages" in keys,
    "llama-factory": lambda keys: "instruction" in keys,
    "multiple-choice": lambda keys: "question" in keys and "form" not in keys,
    "items": lambda keys: set(_ITEM_NEEDS) <= keys,
}


def detect(rows: Iterable[JSON]) -> str:
    """The one format that rows with these keys have. Raises ValueError if none fits, or several do."""
    keys = {name for row in rows for name, value in row.items() if value is not None}
    fitting = [name for name, sign in _SIGNS.items() if sign(keys)]
    if len(fitting) == 1:
        return fitting[0]
    key_list = ", ".join(sorted(keys)[:20]) or "none"
    if fitting:
        raise ValueError(
            f"fits {len(fitting)} formats, {' and '.join(fitting)}: its rows have the keys {key_list}; "
            f"say which with --format"
        )
    raise ValueError(
        f"fits no format: its rows have the keys {key_list}; rename them, map them with --column, or say the "
        f"format with --format ({', '.join(FORMATS)})"
    )


# -- values ------------------------------------------------------------------------------------------


def _id(row: JSON) -> str | None:
    value = row.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # pandas writes 17 as 17.0 if another row has no id
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"`id` must be a text or a whole number, not {excerpt(value)}")
    return str(value)


def _extra(row: JSON) -> JSON:
    value = row.get("modint")
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`modint` must be an object, not {excerpt(value)}")
    return {key: entry for key, entry in (value or {}).items() if entry is not None}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, {_but_is(value)}")
    return value


def _but_is(value: Any) -> str:
    return "and is missing" if value is None else f"not {excerpt(value)}"


def _optional_text(row: JSON, name: str) -> str:
    return "" if row.get(name) is None else _text(row[name], name)


def _pictures(row: JSON, name: str) -> tuple[Any, ...]:
    """The row's pictures: one in `image`, a list of them under `name`, or one each in `image_1` and so on."""
    numbered = [row[key] for key in sorted(row) if _NUMBERED_PICTURE.fullmatch(key)]
    listed = [row.get(key) for key in dict.fromkeys((name, "image"))]
    values = [value for value in (*listed, [n for n in numbered if n]) if value not in (None, "", [])]
    if len(values) > 1:
        raise ValueError(
            f"has pictures in several columns (`image`, `{name}`, `image_1` …): keep one of them"
        )
    pictures = values[0] if values and isinstance(values[0], list) else values
    return tuple(picture for picture in pictures if picture is not None)


def _role(role: Any, known: Mapping[str, str]) -> str:
    our_role = known.get(role) or _ROLES.get(role) if isinstance(role, str) else None
    if our_role is None:
        raise ValueError(f"the role {excerpt(role)} is not read: a row has user, assistant and system turns")
    return our_role


def _turns(value: Any, name: str) -> list[JSON]:
    """A list of turns. Old versions of `datasets` store it as an object of equally long lists."""
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"`{name}` must be a list of turns, {_but_is(value)}")
    return value
