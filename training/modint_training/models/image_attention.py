"""Attention to picture tokens scaled by a gain, in transformers as the server's `image_attention` plugin does
it in vLLM.

The key of a picture's position is multiplied by the gain before rotary embedding, which is linear: so is the
logit q.k of every later token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from modint_guard.errors import ConfigError
from modint_training.method.families import family_of
from modint_training.method.passes import unwrap


@contextmanager
def image_attention(model: nn.Module, gain: float) -> Iterator[None]:
    """In the block, the attention logits of the decoder to picture tokens are `gain` times as large; a gain
    of 1 changes nothing.

    Raises ConfigError for a decoder that normalises its keys, since that undoes the gain.
    """
    if gain == 1.0:
        yield
        return
    net: Any = unwrap(model)
    decoder = net.get_submodule(family_of(net.config.model_type).decoder)
    keys = [layer for name, layer in decoder.named_modules() if name.endswith(".k_proj")]
    if not keys or any(name.endswith((".k_norm", ".k_layernorm")) for name, _ in decoder.named_modules()):
        raise ConfigError(
            f"a {net.config.model_type} model has no keys that a gain could scale: leave it out"
        )
    pictures: list[Tensor] = []

    def note_pictures(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        pictures[:] = [ids == image_token(net.config)]  # (B, L)

    def scale(_: nn.Module, __: Any, key: Tensor) -> Tensor:
        return key * (1 + (gain - 1) * pictures[0].to(key.dtype)).unsqueeze(-1)  # (B, L, D)

    hooks = [net.register_forward_pre_hook(note_pictures, with_kwargs=True)]
    hooks += [layer.register_forward_hook(scale) for layer in keys]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def image_token(config: Any) -> int:
    """The id of the placeholder that a picture's features replace."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next(int(value) for value in ids if value is not None)
