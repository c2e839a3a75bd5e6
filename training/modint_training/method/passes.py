"""A pass through a model, read only where answers are decided; and again, from what its decoder was given.

The whole model runs once a step, through whatever wraps it. Forward pre-hooks on its decoder and head keep
what the decoder was given (input embeddings with the pictures' features in them, position ids, attention
mask) and cut the hidden states down to the positions that matter before logits are made of them. Further
passes, for an attack, start at the decoder: no tower and no embedding is run twice, whatever the family, and
nothing is subclassed.

Rows with a picture are far longer than rows without, so the decoder takes a batch in groups of rows of like
length, each padded to its own longest: the same numbers, without the work on padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modint_training.method.families import ModelFamily
from modint_training.method.masks import tokens_of

WORTH_A_CALL = 1 / 8  # of a group's positions: what cutting it in two must save


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

    @property
    def lengths(self) -> list[int]:
        """Of the rows, without the padding on their right, where the mask tells it."""
        mask = self.kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.sum(-1).tolist()
        rows, length, _ = self.embeds.shape
        return [length] * rows

    def rows(self, chosen: Tensor) -> "Given":
        """The same for some rows of the batch."""
        return Given({name: _rows(name, value, chosen) for name, value in self.kwargs.items()})

    def upto(self, length: int) -> "Given":
        """The same without the positions behind."""
        return Given({name: _upto(name, value, length) for name, value in self.kwargs.items()})


def _rows(name: str, value: Any, chosen: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Qwen's positions are (3, B, L): time, height, width.
    return value[:, chosen] if name == "position_ids" and value.ndim == 3 else value[chosen]


def _upto(name: str, value: Any, length: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value[..., :length] if name == "position_ids" else value[:, :length]


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups of like length, longest group first, so that little of a group is padding.

    A group is cut in two wherever that saves an eighth of its positions: of rows 9, 9, 3 long the padding of
    the third, 6 of 27, goes; of rows 9, 9, 8 long it stays.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [sorted(group) for group in _cut(order, lengths)]


def _cut(order: list[int], lengths: Sequence[int]) -> list[list[int]]:
    longest = lengths[order[0]]
    saved = [(len(order) - at) * (longest - lengths[order[at]]) for at in range(1, len(order))]
    if not saved or max(saved) < WORTH_A_CALL * len(order) * longest:
        return [order]
    at = 1 + saved.index(max(saved))
    return [*_cut(order[:at], lengths), *_cut(order[at:], lengths)]


def bare(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of DDP, torch.compile and PEFT."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = model.module if hasattr(model, "module") else model._orig_mod
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def dealt_out(model: nn.Module) -> bool:
    """Whether weights lie in shards on several ranks, which must then all call the model equally often."""
    # Some may be gathered already when a pass begins.
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_pass(
    model: nn.Module, family: ModelFamily, inputs: Mapping[str, Tensor], where: Tensor
) -> tuple[Read, Given]:
    """Run the model on `inputs`; read it at `where`  # (B, L) bool, and keep what its decoder was given.

    The decoder gets its embeddings in float32, so that a small delta added to them later survives bf16.
    """
    core = bare(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    given: list[Given] = []
    groups: list[Group] = []
    hidden: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if given:
            return None  # a later group of the same pass
        given.append(Given({**kwargs, "inputs_embeds": kwargs["inputs_embeds"].float()}))
        groups.extend(grouped(decoder, given[0], where))
        return args, groups[0].given.kwargs

    def cut(module: nn.Module, args: tuple[Any, ...]) -> Any:
        others = [_states(decoder, group) for group in groups[1:]]
        hidden.append(_in_order(groups, [args[0][groups[0].where], *others], where))
        return (hidden[0],)

    with hooked(decoder, keep, with_kwargs=True), hooked(head, cut), _mixed(decoder):
        logits = model(**inputs, use_cache=False).logits
    return Read(hidden[0], logits), given[0]


def decoder_pass(model: nn.Module, family: ModelFamily, given: Given, embeds: Tensor, where: Tensor) -> Read:
    """Run decoder and head on other embeddings  # (B, L, D), all else as it was given; read at `where`."""
    core = bare(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    if isinstance(model, FSDPModule):
        model.unshard()  # what lies beside the layers, which else is gathered for whole passes alone
    groups = grouped(decoder, Given({**given.kwargs, "inputs_embeds": embeds}), where)
    with _mixed(decoder):
        hidden = _in_order(groups, [_states(decoder, group) for group in groups], where)
        return Read(hidden, head(hidden))


@dataclass(frozen=True)
class Group:
    """Some rows of a batch, no longer than their longest, and where they are read."""

    rows: Tensor  # (R,)
    given: Given
    where: Tensor  # (R, L)


def grouped(decoder: nn.Module, given: Given, where: Tensor) -> list[Group]:
    """A batch as groups of rows of like length; whole where the decoder's weights are dealt out to ranks,
    which must all call it equally often."""
    lengths = given.lengths
    found = []
    for group in [list(range(len(lengths)))] if dealt_out(decoder) else by_length(lengths):
        rows, longest = torch.tensor(group, device=where.device), max(lengths[row] for row in group)
        found.append(Group(rows, given.upto(longest).rows(rows), where[rows, :longest]))
    return found


def _states(decoder: nn.Module, group: Group) -> Tensor:
    return decoder(**group.given.kwargs).last_hidden_state[group.where]


def _in_order(groups: Sequence[Group], read: Sequence[Tensor], where: Tensor) -> Tensor:
    """What was read of each group, as the batch's rows follow one another."""
    place = tokens_of(torch.cat([group.rows for group in groups]), where)
    return torch.cat(list(read))[place.argsort()]


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
