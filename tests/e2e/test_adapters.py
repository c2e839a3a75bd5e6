"""The installed vLLM itself: how it reads an adapter's names, and what the self-test says of a served one."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modint_guard.demo.launch import Served, free_port
from modint_guard.models import ADAPTER, BASE, bundled
from modint_server.adapters.doctor import Status, ask_vllm, examine, fix
from modint_server.adapters.tensors import read_header, rename
from tests.server.adapter_folders import LANGUAGE, PROJECTOR, TOWER, llava, pair

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]


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


def stray(folder: Path) -> Path:
    """The shipped adapter under names of a language model alone: vLLM loads them, and applies none."""
    shutil.copytree(bundled(ADAPTER), folder)
    weights = folder / "adapter_model.safetensors"
    rename(
        read_header(weights),
        {name: name.replace(".language_model.", ".") for name in read_header(weights).tensors},
    )
    return folder


def test_an_adapter_whose_keys_match_nothing_is_told_and_cured(tmp_path: Path) -> None:
    folder = stray(tmp_path / "stray")
    found = examine("stray", folder, None)
    assert {key.status for key in found.keys} == {Status.UNMATCHED}
    assert not found.healthy and "answer as the base, without a word" in found.faults[-1]
    fix(found)
    assert examine("stray", folder, None).healthy


@contextlib.contextmanager
def starting(*arguments: str) -> Iterator[str]:
    """The address of a `modint-guard serve` that need not become ready."""
    port = free_port()
    command = [sys.executable, "-m", "modint_guard.cli", "serve", "--port", str(port), *arguments]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)


def readiness(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, {"adapters": {}}


@pytest.mark.slow
def test_an_adapter_whose_keys_match_nothing_keeps_the_gateway_from_being_ready(tmp_path: Path) -> None:
    """vLLM itself takes it without a word."""
    with starting("--adapter", f"stray={stray(tmp_path / 'stray')}") as url:
        until = time.monotonic() + 300
        status, said = readiness(url)
        while "stray" not in said["adapters"] and time.monotonic() < until:
            time.sleep(0.5)
            status, said = readiness(url)
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    assert status == 503
    assert said["adapters"]["stray"]["ok"] is False
    assert any("stray" in reason and "applies nothing of it" in reason for reason in said["reasons"])
    assert f'modint_adapter_selftest_ok{{adapter="stray",model="{BASE}"}} 0.0' in page
