"""The plugin with which the CPU engine scores answers beside adapters; with a tiny fake of vLLM's class."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modint_server.adapters.folders import Adapter, resolve
from modint_server.engine.config import Device, EngineConfig, environment
from modint_server.engine.image_attention import GROUP
from modint_server.engine.prompt_logprobs import VARIABLE, install, register
from tests.server.adapter_folders import LANGUAGE, adapter, pair

SERVED = EngineConfig("any", "any", adapters=(Adapter("a", Path("any"), 4, None),))


def wrapper() -> type[Any]:
    """As vLLM's: two requests are sampled, and every other number of rows fails."""

    class Wrapper:
        sampler_indices = np.array([0, 1])

        def add_lora_logits(self, y: Any, x: Any, a: Any, b: Any, scale: float) -> None:
            y += self.sampler_indices[:, None] * scale

    return Wrapper


def test_logits_of_sampled_tokens_get_the_adapters_part() -> None:
    patched = wrapper()
    install(patched)
    y = np.zeros((2, 3))
    patched().add_lora_logits(y, None, None, None, 2.0)
    assert y.tolist() == [[0, 0, 0], [2, 2, 2]]


def test_logits_of_a_prompt_stay_as_they_are_where_vllm_fails() -> None:
    patched = wrapper()
    with pytest.raises(ValueError, match="broadcast"):
        patched().add_lora_logits(np.zeros((5, 3)), None, None, None, 2.0)
    install(patched)
    y = np.ones((5, 3))
    patched().add_lora_logits(y, None, None, None, 2.0)
    assert (y == 1).all()


def test_without_the_variable_vllm_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    register()


def test_vllm_is_patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "vllm.lora.punica_wrapper.punica_cpu": ("PunicaWrapperCPU", "add_lora_logits"),
        "vllm.sampling_params": ("SamplingParams", "verify"),
        "vllm.v1.core.kv_cache_manager": ("KVCacheManager", "get_computed_blocks"),
        "vllm.v1.worker.gpu_model_runner": ("GPUModelRunner", "_get_prompt_logprobs_dict"),
    }
    kinds = {module: type(kind, (), {method: print}) for module, (kind, method) in names.items()}
    for module, kind in kinds.items():
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        setattr(sys.modules[module], kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMValidationError=ValueError))
    monkeypatch.setenv(VARIABLE, "1")
    register()
    methods = [getattr(kind, names[module][1]) for module, kind in kinds.items()]
    assert print not in methods
    register()
    assert [getattr(kind, names[module][1]) for module, kind in kinds.items()] == methods


def test_only_an_engine_on_a_cpu_gets_the_variable_with_adapters_or_without() -> None:
    assert environment(SERVED, "k", {})[VARIABLE] == "1"
    assert environment(replace(SERVED, adapters=()), "k", {})[VARIABLE] == "1"
    assert VARIABLE not in environment(replace(SERVED, device=Device.GPU), "k", {})


@pytest.mark.parametrize(("module", "has_head"), [("lm_head", True), (LANGUAGE, False)])
def test_an_adapter_with_a_part_of_the_output_layer_is_seen(
    tmp_path: Path, module: str, has_head: bool
) -> None:
    adapter(tmp_path / "mine", pair(module))
    one = resolve("mine", tmp_path, tmp_path)
    assert one.head is has_head
    served = replace(SERVED, adapters=(one,))
    assert served.scores_beside_adapters is not has_head
    assert (VARIABLE in environment(served, "k", {})) is not has_head


def test_the_plugin_is_registered() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    name, place = "modint_prompt_logprobs", "modint_server.engine.prompt_logprobs:register"
    assert project["entry-points"][GROUP][name] == place
