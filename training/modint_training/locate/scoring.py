"""What a subject answers to the prompts of twins: gaps, and whether answers are right."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from modint_guard.data.item import is_right
from modint_training.locate.subject import Run, Subject, gaps, last_logits, run_of
from modint_training.locate.twins import Twins, in_batches


@dataclass(frozen=True)
class Given:
    """For each answer log p(true) - log p(lie), in nats, and whether it is right."""

    gap: list[float]
    right: list[bool]


@dataclass(frozen=True)
class Prepared:
    """Prompts of some twins at the decoder, so that it can run on them many times: for each batch the indices
    of its twins, and the run of each name (`lie`, `clean`, `bare`)."""

    twins: Sequence[Twins]
    batches: Sequence[tuple[list[int], dict[str, Run]]]


def prepared(subject: Subject, twins: Sequence[Twins], names: Sequence[str]) -> Prepared:
    """The prompts of these names."""
    return Prepared(
        twins,
        [
            (
                chosen,
                {name: run_of(subject, [getattr(twins[index], name) for index in chosen]) for name in names},
            )
            for chosen in in_batches([len(each.lie.ids) for each in twins])
        ],
    )


def rights(subject: Subject, logits: Tensor, twins: Sequence[Twins]) -> list[bool]:
    """Whether the greedy first token of each row is the right answer  # (R, V) -> R flags."""
    tokenizer = subject.processor.tokenizer
    texts = [tokenizer.decode([int(token)]) for token in logits.argmax(-1)]
    return [is_right(each.item, text) for each, text in zip(twins, texts, strict=True)]


@torch.no_grad()
def answered(subject: Subject, run: Run, twins: Sequence[Twins]) -> tuple[list[float], list[bool]]:
    """The gaps of a run's rows, and whether their answers are right."""
    logits = last_logits(subject, run)
    return gaps(logits, twins).tolist(), rights(subject, logits, twins)


def answers_to(
    subject: Subject,
    prompts: Prepared,
    within: Callable[[Run], AbstractContextManager[None]] = lambda run: nullcontext(),
) -> dict[str, Given]:
    """The answers to prompts, by name; each run is made inside the context that `within` gives for it."""
    count = len(prompts.twins)
    given: dict[str, Given] = {}
    for chosen, runs in prompts.batches:
        for name, run in runs.items():
            answers = given.setdefault(name, Given([0.0] * count, [False] * count))
            with within(run):
                values = answered(subject, run, [prompts.twins[index] for index in chosen])
            for index, gap, right in zip(chosen, *values, strict=True):
                answers.gap[index], answers.right[index] = gap, right
    return given
