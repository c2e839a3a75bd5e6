"""Options of vLLM behind `--`: the user's win over defaults, and those that the guard needs are refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from modint_guard.errors import ConfigError
from modint_server.adapters.folders import Adapter
from modint_server.engine.config import Device, EngineConfig, arguments, check_vllm_options

SOCKET = Path("/run/engine.sock")
ADAPTERS = (Adapter("a", Path("/adapters/a"), 4, None, tower=True),)


def command(*options: str, device: Device = Device.CPU, adapters: Sequence[Adapter] = ()) -> list[str]:
    config = EngineConfig(
        model="/models/base",
        served_name="base",
        adapters=tuple(adapters),
        device=device,
        options=options,
    )
    return arguments(config, SOCKET)


def sentence(*options: str) -> str:
    with pytest.raises(ConfigError) as refused:
        check_vllm_options(options)
    return str(refused.value)


def test_options_stand_at_the_end_as_they_were_written() -> None:
    options = ("--tool_call_parser=hermes", "--limit.x", "3", "-tp", "2")
    assert command(*options)[-5:] == list(options)
    assert command(*options)[:-5] == command()


@pytest.mark.parametrize(
    "option",
    [
        ("--dtype", "bfloat16"),
        ("--dtype=bfloat16",),
        ("--dty", "bfloat16"),  # argparse takes the beginning of a name
    ],
)
def test_the_users_option_wins_over_a_default(option: Sequence[str]) -> None:
    assert "float32" in command()
    words = command(*option)
    assert "float32" not in words
    assert "--dtype" not in words[: -len(option)]


def test_a_default_switch_can_be_negated() -> None:
    assert "--enforce-eager" in command()
    assert "--enforce-eager" not in command("--no-enforce_eager")


def test_a_default_with_an_underscore_is_the_same_option() -> None:
    words = command("--max_num_seqs", "64")
    assert "--max-num-seqs" not in words
    assert words[-2:] == ["--max_num_seqs", "64"]


def test_an_option_with_a_longer_name_leaves_a_default_alone() -> None:
    assert "--block-size" in command("--block-size-of-something-else", "1")


def test_every_option_that_serve_passes_is_a_default_or_refused() -> None:
    words = [word for word in command(adapters=ADAPTERS) if word.startswith("--")]
    assert len(words) == 17
    for word in words:
        overridden = word not in command(f"{word}=1", adapters=ADAPTERS)
        if not overridden:
            assert f"{word}: `serve` itself sets vLLM's {word}: " in sentence(word, "1")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("--model=other", "--model"),
        ("--served_model_name", "--served-model-name"),
        ("--served-model", "--served-model-name"),
        ("--no-enable-lora", "--enable-lora"),
        ("--limit-mm-per-prompt.image", "--limit-mm-per-prompt"),
        ("--lora-modules", "--lora-modules"),
        ("--max-loras", "--max-loras"),
        ("--uds", "--uds"),
        ("--no-enable-prompt-tokens-details", "--enable-prompt-tokens-details"),
    ],
)
def test_an_option_that_serve_sets_is_refused_in_every_spelling(written: str, name: str) -> None:
    option = written.partition("=")[0].partition(".")[0]
    assert sentence("--seed", "1", written, "x").startswith(option)
    assert f"`serve` itself sets vLLM's {name}: " in sentence("--seed", "1", written, "x")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--host", "0.0.0.0"], "give `--host` and `--port` of the gateway in front of `--`"),
        (["--port=8000"], "give `--host` and `--port` of the gateway in front of `--`"),
        (["--api-key", "sesame"], "set MODINT_API_KEYS_FILE for the keys of clients"),
        (["--config", "vllm.yaml"], "write its options behind `--`"),
        (["--ssl-certfile", "x.pem"], "put TLS in front of the gateway"),
        (["--headless"], "speaks HTTP to its engine"),
        (["--tokens-only"], "speaks HTTP to its engine"),
        (["--language-model-only"], "would not answer about images"),
        (["--default-mm-loras", json.dumps({"image": "x"})], "name adapters with `--adapter`"),
        (["--return-tokens-as-token-ids"], "probes compare tokens by their text"),
        (["--logprobs-mode", "raw_logits"], "probes read raw log-probabilities"),
        (["--max-logprobs", "5"], "give at least 20"),
        (["--max_logprobs=0"], "give at least 20"),
        (["-h"], "vLLM's options are listed by"),
        (["--help=all"], "vLLM's options are listed by"),
    ],
)
def test_an_option_that_breaks_the_guard_is_refused_with_what_to_do(options: list[str], remedy: str) -> None:
    assert "cannot stand behind `--`" in sentence(*options)
    assert remedy in sentence(*options)


@pytest.mark.parametrize(
    "options",
    [
        ["--max-logprobs", "50"],
        ["--max-logprobs", "-1"],  # no limit
        ["--logprobs-mode", "raw_logprobs"],
        ["--no-return-tokens-as-token-ids"],
        ["--max-model-len", "4096", "--config-format", "hf", "--model-impl", "vllm", "--lora-dtype", "auto"],
        ["--max-cpu-loras", "8", "--grpc-port", "1"],
        ["-O3", "-tp", "2"],
        [],
    ],
)
def test_other_options_are_vllms_own_business(options: list[str]) -> None:
    check_vllm_options(options)


def test_two_dashes_twice_are_refused() -> None:
    assert sentence("--seed", "1", "--", "x") == (
        "`--` stands twice: everything behind the first one goes to vLLM"
    )


def test_words_that_begin_with_no_option_are_refused() -> None:
    assert sentence("4096", "--seed", "1").startswith("'4096' is no option of `serve`")
