"""A pass through a model, read only where answers are decided; and again, from what its decoder was given.

The whole model runs once a step, through whatever wraps it. Forward pre-hooks on its decoder and head keep
what the decoder was given (input embeddings with the pictures' features in them, position ids, attention
mask) and cut the hidden states down to the positions that matter before logits are made of them. Further
passes, for an attack, start at the decoder: no tower and no embedding is run twice, whatever the family, and
nothing is subclassed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_training.families import ModelFamily


@dataclass(frozen=True)
class Read:
    """Hidden states and logits at the chosen positions, row after row."""

    hidden: Tensor  # (N, D)
    logits: Tensor  # (N, V)


@dataclass(frozen=True)
class Given:
    """What a decoder was called with."""

    kwargs: Mapping[str, Any]

    @property
    def embeds(self) -> Tensor:
        """The input embeddings  # (B, L, D)."""
        return self.kwargs["inputs_embeds"]

    def rows(self, chosen: Tensor) -> "Given":
        """The same for some rows of the batch."""
        return Given({name: _rows(name, value, chosen) for name, value in self.kwargs.items()})


def _rows(name: str, value: Any, chosen: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Qwen's positions are (3, B, L): time, height, width.
    return value[:, chosen] if name == "position_ids" and value.ndim == 3 else value[chosen]


def bare(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of DDP, torch.compile and PEFT."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = model.module if hasattr(model, "module") else model._orig_mod
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def whole_pass(
    model: nn.Module, family: ModelFamily, inputs: Mapping[str, Tensor], where: Tensor
) -> tuple[Read, Given]:
    """Run the model on `inputs`; read it at `where`  # (B, L) bool, and keep what its decoder was given.

    The decoder gets its embeddings in float32, so that a small delta added to them later survives bf16.
    """
    core = bare(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    given: list[Given] = []
    hidden: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = {**kwargs, "inputs_embeds": kwargs["inputs_embeds"].float()}
        given.append(Given(kwargs))
        return args, kwargs

    def cut(module: nn.Module, args: tuple[Any, ...]) -> Any:
        hidden.append(args[0][where])
        return (hidden[0],)

    with hooked(decoder, keep, with_kwargs=True), hooked(head, cut), _mixed(decoder):
        logits = model(**inputs, use_cache=False).logits
    return Read(hidden[0], logits), given[0]


def decoder_pass(model: nn.Module, family: ModelFamily, given: Given, embeds: Tensor, where: Tensor) -> Read:
    """Run decoder and head on other embeddings  # (B, L, D), all else as it was given; read at `where`."""
    core = bare(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    with _mixed(decoder):
        hidden = decoder(**{**given.kwargs, "inputs_embeds": embeds}).last_hidden_state[where]
        return Read(hidden, head(hidden))


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """A forward pre-hook for the time of a `with` block."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        handle.remove()


def _mixed(decoder: nn.Module) -> AbstractContextManager[Any]:
    """Half-precision weights take float32 embeddings only under autocast, which the caller may have on
    already."""
    weight = next(decoder.parameters())
    if weight.dtype == torch.float32 or torch.is_autocast_enabled(weight.device.type):
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)
