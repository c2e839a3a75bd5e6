"""GGUF files: shapes, decoded blocks and metadata as they stand in the file, and every refusal."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from modint_guard.errors import ConfigError
from modint_guard.models.gguf import Gguf
from tests.core.small_gguf import F32, Q4_1, Q8_0, gguf_bytes, gguf_file

Q1_3 = 41  # no type of any GGUF
F64 = 28


def test_a_float_tensor_has_numpys_shape_and_its_numbers(tmp_path: Path) -> None:
    stored = np.arange(6, dtype="<f4").tobytes()
    gguf = Gguf(gguf_file(tmp_path, gguf_bytes({"w": (F32, (2, 3), stored)}, {})))
    assert gguf.names == ["w"]
    assert gguf.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_quantised_blocks_are_decoded_by_their_scale_and_minimum(tmp_path: Path) -> None:
    codes = list(range(-16, 16))
    eight = struct.pack("<e32b", 0.5, *codes)
    # Byte k holds k in its low half (element k) and 15 - k in its high half (element 16 + k).
    four = struct.pack("<ee", 0.25, -1.0) + bytes(k | (15 - k) << 4 for k in range(16))
    content = gguf_bytes({"eight": (Q8_0, (1, 32), eight), "four": (Q4_1, (1, 32), four)}, {})
    gguf = Gguf(gguf_file(tmp_path, content))
    assert gguf.tensor("eight").tolist() == [[0.5 * code for code in codes]]
    assert gguf.tensor("four").tolist() == [
        [0.25 * k - 1 for k in range(16)] + [0.25 * (15 - k) - 1 for k in range(16)]
    ]


def test_metadata_has_strings_numbers_and_lists(tmp_path: Path) -> None:
    metadata = {"name": "fox", "count": 3, "rate": 0.5, "words": ["a", "b"], "kinds": [1, 3]}
    read = Gguf(gguf_file(tmp_path, gguf_bytes({}, metadata))).metadata
    assert {key: read[key] for key in metadata} == metadata


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file",
        gguf_bytes({}, {}, version=1),
        b"GGUF\x03\0\0\0",
        gguf_bytes({}, {"a key": "a long value"})[:45],
        gguf_bytes({"w": (F32, (8,), b"")}, {}),
        gguf_bytes({"w": (Q1_3, (8,), b"\0" * 32)}, {}),
        gguf_bytes({}, {"k": 1}).replace(struct.pack("<II", 4, 1), struct.pack("<II", 99, 1)),
    ],
    ids=["empty", "zip", "version", "header", "metadata", "data", "tensor type", "value type"],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    file = gguf_file(tmp_path, content, "fox.gguf")
    with pytest.raises(ConfigError, match=r"^fox\.gguf is no GGUF file, damaged or cut off: fetch it again$"):
        Gguf(file)


def test_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.gguf holds no tensor 'w': it is another model than expected"):
        Gguf(gguf_file(tmp_path, gguf_bytes({}, {}))).tensor("w")


def test_a_tensor_of_a_type_that_is_not_decoded_is_refused(tmp_path: Path) -> None:
    content = gguf_bytes({"w": (F64, (1,), b"\0" * 8)}, {})
    with pytest.raises(ConfigError, match=r"x\.gguf: w has the type F64, unread here"):
        Gguf(gguf_file(tmp_path, content)).tensor("w")


def test_without_the_library_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"needs the library gguf: pip install 'modint-guard\[cpu\]'"):
        Gguf(gguf_file(tmp_path, gguf_bytes({}, {})))
