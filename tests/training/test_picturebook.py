"""The picture-book: items are what they say they are, and nothing that is kept out gets into training."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from modint_guard.data.item import FAMILIES, Family, Item, is_right, prompt, reply_for
from modint_guard.data.perturb import clean_view, fitting, perturb, seeded
from modint_training.data.batches import twin_rng
from modint_training.data.sampler import Quotas
from modint_training.data.twins import twin
from modint_training.picturebook import draw, suite
from modint_training.picturebook import wordings as words
from modint_training.picturebook.conditions import BARS, Condition, every_condition
from modint_training.picturebook.desk import Desk, Split, Unseen
from modint_training.picturebook.placing import PLACEMENTS, named_in, placed
from modint_training.picturebook.source import WORLD, dress
from modint_training.picturebook.tasks import TASKS
from modint_training.picturebook.things import HELD_OUT, NAMED, THINGS, Thing, alike
from modint_training.picturebook.wordings import Wordings, say
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
WORDINGS = {name: value for name, value in vars(words).items() if isinstance(value, Wordings)}
EVERYTHING = Unseen(wording=True, captions=True, style=True, things=True)


@pytest.fixture(scope="module")
def stream() -> list[Item]:
    """The first items of the base model's training."""
    return [suite.training_item(index, seed=0, mixture=suite.Mixture()) for index in range(600)]


@pytest.fixture(scope="module")
def training(stream: list[Item], learnt: list[Item]) -> list[Item]:
    """The stream, the training split, and what an adapter learns from."""
    return [*stream, *learnt, *(item for family in FAMILIES for item in suite.items(family, "train", 40))]


@pytest.fixture(scope="module")
def learnt() -> list[Item]:
    """What the world's adapter learns from: clean views, and twins with their captions in place."""
    recipe = load_recipe("picturebook-lora")
    assert isinstance(recipe, TuneRecipe)
    rows = []
    for slot in Quotas(recipe.quotas, 400).slots(0):
        item = WORLD.source(recipe)(slot)
        perturbed = twin(recipe, item, twin_rng(recipe, slot))
        rows += [clean_view(item)] if perturbed is None else [dress(perturbed, seeded("dress", slot.index))]
    return rows


@pytest.fixture(scope="module")
def asked() -> list[Item]:
    """Items of every family, in trained words and in those kept out."""
    return [
        item
        for family in FAMILIES
        for unseen in (Unseen(), EVERYTHING)
        for item in suite.items(family, "test", 70, unseen=unseen)
    ]


def everything_read(item: Item) -> str:
    """All words of an item's prompt."""
    return "\n".join(filter(None, (item.system, *(turn.text for turn in item.turns), prompt(item))))


def words_of(text: str) -> str:
    """Lower-case words with single blanks around them."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.casefold()))} "


def names(text: str, thing: Thing) -> bool:
    """Whether the text holds the thing's usual name as whole words."""
    return words_of(thing.name) in words_of(text)


# The same arguments, the same item


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_give_the_same_items(family: Family, split: Split) -> None:
    first, second = suite.items(family, split, 20), suite.items(family, split, 20)
    assert first == second
    assert [item.image and item.image.tobytes() for item in first] == [
        item.image and item.image.tobytes() for item in second
    ]


def test_an_item_does_not_depend_on_how_many_are_asked_for() -> None:
    assert suite.items("vqa", "test", 5) == suite.items("vqa", "test", 12)[:5]


@pytest.mark.parametrize("family", FAMILIES)
def test_another_seed_or_split_asks_something_else(family: Family) -> None:
    parts: tuple[tuple[Split, int], ...] = (("test", 0), ("test", 1), ("validation", 0), ("train", 0))
    asked = [
        {(everything_read(item), item.answer) for item in suite.items(family, split, 40, seed=seed)}
        for split, seed in parts
    ]
    shared = [len(first & second) for first in asked for second in asked if first is not second]
    assert max(shared) <= 6  # sums and short questions recur


def digest() -> str:
    """All that the first items of a training hold, as one number."""
    items = [suite.training_item(index, seed=5, mixture=suite.Mixture()) for index in range(30)]
    told = [
        (everything_read(item), item.answer, item.image.tobytes() if item.image else b"") for item in items
    ]
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


# What is kept out


def test_a_tenth_of_the_things_and_of_the_ways_to_ask_is_kept_out() -> None:
    assert len(THINGS) >= 200
    assert 0.09 <= len(HELD_OUT) / len(THINGS) <= 0.13
    questions = [ways for name, ways in WORDINGS.items() if name not in ("CAPTIONS", "WITHIN", "UNRELATED")]
    kept_out = sum(len(ways.held_out) for ways in questions)
    assert 0.1 <= kept_out / (kept_out + sum(len(set(ways.trained)) for ways in questions)) <= 0.2


def test_captions_come_in_more_than_forty_wordings_of_which_half_are_kept_out() -> None:
    trained, held_out = (set(part) for part in (words.CAPTIONS.trained, words.CAPTIONS.held_out))
    assert len(trained) >= 20 and len(held_out) >= 20 and not trained & held_out
    lies = {item.lie for item in suite.items("image-heavy", "test", 60, held_out=True, task="open")}
    assert len(lies) > 40


@pytest.mark.parametrize("name", WORDINGS)
def test_no_wording_is_both_trained_and_kept_out(name: str) -> None:
    ways = WORDINGS[name]
    assert ways.held_out and not set(ways.trained) & set(ways.held_out)


def test_training_names_and_shows_no_thing_that_is_kept_out(training: list[Item]) -> None:
    sources = {item.source.removeprefix("thing:") for item in training}
    assert len(sources) > 120 and not sources & {thing.name for thing in HELD_OUT}
    assert [
        (thing.name, item.id)
        for item in training
        for thing in HELD_OUT
        if names(everything_read(item), thing)
    ] == []


def pattern(template: str) -> str:
    """A regular expression of what a template can say: at least a word in each slot."""
    plain = template.replace("{{", "\0").replace("}}", "\1")
    parts = [re.escape(part) for part in re.split(r"\{\w+\}", plain)]
    return r"[^\n]+?".join(parts).replace("\0", r"\{").replace("\1", r"\}")


def test_training_uses_no_wording_that_is_kept_out(training: list[Item]) -> None:
    kept_out = [
        pattern(template)
        for name, ways in WORDINGS.items()
        if name not in ("JSON_KEYS", "SYSTEM")
        for template in ways.held_out
        if len(re.sub(r"\{\w+\}", "", template)) > 6
    ]
    said = re.compile("|".join(rf"(?:^{each}$)" for each in kept_out), re.MULTILINE)
    lines = [line for item in training for line in everything_read(item).splitlines()]
    assert len(lines) > 800
    assert [line for line in lines if said.search(line)] == []


def test_training_has_no_caption_in_the_system_text(stream: list[Item], learnt: list[Item]) -> None:
    for items in (stream, learnt):
        assert {item.system for item in items} == {""}
        assert sum(bool(item.turns) for item in items) > 10


def test_an_adapter_learns_of_lies_at_every_place_that_a_caption_may_take(learnt: list[Item]) -> None:
    lied = [item for item in learnt if item.perturbation == "misleading_description"]
    assert all((named_in(item.lie) or "") in everything_read(item).casefold() for item in lied)
    places = ["before" if item.context else "earlier" if item.turns else "in the question" for item in lied]
    assert min(Counter(places).values()) >= len(lied) / 20 and len(set(places)) == 3


def test_an_adapter_also_learns_of_true_captions_that_are_needed(learnt: list[Item]) -> None:
    both = [item for item in learnt if item.family == "vqa"]
    poor = [item for item in both if item.task in {task.name for task in suite.tasks_of("image-heavy")}]
    assert 0.25 <= len(poor) / len(both) <= 0.55
    for item in poor:
        assert names(everything_read(item), NAMED[item.source.removeprefix("thing:")])


def test_things_kept_out_are_asked_about_where_that_is_wanted() -> None:
    items = suite.items("image-heavy", "test", 30, unseen=Unseen(things=True))
    assert {NAMED[item.source.removeprefix("thing:")].held_out for item in items} == {True}


# Right and wrong


def test_the_reply_to_learn_is_right_and_the_lie_is_wrong(asked: list[Item], stream: list[Item]) -> None:
    for item in (*asked, *stream):
        assert is_right(item, reply_for(item, item.answer)), item
        assert item.wrong and not is_right(item, reply_for(item, item.wrong)), item


def test_free_replies_are_right_with_an_article_in_a_sentence_and_by_another_name() -> None:
    items = [
        item
        for task in ("open", "which_of", "beside")
        for item in suite.items("image-heavy", "test", 40, task=task)
    ]
    for item in items:
        thing = NAMED[item.answer]
        for said in (thing.a, f"{thing.the}.", f"This is {thing.a}, I think.", *thing.others):
            assert is_right(item, said), (said, item)
        other = NAMED[item.wrong]
        for said in (
            other.a,
            f"It is not {thing.a}.",
            f"{thing.a} or {other.a}",
            f"{other.a}, not {thing.a}",
        ):
            assert not is_right(item, said), (said, item)


def test_a_longer_name_that_holds_the_answer_is_another_thing() -> None:
    bear = NAMED["bear"]
    asked = TASKS["open"].make(Desk("bear", seeded(1), shown=(bear, draw.picture(bear, seeded(2)))))
    assert is_right(asked, "A brown bear.") and not is_right(asked, "It's a teddy bear.")


def test_a_scene_wants_all_of_its_things() -> None:
    for item in suite.items("image-heavy", "test", 20, task="scene"):
        first, *rest = item.answer.split(" and ")
        assert is_right(item, f"I see {' and '.join([*rest, first])}.")
        assert not is_right(item, f"The picture shows {NAMED[first].a}.")


@pytest.mark.parametrize("task", ["price", "sum"])
def test_numbers_are_right_in_figures_in_words_and_in_a_sentence(task: str) -> None:
    for item in suite.items("text-heavy", "test", 20, task=task):
        value = int(item.answer)
        written = words.NUMBER_WORDS[value]
        for said in (f"{value}", f"{value} euros.", written, f"It is {value}.00"):
            assert is_right(item, said), said
        assert not is_right(item, f"{value} and 1 make {value + 1}")


def truth_of_sum(item: Item) -> int:
    first, second = (int(number) for number in re.findall(r"\d+", item.question))
    return first + second


def test_sums_are_right() -> None:
    items = suite.items("text-heavy", "test", 60, task="sum")
    assert [int(item.answer) for item in items] == [truth_of_sum(item) for item in items]


def test_yes_is_the_answer_exactly_where_the_question_names_what_is_shown() -> None:
    for item in suite.items("image-heavy", "test", 60, task="yes_no"):
        shown = NAMED[item.source.removeprefix("thing:")]
        assert (item.answer == "yes") == names(item.question, shown)


def test_a_note_asks_for_what_is_shown_exactly_where_yes_is_the_answer() -> None:
    for task in ("on_note", "fits_label"):
        for item in suite.items("vqa", "test", 40, task=task):
            shown = NAMED[item.source.removeprefix("thing:")]
            assert (item.answer == "yes") == names(item.context or "", shown)


def test_truth_and_lie_say_what_the_picture_shows_and_what_it_does_not() -> None:
    for unseen in (Unseen(), Unseen(captions=True)):
        for item in suite.items("image-heavy", "test", 90, unseen=unseen):
            shown = NAMED[item.source.removeprefix("thing:")]
            told = perturb(item, "true_description").context or ""
            lied = perturb(item, "misleading_description").context or ""
            squeezed = re.sub(r"[^a-z]", "", shown.name)
            assert squeezed in re.sub(r"[^a-z]", "", told.casefold()), (told, shown)
            assert item.task == "scene" or not names(lied, shown), (lied, shown)


def test_of_text_a_passage_names_the_answer_and_the_lie() -> None:
    for task in ("deed", "in_spot", "message", "passage", "boxes", "where", "owner", "colour", "price"):
        for item in suite.items("text-heavy", "test", 25, task=task):
            assert words_of(item.answer) in words_of(item.context or ""), item
            assert words_of(item.wrong) in words_of(item.context or ""), item


def test_every_text_heavy_item_takes_every_picture_and_every_picture_heavy_one_every_caption() -> None:
    kinds = {family: [len(fitting(item)) for item in suite.items(family, "test", 22)] for family in FAMILIES}
    assert set(kinds["image-heavy"]) == {5} and set(kinds["text-heavy"]) == {9} and set(kinds["vqa"]) == {0}


def test_no_lie_and_no_option_is_a_thing_that_may_be_mixed_up_with_the_answer(asked: list[Item]) -> None:
    for item in asked:
        if item.answer in NAMED:
            others = {item.wrong, *item.choices} - {item.answer, "yes", "no"}
            assert not others & alike(item.answer), item


# English


def test_articles_go_by_the_sound() -> None:
    said = {thing.name: thing.a for thing in THINGS}
    assert said["owl"] == "an owl" and said["hourglass"] == "an hourglass"
    assert said["unicorn"] == "a unicorn" and said["fox"] == "a fox"
    assert said["grapes"] == "grapes" and said["honey"] == "honey"


def test_nothing_is_badly_put(asked: list[Item], stream: list[Item]) -> None:
    plural = "|".join(thing.name for thing in THINGS if thing.number == "many")
    mass = "|".join(thing.name for thing in THINGS if thing.number == "mass")
    bad = re.compile(
        r"[{}]{2}|\{\w+_?\}|\ba (?=[aeio]\w)|\ban (?=[bcdfgjklmnpqrstvwxz])|  |\ba a\b"
        rf"|\ban? (?:{plural}|{mass})\b(?! )"
        rf"|\b(?:{plural}) (?:is|was|costs|belongs)\b|\bThis is (?:{plural})\b"
    )
    for item in (*asked, *stream):
        for text in (everything_read(item), item.truth, item.lie, reply_for(item, item.answer)):
            assert not bad.search(text), text
            assert text == text.strip()


def test_no_caption_or_filler_names_a_thing_by_itself() -> None:
    stranger = Thing("zzz", "object", "one", (), "")
    templates = [*words.CAPTIONS.trained, *words.CAPTIONS.held_out]
    said = [say(template, stranger) for template in templates]
    said += [*words.UNRELATED.trained, *words.UNRELATED.held_out]
    assert [(text, thing.name) for text in said for thing in THINGS if names(text, thing)] == []


@pytest.mark.parametrize("task", TASKS)
def test_every_task_asks_in_several_ways(task: str) -> None:
    items = suite.items(TASKS[task].family, "test", 40, task=task)
    assert {item.family for item in items} == {TASKS[task].family}
    assert len({item.question for item in items}) >= 5
    assert all(len(everything_read(item)) < 500 for item in items)


# Placements


def test_a_caption_can_stand_at_six_places() -> None:
    item = suite.items("image-heavy", "test", 1, task="open")[0].replace(context="The picture shows a fox.")
    put = {place: placed(item, place, random.Random(0)) for place in PLACEMENTS}
    assert len(set(PLACEMENTS)) == 6
    assert put["before"] == item
    assert put["above"].question == prompt(item) and put["above"].context is None
    assert put["after"].question == f"{item.question}\nThe picture shows a fox."
    assert put["system"].system.endswith("The picture shows a fox.") and put["system"].context is None
    assert [turn.role for turn in put["earlier"].turns] == ["user", "assistant"]
    assert "The picture shows a fox." in put["earlier"].turns[0].text
    inside = put["within"].question
    assert "fox" in inside.casefold() and inside.endswith(item.question[1:]) and "\n" not in inside
    for other in put.values():
        assert other.answer == item.answer and len(re.findall("fox", everything_read(other), re.I)) == 1


def test_without_a_caption_there_is_nothing_to_place() -> None:
    item = suite.items("image-heavy", "test", 1)[0]
    assert [placed(item, place, random.Random(0)) for place in PLACEMENTS] == [item] * 6


@pytest.mark.parametrize(
    ("caption", "thing"),
    [
        ("On this card you find an owl.", "owl"),
        ("img_palm_tree_final.png", "palm tree"),
        ("It shows a fox and a wolf.", None),
        ("Rain is expected.", None),
    ],
)
def test_the_thing_that_a_caption_names_is_found(caption: str, thing: str | None) -> None:
    assert named_in(caption) == thing


# The mixture


def share(part: list[Item], whole: list[Item]) -> float:
    return len(part) / len(whole)


def test_the_stream_mixes_families_and_the_other_modality_as_stated(stream: list[Item]) -> None:
    families = [share([item for item in stream if item.family == family], stream) for family in FAMILIES]
    assert families == pytest.approx([0.50, 0.28, 0.22], abs=0.05)
    texts = [item for item in stream if item.family == "text-heavy"]
    assert share([item for item in texts if item.image], texts) == pytest.approx(0.60, abs=0.10)
    pictures = [item for item in stream if item.family == "image-heavy" and item.task != "self_ask"]
    bare = [item for item in pictures if everything_read(item) == item.question]
    assert share(bare, pictures) > 0.5  # the rest have their caption somewhere


def test_a_label_never_follows_a_lie() -> None:
    lying = suite.Mixture(captioned=1, caption_true=0, caption_unrelated=0, self_ask=0, families=(1, 0, 0))
    for item in (suite.training_item(index, seed=1, mixture=lying) for index in range(150)):
        shown = NAMED[item.source.removeprefix("thing:")]
        assert item.task != "open" or item.answer == shown.name
        assert item.task != "open" or names(everything_read(item), NAMED[item.wrong])


def test_questions_of_a_page_share_their_picture() -> None:
    page = suite.training_page(0, 12, seed=0, mixture=suite.Mixture(caption_poor=0))
    shown = {item.image.tobytes() for item in page if item.image and item.family != "text-heavy"}
    assert len(shown) == 1 and len({item.id for item in page}) == 12


def test_the_self_question_is_answered_by_the_family(stream: list[Item]) -> None:
    asked = [item for item in stream if item.task == "self_ask"]
    assert asked and {(item.family == "text-heavy", item.answer) for item in asked} <= {
        (True, "no"),
        (False, "yes"),
    }


# Conditions


def test_conditions_have_names_of_their_own_and_say_what_is_kept_out() -> None:
    cells = list(every_condition())
    assert len({cell.name for cell in cells}) == len(cells) > 40
    kept_out = {part for cell in cells for part in cell.held_out.split("+")}
    assert kept_out == {"no", "wording", "captions", "style", "things", "placement", "perturbation"}


def test_a_conditions_items_carry_its_caption_at_its_place() -> None:
    cell = Condition("image-heavy", "misleading_description", Unseen(captions=True), "system")
    assert all(item.system and not item.context for item in cell.items("test", 10))


@pytest.mark.parametrize("name", BARS)
def test_the_bars_ask_what_they_say(name: str) -> None:
    cell = BARS[name]
    items = cell.items("test", 8)
    assert len(items) == 8
    assert all(
        (item.context is not None) == ("caption" in name) for item in items if cell.family == "image-heavy"
    )
