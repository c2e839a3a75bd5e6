"""The engine: how the child is started, how it becomes ready, and what an error says when it ends."""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modint_guard.errors import ConfigError, EngineError
from modint_server.adapters.folders import Adapter, checked_model
from modint_server.engine.child import Engine, Progress, last_words, remedy
from modint_server.engine.config import Device, EngineConfig, arguments, environment

STUB = Path(__file__).with_name("stub_engine.py")
ADAPTERS = (Adapter("a", Path("/adapters/a"), 4, None), Adapter("b", Path("/adapters/b"), 17, None))
CONFIG = EngineConfig(model="/models/base", served_name="base", max_images=3, ready_timeout_s=30.0)


def stub(fault: str) -> tuple[str, ...]:
    return (sys.executable, str(STUB), fault)


def flags(config: EngineConfig) -> Mapping[str, list[str]]:
    """Each flag with the words up to the next one."""
    values: dict[str, list[str]] = {}
    for word in arguments(config, Path("/run/engine.sock")):
        if word.startswith("--"):
            values[word] = []
        else:
            values[list(values)[-1]].append(word)
    return values


def alive(pid: int) -> bool:
    """A zombie is dead: its parent has only not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# How the child is started


def test_the_engine_listens_on_a_socket_and_not_on_a_port() -> None:
    assert flags(CONFIG)["--uds"] == ["/run/engine.sock"]
    assert not {"--port", "--host"} & flags(CONFIG).keys()


def test_the_images_of_one_request_are_limited_as_in_the_gateway() -> None:
    assert json.loads(flags(CONFIG)["--limit-mm-per-prompt"][0]) == {"image": 3}


def test_processed_pictures_are_not_kept_unless_the_user_wants_that() -> None:
    """vLLM's two caches of them disagree if one picture is asked about several times at once, as by probes,
    and it answers 500."""
    flag = "--mm-processor-cache-gb"
    assert flags(CONFIG)[flag] == ["0"]
    assert flags(replace(CONFIG, options=(flag, "4")))[flag] == ["4"]


def test_there_is_one_adapter_slot_more_than_adapters() -> None:
    """With as many slots as adapters, vLLM's CPU runner gives base answers an adapter's probabilities."""
    given = flags(replace(CONFIG, adapters=ADAPTERS))
    assert given["--max-loras"] == ["3"]
    assert given["--max-lora-rank"] == ["32"]
    assert given["--lora-modules"] == ["a=/adapters/a", "b=/adapters/b"]


def test_an_adapter_on_the_vision_tower_is_not_left_out() -> None:
    flag = "--enable-tower-connector-lora"
    assert flag not in flags(replace(CONFIG, adapters=ADAPTERS))
    beyond = replace(ADAPTERS[0], tower=True)
    assert flags(replace(CONFIG, adapters=(beyond, ADAPTERS[1])))[flag] == []


def test_without_adapters_lora_stays_off() -> None:
    assert not [flag for flag in flags(CONFIG) if "lora" in flag]


def test_only_a_cpu_gets_the_flags_of_a_cpu() -> None:
    cpu, gpu = flags(CONFIG), flags(replace(CONFIG, device=Device.GPU, dtype="auto"))
    assert (cpu["--dtype"], cpu["--block-size"], cpu["--max-num-seqs"]) == (["float32"], ["32"], ["16"])
    assert "--enforce-eager" in cpu
    assert not {"--dtype", "--block-size", "--max-num-seqs", "--enforce-eager"} & gpu.keys()


def test_the_key_is_in_the_environment_and_never_in_the_command_line() -> None:
    given = environment(CONFIG, "secret", {"VLLM_API_KEY": "another"})
    assert given["VLLM_API_KEY"] == "secret"
    assert not [word for word in arguments(CONFIG, Path("/s")) if "secret" in word or word == "--api-key"]


def test_what_the_user_set_wins_over_our_defaults() -> None:
    assert environment(CONFIG, "k", {})["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment(CONFIG, "k", {"VLLM_CPU_KVCACHE_SPACE": "8"})["VLLM_CPU_KVCACHE_SPACE"] == "8"


def test_without_a_compiler_or_the_headers_of_python_nothing_is_compiled(tmp_path: Path) -> None:
    compiler = {"CXX": sys.executable}
    without_headers = environment(CONFIG, "key", compiler, tmp_path)
    (tmp_path / "Python.h").touch()
    without_compiler = environment(CONFIG, "key", {"PATH": ""}, tmp_path)
    assert without_headers["TORCHDYNAMO_DISABLE"] == without_compiler["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in environment(CONFIG, "key", compiler, tmp_path)


def test_a_model_in_a_folder_keeps_the_engine_off_the_hub(tmp_path: Path) -> None:
    assert environment(replace(CONFIG, model=str(tmp_path)), "k", {})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(replace(CONFIG, model="organisation/name"), "k", {})


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert checked_model("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("model", ["/no/such/model", "./model", "no-such-model", "../a/b", "~/model", ""])
def test_a_model_path_that_does_not_exist_is_named(model: str) -> None:
    with pytest.raises(ConfigError, match="no such folder") as refused:
        checked_model(model)
    assert f"--model {model}:" in str(refused.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        checked_model(str(tmp_path))


def test_a_model_that_vllm_does_not_serve_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "instructblip"}', "utf-8")
    with pytest.raises(ConfigError, match="vLLM does not serve models of type 'instructblip': train and"):
        checked_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        checked_model(str(tmp_path))


# Becoming ready


async def test_a_healthy_engine_becomes_ready_and_says_how_long_it_took() -> None:
    shown: list[Progress] = []
    async with Engine(
        replace(CONFIG, adapters=ADAPTERS), command=stub("none"), on_progress=shown.append
    ) as engine:
        ready = await engine.wait_ready()
        assert 0 < ready.seconds < 30
        assert ready.notes == ()
        assert engine.uds.parent.stat().st_mode & 0o077 == 0  # nobody else may connect
    assert {progress.stage for progress in shown} == {"loading", "warming up"}
    assert shown[-1].line == "Loading weights"  # without vLLM's time and file
    assert not engine.uds.parent.exists()


async def test_a_model_that_takes_no_images_is_noted() -> None:
    async with Engine(CONFIG, command=stub("text-only")) as engine:
        (note,) = (await engine.wait_ready()).notes
    assert "base takes no images" in note


async def test_a_model_that_refuses_to_chat_is_noted_with_the_engines_reason() -> None:
    async with Engine(CONFIG, command=stub("untemplated")) as engine:
        (note,) = (await engine.wait_ready()).notes
    assert note.startswith("base refuses to chat: ") and "you must provide a chat template" in note


async def test_an_engine_that_never_listens_is_given_up() -> None:
    config = replace(CONFIG, ready_timeout_s=1.5)
    async with Engine(config, command=stub("silent"), grace_s=1) as engine:
        with pytest.raises(EngineError, match="still loading after 2 s"):
            await engine.wait_ready()


# Its end


@pytest.mark.parametrize(
    ("last_words", "way_out"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory", "serve a smaller model"),
        ("ValueError: No available memory for the cache blocks", "VLLM_CPU_KVCACHE_SPACE"),
        ("ModuleNotFoundError: No module named 'vllm'", "pip install 'modint-guard[cpu]'"),
        ("OSError: some/model is not a local folder and is not a valid model identifier", "was not found"),
        ("ValueError: Model architectures ['Foo'] are not supported for now.", "does not know the model's"),
        ("ValueError: Call to add_lora method failed: sizes differ", "which base it was trained for"),
        ("safetensors.SafetensorError: Error while deserializing header", "the files are damaged"),
        ("ImportError: libnuma.so.1: cannot open shared object file", "apt-get install libnuma1"),
        ("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx", "apt-get install g++"),
        ("OSError: [Errno 98] Address already in use", "stop the other engine"),
        ("api_server.py: error: unrecognized arguments: --warp", "correct it or leave it out"),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "export it again"),
        ("RuntimeError: operator torchvision::nms does not exist", "modint_server.engine.torchvision_guard"),
    ],
)
async def test_an_engine_that_dies_at_start_says_why_and_what_to_do(last_words: str, way_out: str) -> None:
    async with Engine(CONFIG, command=stub(last_words)) as engine:
        with pytest.raises(EngineError) as died:
            await engine.wait_ready()
    assert "ended with exit code 1" in str(died.value)
    assert way_out in str(died.value).splitlines()[0]
    assert f"| {last_words}" in str(died.value)


def test_unknown_last_words_are_shown_as_they_are() -> None:
    assert remedy(["Segmentation fault"]) == "its last lines are below"


def test_the_error_is_shown_rather_than_the_traceback_around_it() -> None:
    output = [
        "(EngineCore pid=7) ERROR 11-22 16:40:01 [core.py:900] Traceback (most recent call last):",
        '(EngineCore pid=7) ERROR 11-22 16:40:01 [core.py:900]   File "core.py", line 1, in run',
        "(EngineCore pid=7) ERROR 11-22 16:40:01 [core.py:900] ValueError: the head is too large",
        "WARNING 11-22 16:40:01 [u.py:1] Found ulimit of 20000; errors like `OSError: [Errno 24] Too many`",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "INFO 11-22 16:40:02 [launcher.py:5] Shutting down",
    ]
    assert last_words(output) == ["ValueError: the head is too large"]


def test_what_a_validation_error_says_is_shown_with_it() -> None:
    output = [
        "ValidationError: 1 validation error for ModelConfig",
        "  Value error, no such architecture",
        "bye",
    ]
    assert last_words(output) == output[:2]


async def test_an_engine_that_is_killed_names_the_signal() -> None:
    async with Engine(CONFIG, command=stub("none")) as engine:
        await engine.wait_ready()
        process, _ = engine._child()
        process.kill()
        error = await asyncio.wait_for(engine.ended(), 10)
    assert "SIGKILL" in str(error)
    assert "serve a smaller model" in str(error)


async def test_an_engine_that_ignores_sigterm_is_killed_with_its_children() -> None:
    async with Engine(CONFIG, command=stub("deaf"), grace_s=0.3) as engine:
        await engine.wait_ready()
        process, _ = engine._child()
        grandchild = int(next(line for line in engine._lines if line.startswith("child ")).split()[1])
        assert alive(grandchild)
    assert process.returncode is not None
    assert not alive(grandchild)


async def test_the_engine_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to clean up: the kernel tells the child."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio\n"
        "from modint_server.engine.child import Engine, EngineConfig\n"
        "async def main():\n"
        f"    engine = Engine(EngineConfig('/m', 'base'), command={stub('none')!r})\n"
        "    await engine.start()\n"
        "    await engine.wait_ready()\n"
        "    print(engine._child()[0].pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n",
        "utf-8",
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    engine = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert alive(engine)
    parent.kill()
    await parent.wait()
    for _ in range(100):
        if not alive(engine):
            break
        await asyncio.sleep(0.1)
    assert not alive(engine)


async def test_an_engine_that_was_not_started_is_stopped_without_harm() -> None:
    engine = Engine(CONFIG, command=stub("none"))
    await engine.stop()
    assert not engine.uds.parent.exists()
