"""The warmed-up tower stays as it is for the first steps of the joint phase."""

import pytest
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from modint_training.tinyworld.pretrain import FrozenUntil


@pytest.mark.parametrize(("step", "trains"), [(0, False), (9, False), (10, True), (11, True)])
def test_a_module_trains_from_the_given_step_on(step: int, trains: bool) -> None:
    module = nn.Linear(2, 2)
    state = TrainerState(global_step=step)
    FrozenUntil(module, 10).on_step_begin(TrainingArguments(use_cpu=True), state, TrainerControl())
    assert {parameter.requires_grad for parameter in module.parameters()} == {trains}


def test_a_module_is_free_again_at_the_end() -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    FrozenUntil(module, 10).on_train_end(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
    assert all(parameter.requires_grad for parameter in module.parameters())
