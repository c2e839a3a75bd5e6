"""`modint-guard adapters` as a command: lines for people, JSON for scripts, exit codes for both."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.models import ADAPTER, BASE, bundled
from modint_server.adapters import doctor
from modint_server.adapters.commands import lines_of
from tests.server.adapter_folders import LANGUAGE, PROJECTOR, adapter, base, llava, pair

POINT = EntryPoint("adapters", "modint_server.adapters.commands:adapters", GROUP)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["adapters", *arguments], [POINT])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_the_list_names_where_each_is_from_and_why_one_is_not_loadable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapter(tmp_path / "mine", pair(LANGUAGE))
    adapter(tmp_path / "odd", pair(LANGUAGE), use_dora=True)
    code, out, _ = run(capsys, "list", "--adapter-dir", str(tmp_path), "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, set(rows)) == (0, {"mine", "odd", ADAPTER, "picturebook-lora"})
    assert (rows["mine"]["from"], rows["mine"]["rank"], rows["mine"]["loadable"]) == (str(tmp_path), 2, "yes")
    assert "use_dora=False" in rows["odd"]["loadable"]
    assert (rows[ADAPTER]["from"], rows[ADAPTER]["base"]) == ("bundled", BASE)
    assert ADAPTER in run(capsys, "list", "--adapter-dir", str(tmp_path))[1]


def test_an_adapter_of_the_users_hides_a_bundled_one_of_the_same_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapter(tmp_path / ADAPTER, pair(LANGUAGE))
    _, out, _ = run(capsys, "list", "--adapter-dir", str(tmp_path), "--json")
    rows = json.loads(out)
    assert [row["from"] for row in rows if row["name"] == ADAPTER] == [str(tmp_path)]


def test_inspecting_tells_what_an_adapter_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE))
    _, out, _ = run(capsys, "inspect", f"mine={folder}", "--json")
    facts = json.loads(out)
    assert (facts["rank"], facts["tensors"], facts["parameters"]) == (2, 2, 2 * 4 + 6 * 2)
    assert (facts["types"], len(facts["sha256"]), facts["trained"]) == (["F32"], 64, None)
    code, out, _ = run(capsys, "inspect", ADAPTER)
    assert code == 0 and "sha256" in out and "recipe" in out


def test_inspecting_what_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, errors = run(capsys, "inspect", "nobody", "--adapter-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert "'nobody' is neither in" in errors


def test_the_doctor_leaves_with_1_where_something_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE, rank=4))
    code, out, _ = run(capsys, "doctor", f"mine={folder}")
    assert code == 1
    assert "mine: something is wrong" in out and "fault:" in out and "not checked: names and sizes" in out


def test_the_doctor_leaves_with_0_where_nothing_is_and_says_what_it_did_not_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE))
    code, out, _ = run(capsys, "doctor", f"mine={folder}", "--json")
    result = json.loads(out)
    assert (code, result["healthy"], result["counts"]["unchecked"]) == (0, True, 2)
    assert "not everything was checked" in run(capsys, "doctor", f"mine={folder}")[1]


def test_the_doctor_leaves_a_record_where_it_is_asked_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE))
    run(capsys, "doctor", f"mine={folder}", "--record")
    assert json.loads((folder / "doctor.json").read_text("utf-8"))["modules"]["unchecked"] == 1


def test_nothing_to_fix_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE, rank=4))
    code, out, _ = run(capsys, "doctor", f"mine={folder}", "--fix")
    assert code == 1 and "--fix changed nothing" in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_model_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "doctor", ADAPTER, "--model", "/no/such/model")
    assert code == 2 and "no such folder" in errors


def lines(tmp_path: Path, tensors: dict[str, Any], **options: bool) -> list[str]:
    folder = adapter(tmp_path / "mine", tensors)
    diagnosis = doctor.examine("mine", folder, str(base(tmp_path / "tiny")), ask=llava)
    return list(lines_of(diagnosis, **options))


def test_a_sound_adapter_is_shown_in_two_lines(tmp_path: Path) -> None:
    shown = lines(tmp_path, pair(LANGUAGE))
    assert shown[:2] == ["mine: vLLM applies it", "  2 renamed"]


def test_what_is_not_applied_is_shown_key_by_key_with_the_repair(tmp_path: Path) -> None:
    text = "\n".join(lines(tmp_path, {**pair("model.layers.0.self_attn.q_proj"), **pair(PROJECTOR, 3, 4)}))
    assert "unmatched: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in text
    assert f"--fix would write base_model.model.{LANGUAGE}.lora_A.weight" in text
    assert "ignored: base_model.model.model.multi_modal_projector" in text


def test_many_keys_are_cut_unless_all_are_asked_for(tmp_path: Path) -> None:
    modules = [pair(f"model.layers.{layer}.self_attn.q_proj") for layer in range(5, 15)]
    tensors = {key: value for module in modules for key, value in module.items()}
    assert "  and 12 more unmatched (--all shows them)" in lines(tmp_path / "a", tensors)
    assert sum(line.startswith("  unmatched:") for line in lines(tmp_path / "b", tensors, every=True)) == 20


def test_the_shipped_adapter_has_no_fault_of_its_own() -> None:
    diagnosis = doctor.examine(ADAPTER, bundled(ADAPTER), None, ask=llava)
    assert diagnosis.healthy and diagnosis.of(doctor.Status.RENAMED)
