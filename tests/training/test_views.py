"""Clean and perturbed twins: what may be trained on, and in which shares."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import REGISTRY
from modint_guard.errors import ConfigError
from modint_training.data.twins import check_kinds, twin
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld import suite
from tests.training.small import lora_recipe

TRAINED = ("misleading_description", "unrelated_facts", "contradicting_image", "noise", "black")
CONTROLS = ("true_description", "agreeing_image", "neutral_text")


def recipe(
    perturbations: Sequence[str] = TRAINED, controls: Sequence[str] = CONTROLS, share: float = 0.0
) -> TuneRecipe:
    """The bundled recipe with these kinds."""
    kinds = (f"perturbations=[{', '.join(perturbations)}]", f"controls=[{', '.join(controls)}]")
    return lora_recipe("tinyworld-base", *kinds, f"control_share={share}")


def twins(family: Family, share: float, count: int = 400) -> list[Item | None]:
    rng, mixed = random.Random(0), recipe(share=share)
    return [twin(mixed, item, rng) for item in suite.items(family, "train", count)]


def test_items_that_need_both_have_no_twin() -> None:
    assert twins("vqa", 0.5, 50) == [None] * 50


@pytest.mark.parametrize(
    ("family", "harmful", "harmless"),
    [
        ("image-heavy", {"misleading_description", "unrelated_facts"}, {"true_description", "neutral_text"}),
        ("text-heavy", {"contradicting_image", "noise", "black"}, {"agreeing_image"}),
    ],
)
def test_a_twin_is_perturbed_where_its_family_does_not_look(
    family: Family, harmful: set[str], harmless: set[str]
) -> None:
    kinds = Counter(item.perturbation for item in twins(family, 0.25) if item)
    assert set(kinds) == harmful | harmless
    assert sum(kinds[name] for name in harmless) / 400 == pytest.approx(0.25, abs=0.06)
    for name in harmful:
        assert kinds[name] / 400 == pytest.approx(0.75 / len(harmful), abs=0.07)


@pytest.mark.parametrize(("share", "roles"), [(0.0, {"trained"}), (1.0, {"control"})])
def test_the_share_of_harmless_twins_can_be_none_or_all(share: float, roles: set[str]) -> None:
    kinds = {item.perturbation for item in twins("image-heavy", share, 60) if item}
    assert {REGISTRY[name].role for name in kinds} == roles


def test_without_controls_every_twin_is_harmful() -> None:
    rng = random.Random(0)
    (item,) = suite.items("image-heavy", "train", 1)
    harmful = recipe(["misleading_description"], (), 1.0)
    made = [twin(harmful, item, rng) for _ in range(20)]
    assert {view.perturbation for view in made if view} == {"misleading_description"}


def test_a_family_that_no_kind_fits_has_no_twin() -> None:
    (item,) = suite.items("text-heavy", "train", 1)
    of_texts = recipe(["misleading_description"], ["agreeing_image"], 0.5)
    assert twin(of_texts, item, random.Random(0)) is None


def test_twins_of_one_item_differ_in_the_course_of_training() -> None:
    rng = random.Random(0)
    (item,) = suite.items("image-heavy", "train", 1)
    harmful = recipe(controls=())
    assert len({view.context for _ in range(40) if (view := twin(harmful, item, rng))}) > 10


def test_the_twin_keeps_the_answer() -> None:
    for family in ("image-heavy", "text-heavy"):
        for item, view in zip(suite.items(family, "train", 400), twins(family, 0.25), strict=True):
            assert view is not None
            assert (view.answer, view.choices, view.question) == (item.answer, item.choices, item.question)


def test_trained_kinds_and_controls_pass_under_their_own_keys() -> None:
    check_kinds(TRAINED, controls=False)
    check_kinds(CONTROLS, controls=True)


@pytest.mark.parametrize("name", [kind.name for kind in REGISTRY.values() if kind.role == "held_out"])
@pytest.mark.parametrize("controls", [False, True])
def test_what_is_held_out_is_never_trained_on(name: str, controls: bool) -> None:
    with pytest.raises(ConfigError, match=f"perturbation '{name}' is held out for testing"):
        check_kinds([name], controls=controls)


def test_a_kind_under_the_wrong_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="'grey' is a control kind; list it under the other key"):
        check_kinds(["grey"], controls=False)
    with pytest.raises(ConfigError, match="'noise' is a trained kind; list it under the other key"):
        check_kinds(["noise"], controls=True)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown perturbation 'fog'; known: misleading_description, .*no_image"
    ):
        check_kinds(["fog"], controls=False)
