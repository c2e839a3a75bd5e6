"""JPEGs of which only the beginning is decoded: they are refused exactly if decoding all of them fails."""

import io
from collections import Counter
from random import Random

import pytest
from PIL import Image

from modint_guard.chat.jpeg import beginning_of

BROKEN = (OSError, SyntaxError, ValueError, IndexError)
END = b"\xff\xd9"


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 150), 90).convert("RGB").save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def is_readable(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data), formats=["JPEG"]).load()
    except BROKEN:
        return False
    return True


def harmed(data: bytes, how: str, random: Random) -> bytes:
    """The file with bytes of its headers, or of anything, changed; with a piece cut out; or cut off."""
    harm = bytearray(data)
    place = random.randrange(len(data) - 10)
    if how == "cut out":
        del harm[place : random.randrange(place + 1, len(data))]
    elif how == "cut off":
        del harm[place:]
    else:
        end = 700 if how == "headers" else len(data)
        for _ in range(1 if how == "headers" else 40):
            harm[random.randrange(end)] = random.choice((0xFF, 0xC4, 0xDA, random.randrange(256)))
    return bytes(harm)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("how", ["headers", "anything", "cut out", "cut off"])
def test_the_beginning_is_unreadable_exactly_if_all_of_it_is(how: str, options: dict[str, object]) -> None:
    whole, random = jpeg(**options), Random(how)
    said: Counter[tuple[bool, bool]] = Counter()
    for _ in range(150):
        data = harmed(whole, how, random)
        said[is_readable(data), is_readable(beginning_of(data))] += 1
    assert said[True, False] == said[False, True] == 0
    assert sum(said.values()) == 150
    assert said[False, False]


@pytest.mark.parametrize("behind", [b"", b"\0" * 500, jpeg()])
def test_of_a_whole_picture_little_is_decoded_whatever_stands_behind_it(behind: bytes) -> None:
    data = jpeg() + behind
    beginning = beginning_of(data)
    assert len(beginning) < len(data) / 2
    assert data.startswith(beginning.removesuffix(END))
    assert is_readable(beginning)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", END, b"GIF89a", jpeg()[:-2], jpeg(progressive=True)])
def test_anything_else_is_left_whole(data: bytes) -> None:
    assert beginning_of(data) == data
