"""Other detectors' scores by hand-computed numbers."""

import math

import pytest
from PIL import Image

from bench.detection.baselines import (
    blurred,
    first_entropy,
    semantic_entropy,
)
from modint_guard.data.item import answer_key, choice_of
from tests.core.items import DIGIT, LETTERED


def test_the_entropy_of_a_word_counts_its_spellings_as_one() -> None:
    assert first_entropy({"3": math.log(0.25), " 3": math.log(0.25), "7": math.log(0.5)}) == pytest.approx(
        1.0
    )
    assert first_entropy({}) == first_entropy({"3": 0.0}) == 0.0


def test_semantic_entropy_counts_clusters() -> None:
    assert semantic_entropy(["3"] * 5) == 0.0
    assert semantic_entropy(["3", "3", "7", "7"]) == pytest.approx(1.0)
    # 3/5 and two of 1/5: 0.6 log2(5/3) + 0.4 log2 5
    assert semantic_entropy(["3", "3", "3", "7", "9"]) == pytest.approx(1.3709506)
    with pytest.raises(ValueError, match="one answer or more"):
        semantic_entropy([])


def test_blur_grows_and_leaves_items_without_a_picture_alone() -> None:
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste((0, 0, 0), (20, 0, 40, 40))
    item = DIGIT.replace(image=picture)
    edges = []
    for strength in (1, 5):
        image = blurred(item, strength).image
        assert image is not None
        edges.append(sum(0 < image.getpixel((x, 20))[0] < 255 for x in range(40)))  # type: ignore[index]
    assert 0 < edges[0] < edges[1]
    assert blurred(DIGIT.replace(image=None), 3).image is None


def test_replies_are_the_same_where_they_name_one_option() -> None:
    assert choice_of(LETTERED, " c.") == "3" == answer_key(LETTERED, "C")
    assert choice_of(DIGIT, "five") is None
    assert answer_key(DIGIT, "Five.") == answer_key(DIGIT, " five") == "five"
