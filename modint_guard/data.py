"""Readers of data sets: labelled items as JSONL with PNG files beside it."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from modint_guard.errors import DataError
from modint_guard.item import Item

ITEMS = "items.jsonl"
PICTURES = ("image", "agreeing", "contradicting")
_PLAIN = tuple(field.name for field in fields(Item) if field.name not in PICTURES)


def write_items(items: Sequence[Item], folder: Path) -> None:
    """Write `items.jsonl` and one PNG an item into `folder`; the donor pictures are not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        record: dict[str, Any] = {name: getattr(item, name) for name in _PLAIN}
        if item.image is not None:
            record["image"] = f"{item.id}.png"
            item.image.save(folder / record["image"], optimize=True)
        lines.append(json.dumps(record))
    (folder / ITEMS).write_text("\n".join(lines) + "\n", "utf-8")


def read_items(folder: Path) -> list[Item]:
    """The items of a folder written by `write_items`. Raises DataError with file, line and remedy."""
    path = folder / ITEMS
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror}; give a folder that holds {ITEMS}") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}; save it as UTF-8") from exc
    return [_item(line, number, folder) for number, line in enumerate(lines, 1) if line.strip()]


def _item(line: str, number: int, folder: Path) -> Item:
    where = f"{folder / ITEMS}:{number}"
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise TypeError("not an object")
        picture = _picture(folder / record["image"]) if record.get("image") else None
        return Item(**{**record, "choices": tuple(record["choices"]), "image": picture})
    except json.JSONDecodeError as exc:
        raise DataError(f"{where}: not JSON: {exc.msg}") from exc
    except (UnidentifiedImageError, OSError) as exc:
        raise DataError(f"{where}: picture {record['image']!r} cannot be read; put a PNG there") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise DataError(f"{where}: {exc}; an item needs {', '.join(_PLAIN[:8])}") from exc


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
