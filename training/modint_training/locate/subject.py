"""A model under study: its decoder's layers, runs of it on recorded inputs, and states read and replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from modint_guard.errors import ConfigError
from modint_training.data.collate import Encoded, collate, on_device
from modint_training.locate.twins import GROUPS, Twins, groups_of
from modint_training.method.families import family_of
from modint_training.method.passes import DecoderInputs, hooked, unwrap

Kind = Literal["residual", "attention", "mlp", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
States = dict[tuple[Kind, int], Tensor]  # by kind and layer  # (R, L, D); of `head` all heads side by side


@dataclass(frozen=True)
class Site:
    """The states of one kind in one layer at the positions of one token group; of one head if the kind is
    `head`."""

    kind: Kind
    layer: int
    group: str
    head: int | None = None

    @property
    def key(self) -> str:
        """A name that no other site of a model has."""
        return f"{self.kind}/{self.layer}/{self.group}" + ("" if self.head is None else f"/{self.head}")


@dataclass(frozen=True)
class Subject:
    """A model with frozen parameters: `decoder` takes embeddings, `head` makes logits, `layers` are the
    decoder's, each with `heads` attention heads."""

    model: nn.Module
    processor: Any
    decoder: nn.Module
    head: nn.Module
    layers: tuple[Any, ...]
    heads: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def sites(self) -> list[Site]:
        """Every site, layer by layer."""
        return [
            Site(kind, layer, group, head)
            for layer in range(len(self.layers))
            for kind in KINDS
            for head in (range(self.heads) if kind == "head" else (None,))
            for group in GROUPS
        ]


@dataclass(frozen=True)
class Run:
    """Prompts as the decoder receives them, padded on the right, with the last position of each  # (R,) and
    the token groups  # (R, L), -1 for padding."""

    inputs: DecoderInputs
    last: Tensor
    groups: Tensor = field(repr=False)

    def mask(self, group: int) -> Tensor:
        """The positions of a token group  # (R, L) bool."""
        return self.groups == group


def subject_of(model: Any, processor: Any) -> Subject:
    """The model as a subject; its parameters are frozen and it stays in evaluation mode.

    Raises ConfigError if its decoder has no layers of attention and MLP to look into.
    """
    model.requires_grad_(False).eval()
    core = unwrap(model)
    family = family_of(core.config.model_type)
    decoder = core.get_submodule(family.decoder)
    layers = tuple(getattr(decoder, "layers", ()))
    if not layers or not all(hasattr(layer, "mlp") and _projections(layer) for layer in layers):
        raise ConfigError(
            f"cannot look into the decoder of a {core.config.model_type} model of this kind: it needs"
            " layers with "
            "`self_attn.o_proj`, `self_attn.k_proj` and `mlp`, as those of Llama have"
        )
    heads = int(decoder.config.num_attention_heads)
    return Subject(model, processor, decoder, core.get_submodule(family.head), layers, heads)


def _projections(layer: Any) -> bool:
    attention = getattr(layer, "self_attn", None)
    return hasattr(attention, "o_proj") and hasattr(attention, "k_proj")


class _AtDecoder(Exception):  # noqa: N818 - nothing is wrong
    """Ends a pass at its decoder, with what the decoder was given."""

    def __init__(self, inputs: DecoderInputs) -> None:
        super().__init__()
        self.inputs = inputs


@torch.no_grad()
def run_of(subject: Subject, rows: Sequence[Encoded]) -> Run:
    """Prompts through vision tower and projector, up to the decoder, which does not run."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _AtDecoder(DecoderInputs(kwargs))

    given = on_device(collate(rows, subject.processor).inputs, subject.device)
    with hooked(subject.decoder, stop, with_kwargs=True):
        try:
            subject.model(**given, use_cache=False)
        except _AtDecoder as reached:
            inputs = reached.inputs
    lengths = torch.tensor([len(row.ids) for row in rows], device=subject.device)
    groups = torch.full((len(rows), int(lengths.max())), -1)
    for index, row in enumerate(rows):
        groups[index, : len(row.ids)] = torch.tensor(groups_of(row))
    return Run(inputs, lengths - 1, groups.to(subject.device))


def last_logits(subject: Subject, run: Run, embeds: Tensor | None = None) -> Tensor:
    """The logits that decide the first token of each answer  # (R, V) float32; on other embeddings than the
    run's, if they are given."""
    given = run.inputs.kwargs if embeds is None else {**run.inputs.kwargs, "inputs_embeds": embeds}
    hidden = subject.decoder(**given).last_hidden_state
    return subject.head(hidden[torch.arange(len(run.last), device=hidden.device), run.last]).float()


def gaps(logits: Tensor, twins: Sequence[Twins]) -> Tensor:
    """log p(true) - log p(lie) of each row, in nats  # (R, V) -> (R,)."""
    true, false = (
        torch.tensor([getattr(each, name) for each in twins], device=logits.device)
        for name in ("true", "false")
    )
    return (logits.gather(1, true[:, None]) - logits.gather(1, false[:, None])).squeeze(1)


@contextmanager
def recorded_states(subject: Subject) -> Iterator[States]:
    """In the block, the states of all kinds and layers of the last run."""
    states: States = {}

    def keep(kind: Kind, layer: int) -> Callable[[Tensor], None]:
        return lambda state: states.__setitem__((kind, layer), state)

    with ExitStack() as hooks:
        for number in range(len(subject.layers)):
            for kind in KINDS:
                hooks.enter_context(_watched(subject, kind, number, keep(kind, number)))
        yield states


@contextmanager
def replaced(subject: Subject, site: Site, values: Tensor, mask: Tensor) -> Iterator[None]:
    """In the block, the states of a site are `values`  # (R, L, D) at the positions in `mask`  # (R, L) bool;
    of a head only its own share of the last axis."""

    def put(state: Tensor) -> Tensor:
        where = mask.unsqueeze(-1)
        if site.head is not None:
            width = state.shape[-1] // subject.heads
            share = torch.arange(state.shape[-1], device=state.device) // width == site.head
            where = where & share
        return torch.where(where, values.to(state.dtype), state)

    with _watched(subject, site.kind, site.layer, put):
        yield


@contextmanager
def _watched(subject: Subject, kind: Kind, layer: int, change: Callable[[Tensor], Any]) -> Iterator[None]:
    """Gives the states of a kind to `change`, and replaces them by what it returns, if it returns something.

    A head's states are the input of the output projection.
    """
    block = subject.layers[layer]

    def on_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        changed = change(output[0] if is_tuple else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if is_tuple else changed

    if kind == "head":
        handle = block.self_attn.o_proj.register_forward_pre_hook(on_input)
    else:
        modules = {"residual": block, "attention": block.self_attn, "mlp": block.mlp}
        handle = modules[kind].register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
