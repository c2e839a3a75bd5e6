"""The base's training: tower first, parts of a batch that add up, and a model that fits its limits."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_training.collate import IGNORED, encode, encode_recall
from modint_training.export import export_base, run_record
from modint_training.pretrain import (
    TowerHeads,
    answer_loss,
    look_up_batches,
    pretrain,
    tower_loss,
    training_batches,
)
from modint_training.tinyworld import suite
from modint_training.tinyworld.model import build_model
from modint_training.tinyworld.recall import recall_row
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


def test_a_batch_holds_its_items_sorted_by_length_and_cut_into_parts(processor: Any) -> None:
    recipe = pretrain_recipe("batch=10", "micro_batches=3")
    parts = training_batches(recipe, processor)(2)["parts"]
    assert [len(part["labels"]) for part in parts] == [4, 4, 2]
    items = [suite.training_item(index, seed=0, mixture=suite.Mixture()) for index in range(20, 30)]
    expected = sorted((encode(item, processor).ids for item in items), key=len)
    found = [
        row[: int(mask.sum())].tolist()
        for part in parts
        for row, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
    ]
    assert found == expected


def test_the_mixture_of_the_recipe_is_the_one_that_is_drawn(processor: Any) -> None:
    only = (
        "mixture.families=[0, 1, 0]",
        "mixture.pictured=0",
        "mixture.letter_drill=0",
        "mixture.self_ask=0",
    )
    parts = training_batches(pretrain_recipe(*only), processor)(0)["parts"]
    assert not any("pixel_values" in part for part in parts)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_cutting_a_batch_changes_its_padding_and_not_its_loss(processor: Any, parts: int) -> None:
    model = small_model(processor).eval()
    whole, cut = (
        answer_loss(model, training_batches(pretrain_recipe("batch=10", f"micro_batches={n}"), processor)(0))
        for n in (1, parts)
    )
    # Every answer is one token and its end, so rows weigh the same in any part.
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_tower_learns_each_pictures_own_sub_task(processor: Any) -> None:
    net = TowerHeads(small_model(processor).model.vision_tower, WIDTH)
    assert {name: head.out_features for name, head in net.heads.items()} == {
        "digit": 10,
        "shape": 6,
        "colour": 6,
        "count": 5,
    }
    for head in net.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    batch = {
        "pixel_values": torch.randn(3, 3, 40, 40),
        "task": torch.tensor([0, 0, 3]),
        "label": torch.tensor([7, 1, 2]),
    }
    # Heads of nought guess evenly: (2 ln 10 + ln 5) / 3.
    assert tower_loss(net, batch).item() == pytest.approx((2 * 2.302585 + 1.609438) / 3, abs=1e-5)
    tower_loss(net, batch).backward()
    assert net.heads["shape"].weight.grad is None
    assert net.heads["digit"].weight.grad.abs().sum() > 0


RECIPE = pretrain_recipe()
Finished = tuple[Any, Any, list[dict[str, float]], Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A base of the real size after a step of each warm-up and two of the whole."""
    runs = tmp_path_factory.mktemp("runs")
    return (*pretrain(RECIPE, runs), runs)


def test_a_base_is_looked_at_while_it_trains_and_exported(finished: Finished, tmp_path: Path) -> None:
    model, processor, history, runs = finished
    assert [figures["step"] for figures in history] == [2]
    assert sorted(path.name for path in runs.iterdir()) == ["joint", "language", "tower"]
    export_base(model, processor, tmp_path / "base", run_record(RECIPE, history, {"vqa/clean": 0.1}, 1))
    assert (tmp_path / "base" / "model.safetensors").stat().st_size <= 15e6


def test_a_finished_base_is_taken_up_as_it_ended(finished: Finished) -> None:
    model, _, history, runs = finished
    again, _, taken_up = pretrain(RECIPE, runs, resume="auto")
    assert taken_up == history
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_warm_ups_can_be_left_out(tmp_path: Path) -> None:
    pretrain(pretrain_recipe("tower_steps=0", "language_steps=0", "steps=1"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["joint"]


# The language warm-up


def test_a_recall_row_asks_for_what_its_text_says() -> None:
    kinds = Counter[str]()
    for seed in range(300):
        head, queries = recall_row(random.Random(seed))
        if " has a " in head:
            said = set(re.findall(r"(\w+) has a (\w+ \w+)\.", head))
            assert len(said) == 3 and Counter(queries) == Counter(list(said) * 2)
        else:
            listed = set(re.findall(r"^([A-D])\. (\w+)$", head, flags=re.MULTILINE))
            assert len(listed) == 4
            assert Counter(queries) == Counter([*listed, *((value, letter) for letter, value in listed)])
        kinds["sentences" if " has a " in head else "list"] += 1
    assert kinds["sentences"] / 300 == pytest.approx(0.3, abs=0.08)


def test_only_what_is_wanted_is_a_label(processor: Any) -> None:
    row = encode_recall("A. 3\nB. red", [("B", "red"), ("3", "A")], processor)
    tokens = processor.tokenizer.convert_ids_to_tokens
    assert processor.tokenizer.decode(row.ids) == "<|begin|><|user|>A. 3\nB. red\nB: red\n3: A"
    assert tokens([label for label in row.labels if label != IGNORED]) == ["Ġred", "ĠA"]
    assert [label for label in row.labels if label != IGNORED] == [
        token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORED
    ]
    assert (len(row.labels), row.answer_length, row.image) == (len(row.ids), 2, None)


@pytest.mark.parametrize(("drill", "ends"), [(0, 0), (1, 8)])
def test_look_up_batches_mix_recall_and_drill_as_the_recipe_says(
    processor: Any, drill: int, ends: int
) -> None:
    batches = look_up_batches(pretrain_recipe(f"language_drill={drill}"), processor)
    (part,) = batches(3)["parts"]
    assert (part["labels"] == processor.tokenizer.eos_token_id).sum() == ends  # only drills end a turn
    assert "pixel_values" not in part
    (again,) = look_up_batches(pretrain_recipe(f"language_drill={drill}"), processor)(3)["parts"]
    assert torch.equal(part["input_ids"], again["input_ids"])
