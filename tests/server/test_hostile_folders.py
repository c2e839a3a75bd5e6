"""Adapter folders that mean harm: every command ends, and prints nothing that a terminal obeys."""

import json
import os
import struct
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modint_guard.cli import GROUP, main, printable
from modint_guard.errors import AdapterError, ConfigError
from modint_server.adapters.commands import lines_of
from modint_server.adapters.doctor import examine
from modint_server.adapters.folders import card, loadable, read
from modint_server.adapters.rank_pattern import configured_ranks
from tests.server.adapter_folders import LANGUAGE, adapter, base, no_engine, pair

POINT = EntryPoint("adapters", "modint_server.adapters.commands:adapters", GROUP)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DEEP = b"[" * 100_000 + b"]" * 100_000
ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
A, B = pair(LANGUAGE)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    """Writes these bytes in place of a file."""
    return lambda folder: (folder / name).write_bytes(content)


def configured(**config: Any) -> Callable[[Path], object]:
    """Changes the configuration."""

    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **config}), "utf-8")

    return change


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Removes a file and puts something else there."""

    def replace(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return replace


def weights(header: Any, data: int = 64, length: int | None = None) -> Callable[[Path], object]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(WEIGHTS, struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * data)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "deep configuration": written(CONFIG, DEEP),
    "deep values": configured(target_modules=json.loads(b"[" * 200 + b"]" * 200)),
    "a list for a configuration": written(CONFIG, b"[]"),
    "no text": written(CONFIG, b'{"peft_type":"LORA\xff"}'),
    "huge configuration": written(CONFIG, b" " * 17 * 2**20),
    "escapes in the configuration": configured(peft_type="\x1b[31mX\x1b]0;OWNED\x07"),
    "long list of modules": configured(modules_to_save=["x" * 100] * 10_000),
    "rank_pattern list": configured(rank_pattern=[1]),
    "rank_pattern text": configured(rank_pattern="abc"),
    "rank_pattern that is no expression": configured(rank_pattern={"(": 2}),
    "rank_pattern that takes for ever": configured(rank_pattern={"(q+)+b": 2, "(.*.*.*.*.*.*)*x": 2}),
    "rank list": configured(r=[2]),
    "no rank": configured(r=None),
    "base with a zero byte": configured(base_model_name_or_path="a\0b"),
    "base that is a number": configured(base_model_name_or_path=5),
    "base of an unknown user": configured(base_model_name_or_path="~nosuchuser/x"),
    "base with a long name": configured(base_model_name_or_path="x" * 5000),
    "base that is a pattern": configured(base_model_name_or_path="**"),
    "init list": configured(init_lora_weights=["x"]),
    "deep run record": written("run.json", DEEP),
    "deep doctor's record": written("doctor.json", DEEP),
    "doctor's record of huge counts": written("doctor.json", b'{"revision":"x","modules":{"matched":1e999}}'),
    "header that is deep": weights(b'{"a":' + DEEP + b"}"),
    "header that is a list": weights([1]),
    "header of 2**63 bytes": weights({}, length=2**63),
    "overlap": weights({A: ENTRY, B: ENTRY}, 32),
    "gap": weights({A: {**ENTRY, "data_offsets": [32, 64]}}),
    "trailing data": weights({A: ENTRY}, 40),
    "float offsets": weights({A: {**ENTRY, "data_offsets": [0.0, 32.0]}}, 32),
    "negative shape": weights({A: {**ENTRY, "shape": [-2, -4]}}, 32),
    "type list": weights({A: {**ENTRY, "dtype": ["F32"]}}, 32),
    "metadata that are a number": weights({"__metadata__": 5, A: ENTRY}, 32),
    "escapes in names": weights(
        {f"base_model.model.\x1b]0;OWNED\x07\x1b[31m{LANGUAGE}.lora_A.weight": ENTRY}, 32
    ),
    "zero byte in a name": weights({"a\0b.lora_A.weight": ENTRY}, 32),
}
for each in (CONFIG, WEIGHTS, "run.json", "doctor.json"):
    FOLDERS[f"{each} is a folder"] = in_place_of(each, Path.mkdir)
    FOLDERS[f"{each} is a pipe"] = in_place_of(each, os.mkfifo)
    FOLDERS[f"{each} has no end"] = in_place_of(each, lambda path: path.symlink_to("/dev/zero"))
    FOLDERS[f"{each} is a link to itself"] = in_place_of(each, lambda path: path.symlink_to(path.name))


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    hostile = adapter(tmp_path / "adapters" / "mine", pair(LANGUAGE))
    FOLDERS[request.param](hostile)
    return hostile


def one_sentence(printed: str) -> None:
    assert printed.count("\n") <= 1 and len(printed) < 1500, printed[:3000]


def no_escapes(printed: str) -> None:
    assert printable(printed) == printed


@pytest.mark.parametrize(
    "command", [("inspect", "mine"), ("list",), ("inspect", "mine", "--json"), ("list", "--json")]
)
def test_inspect_and_list_end_in_one_sentence(
    folder: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["adapters", *command, "--adapter-dir", str(folder.parent)], [POINT])
    printed = capsys.readouterr()
    assert left.value.code in (0, 2, None)
    one_sentence(printed.err)
    no_escapes(printed.out + printed.err)


def test_the_doctor_ends_with_a_diagnosis_or_one_sentence(folder: Path, tmp_path: Path) -> None:
    for model in (None, str(base(tmp_path / "tiny"))):
        try:
            lines = list(lines_of(examine("mine", folder, model, ask=no_engine)))
        except AdapterError as refused:
            lines = [str(refused)]
        assert max(map(len, lines)) < 3000


def test_serving_takes_the_folder_leaves_it_out_or_ends_in_one_sentence(folder: Path) -> None:
    try:
        cards = [card(each) for each in loadable(folder.parent)]
    except AdapterError as refused:
        one_sentence(str(refused))
    else:
        assert len(cards) <= 1


def test_a_folder_that_links_to_itself_is_no_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").symlink_to("mine")
    with pytest.raises(SystemExit) as left:
        main(["adapters", "inspect", "mine", "--adapter-dir", str(tmp_path)], [POINT])
    assert left.value.code == 2 and "'mine' is neither in" in capsys.readouterr().err
    assert loadable(tmp_path) == ()


def test_the_doctor_prints_names_without_their_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"base_model.model.\x1b]0;OWNED\x07{LANGUAGE}.lora_A.weight"
    adapter(tmp_path / "mine", {name: np.ones((2, 4), np.float32)})
    with pytest.raises(SystemExit):
        main(["adapters", "doctor", "mine", "--adapter-dir", str(tmp_path), "--all"], [POINT])
    out = capsys.readouterr().out
    assert r"\x1b]0;OWNED\x07" in out
    no_escapes(out)


def test_a_base_whose_configuration_is_deep_is_not_compared_with(tmp_path: Path) -> None:
    tiny = base(tmp_path / "tiny")
    (tiny / "config.json").write_bytes(DEEP)
    mine = adapter(tmp_path / "mine", pair(LANGUAGE), base_model_name_or_path=str(tiny))
    diagnosis = examine("mine", mine, None, ask=no_engine)
    assert diagnosis.unchecked and diagnosis.healthy
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        examine("mine", mine, str(tiny), ask=no_engine)


def test_ranks_are_those_of_the_first_expression_that_matches() -> None:
    config = {"r": 2, "rank_pattern": {r"layers\.(0|1)\..*q_proj": 4, "k_proj": 8, "v_pr.j": 16}}
    modules = [
        "m.layers.0.attn.q_proj",
        "m.layers.2.attn.q_proj",
        "m.layers.2.k_proj",
        "m.not_k_proj",
        "v_proj",
    ]
    assert list(configured_ranks(config, modules).values()) == [4, 2, 8, 2, 16]
    assert configured_ranks({"r": 2, "rank_pattern": {"k_proj": 8}}, ["k_proj", "q"]) == {"k_proj": 8, "q": 2}


@pytest.mark.parametrize(("pattern", "problem"), [("(", "no regular expression"), ("(a+)+b", "within 5 s")])
def test_an_expression_that_cannot_be_matched_is_refused(pattern: str, problem: str) -> None:
    with pytest.raises(AdapterError, match=problem):
        configured_ranks({"r": 2, "rank_pattern": {pattern: 8}}, ["a" * 60])


def test_a_folder_of_weights_as_safetensors_would_refuse_them_is_refused_by_name(tmp_path: Path) -> None:
    mine = adapter(tmp_path / "mine", pair(LANGUAGE))
    weights({A: ENTRY, B: ENTRY}, 32)(mine)
    with pytest.raises(AdapterError, match="does not begin where the one before it ends"):
        examine("mine", mine, None, ask=no_engine)


def test_reading_never_waits_for_a_pipe(tmp_path: Path) -> None:
    mine = adapter(tmp_path / "mine", pair(LANGUAGE))
    in_place_of(CONFIG, os.mkfifo)(mine)
    with pytest.raises(AdapterError, match="no regular file"):
        read("mine", mine)
