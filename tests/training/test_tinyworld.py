"""TinyWorld: items are what they say they are, splits share nothing that could be learnt by heart."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from modint_guard.data.item import FAMILIES, Family, Item, prompt
from modint_guard.data.perturb import CLAIMS, FACTS, HELD_OUT_CLAIMS, NEUTRAL, applicable, perturb
from modint_training.tinyworld import draw, suite
from modint_training.tinyworld.tasks import NUMBER_WORDS, TASKS, Task

SPLITS: tuple[suite.Split, ...] = ("train", "validation", "test")
COUNT = 200
LABELS = load_digits().target  # UCI's own
Pixels = npt.NDArray[np.uint8]
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(n): n for n in range(10)}


@pytest.fixture(scope="module")
def stream() -> list[Item]:
    """The first items of the base model's training."""
    return [suite.training_item(index, seed=0, mixture=suite.Mixture()) for index in range(2000)]


def every(family: Family, split: suite.Split, *, held_out: bool = False, seed: int = 0) -> list[Item]:
    return suite.items(family, split, COUNT, seed=seed, held_out=held_out)


def seen(items: list[Item]) -> set[tuple[str, bytes]]:
    """What a model could learn by heart: picture and text together."""
    return {(prompt(item), item.image.tobytes()) for item in items if item.image}


def pictures(item: Item) -> Iterator[Pixels]:
    yield from (np.asarray(image) for image in (item.image, item.agreeing, item.contradicting) if image)


# The same arguments, the same item


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_give_the_same_items(family: Family, split: suite.Split) -> None:
    first, second = every(family, split), every(family, split)
    assert first == second
    assert [[p.tobytes() for p in pictures(item)] for item in first] == [
        [p.tobytes() for p in pictures(item)] for item in second
    ]


def test_an_item_does_not_depend_on_how_many_are_asked_for() -> None:
    assert suite.items("vqa", "test", 9) == every("vqa", "test")[:9]


def digest() -> str:
    """All that the first items of a training hold, as one number."""
    items = [suite.training_item(index, seed=5, mixture=suite.Mixture()) for index in range(40)]
    told = [(prompt(item), item.answer, item.wrong, [p.tobytes() for p in pictures(item)]) for item in items]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def test_an_item_does_not_depend_on_the_process_that_makes_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import digest; print(digest())"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("family", FAMILIES)
def test_another_seed_gives_other_pictures(family: Family) -> None:
    first, second = (
        {picture.tobytes() for item in every(family, "test", seed=seed) for picture in pictures(item)}
        for seed in (0, 1)
    )
    assert len(first) >= COUNT and not first & second


# No leaks


def test_splits_share_no_source_digit() -> None:
    parts = [{index for group in draw.digit_split(split).values() for index in group} for split in SPLITS]
    assert [len(part) for part in parts] == [1297, 200, 300]
    assert len(set.union(*parts)) == 1797


def test_every_digit_is_drawn_from_its_own_split(stream: list[Item]) -> None:
    asked = {split: every("image-heavy", split) + every("vqa", split) for split in SPLITS}
    asked["train"] += stream
    sources = {
        split: {int(item.source[6:]) for item in items if item.source.startswith("digit:")}
        for split, items in asked.items()
    }
    for split in SPLITS:
        assert len(sources[split]) > 50
        assert sources[split] <= {index for group in draw.digit_split(split).values() for index in group}


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_picture_with_its_text(family: Family, stream: list[Item]) -> None:
    shown = {split: every(family, split) for split in SPLITS}
    if family == "text-heavy":  # a small world has few sums: the text alone recurs, but not with its picture
        shown = {split: [perturb(item, "agreeing_image") for item in items] for split, items in shown.items()}
    train, validation, test = (seen(shown[split]) for split in SPLITS)
    assert min(len(train), len(validation), len(test)) > 0.98 * COUNT
    assert not train & validation and not train & test and not validation & test
    assert not seen(stream) & (validation | test)


# Pictures


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_has_one_size_and_noise(family: Family, split: suite.Split) -> None:
    corners = []
    for item in every(family, split)[:60]:
        for picture in pictures(item):
            assert picture.shape == (40, 40, 3)
            corners.append(picture[:3, :3].astype(float).std(axis=(0, 1)).mean())
    assert len(corners) >= 60
    assert min(corners) > 2
    assert 7 < np.median(corners) < 11  # the pixel noise is 9 levels


def test_pictures_of_the_training_stream_have_one_size(stream: list[Item]) -> None:
    assert {picture.shape for item in stream for picture in pictures(item)} == {(40, 40, 3)}


# Truth, worked out again from the picture or the text


def digit_of(item: Item) -> int:
    return int(LABELS[int(item.source.removeprefix("digit:"))])


@pytest.mark.parametrize("split", SPLITS)
def test_a_digits_truth_is_the_label_of_its_source(split: suite.Split) -> None:
    items = [item for item in every("image-heavy", split) if item.task == "digit"]
    assert len(items) == COUNT // 4
    assert all(item.answer == str(digit_of(item)) for item in items)


@pytest.mark.parametrize("split", SPLITS)
def test_digit_plus_adds_the_word_to_the_label_of_its_source(split: suite.Split) -> None:
    items = [item for item in every("vqa", split) if item.task == "digit_plus"]
    assert len(items) == COUNT // 4
    for item in items:
        added = next(NUMBERS[word] for word in re.findall(r"\w+", item.question) if word in NUMBERS)
        assert item.answer == str(digit_of(item) + added)


def colour_of(picture: Pixels) -> str:
    """The named colour that most of the pixels come closest to, the grey background aside."""
    palette = np.array(list(draw.COLOURS.values()), dtype=float)
    flat = picture.reshape(-1, 3).astype(float)
    flat = flat[flat.max(axis=1) - flat.min(axis=1) > 70]
    nearest = np.argmin(np.linalg.norm(flat[:, None] - palette[None], axis=2), axis=1)
    return list(draw.COLOURS)[int(np.bincount(nearest).argmax())]


def test_a_colours_truth_is_the_colour_of_the_pixels() -> None:
    items = [item for item in every("image-heavy", "test") if item.task == "colour"]
    assert len(items) == COUNT // 4
    assert all(colour_of(next(pictures(item))) == item.answer for item in items)


def test_donor_pictures_show_the_answer_and_the_lie() -> None:
    items = [item for item in every("text-heavy", "test") if item.task == "lookup_colour"]
    for item in items:
        assert [colour_of(picture) for picture in pictures(item)] == [item.answer, item.wrong]


def truth_of(item: Item) -> str:
    """The answer of a text-heavy item, read from its text alone."""
    words = re.findall(r"\w+", item.question)
    if item.task == "arithmetic":
        sign = "plus" if "plus" in words else "minus"
        a, b = (NUMBERS[words[words.index(sign) + step]] for step in (-1, 1))
        return str(a + b if sign == "plus" else a - b)
    if item.task == "ordering":
        numbers = [int(word) for word in words if word.isdigit()]
        return str(max(numbers) if "largest" in words else min(numbers))
    rows = dict(re.findall(r"(\w+) has a (\w+ \w+)\.", item.context or ""))
    (who,) = set(words) & set(rows)
    return str(rows[who].split()[item.task == "lookup_shape"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("held_out", [False, True])
def test_the_truth_of_a_text_follows_from_the_text(split: suite.Split, held_out: bool) -> None:
    items = every("text-heavy", split, held_out=held_out)
    assert {item.task for item in items} == {"arithmetic", "lookup_colour", "lookup_shape", "ordering"}
    assert all(item.answer == truth_of(item) for item in items)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_one_of_the_choices(family: Family, split: suite.Split) -> None:
    for item in every(family, split):
        assert {item.answer, item.wrong} <= set(item.choices) <= set(TASKS[item.task].choices)
        assert len(set(item.choices)) == len(item.choices)
        if item.form == "letter":
            assert len(item.choices) == min(4, len(TASKS[item.task].choices))


@pytest.mark.parametrize("family", FAMILIES)
def test_sub_tasks_and_forms_come_in_turn(family: Family) -> None:
    items = every(family, "test")
    tasks = [task.name for task in suite.tasks_of(family)]
    assert [item.task for item in items[:8]] == tasks * 2
    assert [item.form for item in items[:8]] == ["word"] * 4 + ["letter"] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_place_of_the_truth_tells_nothing(family: Family) -> None:
    lettered = [item for seed in range(4) for item in every(family, "test", seed=seed)]
    places = [
        item.choices.index(item.answer)
        for item in lettered
        if item.form == "letter" and len(item.choices) == 4
    ]
    shares = np.bincount(places, minlength=4) / len(places)
    assert shares.min() > 0.15 and shares.max() < 0.35  # 1/4 each, of about 300


# Wordings


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"\{\w+\}", " ", text).lower()))


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_trained_and_held_out_wordings(task: Task) -> None:
    assert len(set(task.wordings)) >= 3
    assert len(set(task.held_out)) == 2
    assert not set(task.wordings) & set(task.held_out)


def test_held_out_wordings_and_claims_recombine_words_of_the_trained_ones() -> None:
    known = {word for task in TASKS.values() for wording in task.wordings for word in words(wording)}
    known |= {word for claim in CLAIMS for word in words(claim)}
    held_out = [wording for task in TASKS.values() for wording in task.held_out]
    assert {word for wording in (*held_out, *HELD_OUT_CLAIMS) for word in words(wording)} <= known


def matcher(wordings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(wording)) for wording in wordings))


TRAINED = matcher(tuple(wording for task in TASKS.values() for wording in task.wordings))
HELD_OUT = matcher(tuple(wording for task in TASKS.values() for wording in task.held_out))


@pytest.mark.parametrize("family", FAMILIES)
def test_items_are_asked_in_the_wordings_they_say(family: Family) -> None:
    for item in every(family, "test"):
        assert TRAINED.fullmatch(item.question) and not HELD_OUT.fullmatch(item.question)
    for item in every(family, "test", held_out=True):
        assert HELD_OUT.fullmatch(item.question) and not TRAINED.fullmatch(item.question)


def test_neither_facts_nor_neutral_texts_name_an_answer() -> None:
    perturbed = [task for task in TASKS.values() if applicable(task.family)]
    answers = {choice for task in perturbed for choice in task.choices} | set(NUMBER_WORDS)
    assert not answers & {word for text in (*FACTS, *NEUTRAL) for word in words(text)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lie_never_states_the_truth(family: Family) -> None:
    for item in every(family, "test"):
        for kind in applicable(family):
            if kind.modality == "text" and kind.name != "true_description":
                said = words(perturb(item, kind.name).context or "")
                assert item.answer not in said


# The base model's training stream


def share(items: list[Item], chosen: list[Item]) -> float:
    return len(items) / len(chosen)


def of(stream: list[Item], family: Family) -> list[Item]:
    return [item for item in stream if item.family == family and item.task != "letter_drill"]


def test_the_stream_mixes_the_families_as_stated(stream: list[Item]) -> None:
    drills = [item for item in stream if item.task == "letter_drill"]
    rest = [item for item in stream if item.task != "letter_drill"]
    assert share(drills, stream) == pytest.approx(0.05, abs=0.015)
    assert [share(of(rest, family), rest) for family in FAMILIES] == pytest.approx(
        [0.28, 0.38, 0.34], abs=0.03
    )
    asked = [item for item in rest if item.task == "self_ask"]
    assert share(asked, rest) == pytest.approx(0.04, abs=0.012)


def test_captions_are_mostly_true_and_many_items_have_none(stream: list[Item]) -> None:
    items = of(stream, "image-heavy")
    captioned = [item for item in items if item.context]
    unrelated = [item for item in captioned if any(fact in (item.context or "") for fact in FACTS)]
    claimed = [item for item in captioned if item not in unrelated and item.task != "self_ask"]
    true = [item for item in claimed if item.answer in words(item.context or "")]
    lying = [item for item in claimed if item.wrong in words(item.context or "")]
    assert 1 - share(captioned, items) >= 0.30
    assert share(captioned, items) == pytest.approx(0.65, abs=0.04)
    assert len(true) + len(lying) == len(claimed)
    assert 0.80 <= share(true, claimed) * (1 - share(unrelated, captioned)) <= 0.95
    assert share(unrelated, captioned) == pytest.approx(0.08, abs=0.02)
    assert lying == []


def test_pictures_beside_a_text_mostly_agree_with_it(stream: list[Item]) -> None:
    items = of(stream, "text-heavy")
    pictured = [item for item in items if item.image]
    assert share(pictured, items) == pytest.approx(0.30, abs=0.04)
    agreeing = [item for item in pictured if item.image is item.agreeing]
    assert share(agreeing, pictured) == pytest.approx(0.90, abs=0.04)
    assert not any(item.image is item.contradicting for item in pictured)


def test_many_true_captions_stand_beside_a_poor_picture_of_the_same_thing() -> None:
    def captioned(poor: float) -> dict[str, Item]:
        mixture = suite.Mixture(caption_poor=poor, self_ask=0)
        drawn = (suite.training_item(index, seed=0, mixture=mixture) for index in range(400))
        return {item.id: item for item in drawn if item.family == "image-heavy" and item.context}

    good, poor, half = captioned(0), captioned(1), captioned(0.5)
    changed = {name: item for name, item in poor.items() if item.image != good[name].image}
    assert {item.answer in words(item.context or "") for item in changed.values()} == {True}
    for name, item in changed.items():
        assert item.replace(image=None) == good[name].replace(image=None)
        assert item.image and item.image.size == (draw.SIZE, draw.SIZE)
    poor_of_half = [item for name, item in half.items() if item.image != good[name].image]
    assert share(poor_of_half, list(changed.values())) == pytest.approx(0.5, abs=0.1)


def test_a_poor_picture_is_faded_lacks_a_part_or_lies_under_another() -> None:
    picture, another = draw.shapes([("square", "red")], random.Random(0)), draw.blank(random.Random(1))
    before = np.asarray(picture, dtype=float)
    kinds = set()
    for seed in range(40):
        after = np.asarray(draw.poor(picture, another, random.Random(seed)), dtype=float)
        untouched = (after == before).all(axis=2).mean()
        if untouched > 0.1:
            kinds.add("covered")
            assert 0.18 <= untouched <= 0.67  # 35 to 80 % are lost
        else:
            kinds.add("faint")
            assert coarse(after).std() <= 0.55 * coarse(before).std()  # half the contrast, and some grain
    assert kinds == {"covered", "faint"}
    assert draw.poor(picture, another, random.Random(3)) == draw.poor(picture, another, random.Random(3))


def test_of_two_exposures_the_other_is_the_stronger() -> None:
    dark, light = (np.full((draw.SIZE, draw.SIZE, 3), value, dtype=np.float32) for value in (0, 200))
    shown = {float(draw._exposed_twice(dark, light, random.Random(seed)).mean()) for seed in range(50)}
    assert 100 <= min(shown) < max(shown) <= 170


def coarse(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of blocks of 8x8 pixels, where grain cancels out."""
    return np.asarray(picture.reshape(5, 8, 5, 8, 3).mean(axis=(1, 3)))


def test_a_label_is_the_truth_even_beside_a_lie() -> None:
    lying = suite.Mixture(caption_true=0.8, caption_unrelated=0.0, picture_agrees=0.8, picture_other=0.0)
    lied_to = shown = 0
    for item in (suite.training_item(index, seed=0, mixture=lying) for index in range(600)):
        if item.task == "digit":
            assert item.answer == str(digit_of(item))
            lied_to += item.wrong in words(item.context or "")
        elif item.family == "text-heavy" and item.task in TASKS:
            assert item.answer == truth_of(item)
            shown += item.image is not None and item.image is item.contradicting
    assert lied_to >= 3 and shown >= 3


def test_items_that_need_both_have_their_picture_and_no_caption(stream: list[Item]) -> None:
    assert all(item.image and not item.context for item in of(stream, "vqa"))


def test_the_self_question_is_answered_by_the_family(stream: list[Item]) -> None:
    asked = [item for item in stream if item.task == "self_ask"]
    assert {(item.family, item.answer) for item in asked} == {
        ("image-heavy", "yes"),
        ("text-heavy", "no"),
        ("vqa", "yes"),
    }
    assert all(item.question.endswith(f"\n{suite.SELF_ASK}") and item.form == "word" for item in asked)


def test_a_drill_names_its_answer_and_shows_nothing(stream: list[Item]) -> None:
    drills = [item for item in stream if item.task == "letter_drill"]
    for item in drills:
        assert item.question == f"Which letter stands for {item.answer}?"
        assert (item.form, item.image, item.context) == ("letter", None, None)


def test_as_many_items_are_lettered_as_the_mixture_says(stream: list[Item]) -> None:
    items = [item for item in stream if item.task in TASKS]
    assert share([item for item in items if item.form == "letter"], items) == pytest.approx(0.55, abs=0.03)


def test_the_stream_sees_nothing_that_is_held_out(stream: list[Item]) -> None:
    held_out_claims = matcher(tuple(claim.replace("{claim}", "{a} {b}") for claim in HELD_OUT_CLAIMS))
    trained_claims = matcher(tuple(claim.replace("{claim}", "{a} {b}") for claim in CLAIMS))
    claims = 0
    for item in stream:
        asked = item.question.removesuffix(f"\n{suite.SELF_ASK}")
        assert item.task == "letter_drill" or TRAINED.fullmatch(asked)
        assert not HELD_OUT.search(asked) or TRAINED.fullmatch(asked)
        assert not item.held_out_wording and item.perturbation == "clean"
        caption = (item.context or "").replace("the ", "")
        assert not held_out_claims.search(caption)
        claims += bool(trained_claims.search(caption))
    assert claims > 250  # enough to have seen a held-out one
    assert all(np.ptp(picture) > 30 for item in stream for picture in pictures(item))  # none is plain
