"""Items written so that they read back: our own JSONL with PNG files, and LLaVA JSON with PNG files."""

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
_PLAIN = [held for held in fields(Item) if held.name not in PICTURES]
_SELDOM = ("lie", "replies", "system", "turns")  # written only where an item has them


def write_items(items: Sequence[Item], folder: Path) -> None:
    """Write `items.jsonl` and one PNG an item into `folder`; the donor pictures are not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        record = {held.name: _value(item, held.name) for held in _PLAIN}
        record = {name: value for name, value in record.items() if value or name not in _SELDOM}
        if item.image is not None:
            record["image"] = f"{item.id}.png"
            item.image.save(folder / record["image"], optimize=True)
        lines.append(json.dumps(record))
    (folder / ITEMS).write_text("\n".join(lines) + "\n", "utf-8")


def _value(item: Item, name: str) -> Any:
    held = getattr(item, name)
    return [asdict(turn) for turn in held] if name == "turns" else held


def write_llava(items: Iterable[Item], folder: Path) -> Path:
    """Write `data.json` in LLaVA's format and PNG files beside it, donors too; gives the file's path.

    What LLaVA's format has no word for (family, choices, the planted lie, ...) stands in each row's `modint`
    object, which other programs ignore; `read_data` gives equal items back. Raises DataError for a text that
    holds `<image>` and for an id that names no file.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [_llava(item, folder) for item in items]
    (folder / LLAVA).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return folder / LLAVA


def _llava(item: Item, folder: Path) -> JSON:
    texts = (item.system, *(turn.text for turn in item.turns), prompt(item), item.answer)
    if any(MARK in text for text in texts):
        raise DataError(f"a text holds {MARK}, which LLaVA reads as a picture: take it out", sample=item.id)
    asked = Turn("user", prompt(item), not any(turn.has_image for turn in item.turns))
    said = [_turn(turn, item.image) for turn in (*item.turns, asked)]
    if item.labelled:
        said.append({"from": "gpt", "value": reply_for(item, item.answer)})
    row: JSON = {"id": item.id, "conversations": said, "modint": _extra(item, folder)}
    if item.system:
        row["system"] = item.system
    return {**row, "image": _saved(item.image, item.id, folder)} if item.image is not None else row


def _turn(turn: Turn, image: Image.Image | None) -> JSON:
    mark = f"{MARK}\n" if turn.has_image and image is not None else ""
    return {"from": "human" if turn.role == "user" else "gpt", "value": mark + turn.text}


def _extra(item: Item, folder: Path) -> JSON:
    """The fields that differ from what reading would take for granted."""
    usual = {held.name: held.default for held in _PLAIN if held.default is not MISSING} | {"source": None}
    held = {name: getattr(item, name) for name in EXTRA_KEYS if name not in DONORS}
    said = {name: value for name, value in held.items() if value != usual.get(name)}
    donors = {name: getattr(item, name) for name in DONORS if getattr(item, name) is not None}
    return {**said, **{name: _saved(held, f"{item.id}.{name}", folder) for name, held in donors.items()}}


def _saved(image: Image.Image, name: str, folder: Path) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError("the id cannot be the name of a file: give it one without slashes", sample=name)
    path = f"images/{name}.png"
    image.save(folder / path)
    return path
