"""The base's training: tower first, parts of a batch that add up, and a model that fits its limits."""

import dataclasses
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_guard.errors import ConfigError
from modint_training.data.collate import encode
from modint_training.loop.trainer import Trained
from modint_training.method.labels import IGNORED
from modint_training.models.export import export_model
from modint_training.run_record import run_record
from modint_training.tinyworld import suite
from modint_training.tinyworld.card import base_card
from modint_training.tinyworld.conditions import WATCHED
from modint_training.tinyworld.guided import guided_loss
from modint_training.tinyworld.model import build_model
from modint_training.tinyworld.pretrain import look_up_batches, pretrain, stage_of, training_batches
from modint_training.tinyworld.recall import RecallRow, encode_recall, picture_row, text_row
from modint_training.tinyworld.scenes import counts
from modint_training.tinyworld.tasks import NUMBER_WORDS
from modint_training.tinyworld.tower import TowerBatch, TowerHeads, tower_batch, tower_loss
from tests.training.small import WIDTH, pretrain_recipe, small_model


def test_the_base_is_a_llava_within_its_limits(processor: Any) -> None:
    model = build_model(processor.tokenizer)
    count = sum(tensor.numel() for tensor in model.parameters())  # tied weights count once
    assert count <= 3_500_000
    assert count * 4 <= 15e6  # float32 bytes of the shipped file
    assert (model.config.model_type, model.config.vision_config.model_type) == ("llava", "clip_vision_model")
    assert model.config.text_config.model_type == "llama"
    assert model.config.text_config.tie_word_embeddings
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_several_processes_do_not_train_a_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="kind: pretrain trains in one process, and 2 were started: leave"):
        pretrain(pretrain_recipe(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_holds_its_items_sorted_by_length_and_cut_into_parts(processor: Any) -> None:
    recipe = pretrain_recipe("batch=10", "micro_batches=3")
    parts = training_batches(recipe, processor)(2)[0].parts
    assert [len(part.labels) for part in parts] == [4, 4, 2]
    items = [suite.training_item(index, seed=0, mixture=suite.Mixture()) for index in range(20, 30)]
    expected = sorted((encode(item, processor).ids for item in items), key=len)
    found = [
        row[: int(mask.sum())].tolist()
        for part in parts
        for row, mask in zip(part.inputs["input_ids"], part.inputs["attention_mask"], strict=True)
    ]
    assert found == expected


def test_the_mixture_of_the_recipe_is_the_one_that_is_drawn(processor: Any) -> None:
    only = (
        "mixture.families=[0, 1, 0]",
        "mixture.pictured=0",
        "mixture.letter_drill=0",
        "mixture.self_ask=0",
    )
    parts = training_batches(pretrain_recipe(*only), processor)(0)[0].parts
    assert not any("pixel_values" in part.inputs for part in parts)


def test_stages_change_the_mixture_from_their_step_on(processor: Any) -> None:
    stages = "stages=[{start: 2, late: true}, {start: 5, families: [0, 1, 0], pictured: 0}]"
    recipe, whole = pretrain_recipe(stages, "batch=8"), suite.Mixture()
    assert stage_of(recipe, whole, 1) == whole
    assert stage_of(recipe, whole, 4) == dataclasses.replace(whole, late=True)
    last = dataclasses.replace(whole, families=(0, 1, 0), pictured=0)
    assert stage_of(recipe, whole, 5) == stage_of(recipe, whole, 99) == last
    batches = training_batches(recipe, processor)
    assert any("pixel_values" in part.inputs for part in batches(1)[0].parts)
    assert not any("pixel_values" in part.inputs for part in batches(5)[0].parts)


def test_what_is_learnt_last_is_drawn_more_often_when_it_is_late() -> None:
    def share(late: bool) -> float:
        mixture = suite.Mixture(families=(0, 0, 1), late=late, letter_drill=0, self_ask=0)
        drawn = [suite.training_item(index, seed=0, mixture=mixture) for index in range(400)]
        return sum(item.task in ("is_colour", "shape_of_colour") for item in drawn) / len(drawn)

    assert share(False) == pytest.approx(2 / 5.5, abs=0.07)
    assert share(True) == pytest.approx(6 / 9.5, abs=0.07)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_cutting_a_batch_changes_its_padding_and_not_its_loss(processor: Any, parts: int) -> None:
    model = small_model(processor, layers=3).eval()
    model.set_attn_implementation("eager")
    whole, cut = (
        guided_loss(
            model, training_batches(pretrain_recipe("batch=10", f"micro_batches={n}"), processor)(0)[0], 0.3
        )
        for n in (1, parts)
    )
    # Every answer is one token and its end, so rows weigh the same in any part.
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_tower_learns_digits_and_all_that_a_scene_holds(processor: Any) -> None:
    net = TowerHeads(small_model(processor).model.vision_tower, WIDTH)
    for head in (net.digit, net.counts):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    batch = TowerBatch(
        pixel_values=torch.randn(3, 3, 40, 40),
        digit=torch.tensor([7, IGNORED, 0]),
        counts=torch.tensor([[IGNORED] * 36, counts((("star", "red"),)), [IGNORED] * 36]),
    )
    # Heads of nought guess evenly: two digits of ten, 36 counts of 0 to 6, over three pictures.
    expected = (2 * 2.302585 + 36 * 1.945910) / 3
    assert tower_loss(net, batch).item() == pytest.approx(expected, abs=1e-4)
    tower_loss(net, batch).backward()
    assert net.digit.weight.grad.abs().sum() > 0 and net.counts.weight.grad.abs().sum() > 0


def test_tower_batches_hold_digits_and_scenes_and_depend_on_their_numbers_alone(processor: Any) -> None:
    one, same = (tower_batch("train", 0, range(64, 128), processor) for _ in range(2))
    assert all(torch.equal(vars(one)[name], vars(same)[name]) for name in vars(one))
    digits = one.digit != IGNORED
    assert 0.15 < digits.float().mean() < 0.45
    assert torch.equal(digits, (one.counts == IGNORED).all(dim=1))
    assert not torch.equal(one.digit, tower_batch("train", 1, range(64, 128), processor).digit)


RECIPE = pretrain_recipe()
Finished = tuple[Trained, Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A base of the real size after a step of each warm-up and two of the whole."""
    runs = tmp_path_factory.mktemp("runs")
    return pretrain(RECIPE, runs), runs


def test_a_base_is_looked_at_while_it_trains_and_exported(finished: Finished, tmp_path: Path) -> None:
    trained, runs = finished
    assert [figures["step"] for figures in trained.history] == [2]
    assert set(trained.history[0]) == {"step", *(condition.name for condition in WATCHED)}
    assert sorted(path.name for path in runs.iterdir()) == ["joint", "language", "tower"]
    record = run_record(RECIPE, trained.history, [], 1)
    export_model(trained.model, trained.processor, tmp_path / "base", record, card=base_card)
    assert (tmp_path / "base" / "model.safetensors").stat().st_size <= 15e6


def test_a_finished_base_is_taken_up_as_it_ended(finished: Finished) -> None:
    trained, runs = finished
    again = pretrain(RECIPE, runs, resume="auto")
    assert again.history == trained.history
    before, after = trained.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_warm_ups_can_be_left_out(tmp_path: Path) -> None:
    pretrain(pretrain_recipe("tower_steps=0", "language_steps=0", "steps=1"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["joint"]


# The language warm-up


def rows(make: Any, count: int = 400) -> list[RecallRow]:
    return [make(random.Random(seed)) for seed in range(count)]


def test_rows_about_a_text_ask_for_what_it_says() -> None:
    seen = Counter[str]()
    for row in rows(text_row):
        assert row.image is None
        if row.head.startswith("A. "):
            seen["lists"] += 1
            listed = re.findall(r"^([A-D])\. (\w+)$", row.head, flags=re.MULTILINE)
            assert Counter(row.queries) == Counter([*listed, *((value, letter) for letter, value in listed)])
        elif row.head:
            seen["captions"] += 1
            ((_, answer),) = row.queries
            assert answer in re.findall(r"\w+", row.head)
        else:
            seen["sums"] += 1
            assert all(str(value_of(named)) == wanted for named, wanted in row.queries)
    assert set(seen) == {"lists", "sums", "captions"} and min(seen.values()) > 20


def value_of(named: str) -> int:
    for number, word in enumerate(NUMBER_WORDS):
        named = named.replace(word, str(number))
    numbers = [int(digit) for digit in re.findall(r"\d", named)]
    if "plus" in named:
        return sum(numbers)
    if "minus" in named:
        return numbers[0] - numbers[1]
    return (max if named.startswith("largest") else min)(numbers)


def test_rows_about_a_picture_ask_for_what_it_shows() -> None:
    for row in rows(picture_row, 200):
        assert row.image is not None and row.head == "" and row.queries
        asked = dict(row.queries)
        digit = next(
            (int(wanted) - number_in(named) for named, wanted in asked.items() if "plus" in named), None
        )
        if digit is not None:
            assert all(int(wanted) == digit + number_in(named) <= 9 for named, wanted in asked.items())
        elif "shape" in asked:
            assert "colour" not in asked or asked[f"{asked['colour']} shapes"] == asked["count"]
        elif "digit" not in asked:
            assert len(asked) == 4  # two figures, each asked for by its shape and by its colour
            assert all(asked[wanted] == named for named, wanted in asked.items())


def number_in(named: str) -> int:
    return NUMBER_WORDS.index(named.split()[-1]) if "plus" in named else 0


def test_only_what_is_wanted_is_a_label(processor: Any) -> None:
    row = encode_recall(RecallRow("A. 3\nB. red", [("B", "red"), ("3", "A")]), processor)
    tokens = processor.tokenizer.convert_ids_to_tokens
    assert processor.tokenizer.decode(row.ids) == "<|begin|><|user|>A. 3\nB. red\nB:red\n3:A"
    # The tokens of whole answers, not those of words inside a sentence.
    assert tokens([label for label in row.labels if label != IGNORED]) == ["red", "A"]
    assert [label for label in row.labels if label != IGNORED] == [
        token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORED
    ]
    assert (len(row.labels), row.answer_length, row.image) == (len(row.ids), 2, None)


def test_a_picture_stands_before_what_is_asked_of_it(processor: Any) -> None:
    row = encode_recall(picture_row(random.Random(0)), processor)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert row.image is not None
    assert row.ids[2 : 2 + 26] == [image] * 26
    assert row.ids.count(image) == 26


@pytest.mark.parametrize(("drill", "pictures", "ends", "shown"), [(0, 0, 0, 0), (1, 0, 8, 0), (0, 1, 0, 8)])
def test_look_up_batches_mix_their_rows_as_the_recipe_says(
    processor: Any, drill: float, pictures: float, ends: int, shown: int
) -> None:
    shares = (f"language_drill={drill}", f"language_pictures={pictures}", "language_look_up=0")
    recipe = pretrain_recipe(*shares, "micro_batches=2")
    parts = look_up_batches(recipe, processor)(3)[0].parts
    assert [len(part.labels) for part in parts] == [4, 4]
    eos = processor.tokenizer.eos_token_id
    assert sum(int((part.labels == eos).sum()) for part in parts) == ends  # only drills end a turn
    assert sum(len(part.inputs.get("pixel_values", ())) for part in parts) == shown
    again = look_up_batches(recipe, processor)(3)[0].parts
    assert all(
        torch.equal(a.inputs["input_ids"], b.inputs["input_ids"]) for a, b in zip(parts, again, strict=True)
    )
