"""The installed vLLM itself: how it reads an adapter's names, and what the self-test says of a served one."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from modint_guard.demo.launch import RunningGateway
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import JSON
from modint_server.adapters.doctor import Ask, Rules, Status, ask_vllm, examine, fix, rules_of
from modint_server.adapters.lora_names import MARK
from tests.e2e.engines import STRAY, stray
from tests.server.adapter_folders import LANGUAGE, PROJECTOR, TOWER, llava, pair

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]

ANSWERS = """
import json, sys
from modint_server.adapters.lora_names import MARK, answered
for question in sys.stdin:
    print("\\n" + MARK + json.dumps(answered(json.loads(question))), flush=True)
"""


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """`ask_vllm` by a child that answers several questions: to import vLLM takes nearly all of its time."""
    command, pipe = [sys.executable, "-c", ANSWERS], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin and child.stdout
        questions, answers = child.stdin, child.stdout

        def asked(question: JSON) -> Rules:
            print(json.dumps(question), file=questions, flush=True)
            return rules_of(next(line for line in answers if line.startswith(MARK)))

        yield asked


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
    model = {"architectures": ["LlavaForConditionalGeneration"], "language": {"model_type": "llama"}}
    real = ask_vllm({**model, **asked})
    ours = llava(asked)
    for key in keys:
        assert real.adapter[key].get("module") == ours.adapter[key].get("module")
        assert set(real.adapter[key]) == set(ours.adapter[key])
    assert (real.base, real.applied) == (ours.base, ours.applied)
    assert real.embeddings == ours.embeddings
    assert sorted(real.with_tower or ()) == sorted(ours.with_tower or ())


def test_the_shipped_adapter_is_applied_in_every_module(ask: Ask) -> None:
    found = examine(ADAPTER, bundled(ADAPTER), None, ask=ask)
    assert found.healthy and not found.unchecked
    assert {key.status.value for key in found.keys} <= {"matched", "renamed"}


def test_the_served_adapter_passes_the_self_test(served: RunningGateway) -> None:
    with urllib.request.urlopen(f"{served.url}/readyz", timeout=10) as answer:
        found = json.load(answer)["adapters"][ADAPTER]
    assert (found["ok"], found["problem"]) == (True, None)
    assert found["selftest_divergence"] > 1e-3
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    assert f'modint_adapter_selftest_ok{{adapter="{ADAPTER}",model="{BASE}"}} 1.0' in page
    assert f'modint_base_beside_adapters_ok{{model="{BASE}"}} 1.0' in page


def test_an_adapter_whose_keys_match_nothing_is_told_and_cured(ask: Ask, tmp_path: Path) -> None:
    folder = stray(tmp_path / STRAY)
    found = examine(STRAY, folder, None, ask=ask)
    assert {key.status for key in found.keys} == {Status.UNMATCHED}
    assert not found.healthy and "answer as the base, without a word" in found.faults[-1]
    fix(found)
    assert examine(STRAY, folder, None, ask=ask).healthy
