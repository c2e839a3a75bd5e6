"""Attention to pictures scaled in transformers: by hand, per family, under an adapter, and gone after."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from modint_guard.errors import ConfigError
from modint_training.data.collate import collate, encode
from modint_training.method.passes import unwrap
from modint_training.models.image_attention import image_attention, image_token
from tests.core.items import DIGIT
from tests.training.small_families import small_family

ITEM = DIGIT.replace(
    question="What colour is the shape?", choices=("red", "blue"), answer="red", wrong="blue"
)


def logits(model: Any, inputs: dict[str, Tensor], gain: float) -> Tensor:
    with torch.no_grad(), image_attention(model, gain):
        return model(**inputs, use_cache=False).logits


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def asked(request: pytest.FixtureRequest, processor: Any) -> tuple[Any, dict[str, Tensor]]:
    model, own = small_family(request.param, processor)
    inputs = collate([encode(ITEM, own)], own).inputs
    return model.eval(), inputs


def test_a_gain_of_one_is_the_model_itself(asked: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = asked
    assert torch.equal(logits(model, inputs, 1.0), model(**inputs, use_cache=False).logits)


def test_a_gain_moves_what_comes_after_the_picture_and_nothing_before_it(
    asked: tuple[Any, dict[str, Tensor]],
) -> None:
    model, inputs = asked
    plain, scaled = logits(model, inputs, 1.0), logits(model, inputs, 3.0)
    first = int((inputs["input_ids"][0] == image_token(model.config)).int().argmax())
    assert torch.equal(plain[0, :first], scaled[0, :first])
    assert (plain[0, -1] - scaled[0, -1]).abs().max() > 1e-4
    assert torch.equal(logits(model, inputs, 1.0), plain)  # no hook is left


def test_the_attention_is_that_worked_out_by_hand(processor: Any) -> None:
    """One layer, one head: the last token attends by a softmax of logits, those of a picture g-fold."""
    model, own = small_family("llava", processor)
    model.eval().set_attn_implementation("eager")
    inputs = collate([encode(ITEM, own)], own).inputs
    is_picture = inputs["input_ids"][0] == image_token(model.config)

    def weights(gain: float) -> Tensor:
        with torch.no_grad(), image_attention(model, gain):
            made = model(**inputs, use_cache=False, output_attentions=True)
        return made.attentions[0][0, 0, -1].double()

    plain, scaled = weights(1.0), weights(2.0)
    raw = plain.log()  # the logits but for one constant, which the first token's own logit tells
    one = unwrap(model)
    hidden: list[Tensor] = []
    attention = one.get_submodule("model.language_model").layers[0].self_attn
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: hidden.append(kwargs["hidden_states"]), with_kwargs=True
    )
    weights(1.0)
    hook.remove()
    logit = float(_logits(one, attention, hidden[0])[0])
    exact = raw - raw[0] + logit
    expected = (exact * torch.where(is_picture, 2.0, 1.0)).softmax(-1)
    assert torch.allclose(scaled, expected, atol=1e-5)
    assert math.isclose(float(scaled.sum()), 1.0, rel_tol=1e-6)


def _logits(model: Any, attention: Any, hidden: Tensor) -> Tensor:
    """q.k / sqrt(d) of the last token with every token, rotated by hand  # (L,)."""
    length, size = hidden.shape[1], attention.head_dim
    angle = torch.arange(length).unsqueeze(1) / 10000 ** (torch.arange(0, size, 2) / size)  # (L, D/2)

    def rotated(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return torch.cat(
            [
                first * angle.cos() - second * angle.sin(),
                second * angle.cos() + first * angle.sin(),
            ],
            dim=-1,
        )

    with torch.no_grad():
        query, key = rotated(attention.q_proj(hidden)[0]), rotated(attention.k_proj(hidden)[0])
    return key @ query[-1] / math.sqrt(size)


def test_an_adapters_own_keys_are_scaled_as_well(processor: Any) -> None:
    model, own = small_family("llava", processor)
    inputs = collate([encode(ITEM, own)], own).inputs
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(k_proj|q_proj)", init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    merged_apart = logits(adapted, inputs, 2.0)
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged_apart, logits(merged, inputs, 2.0), atol=1e-4)
    assert not torch.allclose(merged_apart, logits(merged, inputs, 1.0), atol=1e-4)


def test_a_decoder_that_normalises_its_keys_is_refused(processor: Any) -> None:
    model, _ = small_family("llava", processor)
    attention = model.get_submodule("model.language_model").layers[0].self_attn
    attention.k_norm = torch.nn.Identity()
    with pytest.raises(ConfigError, match="no keys that a gain could scale"), image_attention(model, 2.0):
        pass
