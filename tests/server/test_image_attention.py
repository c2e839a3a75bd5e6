"""The plugin that scales attention to pictures: its gain, what it patches and refuses; with tiny fakes."""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modint_guard.errors import ConfigError
from modint_server.engine.image_attention import (
    GROUP,
    PLUGIN,
    check,
    check_registered,
    gain_of,
    install,
    scaled,
)
from tests.server.conftest import chat, serving
from tests.server.fake_upstream import FakeUpstream


class Layer:
    """As vLLM's Attention: gives back the keys it was called with."""

    attn_type = "decoder"

    def forward(self, query: Any, key: Any, value: Any) -> Any:
        return key


class Runner:
    """As vLLM's model runner: `steps` are the masks it will gather."""

    def __init__(self, vllm_config: Any, steps: list[list[bool]]) -> None:
        self.steps = [torch.tensor(step) for step in steps]

    def _gather_mm_embeddings(self, scheduled: Any) -> tuple[list[Any], torch.Tensor]:
        return [], self.steps.pop(0)

    def _dummy_run(self, tokens: int) -> int:
        return tokens


def engine(**changed: Any) -> Any:
    eager = changed.pop("eager", True)
    stages = changed.pop("stages", 1)
    none = {"speculative_config": None, "kv_transfer_config": None}
    return SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=eager),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        **{**none, **changed},
    )


def patched(gain: float = 3.0) -> tuple[Any, Any]:
    layer, runner = type("Layer", (Layer,), {}), type("Runner", (Runner,), {})
    install(layer, runner, gain)
    return layer, runner


KEYS = torch.ones(4, 2)


def test_keys_of_a_picture_are_multiplied_and_others_and_padding_are_not() -> None:
    key = torch.arange(8.0).view(4, 2)
    made = scaled(key, torch.tensor([False, True, False]), 3.0)
    assert made.tolist() == [[0, 1], [6, 9], [4, 5], [6, 7]]
    heads = scaled(torch.ones(2, 1, 2), torch.tensor([True, False]), 0.5)
    assert heads.tolist() == [[[0.5, 0.5]], [[1, 1]]]
    assert scaled(key, torch.tensor([False]), 3.0) is key
    with pytest.raises(RuntimeError, match="4 keys for 5 tokens"):
        scaled(key, torch.ones(5, dtype=torch.bool), 3.0)


def test_each_step_scales_its_own_pictures_in_every_layer() -> None:
    layer, runner = patched()
    running = runner(engine(), [[False, True, False, False], [False, False, False, False]])
    assert layer().forward(None, KEYS, None) is KEYS  # no step yet
    running._gather_mm_embeddings(None)
    for _ in range(2):
        assert layer().forward(None, KEYS, None).sum(-1).tolist() == [2, 6, 2, 2]
    running._gather_mm_embeddings(None)
    assert layer().forward(None, KEYS, None) is KEYS
    assert layer().forward(None, None, None) is None  # keys of an earlier layer


def test_what_is_no_decoder_and_a_dummy_run_are_left_alone() -> None:
    layer, runner = patched()
    running = runner(engine(), [[True, True, True, True]])
    running._gather_mm_embeddings(None)
    encoder = layer()
    encoder.attn_type = "encoder_only"
    assert encoder.forward(None, KEYS, None) is KEYS
    assert running._dummy_run(2) == 2
    assert layer().forward(None, KEYS[:2], None).shape == (2, 2)


def test_the_masks_buffer_may_be_used_again() -> None:
    layer, runner = patched()
    running = runner(engine(), [[True, False, False, False]])
    _, mask = running._gather_mm_embeddings(None)
    mask.fill_(True)
    assert layer().forward(None, KEYS, None).sum(-1).tolist() == [6, 2, 2, 2]


def test_a_decoder_that_was_never_scaled_ends_the_engine() -> None:
    _, runner = patched()
    running = runner(engine(), [[True], [False]])
    running._gather_mm_embeddings(None)
    with pytest.raises(RuntimeError, match="no layer of this model's decoder"):
        running._gather_mm_embeddings(None)


def test_patching_twice_scales_once() -> None:
    layer, runner = patched()
    install(layer, runner, 3.0)
    running = runner(engine(), [[True, False, False, False]])
    running._gather_mm_embeddings(None)
    assert layer().forward(None, KEYS, None)[0].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eager": False}, "--enforce-eager is missing"),
        ({"stages": 2}, "pipeline stages"),
        ({"speculative_config": object()}, "speculatively"),
        ({"kv_transfer_config": object()}, "cache is shared"),
    ],
)
def test_an_engine_in_which_keys_would_not_be_scaled_is_refused_at_its_start(
    changes: dict[str, Any], sentence: str
) -> None:
    _, runner = patched()
    with pytest.raises(ConfigError, match=sentence):
        runner(engine(**changes), [])
    check(engine())


@pytest.mark.parametrize("value", ["much", "-1", "11", "nan"])
def test_a_value_that_is_no_gain_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="MODINT_IMAGE_ATTENTION is"):
        gain_of({"MODINT_IMAGE_ATTENTION": value})


def test_a_gain_without_an_installed_plugin_is_refused() -> None:
    check_registered(1.0, [])
    check_registered(0.5, ["other", PLUGIN])
    with pytest.raises(ConfigError, match="vLLM's plugin modint_image_attention is not installed"):
        check_registered(0.5, ["other"])


def test_the_plugin_is_registered_under_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"][GROUP][PLUGIN] == "modint_server.engine.image_attention:register"


def test_without_the_variable_the_gain_is_one() -> None:
    assert (gain_of({}), gain_of({"MODINT_IMAGE_ATTENTION": "0.5"})) == (1.0, 0.5)


# -- the gateway in front of it --------------------------------------------------------------------


async def test_every_call_has_the_gain_in_its_cache_salt_and_verdicts_and_readyz_say_so(
    upstream: FakeUpstream,
) -> None:
    async with serving(upstream.url, image_attention=0.5) as gateway:
        upstream.forget()
        response = await gateway.post(chat(modint={"relevant": "image"}))
        off = await gateway.post(chat(modint={"mode": "off"}, cache_salt="mine"))
        ready = await gateway.get("/readyz")
    assert off.status == 200 and len(upstream.calls) == 5
    assert {call["cache_salt"] for call in upstream.calls} == {"image-attention-0.5"}
    assert "attention to pictures is scaled by 0.5 (experimental)" in ready.json["notes"]
    assert (
        "The engine scales its attention to pictures by 0.5 (experimental)."
        in response.json["modint"]["notes"]
    )


async def test_without_a_gain_no_call_is_salted(upstream: FakeUpstream) -> None:
    async with serving(upstream.url) as gateway:
        upstream.forget()
        response = await gateway.post(chat(modint={"relevant": "image"}))
    assert not any("cache_salt" in call for call in upstream.calls)
    assert not any("attention" in note for note in response.json["modint"]["notes"])
