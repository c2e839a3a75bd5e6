"""TinyWorld's architecture: a LLaVA of at most 3.5 M parameters (CLIP tower, projector, Llama)."""

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from modint_training.tinyworld import draw
from modint_training.tinyworld.language import IMAGE, PATCH

INIT = 0.06  # about 1/sqrt(hidden size): with the default 0.02 a model this narrow learns far more slowly
HEAD = 32  # a head size that vLLM's CPU attention supports


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The configuration of `tinyworld-base`; the language model reads all tokens of the vision tower's last
    layer."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=128 // HEAD,
        image_size=draw.SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=192 // HEAD,
        num_key_value_heads=192 // HEAD,
        head_dim=HEAD,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=INIT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A freshly initialised model, from torch's current random state."""
    model = LlavaForConditionalGeneration(build_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
