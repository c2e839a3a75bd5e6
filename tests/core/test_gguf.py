"""GGUF files: what is read of them, decoded by hand, and every refusal."""

import struct

import numpy as np
import pytest

from modint_guard.errors import ConfigError
from modint_guard.models.gguf import Gguf
from tests.core.small_gguf import F32, Q4_1, Q8_0, gguf_bytes


def test_a_float_tensor_has_numpys_shape_and_its_numbers() -> None:
    stored = np.arange(6, dtype="<f4").tobytes()
    gguf = Gguf(gguf_bytes({"w": (F32, (2, 3), stored)}, {}), "x")
    assert gguf.names == ["w"]
    assert gguf.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_eight_bit_block_is_its_scale_times_its_bytes() -> None:
    codes = list(range(-16, 16))
    stored = struct.pack("<e32b", 0.5, *codes)
    gguf = Gguf(gguf_bytes({"w": (Q8_0, (1, 32), stored)}, {}), "x")
    assert gguf.tensor("w").tolist() == [[0.5 * code for code in codes]]


def test_a_four_bit_block_has_the_first_half_in_its_low_halves_of_bytes() -> None:
    # Byte k holds k in its low half (element k) and 15 - k in its high half (element 16 + k).
    stored = struct.pack("<ee", 0.25, -1.0) + bytes(k | (15 - k) << 4 for k in range(16))
    gguf = Gguf(gguf_bytes({"w": (Q4_1, (1, 32), stored)}, {}), "x")
    expected = [0.25 * k - 1 for k in range(16)] + [0.25 * (15 - k) - 1 for k in range(16)]
    assert gguf.tensor("w").tolist() == [expected]


def test_metadata_has_strings_numbers_and_lists() -> None:
    metadata = {"name": "fox", "count": 3, "rate": 0.5, "words": ["a", "b"], "kinds": [1, 3]}
    assert Gguf(gguf_bytes({}, metadata), "x").metadata == metadata


def test_data_of_the_second_tensor_begins_where_the_file_says() -> None:
    first = (F32, (1,), struct.pack("<f", 1.0))
    second = (F32, (1,), struct.pack("<f", 2.0))
    gguf = Gguf(gguf_bytes({"a": first, "b": second}, {}), "x")
    assert gguf.tensor("b").tolist() == [2.0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "x is no GGUF file"),
        (b"PK\x03\x04 a zip file", "x is no GGUF file"),
        (gguf_bytes({}, {}, version=2), "x is GGUF version 2, and only version 3 is read"),
        (b"GGUF\x03\0\0\0", "x is damaged or was cut off: fetch it again"),
        (gguf_bytes({}, {"a key": "a long value"})[:45], "x is damaged or was cut off: fetch it again"),
        (gguf_bytes({"w": (F32, (8,), b"")}, {}), "x is damaged or was cut off at w: fetch it again"),
        (gguf_bytes({"w": (14, (8,), b"")}, {}), "x: w has tensor type 14; only F32, Q4_1, Q8_0 are read"),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Gguf(content, "x")


def test_a_metadata_value_of_an_unknown_type_is_refused() -> None:
    content = bytearray(gguf_bytes({}, {"k": 1}))
    content[24 + 8 + 1 : 24 + 8 + 5] = struct.pack(
        "<I", 99
    )  # behind the header, the key's length and the key
    with pytest.raises(ConfigError, match="metadata value of the unknown type 99"):
        Gguf(bytes(content), "x")


def test_a_tensor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="x holds no tensor 'w': it is another model than expected"):
        Gguf(gguf_bytes({}, {}), "x").tensor("w")
