"""The benchmark at full size, on a tiny model: it measures what it says, and writes it down."""

import json
from typing import Any

import pytest
import torch

from bench.step_cost.stepping import tune_recipe
from bench.step_cost.training_gpu import FULL, RECIPE, TINY, main, model_of, processor_of

METHODS = ["sft", "cons", "full", "full-t2"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    file = tmp_path_factory.mktemp("bench") / "gpu.json"
    main(["--tiny", "--output", str(file), "--warm-up", "0", "--rounds", "2", "--methods", *METHODS])
    return {row["method"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}


def test_every_method_is_measured_beside_the_first(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == METHODS
    for row in rows.values():
        assert row["failed"] is None and row["steps"] == 2
        assert 0 < row["step_s_least"] <= row["step_s"] <= row["step_s_most"]
        assert row["tokens"] <= row["padded_tokens"]
    assert rows["sft"]["times_first"] == 1


def test_plain_sft_has_the_clean_rows_and_the_attack_only_what_it_may_touch(
    rows: dict[str, dict[str, Any]],
) -> None:
    # 2 image-heavy, 2 text-heavy, 4 vqa: four of the eight have a twin, and those are attacked.
    assert [(row["examples"], row["rows"], row["attacked_rows"]) for row in rows.values()] == [
        (8, 8, 0),
        (8, 12, 0),
        (8, 12, 4),
        (8, 12, 4),
    ]
    assert rows["cons"]["delta_rms"] is None
    # The recipe's epsilon is 0.001; the noise is inside it, and not nothing.
    assert all(0.0001 < rows[name]["delta_rms"] <= 0.001 for name in ("full", "full-t2"))


def test_at_full_size_it_is_a_llava_of_seven_billion_with_the_adapter_of_the_paper() -> None:
    model = model_of(FULL, processor_of(FULL), tune_recipe(RECIPE, ()), torch.device("meta"))
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter.numel() for parameter in model.parameters() if not parameter.requires_grad]
    # Llama 2 7B with 64 more tokens, CLIP ViT-L/14-336, two projector layers: 7.06 billion.
    assert sum(frozen) == 7_063_427_072
    # q, k, v, o of 32 layers, A and B of rank 128 beside 4096 x 4096.
    assert sum(trained) == 32 * 4 * 2 * 128 * 4096


def test_frozen_weights_are_bf16_and_the_adapter_is_float32() -> None:
    model = model_of(TINY, processor_of(TINY), tune_recipe(RECIPE, ()), torch.device("cpu"))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
