"""The installed vLLM itself: how it reads an adapter's names, and what the self-test says of a served one."""

import json
import urllib.request

import pytest

from modint_guard.launch import Served
from modint_guard.models import ADAPTER, BASE, bundled
from modint_server.doctor import ask_vllm, examine
from tests.server.adapter_folders import LANGUAGE, PROJECTOR, TOWER, llava, pair

pytestmark = pytest.mark.e2e


def test_vllm_reads_llavas_names_as_the_doctors_tests_say() -> None:
    modules = (
        LANGUAGE,
        PROJECTOR,
        TOWER,
        "language_model.model.layers.0.mlp.up_proj",
        "model.layers.0.q_proj",
    )
    keys = [key for module in modules for key in pair(module)]
    keys += ["base_model.model.lm_head.base_layer.weight", "base_model.model.x.weight"]
    asked = {"adapter": keys, "base": [f"{TOWER}.weight", f"{LANGUAGE}.weight"]}
    real = ask_vllm({"architectures": ["LlavaForConditionalGeneration"], **asked})
    ours = llava(asked)
    for key in keys:
        assert real.adapter[key].get("module") == ours.adapter[key].get("module")
        assert set(real.adapter[key]) == set(ours.adapter[key])
    assert (real.base, real.applied) == (ours.base, ours.applied)
    assert sorted(real.with_tower or ()) == sorted(ours.with_tower or ())


def test_the_shipped_adapter_is_applied_in_every_module() -> None:
    found = examine(ADAPTER, bundled(ADAPTER), None)
    assert found.healthy and not found.unchecked
    assert {key.status.value for key in found.keys} <= {"matched", "renamed"}


def test_the_served_adapter_passes_the_self_test(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/readyz", timeout=10) as answer:
        found = json.load(answer)["adapters"][ADAPTER]
    assert (found["ok"], found["problem"]) == (True, None)
    assert found["selftest_divergence"] > 1e-3
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    assert f'modint_adapter_selftest_ok{{adapter="{ADAPTER}",model="{BASE}"}} 1.0' in page
    assert f'modint_base_beside_adapters_ok{{model="{BASE}"}} 1.0' in page
