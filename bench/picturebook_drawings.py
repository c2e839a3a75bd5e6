"""The drawings of the picture-book, packed anew from the npm packages that hold them.

Needs `npm` and the PyPI package `resvg_py` (svg to pixels); nothing else in the project does.
"""

import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modint_guard.errors import ConfigError
from modint_training.picturebook.drawings import COLUMNS, FOLDER, INDEX, SIDE
from modint_training.picturebook.things import NAMED, THINGS

# The emoji of these groups become extra classes, on which the tower may be fitted as well.
GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")
MARGIN = 1.08  # the side of a cell, by the longer side of the drawing
QUALITY = 75  # of WebP, 0-100


@dataclass(frozen=True)
class Style:
    """A style of drawing: the npm package that has it, and where an emoji's file lies in it."""

    name: str
    package: str
    member: Callable[[str, dict[str, Any]], list[str]]  # (code, entry of the emoji list) -> possible paths


def _padded(code: str) -> str:
    return "-".join(part.zfill(4) for part in code.split("-"))


def _dataset(style: str) -> Callable[[str, dict[str, Any]], list[str]]:
    """Older editions leave the variation selector out of the name."""
    return lambda code, entry: [
        f"package/img/{style}/64/{name}" for name in (entry["image"], entry["image"].replace("-fe0f", ""))
    ]


def _fluent(kind: str) -> Callable[[str, dict[str, Any]], list[str]]:
    return lambda code, entry: [f"package/icons/{kind}/{slug}.svg" for slug in slugs(code, entry)]


STYLES = (
    Style("noto", "emoji-datasource-google@16.0.0", _dataset("google")),
    Style("noto-first", "emoji-datasource-google@3.0.0", _dataset("google")),
    Style("fluent", "fluentui-emoji@1.3.0", _fluent("modern")),
    Style("fluent-flat", "fluentui-emoji@1.3.0", _fluent("flat")),
    Style(
        "fluent-3d",
        "@lobehub/fluent-emoji-3d@1.1.0",
        lambda code, entry: [f"package/assets/{code}.webp", f"package/assets/{code}-fe0f.webp"],
    ),
    Style(
        "emojione", "emojione@2.2.7", lambda code, entry: [f"package/assets/png_128x128/{_padded(code)}.png"]
    ),
    Style("twemoji", "emoji-datasource-twitter@16.0.0", _dataset("twitter")),
)
HELD_OUT = "twemoji"


def slugs(code: str, entry: dict[str, Any]) -> list[str]:
    """How a package that names its files in words may call an emoji."""
    things = [thing for thing in THINGS if thing.code == code]
    words = [entry["name"], *entry["short_names"], *(name for thing in things for name in thing.names)]
    if "-" not in code:
        words.append(unicodedata.name(chr(int(code, 16)), ""))
    plain = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words]
    return [*plain, *(word.removesuffix("-face") for word in plain), *(f"{word}-face" for word in plain)]


def rebuild(work: Path) -> list[Path]:
    """Pack every style's drawings into the package; `work` keeps what npm brings."""
    work.mkdir(parents=True, exist_ok=True)
    archives = {style.package: _fetched(style.package, work) for style in STYLES}
    files = _files(archives[STYLES[0].package], "package/emoji.json".__eq__)
    listed = json.loads(files["package/emoji.json"])
    entries = {_code(entry["unified"]): entry for entry in listed}
    wanted = [code for code in entries if _is_wanted(code, entries[code])]
    index: dict[str, Any] = {"side": SIDE, "columns": COLUMNS, "styles": {}, "extra": {}}
    written = []
    for style in STYLES:
        cells = dict(_drawn(style, archives[style.package], {code: entries[code] for code in wanted}))
        index["styles"][style.name] = list(cells)
        written.append(FOLDER / f"{style.name}.webp")
        _sheet(list(cells.values())).save(written[-1], quality=QUALITY, method=6, alpha_quality=70)
    codes = {thing.code for thing in THINGS}
    shown = {code for cells in index["styles"].values() for code in cells}
    index["extra"] = {code: entries[code]["name"].lower() for code in wanted if code in shown - codes}
    INDEX.write_text(json.dumps(index, separators=(",", ":")) + "\n", "utf-8")
    return [INDEX, *written]


def _code(unified: str) -> str:
    parts = [part for part in unified.lower().split("-") if part != "fe0f"]
    return "-".join(f"{int(part, 16):x}" for part in parts)


def _is_wanted(code: str, entry: dict[str, Any]) -> bool:
    return any(thing.code == code for thing in NAMED.values()) or (
        entry["category"] in GROUPS and "-" not in code and not entry["short_names"][0].startswith("clock")
    )


def _fetched(package: str, work: Path) -> Path:
    name = package.removeprefix("@").replace("/", "-")
    path = work / f"{name.rpartition('@')[0]}-{name.rpartition('@')[2]}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", package, "--silent"], cwd=work, check=True)
    return path


def _files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of an archive, in one pass: a compressed archive has no way back."""
    with tarfile.open(path, "r|gz") as archive:
        opened = ((entry.name, archive.extractfile(entry)) for entry in archive if wanted(entry.name))
        return {name: file.read() for name, file in opened if file is not None}


def _drawn(style: Style, path: Path, entries: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Image.Image]]:
    """Cells by code, of what the style has; of the held-out style the things alone."""
    codes = {thing.code for thing in THINGS}
    asked = {
        code: style.member(code, entry)
        for code, entry in entries.items()
        if style.name != HELD_OUT or code in codes
    }
    names = {name for listed in asked.values() for name in listed}
    files = _files(path, names.__contains__)
    for code, listed in asked.items():
        if name := next((name for name in listed if name in files), None):
            yield code, _cell(_pixels(files[name], name))


def _pixels(data: bytes, name: str) -> Image.Image:
    if name.endswith(".svg"):
        try:
            import resvg_py  # type: ignore[import-not-found]
        except ImportError as exc:
            raise ConfigError("drawings in svg need the package resvg_py: pip install resvg_py") from exc
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=2 * SIDE, height=2 * SIDE))
    return Image.open(io.BytesIO(data)).convert("RGBA")


def _cell(drawing: Image.Image) -> Image.Image:
    """The drawing without its margins, in the middle of a square of SIDE pixels."""
    box = drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    cut = drawing.crop(box)
    side = round(max(cut.size) * MARGIN) + 1
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _sheet(cells: list[Image.Image]) -> Image.Image:
    rows = -(-len(cells) // COLUMNS)
    sheet = np.zeros((rows * SIDE, COLUMNS * SIDE, 4), dtype=np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = np.asarray(cell)
    return Image.fromarray(sheet)
