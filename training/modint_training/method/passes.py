"""Forward passes that make logits only where answers are predicted, and passes that restart at the decoder.

The whole model runs once a step, through whatever wraps it. Forward pre-hooks on its decoder and head record
the decoder's inputs (embeddings with the picture features filled in, position ids, attention mask) and reduce
the hidden states to the positions that count before logits are made of them. The further passes of an attack
start at the decoder: no vision tower and no embedding runs twice, whatever the model family, and nothing is
subclassed.

Rows with a picture are far longer than rows without, so the decoder takes a batch in groups of rows of
similar length, each padded to its own longest row: the same numbers, without the work on padding.
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
from modint_training.method.masks import flat_indices

WORTH_A_CALL = 1 / 8  # of a group's positions: what splitting it must save to be worth another decoder call


@dataclass(frozen=True)
class Outputs:
    """Hidden states and logits at the chosen positions, row after row."""

    hidden: Tensor  # (N, D)
    logits: Tensor  # (N, V)


@dataclass(frozen=True)
class DecoderInputs:
    """The keyword arguments that a decoder was called with."""

    kwargs: Mapping[str, Any]

    @property
    def embeds(self) -> Tensor:
        """The input embeddings  # (B, L, D)."""
        return self.kwargs["inputs_embeds"]

    @property
    def lengths(self) -> list[int]:
        """The length of each row without the padding on its right, if the attention mask tells it."""
        mask = self.kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.sum(-1).tolist()
        rows, length, _ = self.embeds.shape
        return [length] * rows

    def rows(self, chosen: Tensor) -> "DecoderInputs":
        """The same for some rows of the batch."""
        return DecoderInputs({name: _rows(name, value, chosen) for name, value in self.kwargs.items()})

    def upto(self, length: int) -> "DecoderInputs":
        """The same for the first `length` positions."""
        return DecoderInputs({name: _upto(name, value, length) for name, value in self.kwargs.items()})


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
    """Rows in groups of similar length, longest group first, so that little of a group is padding.

    A group is split wherever that saves an eighth of its positions: of rows that are 9, 9 and 3 long, the
    third goes into a group of its own, since its padding is 6 of 27 positions; of rows 9, 9 and 8 it stays.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [sorted(group) for group in _split(order, lengths)]


def _split(order: list[int], lengths: Sequence[int]) -> list[list[int]]:
    longest = lengths[order[0]]
    saved = [(len(order) - at) * (longest - lengths[order[at]]) for at in range(1, len(order))]
    if not saved or max(saved) < WORTH_A_CALL * len(order) * longest:
        return [order]
    at = 1 + saved.index(max(saved))
    return [*_split(order[:at], lengths), *_split(order[at:], lengths)]


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of DDP, torch.compile and PEFT."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = model.module if hasattr(model, "module") else model._orig_mod
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over several ranks, which must then all call the model equally
    often."""
    # Some may be gathered already when a pass begins.
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_pass(
    model: nn.Module, family: ModelFamily, inputs: Mapping[str, Tensor], positions: Tensor
) -> tuple[Outputs, DecoderInputs]:
    """Run the model on `inputs`; returns its outputs at `positions`  # (B, L) bool, and its decoder's inputs.

    The decoder gets its embeddings in float32, so that a small delta added to them later survives bf16.
    """
    core = unwrap(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    recorded: list[DecoderInputs] = []
    groups: list[RowGroup] = []
    hidden: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recorded:
            return None  # a later group of the same pass
        recorded.append(DecoderInputs({**kwargs, "inputs_embeds": kwargs["inputs_embeds"].float()}))
        groups.extend(row_groups(decoder, recorded[0], positions))
        return args, groups[0].inputs.kwargs

    def reduce(module: nn.Module, args: tuple[Any, ...]) -> Any:
        others = [_states(decoder, group) for group in groups[1:]]
        hidden.append(_in_batch_order(groups, [args[0][groups[0].positions], *others], positions))
        return (hidden[0],)

    with hooked(decoder, record, with_kwargs=True), hooked(head, reduce), _autocast(decoder):
        logits = model(**inputs, use_cache=False).logits
    return Outputs(hidden[0], logits), recorded[0]


def decoder_pass(
    model: nn.Module, family: ModelFamily, inputs: DecoderInputs, embeds: Tensor, positions: Tensor
) -> Outputs:
    """Run decoder and head on other embeddings  # (B, L, D), with all other inputs unchanged; returns the
    outputs at `positions`  # (B, L) bool."""
    core = unwrap(model)
    decoder, head = core.get_submodule(family.decoder), core.get_submodule(family.head)
    if isinstance(model, FSDPModule):
        model.unshard()  # parameters outside the layers are otherwise gathered for whole passes only
    groups = row_groups(decoder, DecoderInputs({**inputs.kwargs, "inputs_embeds": embeds}), positions)
    with _autocast(decoder):
        hidden = _in_batch_order(groups, [_states(decoder, group) for group in groups], positions)
        return Outputs(hidden, head(hidden))


@dataclass(frozen=True)
class RowGroup:
    """Some rows of a batch, padded to the longest of them, and the positions of their outputs."""

    rows: Tensor  # (R,)
    inputs: DecoderInputs
    positions: Tensor  # (R, L) bool


def row_groups(decoder: nn.Module, inputs: DecoderInputs, positions: Tensor) -> list[RowGroup]:
    """A batch as groups of rows of similar length; one group if the decoder's weights are sharded over ranks,
    which must all call it equally often."""
    lengths = inputs.lengths
    groups = []
    for group in [list(range(len(lengths)))] if is_sharded(decoder) else by_length(lengths):
        rows, longest = torch.tensor(group, device=positions.device), max(lengths[row] for row in group)
        groups.append(RowGroup(rows, inputs.upto(longest).rows(rows), positions[rows, :longest]))
    return groups


def _states(decoder: nn.Module, group: RowGroup) -> Tensor:
    return decoder(**group.inputs.kwargs).last_hidden_state[group.positions]


def _in_batch_order(groups: Sequence[RowGroup], states: Sequence[Tensor], positions: Tensor) -> Tensor:
    """The states of all groups in the order of the batch's rows  # (N, D)."""
    index = flat_indices(torch.cat([group.rows for group in groups]), positions)
    return torch.cat(list(states))[index.argsort()]


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """A forward pre-hook that is removed at the end of the `with` block."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        handle.remove()


def _autocast(decoder: nn.Module) -> AbstractContextManager[Any]:
    """Half-precision weights take float32 embeddings only under autocast, which the caller may already have
    switched on."""
    weight = next(decoder.parameters())
    if weight.dtype == torch.float32 or torch.is_autocast_enabled(weight.device.type):
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)
