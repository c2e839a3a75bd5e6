"""The registry of perturbations: who may be trained on, what each changes, and that no lie is true."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modint_guard.chat.images import ImageLimits, decode_data_url, neutral_image
from modint_guard.data.item import Item
from modint_guard.data.perturb import (
    CLAIMS,
    HELD_OUT_CLAIMS,
    REGISTRY,
    Perturbation,
    applicable,
    clean_view,
    fitting,
    perturb,
    seeded,
)
from tests.core.items import BLUE, BOTH, DIGIT, GREEN, SIZE, SUM

TEXT = [kind for kind in REGISTRY.values() if kind.modality == "text"]
IMAGE = [kind for kind in REGISTRY.values() if kind.modality == "image"]
DRAWN = [kind for kind in IMAGE if kind.name not in ("contradicting_image", "agreeing_image", "no_image")]
CHOICES = ("0", "1", "2", "7", "red", "blue", "star", "circle")


def named(kind: Perturbation) -> str:
    return kind.name


def clean_item(kind: Perturbation) -> Item:
    return DIGIT if kind.modality == "text" else SUM


def pixels(item: Item) -> bytes | None:
    return item.image.tobytes() if item.image else None


def test_each_kind_has_the_role_that_the_method_gives_it() -> None:
    roles = {
        role: {kind.name for kind in REGISTRY.values() if kind.role == role}
        for role in ("trained", "held_out", "control")
    }
    assert roles == {
        "trained": {"misleading_description", "unrelated_facts", "contradicting_image", "noise", "black"},
        "held_out": {"ocr_noise", "irrelevant_image", "white", "screenshot"},
        "control": {"neutral_text", "true_description", "grey", "agreeing_image", "no_image"},
    }


def test_a_kind_is_registered_under_its_own_name() -> None:
    assert all(name == kind.name for name, kind in REGISTRY.items())


def test_a_family_is_perturbed_only_in_the_modality_it_does_not_need() -> None:
    assert [kind.modality for kind in applicable("image-heavy")] == ["text"] * 5
    assert [kind.modality for kind in applicable("text-heavy")] == ["image"] * 9
    assert applicable("vqa") == ()


@pytest.mark.parametrize("name", REGISTRY)
def test_items_that_need_both_are_never_perturbed(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} changes the .*, which an item of the family vqa needs"):
        perturb(BOTH, name)


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=named)
def test_the_modality_that_decides_is_never_perturbed(kind: Perturbation) -> None:
    with pytest.raises(ValueError, match="needs"):
        perturb(SUM if kind.modality == "text" else DIGIT, kind.name)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError, match="fog"):
        perturb(DIGIT, "fog")


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=named)
def test_a_perturbation_changes_its_modality_and_names_itself(kind: Perturbation) -> None:
    clean = clean_item(kind)
    changed = perturb(clean, kind.name)
    fields = {"context"} if kind.modality == "text" else {"image"}
    assert changed.perturbation == kind.name
    assert changed.replace(perturbation="clean", **{name: getattr(clean, name) for name in fields}) == clean
    if kind.modality == "text":
        assert changed.context and pixels(changed) == pixels(clean)


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=named)
def test_the_same_inputs_give_the_same_view_and_leave_the_item_alone(kind: Perturbation) -> None:
    clean = clean_item(kind)
    before = (clean.replace(), pixels(clean))
    first, second = perturb(clean, kind.name, seed=4), perturb(clean, kind.name, seed=4)
    assert (first, pixels(first)) == (second, pixels(second))
    assert (clean, pixels(clean)) == before


@pytest.mark.parametrize("name", ["noise", "screenshot", "irrelevant_image"])
def test_pictures_differ_by_seed_and_by_item(name: str) -> None:
    other = SUM.replace(id="sum-1")
    views = (perturb(SUM, name, seed=0), perturb(SUM, name, seed=1), perturb(other, name, seed=0))
    assert len({pixels(view) for view in views}) == 3


def test_texts_differ_by_seed_and_by_item() -> None:
    other = DIGIT.replace(id="digit-9")
    views = (perturb(DIGIT, "ocr_noise"), perturb(DIGIT, "ocr_noise", seed=1), perturb(other, "ocr_noise"))
    assert len({view.context for view in views}) == 3


def test_a_generator_depends_on_each_of_its_parts_and_on_their_borders() -> None:
    drawn = [seeded(*parts).random() for parts in [(1, "a"), (1, "b"), (2, "a"), ("1a",), (1, "a")]]
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


@given(st.permutations(CHOICES), st.integers(0, 2**32), st.booleans())
def test_a_lie_claims_the_planted_choice_and_never_the_truth(
    choices: list[str], seed: int, held_out: bool
) -> None:
    item = DIGIT.replace(
        choices=tuple(choices), answer=choices[0], wrong=choices[1], held_out_wording=held_out
    )
    said = re.findall(r"\w+", perturb(item, "misleading_description", seed=seed).context or "")
    assert item.wrong in said
    assert item.answer not in said


@given(st.permutations(CHOICES), st.integers(0, 2**32))
def test_a_true_description_claims_the_truth_and_not_the_lie(choices: list[str], seed: int) -> None:
    item = DIGIT.replace(choices=tuple(choices), answer=choices[0], wrong=choices[1])
    said = re.findall(r"\w+", perturb(item, "true_description", seed=seed).context or "")
    assert item.answer in said
    assert item.wrong not in said


@pytest.mark.parametrize("name", ["unrelated_facts", "neutral_text"])
@given(seed=st.integers(0, 2**32))
def test_texts_that_say_nothing_of_the_picture_name_no_choice(name: str, seed: int) -> None:
    item = DIGIT.replace(choices=CHOICES, answer="0", wrong="1")
    said = re.findall(r"\w+", perturb(item, name, seed=seed).context or "")
    assert not set(said) & set(CHOICES)


@given(seed=st.integers(0, 2**32))
def test_ocr_noise_is_text_without_digits(seed: int) -> None:
    said = perturb(DIGIT, "ocr_noise", seed=seed).context or ""
    assert 1 <= len(said) <= 24
    assert said == said.strip()
    assert not re.search(r"[0-9A-Z]", said)


def test_held_out_items_are_lied_to_in_held_out_claims_alone() -> None:
    def claims(item: Item) -> set[str]:
        views = (perturb(item, "misleading_description", seed=seed) for seed in range(60))
        return {(view.context or "").replace("the digit 7", "{claim}") for view in views}

    assert claims(DIGIT) == set(CLAIMS)
    assert claims(DIGIT.replace(held_out_wording=True)) == set(HELD_OUT_CLAIMS)
    assert not set(CLAIMS) & set(HELD_OUT_CLAIMS)


@pytest.mark.parametrize("kind", DRAWN, ids=named)
@given(width=st.integers(1, 90), height=st.integers(1, 90))
def test_pictures_keep_the_size_of_the_items_own(kind: Perturbation, width: int, height: int) -> None:
    item = SUM.replace(image=Image.new("RGB", (width, height)))
    view = perturb(item, kind.name)
    assert view.image is not None
    assert (view.image.size, view.image.mode) == ((width, height), "RGB")


def test_an_item_without_a_picture_takes_the_size_of_those_it_could_have() -> None:
    view = perturb(SUM, "black")
    assert view.image is not None and view.image.size == SIZE
    bare = perturb(SUM.replace(agreeing=None, contradicting=None), "black")
    assert bare.image is not None and bare.image.size == (336, 336)


@pytest.mark.parametrize(("name", "level"), [("black", 0), ("white", 255), ("grey", 128)])
def test_plain_pictures_have_one_level(name: str, level: int) -> None:
    view = perturb(SUM, name)
    assert view.image is not None
    assert view.image.getcolors() == [(SIZE[0] * SIZE[1], (level,) * 3)]


def test_grey_is_the_neutral_picture_of_the_probes() -> None:
    view = perturb(SUM, "grey")
    assert pixels(view) == decode_data_url(neutral_image(SIZE), ImageLimits()).convert("RGB").tobytes()


def test_noise_is_uniform_over_all_levels() -> None:
    view = perturb(SUM.replace(image=Image.new("RGB", (64, 64))), "noise")
    values = np.asarray(view.image)
    assert (values.min(), values.max()) == (0, 255)
    assert abs(values.mean() - 127.5) < 3  # its standard error is 73.9 / sqrt(12288) = 0.67


def test_the_donor_pictures_are_shown_as_they_are() -> None:
    assert perturb(SUM, "contradicting_image").image is BLUE
    assert perturb(SUM, "agreeing_image").image is GREEN
    assert perturb(SUM.replace(image=GREEN), "no_image").image is None


@pytest.mark.parametrize(
    ("name", "missing", "said"),
    [
        ("contradicting_image", "contradicting", "wrong choice '7'"),
        ("agreeing_image", "agreeing", "answer '3'"),
    ],
)
def test_a_donor_picture_that_is_missing_is_named(name: str, missing: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"item sum-0 has no picture that shows its {said}"):
        perturb(SUM.replace(**{missing: None}), name)


def test_items_of_unknown_family_are_never_perturbed() -> None:
    unknown = DIGIT.replace(family="unknown")
    assert applicable("unknown") == fitting(unknown) == ()
    with pytest.raises(ValueError, match="item of the family unknown may need: name its family"):
        perturb(unknown, "ocr_noise")


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, set()),
        ({"wrong": ""}, {"misleading_description"}),
        ({"wrong": "", "answer": ""}, {"misleading_description", "true_description"}),
    ],
)
def test_a_kind_fits_an_item_that_has_what_it_needs(changes: dict[str, str], without: set[str]) -> None:
    item = DIGIT.replace(**changes)
    assert {kind.name for kind in fitting(item)} == {kind.name for kind in TEXT} - without
    for name in without:
        with pytest.raises(ValueError, match=r"item digit-0 has no .* that a (lie|caption) could"):
            perturb(item, name)


def test_pictures_that_show_an_answer_fit_where_the_item_has_them() -> None:
    bare = SUM.replace(agreeing=None, contradicting=None)
    missing = {kind.name for kind in fitting(SUM)} - {kind.name for kind in fitting(bare)}
    assert missing == {"agreeing_image", "contradicting_image"}


def test_a_data_sets_own_lie_is_told_as_it_stands() -> None:
    item = DIGIT.replace(lie="The picture seems to describe a 7. Sevens are odd.")
    assert perturb(item, "misleading_description").context == item.lie


def test_the_clean_view_has_nothing_that_ought_not_to_decide() -> None:
    captioned, shown = (item.replace(context="Ann has a card.", image=BLUE) for item in (DIGIT, SUM))
    assert (clean_view(captioned).context, clean_view(captioned).image) == (None, BLUE)
    assert (clean_view(shown).context, clean_view(shown).image) == ("Ann has a card.", None)
    for item in (BOTH, DIGIT.replace(family="unknown")):
        assert clean_view(item) is item
