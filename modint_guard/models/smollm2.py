"""SmolLM2 as transformers and vLLM load it, out of its GGUF file: weights, configuration, tokenizer.

A model that also sees pictures needs a token that stands for one. An unused special token of the vocabulary
lends its number, so that the vocabulary keeps its size.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from modint_guard.errors import ConfigError
from modint_guard.models.gguf import Gguf
from modint_guard.models.weights import Floats

IMAGE_TOKEN = "<image>"
LENDS_ITS_NUMBER = "<jupyter_start>"
TURN_START, TURN_END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = 3  # GGUF's token type of control tokens

# transformers' name of each tensor, by GGUF's; those of layer N stand in blk.N and model.layers.N.
OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Turns as SmolLM2 was trained on them, without its default system prompt; pictures stand before the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] if loop.first else '\n' + part['text'] }}{% endfor %}{% endif %}"
    "{% if not (loop.last and continue_final_message) %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def text_config(gguf: Gguf) -> dict[str, Any]:
    """The language model's part of a `config.json`. Raises ConfigError for another architecture."""
    values = gguf.metadata
    if values.get("general.architecture") != "llama":
        raise ConfigError(
            f"{gguf.name} holds a model of the architecture {values.get('general.architecture')!r}, "
            "and llama is expected"
        )
    heads = values["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "head_dim": values["llama.embedding_length"] // heads,
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": values["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.eos_token_id"],
    }


def language_weights(gguf: Gguf) -> Iterator[tuple[str, Floats]]:
    """Each tensor under transformers' name within the language model ("layers.0.self_attn.q_proj.weight")."""
    heads = {
        "attn_q": gguf.metadata["llama.attention.head_count"],
        "attn_k": gguf.metadata["llama.attention.head_count_kv"],
    }
    for name in gguf.names:
        prefix, _, kind = name.removesuffix(".weight").rpartition(".")
        tensor = gguf.tensor(name)
        if kind in heads:
            tensor = halves_apart(tensor, heads[kind])
        yield _transformers_name(gguf, prefix, kind), tensor


def _transformers_name(gguf: Gguf, prefix: str, kind: str) -> str:
    if not prefix and kind in OUTER:
        return f"{OUTER[kind]}.weight"
    layer = prefix.removeprefix("blk.")
    if not layer.isdigit() or kind not in INNER:
        raise ConfigError(f"{gguf.name} holds an unexpected tensor {prefix}.{kind}: it is another model")
    return f"layers.{layer}.{INNER[kind]}.weight"


def halves_apart(weight: Floats, heads: int) -> Floats:
    """Rows of a query or key projection in transformers' order: a head's rotated pairs are (i, i + half),
    and in GGUF they are neighbours."""
    half = weight.shape[0] // heads // 2
    return np.ascontiguousarray(
        weight.reshape(heads, half, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    )


def tokenizer_json(gguf: Gguf) -> dict[str, Any]:
    """A `tokenizer.json`: byte-level BPE, digits one by one, and the image token."""
    tokens = [_lent(token) for token in gguf.metadata["tokenizer.ggml.tokens"]]
    kinds = gguf.metadata["tokenizer.ggml.token_type"]
    if IMAGE_TOKEN not in tokens or gguf.metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ConfigError(f"{gguf.name} holds another tokenizer than SmolLM2's")
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special(number, token)
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == SPECIAL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**bytes_as_letters, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**bytes_as_letters, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf.metadata["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """A `tokenizer_config.json` for a model that also sees pictures."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": TURN_START,
        "eos_token": TURN_END,
        "pad_token": TURN_END,
        "unk_token": UNKNOWN,
        "image_token": IMAGE_TOKEN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "processor_class": "LlavaProcessor",
    }


def _lent(token: str) -> str:
    return IMAGE_TOKEN if token == LENDS_ITS_NUMBER else token


def _special(number: int, token: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **plain, "special": True}
