"""Doses of a perturbation: none of it changes the question, and a higher one holds all of a lower one."""

from itertools import pairwise

import pytest

from modint_guard.data.perturb import perturb
from modint_guard.data.severity import FULL, at_severity
from tests.core.items import DIGIT, SUM

LIED = perturb(DIGIT, "misleading_description")
SHOWN = perturb(SUM, "contradicting_image")


def test_full_severity_is_the_perturbation_itself() -> None:
    assert at_severity(LIED, FULL) is LIED and at_severity(SHOWN, FULL) is SHOWN


def test_a_picture_is_mixed_with_grey() -> None:
    faded = at_severity(SHOWN, 2).image
    assert SHOWN.image is not None and faded is not None
    assert SHOWN.image.getpixel((0, 0)) == (0, 0, 255)
    # 3/5 of 128 and 2/5 of (0, 0, 255): 76.8 and 178.8
    assert faded.getpixel((0, 0)) == (76, 76, 178)


def test_a_higher_severity_keeps_the_words_of_a_lower_one() -> None:
    words = [at_severity(LIED.replace(context="a b c d e f g"), dose).context for dose in range(1, 6)]
    sizes = [len((each or "").split()) for each in words]
    assert sizes == [2, 3, 5, 6, 7]  # the ceilings of 1.4, 2.8, 4.2, 5.6 and 7
    for lower, higher in pairwise(words):
        assert set((lower or "").split()) <= set((higher or "").split())
    assert words == [at_severity(LIED.replace(context="a b c d e f g"), dose).context for dose in range(1, 6)]


@pytest.mark.parametrize("dose", [0, 6, -1])
def test_other_severities_are_refused(dose: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 5"):
        at_severity(LIED, dose)


def test_no_picture_stays_none() -> None:
    assert at_severity(perturb(SUM, "no_image"), 3).image is None
