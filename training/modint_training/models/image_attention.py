"""Attention to picture tokens scaled in transformers, as the server's `image_attention` plugin does in vLLM.

The key of a picture's position is multiplied by a gain before rotary embedding, which is linear: the logit
q.k of every later token is multiplied with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from modint_guard.errors import ConfigError
from modint_training.method.families import family_of
from modint_training.method.passes import bare


@contextmanager
def image_attention(model: nn.Module, gain: float) -> Iterator[None]:
    """Within, the model's decoder sees pictures `gain` times as strongly; with 1 nothing is touched.

    Raises ConfigError for a decoder that normalises its keys, since a norm takes the gain away again.
    """
    if gain == 1.0:
        yield
        return
    net: Any = bare(model)
    decoder = net.get_submodule(family_of(net.config.model_type).decoder)
    keys = [layer for name, layer in decoder.named_modules() if name.endswith(".k_proj")]
    if not keys or any(name.endswith((".k_norm", ".k_layernorm")) for name, _ in decoder.named_modules()):
        raise ConfigError(
            f"a {net.config.model_type} model has no keys that a gain could scale: leave it out"
        )
    pictures: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        pictures[:] = [ids == image_token(net.config)]  # (B, L)

    def scale(_: nn.Module, __: Any, key: Tensor) -> Tensor:
        return key * (1 + (gain - 1) * pictures[0].to(key.dtype)).unsqueeze(-1)  # (B, L, D)

    hooks = [net.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [layer.register_forward_hook(scale) for layer in keys]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def image_token(config: Any) -> int:
    """The id that stands where a picture's features go."""
    known = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next(int(value) for value in known if value is not None)
