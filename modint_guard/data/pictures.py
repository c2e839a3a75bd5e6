"""Pictures of a data set: a path, a data URL or bytes in a table, decoded only when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from modint_guard.chat import images
from modint_guard.chat.images import ImageLimits
from modint_guard.data.rows import Row, excerpt
from modint_guard.data.tables import TablePicture
from modint_guard.errors import DataError, ImageError

_SCHEMES = ("http:", "https:", "ftp:", "s3:", "gs:", "hf:", "file:")


@dataclass(frozen=True)
class Picture:
    """A picture that is not in memory before `load`.

    name: for messages. decode, measure: give the image, and its width and height in pixels. refuse: makes the
    error for a problem, with the place of the row.
    """

    name: str
    decode: Callable[[], Image.Image] = field(repr=False)
    measure: Callable[[], tuple[int, int]] = field(repr=False)
    refuse: Callable[[str], DataError] = field(repr=False)

    def load(self) -> Image.Image:
        """The picture in RGB. Raises DataError with the row's file, line and sample id."""
        with self._refusing():
            image = self.decode()
            if image.mode.startswith(("I", "F")):
                raise ImageError(
                    "it has more than 8 bits a pixel, and engines show most of them white: save it with 8"
                )
            return images.as_rgb(image)

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, read from the picture's header. Raises DataError as `load` does."""
        with self._refusing():
            return self.measure()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (ImageError, OSError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise self.refuse(f"the picture {self.name} cannot be used: {reason}") from exc


def locate_picture(value: Any, row: Row, sample: str, root: Path, limits: ImageLimits) -> Picture:
    """The picture that a row names.

    value: an absolute path or one below `root`, a data URL, bytes in a table, or an object with `bytes`,
    `path` or `url`. sample: the sample's id, for messages. Raises DataError for a remote address, a missing
    file, and anything else.
    """

    def refuse(problem: str) -> DataError:
        return row.error(problem, sample)

    if isinstance(value, dict):
        value = next((value[key] for key in ("bytes", "path", "url") if value.get(key) is not None), value)
    if isinstance(value, TablePicture):
        return _of_bytes(value.name, value.read, limits, refuse)
    if isinstance(value, bytes):
        return _of_bytes("in the row", lambda: value, limits, refuse)
    if not isinstance(value, str) or not value:
        raise refuse(f"{excerpt(value)} is not a picture: give a path, a data URL or bytes")
    if value[:5].lower() == "data:":
        return Picture(
            "in the row",
            lambda: images.decode_data_url(value, limits),
            lambda: images.check_data_url(value, limits, whole=False),
            refuse,
        )
    if value.lower().startswith(_SCHEMES):
        raise refuse(f"{excerpt(value)} is an address, and nothing is fetched: give the path of a local copy")
    return _of_file(value, root, limits, refuse)


def _of_bytes(
    name: str, read: Callable[[], bytes], limits: ImageLimits, refuse: Callable[[str], DataError]
) -> Picture:
    return Picture(
        name, lambda: images.decode(read(), limits), lambda: images.size_of(BytesIO(read()), limits), refuse
    )


def _of_file(name: str, root: Path, limits: ImageLimits, refuse: Callable[[str], DataError]) -> Picture:
    path = root / name
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise refuse(
            f"the picture {_end_of(name)} is not in {root}: put it there, or name its folder (--image-root, "
            "reading.image_root of a recipe)"
        )
    return Picture(
        _end_of(name), lambda: _decode_file(path, limits), lambda: _measure_file(path, limits), refuse
    )


def _end_of(name: str) -> str:
    return repr(name if len(name) <= 80 else "…" + name[-80:])


def _decode_file(path: Path, limits: ImageLimits) -> Image.Image:
    with path.open("rb") as opened:
        return images.decode(opened.read(limits.max_bytes + 1), limits)


def _measure_file(path: Path, limits: ImageLimits) -> tuple[int, int]:
    with path.open("rb") as opened:
        return images.size_of(opened, limits)
