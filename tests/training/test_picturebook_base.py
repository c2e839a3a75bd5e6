"""The picture-book's base: pages of questions, the tower's losses, the LoRA, and its recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from modint_guard.errors import ConfigError
from modint_guard.models import smollm2
from modint_guard.models.picturebook import LANGUAGE, merged_weights
from modint_training.method.labels import IGNORED
from modint_training.picturebook.augment import plain, varied
from modint_training.picturebook.card import picturebook_card
from modint_training.picturebook.pages import (
    Page,
    Turn,
    collate_pages,
    page_mask,
    turn_losses,
)
from modint_training.picturebook.recipe import PicturebookRecipe
from modint_training.picturebook.shown import DrawnBatch, drawn_batches, held_out_drawings, trained_drawings
from modint_training.picturebook.speak import Speaker, lora_weights, speak_loss
from modint_training.picturebook.tower import VISUAL_TOKENS, NameTokens, Reader, start_well, tower_loss
from modint_training.recipe_files import load_recipe
from tests.core.small_gguf import small_gguf

NO_PICTURES = torch.empty(0, 3, 64, 64)


class Tokens:
    """What `collate_pages` needs of a processor if no page has a picture."""

    class tokenizer:  # noqa: N801
        pad_token_id = 0


def two_turns() -> Page:
    return Page(beginning=[7, 8], turns=[Turn([1], [2, 3]), Turn([4, 5], [6])])


def test_a_pages_turns_go_on_from_the_shared_beginning() -> None:
    batch = collate_pages([two_turns(), Page([9], [Turn([1], [2])])], Tokens)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 6], [9, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, -1, -1, -1, -1, -1]]
    ignored = IGNORED
    assert batch.labels[0].tolist() == [ignored, ignored, ignored, 2, 3, ignored, ignored, 6]
    assert len(batch.pixels) == 0


def test_a_turn_attends_to_the_beginning_and_to_itself() -> None:
    seen = page_mask(torch.tensor([[0, 0, 0, 0, -1]]), torch.tensor([[0, 1, 1, 2, -1]]))[0, 0] == 0
    expected = [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, False, False, True, False],  # not the turn before
        [False, False, False, False, True],  # padding sees itself alone, and nothing sees it
    ]
    assert seen.tolist() == expected


def test_every_turn_weighs_the_same_however_long_its_answer_is() -> None:
    losses = torch.tensor([1.0, 3.0, 10.0])  # a turn of two tokens, mean 2, and one of a token
    value = turn_losses(losses, torch.tensor([1, 1, 2]), torch.tensor([0, 0, 0]))
    assert float(value) == pytest.approx((2 + 10) / 2)


def test_equal_segments_of_two_rows_are_two_turns() -> None:
    value = turn_losses(torch.tensor([2.0, 4.0]), torch.tensor([1, 1]), torch.tensor([0, 1]))
    assert float(value) == pytest.approx(3.0)


def small_language() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_implementation="eager",
    )
    return LlamaModel(config).eval()


def speaker(language: nn.Module, first: int = 0) -> Speaker:
    names = NameTokens(torch.randn(3, 32), torch.zeros(2, VISUAL_TOKENS, dtype=torch.long))
    return Speaker(Reader(names), language, first=first, rank=2, image_token=15)


def test_a_page_gives_the_logits_of_its_questions_asked_one_by_one() -> None:
    net = speaker(small_language())
    together = net(collate_pages([two_turns()], Tokens))
    alone = [net(collate_pages([Page([7, 8], [turn])], Tokens)) for turn in two_turns().turns]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_short_pages_share_a_row_and_give_the_logits_that_they_give_alone() -> None:
    net = speaker(small_language())
    short = [Page([9], [Turn([3], [2])]), Page([], [Turn([6, 3], [4])])]
    batch = collate_pages([short[0], two_turns(), short[1]], Tokens)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 6], [9, 3, 2, 6, 3, 4, 0, 0]]
    assert batch.pages.tolist() == [[0] * 8, [0, 0, 0, 1, 1, 1, -1, -1]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 2, -1, -1]]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    alone = [net(collate_pages([page], Tokens)) for page in (two_turns(), *short)]
    assert torch.allclose(net(batch), torch.cat(alone), atol=1e-5)


def test_a_picture_takes_the_places_of_its_tokens() -> None:
    net = speaker(small_language())
    page = collate_pages([Page([7, *[15] * VISUAL_TOKENS, 8], [Turn([1], [2])])], Tokens)
    first, second = (
        net(replace(page, pixels=pixels)) for pixels in (torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))
    )
    assert first.shape == (1, 16)
    assert not torch.allclose(first, second)


def test_only_the_lora_of_the_upper_layers_is_trained_and_saved() -> None:
    net = speaker(small_language(), first=1)
    saved = net.state_dict()
    assert saved and all("layers.1." in name and "lora_" in name for name in saved)
    before = {name: value.clone() for name, value in saved.items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    speak_loss(net, collate_pages([two_turns()], Tokens)).backward()
    optimizer.step()
    assert any(not torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.load_state_dict(before)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_checkpoint_holds_all_that_is_trained_and_the_rest_is_not_missed() -> None:
    net, other = speaker(small_language(), first=1), speaker(small_language(), first=1)
    loaded = other.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    assert all(torch.equal(other.state_dict()[name], value + 1) for name, value in net.state_dict().items())
    (name, *others) = net.state_dict()
    assert other.load_state_dict({key: net.state_dict()[key] for key in others}).missing_keys == [name]


def test_the_merged_model_speaks_as_the_trained_one(tmp_path: Path) -> None:
    gguf = small_gguf(tmp_path)

    def language(weights: dict[str, torch.Tensor]) -> LlamaModel:
        model = LlamaModel(LlamaConfig(**smollm2.text_config(gguf), attn_implementation="eager"))
        model.load_state_dict(weights)
        return model.eval()

    own = {name: torch.from_numpy(value) for name, value in smollm2.language_weights(gguf)}
    net = speaker(language(own))
    torch.manual_seed(1)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    parts = {name: value.numpy() for name, value in lora_weights(net).items()}
    merged = {
        name.removeprefix(LANGUAGE): torch.from_numpy(np.array(value))
        for name, value in merged_weights(gguf, parts)
    }
    ids = torch.tensor([[1, 4, 5, 6]])
    page = collate_pages([Page([1], [Turn([4, 5], [6])])], Tokens)
    states = language(merged)(input_ids=ids).last_hidden_state
    expected = states[0, 2] @ merged["embed_tokens.weight"].T
    assert torch.allclose(net(page)[0], expected, atol=1e-3, rtol=1e-3)


def test_the_tower_learns_three_drawings() -> None:
    torch.manual_seed(0)
    drawings = trained_drawings().plain()
    batch = DrawnBatch(drawings.pixels[:3], torch.tensor([0, 1, 2]))
    net = Reader(NameTokens(torch.randn(6, 16), torch.randint(6, (3, VISUAL_TOKENS))))
    start_well(net, drawings.pixels[:40])
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    first = float(tower_loss(net, batch).detach())
    for _ in range(25):
        optimizer.zero_grad()
        tower_loss(net, batch).backward()
        optimizer.step()
    _, logits = net(batch.pixels)
    assert float(tower_loss(net, batch).detach()) < first / 2
    assert logits.argmax(-1).tolist() == [0, 1, 2]


def test_visual_tokens_on_the_words_lose_nothing() -> None:
    vectors = torch.eye(3) * 10
    net = Reader(NameTokens(vectors, torch.tensor([[0, 1] * 8 + [2]])))
    nearest, distance = net.word_losses(vectors[net.targets[:1]], torch.tensor([0]))
    assert float(nearest) == pytest.approx(0, abs=1e-6)
    assert float(distance) == 0


def test_batches_depend_on_stage_seed_and_step_alone_and_show_no_held_out_style() -> None:
    batches = drawn_batches("tower", 0, 4)
    (first,), (again,), (other,) = batches(5), batches(5), batches(6)
    assert torch.equal(first.pixels, again.pixels) and not torch.equal(first.pixels, other.pixels)
    assert first.pixels.shape == (4, 3, 64, 64)
    assert float(first.pixels.min()) >= -1 and float(first.pixels.max()) <= 1
    trained, held_out = trained_drawings().pixels, held_out_drawings().pixels
    assert not any(bool((trained == drawing).flatten(1).all(dim=1).any()) for drawing in held_out[:20])


def test_a_drawing_without_ink_is_white_and_variations_differ() -> None:
    clear = torch.zeros(2, 4, 72, 72, dtype=torch.uint8)
    assert torch.equal(plain(clear), torch.ones(2, 3, 64, 64))
    drawings = trained_drawings().pixels[:2].repeat(2, 1, 1, 1)
    pictures = varied(drawings, torch.Generator().manual_seed(0))
    assert not torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("mixture.caption_true=0.95", r"mixture: caption_true and caption_unrelated are shares of one whole"),
        ("mixture.families=[0, 0, 0]", "families must not all be 0"),
        ("mixture.captoined=0.1", r"unknown key 'mixture\.captoined'; did you mean 'captioned'\?"),
        ("tower_steps=0", "tower_steps: Input should be greater than 0"),
        ("first_layer=30", "first_layer: Input should be less than 30"),
    ],
)
def test_a_wrong_recipe_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_recipe("picturebook-base", [override])


def test_the_card_names_the_ratios_both_hashes_and_the_accuracies() -> None:
    recipe = load_recipe("picturebook-base")
    assert isinstance(recipe, PicturebookRecipe)
    run: dict[str, Any] = {
        "recipe": recipe.model_dump(),
        "data_sha256": "d" * 64,
        "weights_sha256": "a" * 64,
        "test": [
            {
                **{"family": "image-heavy", "perturbation": "clean", "held_out": "style", "task": "all"},
                **{"n": 8, "accuracy": 0.75, "ci_low": 0.5, "ci_high": 1.0},
            }
        ],
    }
    card = picturebook_card(run)
    assert "| true | captions | 90% |" in card and "| lying | captions | 0% |" in card
    assert "a" * 64 in card and "bcc81830d10c" in card
    assert "| image-heavy | clean | style | all | 8 | 0.75 | [0.50, 1.00] |" in card
