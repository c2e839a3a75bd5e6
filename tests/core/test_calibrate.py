"""Labelled items through an endpoint: twins, truth, features, and the command's file."""

import asyncio
from pathlib import Path

import pytest

from modint_guard.calibrate import Twin, labelled_answers, twins_of
from modint_guard.calibration import calibrate
from modint_guard.endpoint import read_key
from modint_guard.errors import ConfigError
from modint_guard.images import png_data_url
from modint_guard.item import Item
from modint_guard.types import JSON
from tests.core.fakes import completion
from tests.core.items import BOTH, DIGIT, SUM

assert DIGIT.image is not None
SEEN = png_data_url(DIGIT.image)


def items(count: int) -> list[Item]:
    return [DIGIT.replace(id=f"digit-{index}", source=f"source-{index}") for index in range(count)]


def text_of(body: JSON) -> str:
    return "\n".join(part.get("text", "") for part in body["messages"][-1]["content"])


def sees_the_digit(body: JSON) -> bool:
    return any(part.get("image_url", {}).get("url") == SEEN for part in body["messages"][-1]["content"])


async def misled(body: JSON) -> JSON:
    """Believes a claim of 7; else it sees the 3; without a picture it guesses."""
    await asyncio.sleep(0)
    says = "7" if "digit 7" in text_of(body) else "3" if sees_the_digit(body) else "5"
    return completion(says, [dict.fromkeys(("3", "5", "7"), 0.02) | {says: 0.96}])


def test_every_item_meets_every_perturbation_that_its_data_allow() -> None:
    image, text = twins_of([DIGIT], 0), twins_of([SUM], 0)
    assert {twin.disturbed.perturbation for twin in image} >= {"misleading_description", "true_description"}
    assert all(twin.clean.context is None and twin.clean.image is not None for twin in image)
    assert {twin.disturbed.perturbation for twin in text} >= {"contradicting_image", "black"}
    assert all(twin.clean.image is None for twin in text)
    bare = twins_of([SUM.replace(contradicting=None, agreeing=None)], 0)
    assert "contradicting_image" not in {twin.disturbed.perturbation for twin in bare}


def test_items_that_nothing_fits_are_refused() -> None:
    with pytest.raises(ConfigError, match="none of 1 items can be perturbed"):
        twins_of([BOTH], 0)


async def test_a_model_that_believes_lies_gives_positives_and_negatives() -> None:
    found = await labelled_answers(twins_of(items(4), 0), misled, "m")
    assert set(found) == {"image"}
    answers = found["image"]
    assert len(answers) == 4 * 5
    assert sum(answer.positive for answer in answers) == 4  # the lies
    assert all(answer.right_when_clean for answer in answers)
    moved = [answer.features["js"] for answer in answers if answer.positive]
    still = [answer.features["js"] for answer in answers if not answer.positive]
    assert min(moved) > 0.5 > max(still)
    assert {answer.source for answer in answers} == {f"source-{index}" for index in range(4)}


async def test_from_answers_to_a_calibration_that_tells_lies() -> None:
    answers = (await labelled_answers(twins_of(items(40), 0), misled, "m"))["image"]
    fitted = calibrate(answers, alpha=0.1)
    assert fitted.auroc == 1.0 and fitted.flagged_of_negatives == 0.0


async def test_an_endpoint_without_log_probabilities_is_refused() -> None:
    async def silent(body: JSON) -> JSON:
        return completion("3")

    twin: list[Twin] = twins_of(items(1), 0)
    with pytest.raises(ConfigError, match="does the endpoint give log-probabilities"):
        await labelled_answers(twin, silent, "m")


def test_the_command_says_which_key_file_is_missing(tmp_path: Path) -> None:
    assert read_key(None) is None
    (tmp_path / "key").write_text("secret\n")
    assert read_key(tmp_path / "key") == "secret"
    with pytest.raises(ConfigError, match="name a file that holds the key"):
        read_key(tmp_path / "none")
