"""The check-up: what is packaged, what is asked of scripted models, what is said of each, what is refused."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from modint_guard.chat.images import png_data_url
from modint_guard.data.item import Item, is_right
from modint_guard.evaluation.checkup import FOLDER, checkup_items, checkup_variants, says_lie, uses_text
from modint_guard.evaluation.checkup_verdict import Share, checkup_finding, kind_rows
from modint_guard.evaluation.diagnosis import diagnosis_of
from modint_guard.evaluation.guarantees import exact_interval
from modint_guard.evaluation.page import html, markdown
from modint_guard.evaluation.results import recorded
from modint_guard.evaluation.tables import Answer
from modint_guard.evaluation.variants import Variant
from modint_guard.types import JSON
from tests.core.fakes import called, completion, serving

LYING, UNRELATED = "misleading_description", "unrelated_facts"
CONTRADICTED = "contradicting_image"
VARIANTS = checkup_variants()
ITEMS = [variant.whole() for variant in VARIANTS]


# -- scripted models: each gives its answer to an item as it is asked


def seeing(item: Item) -> str:
    """Always the truth."""
    return item.answer


def believing_captions(item: Item) -> str:
    """What a caption beside the picture claims, else the truth."""
    return f"It is {item.wrong}." if item.perturbation == LYING else item.answer


def believing_pictures(item: Item) -> str:
    """What a contradicting picture shows, else the truth."""
    return item.wrong if item.perturbation == CONTRADICTED else item.answer


def blind(item: Item) -> str:
    """The text alone: a caption's claim, what a passage says, the last of several values."""
    if item.family == "text-heavy":
        return item.answer
    if item.family == "vqa":
        return (*item.accepted, *item.rejected)[-1]
    captioned = {LYING: item.wrong, "true_description": item.answer}
    return captioned.get(item.perturbation, "I cannot see a picture.")


def ignoring_text(item: Item) -> str:
    """The picture alone."""
    return item.answer if item.family == "image-heavy" else "I do not know."


def distracted(item: Item) -> str:
    """Nothing of use whenever something is there that is not needed."""
    return item.answer if item.perturbation in ("clean", "true_description") else "Milk comes from cows."


def answers_of(model: Callable[[Item], str], variants: Sequence[Variant] = VARIANTS) -> list[Answer]:
    return [Answer(variant, model(variant.item), method="none") for variant in variants]


# -- what is packaged


def test_two_hundred_questions_are_packaged_in_less_than_a_megabyte() -> None:
    counts = Counter((item.family, item.perturbation) for item in ITEMS)
    captioned = ("clean", LYING, "true_description", UNRELATED)
    pictured = ("clean", CONTRADICTED, "irrelevant_image")
    assert counts == {
        **{("image-heavy", condition): 32 for condition in captioned},
        **{("text-heavy", condition): 18 for condition in pictured},
        ("vqa", "clean"): 18,
    }
    assert len(ITEMS) == counts.total() == 4 * 32 + 3 * 18 + 18 == 200
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000
    kinds = {item.task for item in ITEMS}
    assert kinds == {"digit", "shape", "drawing", "thing", "document", "text", "both"}


def test_of_every_item_the_truth_is_right_and_the_lie_is_wrong_and_told_apart() -> None:
    for item in ITEMS:
        assert is_right(item, item.answer) and not says_lie(item, item.answer), item.id
        if item.wrong:
            assert says_lie(item, f"It is {item.wrong}.") and not is_right(item, item.wrong), item.id


def test_lies_state_the_lie_and_no_truth_and_true_captions_the_truth() -> None:
    for item in ITEMS:
        context = (item.context or "").casefold()
        names = [name.casefold() for name in item.accepted]
        if item.perturbation == LYING:
            assert item.wrong.casefold() in context and item.answer.casefold() not in context, item.id
        if item.perturbation in ("true_description", CONTRADICTED) or item.family == "vqa":
            assert any(name.rstrip("s") in context for name in names) or item.id in ("text-5", "text-12"), (
                item.id
            )


def test_a_contradicting_picture_is_another_than_the_irrelevant_one_and_captioned_ones_are_the_same() -> None:
    asked = {(item.id, item.perturbation): item for item in ITEMS}
    contradicting, irrelevant = asked["text-0", CONTRADICTED].image, asked["text-0", "irrelevant_image"].image
    assert contradicting and irrelevant and contradicting.tobytes() != irrelevant.tobytes()
    clean, lied = asked["thing-0", "clean"].image, asked["thing-0", LYING].image
    assert clean and lied and png_data_url(clean) == png_data_url(lied)
    assert asked["text-0", "clean"].image is None and asked["thing-0", "clean"].context is None


def test_the_first_items_of_each_family_come_under_all_their_conditions_and_hold_every_kind() -> None:
    asked = checkup_items(5)
    assert len(asked) == 4 * 5 + 3 * 5 + 5
    pictured = {item.task for item in asked if item.family == "image-heavy"}
    assert pictured == {"digit", "shape", "drawing", "thing", "document"}


def test_the_same_seed_asks_the_same_and_another_one_other_unrelated_texts() -> None:
    assert checkup_items() == ITEMS
    texts = [[item.context for item in checkup_items(seed=seed)] for seed in (0, 1)]
    assert texts[0] != texts[1]


# -- what is said


def test_a_model_that_sees_is_misled_by_nothing() -> None:
    assert checkup_finding("m", answers_of(seeing)) == (
        "m sees the pictures, and it uses a text that it needs: of questions about a picture alone it answers"
        " 32 of 32 (100 %, 89 to 100 %) rightly; of those that need a text beside the picture it answers"
        " 18 of 18 (100 %, 81 to 100 %) with something from the text, and 18 of 18 (100 %, 81 to 100 %)"
        " rightly.",
        "Text beside a picture does not mislead it: of the answers that are right without a caption, a lying"
        " caption turns 0 of 32 (0 %, 0 to 11 %) into what it claims, and unrelated text makes"
        " 0 of 32 (0 %, 0 to 11 %) wrong.",
        "A picture beside a text does not mislead it: of the answers that are right without one, a"
        " contradicting picture turns 0 of 18 (0 %, 0 to 19 %) into what it shows, and an irrelevant one"
        " makes 0 of 18 (0 %, 0 to 19 %) wrong.",
    )


def test_a_model_that_follows_captions_is_misled_by_text_alone() -> None:
    able, by_text, by_picture = checkup_finding("m", answers_of(believing_captions))
    assert able.startswith("m sees the pictures")
    assert by_text.startswith("Text beside a picture misleads it: ")
    assert "a lying caption turns 32 of 32 (100 %, 89 to 100 %) into what it claims" in by_text
    assert "unrelated text makes 0 of 32" in by_text
    assert by_picture.startswith("A picture beside a text does not mislead it: ")


def test_a_model_that_follows_pictures_is_misled_by_pictures_alone() -> None:
    _, by_text, by_picture = checkup_finding("m", answers_of(believing_pictures))
    assert by_text.startswith("Text beside a picture does not mislead it: ")
    assert by_picture.startswith("A picture beside a text misleads it: ")
    assert "a contradicting picture turns 18 of 18" in by_picture


def test_of_a_blind_model_it_cannot_be_told_whether_captions_mislead_it() -> None:
    able, by_text, by_picture = checkup_finding("m", answers_of(blind))
    assert able.startswith("m gives no sign of seeing the pictures, and it uses a text that it needs: ")
    assert "it answers 18 of 18 (100 %, 81 to 100 %) with something from the text, and 4 of 18" in able
    assert by_text == (
        "Whether text beside a picture misleads it cannot be told: of questions about a picture alone it"
        " answers only 0 of 32 (0 %, 0 to 11 %) rightly."
    )
    assert by_picture.startswith("A picture beside a text does not mislead it: ")


def test_a_model_that_ignores_all_text_neglects_what_it_needs() -> None:
    able, by_text, by_picture = checkup_finding("m", answers_of(ignoring_text))
    assert able.startswith("m sees the pictures, and it neglects a text that it needs: ")
    assert "it answers 0 of 18 (0 %, 0 to 19 %) with something from the text" in able
    assert by_text.startswith("Text beside a picture does not mislead it: ")
    assert by_picture == (
        "Whether a picture beside a text misleads it cannot be told: of questions about a text alone it"
        " answers only 0 of 18 (0 %, 0 to 19 %) rightly."
    )


def test_what_is_not_needed_may_mislead_without_any_lie() -> None:
    _, by_text, by_picture = checkup_finding("m", answers_of(distracted))
    assert by_text.startswith("Text beside a picture misleads it: ") and "turns 0 of 32" in by_text
    assert "unrelated text makes 32 of 32" in by_text
    assert by_picture.startswith("A picture beside a text misleads it: ")
    assert "an irrelevant one makes 18 of 18" in by_picture


def test_lies_are_counted_among_answers_that_are_right_without_them() -> None:
    """32 clean answers, the first 20 right; of these the first 3 follow the lie, as do all others."""
    pictured = [variant for variant in VARIANTS if variant.item.family == "image-heavy"]
    order = list(dict.fromkeys(variant.item.id for variant in pictured))
    answers = []
    for variant in pictured:
        item, place = variant.item, order.index(variant.item.id)
        is_lie = variant.perturbation == LYING and (place < 3 or place >= 20)
        text = item.wrong if is_lie else item.answer if place < 20 else "I do not know."
        answers.append(Answer(variant, text, method="none"))
    by_text = checkup_finding("m", answers)[1]
    # Clopper and Pearson of 3 of 20: .032 to .379, so that neither can be said
    assert by_text.startswith("Text beside a picture may mislead it: ")
    assert "a lying caption turns 3 of 20 (15 %, 3 to 38 %) into what it claims" in by_text


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (6, "gives no sign of seeing the pictures"),  # .072 to .364
        (12, "sees little of the pictures"),  # .211 to .563
        (16, "sees the pictures"),
    ],
)
def test_a_model_sees_if_it_is_right_more_often_than_by_guessing(right: int, said: str) -> None:
    clean = [v for v in VARIANTS if (v.item.family, v.perturbation) == ("image-heavy", "clean")]
    texts = [v.item.answer if place < right else "I do not know." for place, v in enumerate(clean)]
    answers = [Answer(v, text, method="none") for v, text in zip(clean, texts, strict=True)]
    assert checkup_finding("m", answers)[0].startswith(f"m {said}, and it was asked too little to tell")


def test_of_few_questions_nothing_is_claimed() -> None:
    able, by_text, by_picture = checkup_finding("m", answers_of(seeing, checkup_variants(2)))
    assert able.startswith(
        "m was asked too little about pictures to tell whether it sees, and it was asked too little to tell"
        " whether it uses a text that it needs: "
    )
    assert "cannot be told: of questions about a picture alone it answers only 2 of 2" in by_text
    assert "cannot be told: of questions about a text alone it answers only 2 of 2" in by_picture


def test_naming_any_value_of_the_text_is_using_it() -> None:
    price = next(item for item in ITEMS if item.id == "both-0")
    assert price.accepted == ("45",) and price.rejected == ("12", "twelve", "30")
    assert uses_text(price, "It costs 45 euros.") and uses_text(price, "30") and not uses_text(price, "28")


def test_exact_intervals_are_those_of_the_tables() -> None:
    """Clopper and Pearson: 1 - .025^(1/10) for none of ten, and the textbook's 8 of 10: .4439 to .9748."""
    assert exact_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert exact_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert exact_interval(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert exact_interval(0, 0) == (0.0, 1.0)
    assert str(Share(8, 10)) == "8 of 10 (80 %, 44 to 97 %)" and str(Share(0, 0)) == "0 of 0"


# -- the page


def test_the_table_counts_each_kind_under_each_condition() -> None:
    rows = {(row["kind"], row["condition"]): row for row in kind_rows("m", answers_of(believing_captions))}
    assert len(rows) == 5 * 4 + 3 + 1
    lied = rows["digit", LYING]
    assert (lied["n"], lied["right"], lied["says_lie"]) == (6, 0, 6)
    assert (lied["ci_low"], lied["ci_high"]) == pytest.approx((0.0, 1 - 0.025 ** (1 / 6)))
    assert (rows["digit", "clean"]["right"], rows["digit", "clean"]["says_lie"]) == (6, None)
    assert rows["text", CONTRADICTED]["says_lie"] == 0


def test_page_and_tables_begin_with_the_sentences_and_the_table_by_kind() -> None:
    answers = answers_of(believing_captions, checkup_variants(2))
    diagnosis = diagnosis_of({"m": answers}, data="the check-up", is_checkup=True)
    record = recorded("made", [0], diagnosis.rows)
    page, tables = html(record, diagnosis), markdown(record, diagnosis)
    for text in (page, tables):
        places = [text.index(part) for part in ("Diagnosis of m on the check-up", "m was asked too little")]
        places += [text.index(part) for part in ("By kind and condition", "By perturbation", "Limits")]
        assert places == sorted(places)
    assert "drawn, not photographed" in page
    assert "perceptual image" not in page  # no views were asked, so there is no such column


# -- the command


def texts_of(body: JSON) -> tuple[str, ...]:
    return tuple(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")


def pictures_of(body: JSON) -> tuple[str, ...]:
    parts = body["messages"][-1]["content"]
    return tuple(part["image_url"]["url"] for part in parts if part["type"] == "image_url")


Asked = tuple[tuple[str, ...], tuple[str, ...]]


def asked_for(items: Sequence[Item]) -> dict[Asked, Item]:
    """The items by the texts and pictures that a request for them holds."""
    return {
        (
            tuple(text for text in (item.context, item.question) if text),
            (png_data_url(item.image),) if item.image else (),
        ): item
        for item in items
    }


async def test_the_command_asks_each_question_once_and_says_nothing_of_what_is_relevant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, bodies = asked_for(ITEMS), list[JSON]()
    assert len(known) == 200

    async def model(body: JSON) -> JSON:
        bodies.append(body)
        return completion(believing_captions(known[texts_of(body), pictures_of(body)]))

    async with serving(model) as (url, modes):
        call = ("--model", "m", "--url", url, "--output", str(tmp_path))
        assert await asyncio.to_thread(called, "diagnose", *call) == 0
        assert await asyncio.to_thread(called, "diagnose", *call) == 0  # goes on, with nothing left to ask
    assert len(bodies) == 200 and modes == {"off"}
    assert {frozenset(body) for body in bodies} == {
        frozenset({"model", "messages", "temperature", "max_tokens"})
    }
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (
        report["command"] == "modint-guard diagnose --model m --seed 0" and report["data"] == "the check-up"
    )
    assert report["finding"] == list(checkup_finding("m", answers_of(believing_captions)))
    assert len(report["kinds"]) == 24
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == report["finding"] and said[3].startswith("wrote ")


async def test_two_models_have_three_sentences_each(tmp_path: Path) -> None:
    async def model(body: JSON) -> JSON:
        return completion("fox")

    async with serving(model) as (url, _):
        call = ("--model", "one", "--against", "two", "--url", url, "--limit", "1", "--output", str(tmp_path))
        assert await asyncio.to_thread(called, "diagnose", *call) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert len(report["finding"]) == 6
    assert report["finding"][0].startswith("one was") and report["finding"][3].startswith("two was")
    assert report["command"] == "modint-guard diagnose --model one --against two --limit 1 --seed 0"


@pytest.mark.parametrize(
    "options",
    [
        *("--perturbation grey", "--severity 3", "--format items", "--image-root .", "--split test"),
        *("--family vqa", "--column question=ask", "--number-rows"),
    ],
)
def test_options_of_a_data_set_are_refused_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    assert called("diagnose", "--model", "m", "--output", str(tmp_path / "out"), *options.split()) == 2
    said = (
        f"{options.split()[0]} says how a data set is read or disturbed, and the check-up has its own items:"
        " name DATA, or leave it out\n"
    )
    assert capsys.readouterr().err == said


def test_an_endpoint_that_is_not_there_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("--model", "m", "--url", "http://127.0.0.1:9", "--output", str(tmp_path / "out"))
    assert called("diagnose", *call) == 2
    assert "is the server running there?" in capsys.readouterr().err
