"""Writes items so that they can be read back: as our own JSONL or as LLaVA JSON, with PNG files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from PIL import Image

from modint_guard.data.dataset import ITEMS
from modint_guard.data.formats import MARK
from modint_guard.data.item import Item, Turn, prompt, reply_for
from modint_guard.data.samples import DONORS, EXTRA_KEYS
from modint_guard.errors import DataError
from modint_guard.types import JSON

LLAVA = "data.json"
PICTURES = ("image", *DONORS)
_FIELDS = [field for field in fields(Item) if field.name not in PICTURES]
_OPTIONAL = ("lie", "replies", "system", "turns", "truth", "accepted", "rejected")  # only if an item has them


def write_items(
    items: Sequence[Item],
    folder: Path,
    *,
    pictures: Sequence[str] = ("image",),
    webp_quality: int | None = None,
) -> None:
    """Write `items.jsonl` into `folder`, and each item's pictures of these names (of `PICTURES`), as PNG, or
    as lossy WebP of a quality in [1, 100].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        record = {field.name: _value(item, field.name) for field in _FIELDS}
        record = {name: value for name, value in record.items() if value or name not in _OPTIONAL}
        for name in pictures:
            if (picture := getattr(item, name)) is not None:
                record[name] = _compressed(picture, _file_name(item, name), folder, webp_quality)
        lines.append(json.dumps(record))
    (folder / ITEMS).write_text("\n".join(lines) + "\n", "utf-8")


def _file_name(item: Item, name: str) -> str:
    return item.id if name == "image" else f"{item.id}.{name}"


def _compressed(picture: Image.Image, name: str, folder: Path, webp_quality: int | None) -> str:
    """Save a picture; gives the name of its file."""
    if webp_quality is None:
        picture.save(folder / f"{name}.png", optimize=True)
        return f"{name}.png"
    picture.save(folder / f"{name}.webp", quality=webp_quality, method=6)
    return f"{name}.webp"


def _value(item: Item, name: str) -> Any:
    value = getattr(item, name)
    return [asdict(turn) for turn in value] if name == "turns" else value


def write_llava(items: Iterable[Item], folder: Path) -> Path:
    """Write `data.json` in LLaVA's format with all pictures as PNG files beside it; returns the path of the
    JSON file.

    What LLaVA's format cannot say (family, choices, the planted lie, ...) is in each row's `modint` object,
    which other programs ignore. `read_data` returns equal items. Raises DataError for a text that holds
    `<image>`, and for an id that cannot be the name of a file.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [_llava(item, folder) for item in items]
    (folder / LLAVA).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return folder / LLAVA


def _llava(item: Item, folder: Path) -> JSON:
    texts = (item.system, *(turn.text for turn in item.turns), prompt(item), item.answer)
    if any(MARK in text for text in texts):
        raise DataError(f"a text holds {MARK}, which LLaVA reads as a picture: take it out", sample=item.id)
    question = Turn("user", prompt(item), not any(turn.has_image for turn in item.turns))
    conversation = [_turn(turn, item.image) for turn in (*item.turns, question)]
    if item.labelled:
        conversation.append({"from": "gpt", "value": reply_for(item, item.answer)})
    row: JSON = {"id": item.id, "conversations": conversation, "modint": _extra(item, folder)}
    if item.system:
        row["system"] = item.system
    return {**row, "image": _saved(item.image, item.id, folder)} if item.image is not None else row


def _turn(turn: Turn, image: Image.Image | None) -> JSON:
    mark = f"{MARK}\n" if turn.has_image and image is not None else ""
    return {"from": "human" if turn.role == "user" else "gpt", "value": mark + turn.text}


def _extra(item: Item, folder: Path) -> JSON:
    """The fields that differ from their defaults in reading, and the further pictures."""
    defaults = {field.name: field.default for field in _FIELDS if field.default is not MISSING} | {
        "source": None
    }
    values = {name: getattr(item, name) for name in EXTRA_KEYS if name not in DONORS}
    if not (item.form == "free" and item.replies):
        del values["answer"]  # the reply to learn says it
    extra = {name: value for name, value in values.items() if value != defaults.get(name)}
    donors = {name: getattr(item, name) for name in DONORS if getattr(item, name) is not None}
    return {**extra, **{name: _saved(image, f"{item.id}.{name}", folder) for name, image in donors.items()}}


def _saved(image: Image.Image, name: str, folder: Path) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError("the id cannot be the name of a file: give it one without slashes", sample=name)
    path = f"images/{name}.png"
    image.save(folder / path)
    return path
