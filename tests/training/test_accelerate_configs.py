"""The shipped accelerate configurations: accelerate reads them as they are meant."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from modint_training.recipe_files import accelerate_config


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("ddp-cpu", "MULTI_GPU"), ("fsdp2", "FSDP")]
)
def test_a_shipped_configuration_is_read_by_accelerate(name: str, kind: str) -> None:
    read = load_config_from_file(str(accelerate_config(name)))
    assert read.distributed_type == kind
    assert (read.num_processes, read.mixed_precision) == (2, "no")


def test_the_sharded_one_is_of_the_second_version() -> None:
    sharded = load_config_from_file(str(accelerate_config("fsdp2"))).fsdp_config
    assert sharded["fsdp_version"] == 2
    assert sharded["fsdp_state_dict_type"] == "FULL_STATE_DICT"
