"""What every model is asked alike: items clean and perturbed, in doses, seeded; and what is refused."""

import pytest

from modint_guard.data.item import Item
from modint_guard.data.perturb import CLEAN, REGISTRY
from modint_guard.errors import ConfigError
from modint_guard.evaluation.variants import fingerprint, variants_of
from tests.core.items import BOTH, DIGIT, SUM


def test_every_item_is_asked_clean_and_in_every_dose_of_what_fits_it() -> None:
    variants = variants_of([DIGIT, SUM], [], [1, 5], 0)
    assert len({variant.key for variant in variants}) == len(variants)
    clean = {v.item.id: v.item for v in variants if v.perturbation == CLEAN}
    assert clean["digit-0"].context is None and clean["sum-0"].image is None
    doses = {(v.perturbation, v.severity) for v in variants}
    assert ("misleading_description", 1) in doses and ("contradicting_image", 1) in doses
    assert ("true_description", 5) in doses and ("true_description", 1) not in doses  # a control


def test_every_perturbation_is_asked_of_the_family_that_it_fits() -> None:
    variants = variants_of([DIGIT.replace(context="A caption."), SUM, BOTH], [], [5], 0)
    assert {v.perturbation for v in variants} == {CLEAN, *REGISTRY}
    assert [v.item for v in variants if v.item.family == "vqa"] == [BOTH]  # as it is, and not perturbed


def test_a_dose_of_a_caption_is_part_of_the_whole() -> None:
    variants = variants_of([DIGIT], ["unrelated_facts", "neutral_text"], [2, 5], 0)
    assert [(v.perturbation, v.severity) for v in variants] == [
        (CLEAN, 0),
        ("unrelated_facts", 2),
        ("unrelated_facts", 5),
        ("neutral_text", 5),
    ]
    some, whole = (set((v.item.context or "").split()) for v in variants[1:3])
    assert some < whole


def test_a_perturbed_picture_is_made_when_it_is_wanted() -> None:
    (shown,) = (v for v in variants_of([SUM], ["contradicting_image"], [2], 0) if v.perturbation != CLEAN)
    assert shown.item.image is None
    image = shown.whole().image
    assert image is not None and image.getpixel((0, 0)) == (76, 76, 178)


def test_two_models_see_the_same_inputs() -> None:
    one, two = (variants_of([DIGIT, SUM], [], [3], 7) for _ in range(2))
    assert fingerprint(one) == fingerprint(two) != fingerprint(variants_of([DIGIT, SUM], [], [3], 8))


@pytest.mark.parametrize(
    ("item", "perturbation", "held_out"),
    [
        (DIGIT, "misleading_description", "no"),
        (DIGIT, "ocr_noise", "perturbation"),
        (DIGIT.replace(held_out_wording=True), "ocr_noise", "wording"),
    ],
)
def test_a_condition_says_what_no_training_has_seen(item: Item, perturbation: str, held_out: str) -> None:
    *_, variant = variants_of([item], [perturbation], [4], 0)
    assert variant.condition == ("image-heavy", perturbation, 4, held_out)


@pytest.mark.parametrize(
    ("items", "names", "said"),
    [
        ([DIGIT], ["misleading"], "'misleading' is no perturbation: name one of misleading_description, "),
        ([DIGIT, DIGIT], [], "the id 'digit-0' stands twice in the data: give every item its own"),
        ([DIGIT.replace(answer="", wrong="")], [], "none of 1 items has an answer to compare with: give"),
        ([BOTH], [], "none of 1 items can be perturbed"),
        ([DIGIT], ["black"], "none of 1 items can be perturbed"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(items: list[Item], names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        variants_of(items, names, [5], 0)
