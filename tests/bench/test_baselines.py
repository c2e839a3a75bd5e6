"""Other detectors' scores by hand-computed numbers."""

import math

import pytest
from PIL import Image

from bench.detection.baselines import (
    HOW_SURE,
    blurred,
    how_sure,
    max_probability,
    semantic_entropy,
    stated_confidence,
    vauq,
)
from modint_guard.data.item import answer_key, choice_of
from tests.core.items import DIGIT, LETTERED


def test_the_likeliest_word_counts_with_its_spellings() -> None:
    top = {"3": math.log(0.5), " 3": math.log(0.2), "7": math.log(0.3)}
    assert max_probability(top) == pytest.approx(0.3)
    assert max_probability({"3": 0.0}) == 0.0


def test_semantic_entropy_counts_clusters() -> None:
    assert semantic_entropy(["3"] * 5) == 0.0
    assert semantic_entropy(["3", "3", "7", "7"]) == pytest.approx(1.0)
    # 3/5 and two of 1/5: 0.6 log2(5/3) + 0.4 log2 5
    assert semantic_entropy(["3", "3", "3", "7", "9"]) == pytest.approx(1.3709506)
    with pytest.raises(ValueError, match="one answer or more"):
        semantic_entropy([])


def test_vauq_takes_off_what_the_picture_told() -> None:
    assert vauq(0.5, 2.0, 1.0) == pytest.approx(-1.0)
    assert vauq(0.5, 2.0, 0.0) == 0.5
    assert vauq(0.5, 0.5, 2.0) == 0.5  # the picture told nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [("85", 0.85), ("85 %.", 0.85), ("0.85", 0.85), ("1", 0.01), ("100", 1.0), ("red", None), ("250", None)],
)
def test_a_stated_confidence_is_a_number_up_to_100(text: str, said: float | None) -> None:
    assert stated_confidence(text) == said


def test_the_question_of_confidence_follows_the_answer() -> None:
    first, answered, asked = how_sure(DIGIT, "m", "3")["messages"]
    assert first["role"] == "user"
    assert answered == {"role": "assistant", "content": "3"}
    assert asked == {"role": "user", "content": HOW_SURE}


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
