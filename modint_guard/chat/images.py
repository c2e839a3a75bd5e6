"""Images of a request: strict reading of data URLs, and the neutral image that replaces one.

The format and the number of pixels are checked by an image's header, before a pixel is decoded. The image is
then decoded once, so that a truncated file is an error here and not in the engine; of most JPEGs only the
beginning is (`jpeg`). Remote addresses are never fetched.
"""

from __future__ import annotations

import binascii
import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import pybase64
from PIL import ExifTags, Image, ImageOps

from modint_guard.chat.jpeg import beginning_of
from modint_guard.errors import ConfigError, ImageError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # only the first frame is read
NEUTRAL_GREY = 128  # the mean of 0..255
_NOT_DECODABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.I)
_HEADER_CHARACTERS = 1 << 16  # of base64, a multiple of 4: more than most headers have
_HEADED = ("JPEG", "PNG", "GIF", "BMP")  # Pillow opens them by their beginning
_LATE_EXIF = frozenset({"exif", "xmp"})  # for which Pillow decodes the pixels of all but JPEG
_ON_THE_SIDE = (5, 6, 7, 8)  # Exif orientations with width and height exchanged
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest images that a request may hold. Raises ConfigError for a limit below 1.

    Pixels are counted from an image's header, before it is decoded.
    """

    max_bytes: int = 20 * 1024 * 1024  # of one image, decoded from base64
    max_pixels: int = 20_000_000  # of one image
    max_images: int = 16  # in one request
    max_request_pixels: int = 64_000_000  # of all images of one request

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_images", "max_request_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"image limit {name} is {getattr(self, name)}: it must be at least 1.")


def decode_data_url(url: str, limits: ImageLimits | None = None) -> Image.Image:
    """The image in a base64 data URL, decoded to its end (the first frame of a GIF). Raises ImageError."""
    limits = limits or ImageLimits()
    return _upright(_load(_open(io.BytesIO(_payload(url, limits)), limits)))


def decode(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """The image in a file's bytes, decoded to its end (the first frame of a GIF). Raises ImageError."""
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(limits)
    return _upright(_load(_open(io.BytesIO(data), limits)))


def size_of(file: BinaryIO, limits: ImageLimits | None = None) -> tuple[int, int]:
    """Width and height in pixels of the upright image, read from a file's header. Raises ImageError."""
    return _upright_size(_open(file, limits or ImageLimits()))


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Transparent parts are laid over white, as vLLM does."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def check_data_url(url: str, limits: ImageLimits | None = None, *, whole: bool = True) -> tuple[int, int]:
    """Size in pixels (width, height) of the upright image in a base64 data URL. Raises ImageError if it is
    unusable.

    whole: fail as decoding it to its end would; otherwise only its header is read.
    """
    limits = limits or ImageLimits()
    if not whole:
        return _size_by_header(url, limits)
    image = _open(io.BytesIO(beginning_of(_payload(url, limits))), limits)
    size = image.size
    image.draft("L", (1, 1))  # a JPEG is read to its end all the same, and an eighth of it computed
    _load(image)
    return _upright_size(image, size)


def _size_by_header(url: str, limits: ImageLimits) -> tuple[int, int]:
    """The size as the beginning of the data says it, where that holds all of a header; else as all do."""
    beginning = url.find(",") + 1 + _HEADER_CHARACTERS
    if len(url) > beginning:
        _check_length(len(url) - beginning + _HEADER_CHARACTERS, url, limits)
        with contextlib.suppress(ImageError):
            image = _open(io.BytesIO(_payload(url[:beginning], limits)), limits)
            if image.format in _HEADED and (image.format == "JPEG" or not _LATE_EXIF & set(image.info)):
                return _upright_size(image)
    return _upright_size(_open(io.BytesIO(_payload(url, limits)), limits))


def check_total(sizes: Iterable[tuple[int, int]], limits: ImageLimits) -> None:
    """Raises ImageError if the images of a request, each (width, height), have too many pixels together."""
    total = sum(width * height for width, height in sizes)
    if total > limits.max_request_pixels:
        raise ImageError(
            f"The images measure {total} pixels together, the limit is {limits.max_request_pixels}: send "
            "smaller ones or fewer.",
            code="image_too_large",
            status=413,
        )


def is_data_url(url: str) -> bool:
    """Whether a string is a data: URL and not an address. Raises ImageError if it is neither."""
    if url[:5].lower() == "data:":
        return True
    if not _SCHEME.match(url):
        raise ImageError("An image is no data: URL: put data:image/png;base64, before its base64 text.")
    return False


def png_data_url(image: Image.Image) -> str:
    """The image as a data URL that holds a PNG; lossless."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + pybase64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=64)
def neutral_image(size: tuple[int, int]) -> str:
    """A mean-grey image of (width, height) pixels as a data URL. The string is the same for every call with
    this size, so that engines can cache the image.
    """
    return png_data_url(Image.new("L", size, NEUTRAL_GREY))


def _payload(url: str, limits: ImageLimits) -> bytes:
    header, comma, data = url.partition(",")
    if not is_data_url(url):
        scheme = url[:16].split(":", 1)[0].lower()
        raise ImageError(
            f"Images by address ({_excerpt(scheme)}…) are not fetched: send the image itself as a data: URL.",
            code="remote_image_refused",
        )
    if not comma or not header.lower().endswith(";base64"):  # the media type says nothing sure: bytes decide
        raise ImageError("The image's data URL is not base64: send data:image/png;base64,… .")
    _check_length(len(data), url, limits)
    try:
        return pybase64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageError("The image's base64 text is damaged: encode the file's bytes again.") from exc


def _check_length(characters: int, url: str, limits: ImageLimits) -> None:
    if characters // 4 * 3 - url[-2:].count("=") > limits.max_bytes:
        raise _too_many_bytes(limits)


def _open(file: BinaryIO, limits: ImageLimits) -> Image.Image:
    """Open an image by its header, and refuse one that is not an image or is too large."""
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except _BOMB as exc:
        raise _too_many_pixels(None, limits) from exc
    except _NOT_DECODABLE as exc:
        raise ImageError(
            "The data is not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image: send one of these."
        ) from exc
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(image.size, limits)
    if width < 1 or height < 1:
        raise ImageError(f"The image measures {width} x {height} pixels: send one with at least 1 x 1.")
    return image


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except _BOMB as exc:
        raise ImageError(
            "The image unpacks to far more than its header says.", code="image_too_large"
        ) from exc
    except _NOT_DECODABLE as exc:
        raise ImageError("The image is truncated or damaged: it cannot be decoded to its end.") from exc
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its Exif data say, which vLLM does too; as it is if they cannot be read."""
    with contextlib.suppress(Exception):  # many libraries write damaged Exif data
        return ImageOps.exif_transpose(image)
    return image


def _upright_size(image: Image.Image, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """size: what the header says, if the image was computed smaller."""
    width, height = size or image.size
    if image.format == "TIFF":  # Pillow's reader turns it itself
        return width, height
    if image.format == "PNG" and not _LATE_EXIF & set(image.info):
        return width, height  # Pillow would decode all of it to look behind the pixels
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation) in _ON_THE_SIDE:
            return height, width
    return width, height


def _too_many_bytes(limits: ImageLimits) -> ImageError:
    return ImageError(
        f"The image is larger than {limits.max_bytes} bytes: send a smaller one.",
        code="image_too_large",
        status=413,
    )


def _too_many_pixels(size: tuple[int, int] | None, limits: ImageLimits) -> ImageError:
    description = f"measures {size[0]} x {size[1]} pixels" if size else "has far too many pixels"
    return ImageError(
        f"The image {description}, more than the limit of {limits.max_pixels}: scale it down.",
        code="image_too_large",
        status=413,
    )


def _excerpt(text: str) -> str:
    """A bounded, printable excerpt of what a client sent."""
    return "".join(c for c in text[:24] if c.isprintable())
