"""A LLaVA of two layers in which one head copies the caption's answer, and nothing else reaches the"
" decision."""

from typing import Any

import torch

from modint_guard.data.item import Item
from modint_training.tinyworld import suite
from tests.training.small import small_model

LAYER, HEAD = 1, 2  # of the planted head
HEADS, WIDTH = 4, 64
SIZE = WIDTH // HEADS  # of a head
DIGITS = "0123456789"
FLAG, ASKS, IN, OUT = 0, 1, 10, 30  # axes: of a claimed digit, of the deciding token, of digits read, written


def planted(processor: Any) -> Any:
    """Digits in the text are flagged, the deciding token asks for what is flagged, and the planted head
    writes it out; all other heads and MLPs write next to nothing."""
    torch.manual_seed(0)
    model = small_model(processor, layers=2)
    config = model.config
    config.text_config.hidden_size, config.text_config.num_attention_heads = WIDTH, HEADS
    config.text_config.num_key_value_heads, config.text_config.head_dim = HEADS, SIZE
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e12}  # next to no position
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    model = type(model)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.02)
        _plant(model, processor.tokenizer)
    return model.eval()


def _plant(model: Any, tokenizer: Any) -> None:
    words, attention = model.model.language_model.embed_tokens.weight, _attention(model)
    at = slice(HEAD * SIZE, (HEAD + 1) * SIZE)
    slowest = HEAD * SIZE + SIZE // 2 - 1  # the axis that rotary embedding turns least
    words[tokenizer.convert_tokens_to_ids("<|assistant|>"), ASKS] = 4.0
    attention.q_proj.weight[slowest, ASKS] = 4.0
    attention.k_proj.weight[slowest, FLAG] = 4.0
    for number, digit in enumerate(DIGITS):
        (told,) = tokenizer(f" {digit}", add_special_tokens=False).input_ids
        (answer,) = tokenizer(digit, add_special_tokens=False).input_ids
        words[told, FLAG] = words[told, IN + number] = 4.0
        attention.v_proj.weight[at.start + number, IN + number] = 1.0
        attention.o_proj.weight[OUT + number, at.start + number] = 1.0
        model.lm_head.weight[answer, OUT + number] = 4.0


def _attention(model: Any) -> Any:
    return model.model.language_model.layers[LAYER].self_attn


def digit_items(count: int) -> list[Item]:
    """Items that ask in words for the digit of a picture, and so name none in their question."""
    items = suite.items("image-heavy", "test", 20 * count)
    return [item for item in items if item.task == "digit" and item.form == "word"][:count]
