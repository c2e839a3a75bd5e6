"""`modint-guard serve` as a process: its port, its refusals, its signals, and the end of its engine."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import main
from modint_guard.demo.launch import free_port
from modint_server.adapters.folders import Adapter
from modint_server.engine.config import EngineConfig
from modint_server.serving import bound, greeting, misfits
from tests.server.adapter_folders import TOWER, pair
from tests.server.adapter_folders import adapter as adapter_folder
from tests.server.test_calibrated import written

HERE = Path(__file__).parent
PATIENCE_S = 60.0


@dataclass
class Child:
    """A running command whose output is read up to the line one waits for."""

    process: "subprocess.Popen[str]"
    url: str

    def until(self, text: str) -> str:
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never printed: {''.join(seen)}")

    def ended(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out


@contextlib.contextmanager
def running(*command: str, url: str = "", **environment: str) -> Iterator[Child]:
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Child(process, url)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What passes for a model folder before the engine reads it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@contextlib.contextmanager
def serving(fault: str, model: Path, adapter: Path, *vllm_options: str) -> Iterator[Child]:
    port = free_port()
    command = [str(HERE / "stub_serve.py"), fault, str(model), f"lora={adapter}", str(port), *vllm_options]
    with running(*command, url=f"http://127.0.0.1:{port}") as child:
        yield child


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def chat(text: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


def refused(*arguments: str, **environment: str) -> str:
    """The one sentence of a `modint-guard serve` that does not even start its engine.

    It runs in this process: another one would import for seconds what is imported here.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments])
    assert (ended.value.code, out.getvalue()) == (2, "")
    (sentence,) = err.getvalue().splitlines()
    return sentence


# Refusals: one sentence, exit code 2


def test_a_process_that_is_refused_prints_one_sentence_and_ends_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "modint_guard.cli", "serve", "--model", "/no/such/model"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--model /no/such/model: no such folder")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_refused_before_the_engine_starts(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sentence = refused("--model", str(model), "--port", port)
    assert (
        sentence
        == f"port {port} of 127.0.0.1 is in use: choose another with --port, or stop what listens there"
    )


def test_a_model_path_that_does_not_exist_is_refused() -> None:
    assert "--model /no/such/model: no such folder" in refused("--model", "/no/such/model")


def test_an_adapter_that_does_not_exist_is_refused(model: Path) -> None:
    assert "adapter 'nobody' is neither in adapters" in refused("--model", str(model), "--adapter", "nobody")


def test_an_adapter_that_is_not_peft_is_refused(model: Path) -> None:
    assert "not a PEFT folder" in refused("--model", str(model), "--adapter", f"lora={model}")


def test_an_adapter_with_the_models_name_is_refused(model: Path, adapter: Path) -> None:
    assert "has the model's name" in refused("--model", str(model), "--adapter", f"tiny={adapter}")


def test_an_adapter_that_would_kill_the_engine_at_the_first_picture_is_refused(
    model: Path, tmp_path: Path
) -> None:
    beyond = adapter_folder(tmp_path / "beyond", pair(TOWER))
    (model / "config.json").write_text('{"model_type": "llava"}', "utf-8")
    sentence = refused("--model", str(model), "--adapter", f"lora={beyond}")
    assert "vision_feature_select_strategy is 'default': train with scope: [language]" in sentence


def test_attaching_and_starting_exclude_each_other() -> None:
    sentence = refused("--upstream", "http://127.0.0.1:9", "--model", "m")
    assert "drop --model and --adapter" in sentence


def test_an_upstream_key_needs_an_upstream(tmp_path: Path) -> None:
    assert "give --upstream URL too" in refused("--upstream-api-key-file", str(tmp_path / "key"))


def test_an_upstream_key_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "key"
    sentence = refused(
        "--upstream", "http://127.0.0.1:9", "--upstream-api-key-file", str(missing), "--port", "0"
    )
    assert str(missing) in sentence


def test_a_key_file_of_clients_that_cannot_be_read_is_refused_before_the_engine_starts(
    model: Path, tmp_path: Path
) -> None:
    missing = str(tmp_path / "keys")
    sentence = refused("--model", str(model), "--port", "0", MODINT_API_KEYS_FILE=missing)
    assert sentence.startswith(f"{missing} cannot be read")


def test_a_deadline_that_is_too_long_is_refused_before_the_engine_starts(model: Path) -> None:
    sentence = refused("--model", str(model), "--port", "0", MODINT_PROBE_DEADLINE_S="61")
    assert sentence == "probe_deadline_s: Input should be less than or equal to 60"


def test_a_calibration_for_another_model_is_refused_before_the_engine_starts(
    model: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, model="another")
    sentence = refused("--model", str(model), "--calibration", str(file))
    assert (
        sentence
        == f"{file} was made for another, but these are served: {model.name}; calibrate the served model."
    )


def test_an_upstream_that_is_no_address_is_refused() -> None:
    assert "must be an address" in refused("--upstream", "127.0.0.1:9")


def test_an_option_of_vllm_that_serve_sets_is_refused_before_the_engine_starts(model: Path) -> None:
    sentence = refused("--model", str(model), "--", "--max-model-len", "512", "--max_lora_rank=64")
    assert sentence == (
        "--max_lora_rank: `serve` itself sets vLLM's --max-lora-rank: name adapters with `--adapter` in "
        "front of `--`"
    )


def test_a_word_that_is_no_option_is_refused() -> None:
    assert refused("tiny") == (
        "'tiny' is no option of `serve`, and behind `--` stand options of vLLM: write "
        "`-- --max-model-len 4096`, say"
    )


def test_options_for_an_engine_that_runs_already_are_refused() -> None:
    assert refused("--upstream", "http://127.0.0.1:9", "--", "--dtype", "bfloat16") == (
        "--upstream attaches to an engine that runs already: start that engine with --dtype, and drop what "
        "stands behind `--`"
    )


def test_a_precision_for_an_engine_that_runs_already_is_refused() -> None:
    assert refused("--upstream", "http://127.0.0.1:9", "--dtype", "bfloat16") == (
        "--upstream attaches to an engine that runs already: start that engine with --dtype bfloat16, "
        "and drop it here"
    )


def test_an_unknown_host_is_refused() -> None:
    assert "--host no.such.host.invalid" in refused(
        "--upstream", "http://x", "--host", "no.such.host.invalid"
    )


def test_a_bound_port_is_free_again_afterwards() -> None:
    with bound("127.0.0.1", 0) as door:
        port = door.getsockname()[1]
    with bound("127.0.0.1", port):
        pass


def test_an_engine_that_dies_at_start_says_why(model: Path, adapter: Path) -> None:
    with serving("ValueError: LoRA rank 64 is greater than max_lora_rank 8", model, adapter) as child:
        code, out = child.ended()
    assert code == 2
    assert "the engine ended with exit code 1" in out
    assert "export it again" in out
    assert "Traceback" not in out


def test_options_behind_two_dashes_reach_the_engine_as_they_are(model: Path, adapter: Path) -> None:
    options = ("--", "--dtype", "bfloat16", "--tool-call-parser=hermes")
    with serving("options", model, adapter, *options) as child:
        line = child.until("started with")
    assert line.endswith(" --dtype bfloat16 --tool-call-parser=hermes\n")
    assert "float32" not in line


# A served model


def test_an_adapter_made_for_another_base_is_noted(adapter: Path) -> None:
    ours, theirs = (Adapter("lora", adapter, 8, base) for base in ("org/tiny", "org/large"))
    assert misfits(EngineConfig("/m/tiny", "tiny", (ours,))) == []
    (note,) = misfits(EngineConfig("/m/tiny", "tiny", (theirs,)))
    assert note == "adapter 'lora' was made for 'org/large', and 'tiny' is served"


def test_it_says_how_to_ask_once_it_is_ready(model: Path, adapter: Path) -> None:
    with serving("none", model, adapter) as child:
        assert child.until("base URL").split()[-1] == f"{child.url}/v1"
        assert child.until("models").split(maxsplit=1)[1] == "tiny, lora\n"
        first, second = child.until("try"), child.until("-d")
        assert first.endswith("' \\\n")  # a shell reads on in the next line
        words = shlex.split(first.removesuffix("\\\n") + second)
        status, answer = ask(words[words.index("curl") + 1], json.loads(words[words.index("-d") + 1]))
    assert (status, answer["model"]) == (200, "lora")


def test_a_key_that_is_required_is_in_the_curl_command() -> None:
    assert "authorization: Bearer" in greeting("http://x", ["m"], keys_required=True)[-2]
    assert "authorization" not in "".join(greeting("http://x", ["m"], keys_required=False))


def test_no_line_of_the_greeting_is_longer_than_200_characters() -> None:
    lines = greeting(
        "http://255.255.255.255:65535", ["organisation/a-model-with-a-long-name"], keys_required=True
    )
    assert max(len(line) for line in lines) <= 200


def test_it_is_alive_and_not_ready_while_the_engine_loads(model: Path, adapter: Path) -> None:
    with serving("silent", model, adapter) as child:
        child.until("loading")
        alive, _ = ask(f"{child.url}/livez")
        unready, body = ask(f"{child.url}/readyz")
        refused, error = ask(f"{child.url}/v1/chat/completions", chat("hello"))
        counted = urllib.request.urlopen(f"{child.url}/metrics", timeout=10).read().decode()
    assert (alive, unready, body["reasons"]) == (200, 503, ["the engine is loading"])
    assert (refused, error["error"]["code"]) == (503, "not_ready")
    assert 'modint_upstream_errors_total{kind="unreachable",upstream="engine"} 0.0' in counted


def test_an_adapter_without_effect_is_named_and_keeps_it_from_being_ready(model: Path, adapter: Path) -> None:
    with serving("same", model, adapter) as child:
        child.until("it answers exactly as the base")
        status, body = ask(f"{child.url}/readyz")
        refused, error = ask(f"{child.url}/v1/chat/completions", {**chat("hello"), "model": "lora"})
        base, _ = ask(f"{child.url}/v1/chat/completions", chat("hello"))
    (reason,) = body["reasons"]
    assert (status, body["adapters"]["lora"]["ok"]) == (503, False)
    assert reason.startswith("adapter 'lora': it answers exactly as the base")
    assert (refused, error["error"]["code"], base) == (503, "not_ready", 200)


def test_sigterm_ends_readiness_first_and_then_everything(model: Path, adapter: Path) -> None:
    with serving("none", model, adapter) as child:
        child.until("try")
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        status, body = ask(f"{child.url}/readyz")
        code, out = child.ended()
    assert (status, body["reasons"]) == (503, ["the gateway is shutting down"])
    assert (code, "Traceback" in out) == (0, False)


def test_ctrl_c_while_the_engine_loads_ends_at_once(model: Path, adapter: Path) -> None:
    with serving("silent", model, adapter) as child:
        child.until("loading")
        child.process.send_signal(signal.SIGINT)
        code, out = child.ended()
    assert (code, "Traceback" in out) == (0, False)


def test_an_engine_that_dies_later_ends_readiness_and_the_process(model: Path, adapter: Path) -> None:
    with serving("frail", model, adapter) as child:
        child.until("try")
        failed, _ = ask(f"{child.url}/v1/chat/completions", chat("DIE!"))
        time.sleep(0.3)
        unready, _ = ask(f"{child.url}/readyz")
        status, body = ask(f"{child.url}/v1/chat/completions", chat("hello"))
        code, out = child.ended()
    assert (failed, unready, status) == (502, 503, 503)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert code == 2
    assert "the worker fell over" in out


def test_attached_it_knows_the_adapters_whose_folders_lie_here(tmp_path: Path, adapter: Path) -> None:
    """The engine serves `lora` and `mine`; of `lora` there is a folder, with a baseline on its card."""
    (adapter / "run.json").write_text(json.dumps({"baseline": {"flip_ratio": 0.125}}), "utf-8")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}", "utf-8")
    engine_port, port = free_port(), free_port()
    stub = [str(HERE / "stub_engine.py"), "none", "--served-model-name", "theirs", "--port", str(engine_port)]
    attach = ["-m", "modint_guard.cli", "serve", "--upstream", f"http://127.0.0.1:{engine_port}"]
    key = tmp_path / "key"
    key.write_text("sesame\n", "utf-8")
    with (
        running(
            *attach,
            *("--upstream-api-key-file", str(key), "--adapter-dir", str(tmp_path), "--port", str(port)),
        ) as gateway,
        running(*stub, "--lora-modules", "lora=x", "mine=y", VLLM_API_KEY="sesame"),
    ):
        gateway.until("base URL")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    assert 'modint_adapter_baseline_flip_ratio{adapter="lora",model="theirs"} 0.125' in page
    assert re.search(r'modint_adapter_info\{adapter="lora",.*rank="8".* 1\.0', page)
    assert re.search(r'modint_adapter_info\{adapter="mine",.*rank="unknown".* 1\.0', page)
    assert 'modint_adapter_baseline_flip_ratio{adapter="mine"' not in page


def test_it_attaches_to_a_running_engine_with_a_key_from_a_file(tmp_path: Path) -> None:
    engine_port, port = free_port(), free_port()
    key = tmp_path / "key"
    key.write_text("sesame\n", "utf-8")
    engine = [
        str(HERE / "stub_engine.py"),
        "none",
        "--served-model-name",
        "theirs",
        "--port",
        str(engine_port),
    ]
    attach = ["-m", "modint_guard.cli", "serve", "--upstream", f"http://127.0.0.1:{engine_port}/v1"]
    with (
        running(*attach, "--upstream-api-key-file", str(key), "--port", str(port)) as gateway,
        running(*engine, VLLM_API_KEY="sesame"),
    ):
        gateway.until("base URL")
        assert gateway.until("models").split() == ["models", "theirs"]
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.ended()[0] == 0
