"""The doctor: every key of an adapter by the engine's rules, and what a rename can cure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modint_guard.errors import AdapterError, ConfigError, EngineError
from modint_server.adapters.doctor import (
    AdapterDiagnosis,
    Ask,
    Rules,
    Status,
    examine,
    fix,
    local_folder,
    rules_of,
)
from modint_server.adapters.lora_names import MARK
from tests.server.adapter_folders import (
    JSON,
    LANGUAGE,
    PROJECTOR,
    TOWER,
    adapter,
    base,
    llava,
    no_engine,
    pair,
    save,
)

ORIGINAL_LLAVA = "language_model.model.layers.0.self_attn.q_proj"  # transformers 4 wrote it so
TEXT_ONLY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return base(tmp_path / "tiny")


def examined(
    tmp_path: Path, tiny: Path, tensors: dict[str, Any], tower: bool = False, **config: Any
) -> AdapterDiagnosis:
    return examine("mine", adapter(tmp_path / "mine", tensors, **config), str(tiny), tower=tower, ask=llava)


def statuses(diagnosis: AdapterDiagnosis) -> list[str]:
    return [key.status.value for key in diagnosis.keys]


def test_a_name_that_vllm_renames_itself_is_applied(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examined(tmp_path, tiny, pair(LANGUAGE))
    assert statuses(diagnosis) == ["renamed", "renamed"]
    assert diagnosis.keys[0].module == "language_model.model.layers.0.self_attn.q_proj"
    assert (diagnosis.healthy, diagnosis.unchecked) == (True, ())


def test_a_name_that_is_already_vllms_is_matched(tmp_path: Path, tiny: Path) -> None:
    assert statuses(examined(tmp_path, tiny, pair(ORIGINAL_LLAVA))) == ["matched", "matched"]


def test_tower_and_projector_are_ignored_unless_the_engine_applies_them(tmp_path: Path, tiny: Path) -> None:
    tensors = {**pair(LANGUAGE), **pair(PROJECTOR, into=3, out=4)}
    diagnosis = examined(tmp_path, tiny, tensors)
    assert statuses(diagnosis) == ["renamed", "renamed", "ignored", "ignored"]
    assert "--enable-tower-connector-lora" in diagnosis.keys[2].why and diagnosis.healthy
    again = examine("mine", tmp_path / "mine", str(tiny), tower=True, ask=llava)
    assert statuses(again) == ["renamed"] * 4


def test_an_adapter_none_of_whose_modules_exists_is_a_fault_and_not_silence(
    tmp_path: Path, tiny: Path
) -> None:
    diagnosis = examined(tmp_path, tiny, pair("model.layers.7.self_attn.q_proj"))
    assert statuses(diagnosis) == ["unmatched", "unmatched"]
    assert "never applies it" in diagnosis.keys[0].why and diagnosis.keys[0].fix is None
    assert not diagnosis.healthy and "answer as the base, without a word" in diagnosis.faults[-1]


def test_an_adapter_of_ignored_modules_only_is_a_fault(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examined(tmp_path, tiny, pair(PROJECTOR, into=3, out=4))
    assert not diagnosis.healthy and "answer as the base" in diagnosis.faults[-1]


@pytest.mark.parametrize(
    ("written", "sizes", "meant"),
    [
        (TEXT_ONLY, (4, 6), LANGUAGE),
        ("language_model.layers.0.self_attn.q_proj", (4, 6), LANGUAGE),
        (TOWER, (3, 3), "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"),
    ],
)
def test_a_name_with_parts_left_out_is_cured(
    written: str, sizes: tuple[int, int], meant: str, tmp_path: Path, tiny: Path
) -> None:
    diagnosis = examined(tmp_path, tiny, pair(written, *sizes), tower=True)
    assert statuses(diagnosis) == ["unmatched", "unmatched"]
    before = (tmp_path / "mine" / "adapter_model.safetensors").read_bytes()
    original = fix(diagnosis)
    again = examine("mine", tmp_path / "mine", str(tiny), tower=True, ask=llava)
    assert again.healthy and [key.name for key in again.keys] == list(pair(meant))
    assert original.read_bytes() == before


def test_what_wrappers_leave_in_names_is_cured(tmp_path: Path, tiny: Path) -> None:
    tensors = {
        f"base_model.model._orig_mod.{LANGUAGE}.lora_{side}.default.weight": tensor
        for side, tensor in zip("AB", pair(LANGUAGE).values(), strict=True)
    }
    diagnosis = examined(tmp_path, tiny, tensors)
    assert "vLLM refuses the file" in diagnosis.keys[0].why
    fix(diagnosis)
    assert examine("mine", tmp_path / "mine", str(tiny), ask=llava).healthy


def test_a_name_that_may_mean_two_layers_is_left_alone(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examined(tmp_path, tiny, pair("self_attn.q_proj"))
    assert diagnosis.fixes == {}
    with pytest.raises(AdapterError, match="no rename would change"):
        fix(diagnosis)


def test_a_layer_that_the_engine_does_not_adapt_is_no_cure(tmp_path: Path, tiny: Path) -> None:
    assert examined(tmp_path, tiny, pair(TOWER, 3, 3)).fixes == {}


def test_a_layer_unknown_by_its_last_name_makes_vllm_refuse_the_file(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examined(tmp_path, tiny, {**pair(LANGUAGE), **pair("model.language_model.layers.0.mlp.fc9")})
    assert diagnosis.keys[2].why == "the base has no layer called fc9: vLLM refuses the file"


def test_weights_of_another_base_do_not_fit(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examined(tmp_path, tiny, pair(LANGUAGE, into=5))
    assert [key.status for key in diagnosis.keys] == [Status.UNMATCHED, Status.RENAMED]  # B alone would fit
    assert "does not fit the base's layer of 6 x 4" in diagnosis.keys[0].why


def test_the_bases_own_embeddings_are_ignored(tmp_path: Path, tiny: Path) -> None:
    own = {
        "base_model.model.model.language_model.embed_tokens.base_layer.weight": np.ones((9, 4), np.float32)
    }
    diagnosis = examined(tmp_path, tiny, {**pair(LANGUAGE), **own})
    assert statuses(diagnosis)[2] == "ignored" and diagnosis.healthy


def dense(embeddings: frozenset[str]) -> Ask:
    """vLLM's rules for a language model: nothing is renamed, and these embeddings take adapters."""

    def ask(question: JSON) -> Rules:
        readings = {key: dict(reading) for key, reading in llava(question).adapter.items()}
        for reading in readings.values():
            reading["module"] = reading["module"].removeprefix("language_model.")
        return replace(
            llava(question),
            adapter=readings,
            base={key: key for key in question["base"]},
            applied=None,
            embeddings=embeddings,
        )

    return ask


TIED = {"model.layers.0.self_attn.q_proj.weight": (6, 4), "model.embed_tokens.weight": (9, 4)}


def test_an_output_layer_that_is_the_embedding_is_applied_if_vllm_takes_it(tmp_path: Path) -> None:
    tied = str(base(tmp_path / "tied", TIED))
    folder = adapter(tmp_path / "mine", {**pair(TEXT_ONLY), **pair("lm_head", 4, 9)})
    taken = examine("mine", folder, tied, ask=dense(frozenset({"embed_tokens", "lm_head"})))
    assert (statuses(taken), taken.healthy) == (["matched"] * 4, True)
    refused = examine("mine", folder, tied, ask=dense(frozenset()))
    assert statuses(refused) == ["matched", "matched", "unmatched", "unmatched"]
    assert "takes no adapters of lm_head in this model" in refused.keys[2].why
    wide = adapter(tmp_path / "wide", {**pair(TEXT_ONLY), **pair("lm_head", 5, 9)})
    assert not examine("wide", wide, tied, ask=dense(frozenset({"lm_head"}))).healthy


def test_an_embedding_that_vllm_takes_no_adapters_of_is_a_fault(tmp_path: Path) -> None:
    tied = str(base(tmp_path / "tied", TIED))
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 9), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((4, 2), np.float32),
    }
    read = {key: {"module": "model.embed_tokens", "side": key[-1]} for key in tensors}

    def ask(question: JSON) -> Rules:
        return Rules("0.32.0", read, {key: key for key in question["base"]}, None, None, frozenset())

    diagnosis = examine("mine", adapter(tmp_path / "mine", tensors), tied, ask=ask)
    assert statuses(diagnosis) == ["unmatched", "unmatched"]
    assert "takes no adapters of embed_tokens" in diagnosis.keys[0].why


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("qweight", np.zeros((4, 1), np.int32)),  # AWQ, GPTQ
        ("weight_packed", np.zeros((6, 1), np.int32)),  # compressed-tensors
        ("weight", np.zeros((12, 1), np.uint8)),  # bitsandbytes in 4 bits
    ],
)
def test_an_adapter_fits_a_layer_whose_weights_are_packed(tmp_path: Path, name: str, tensor: Any) -> None:
    folder = base(tmp_path / "packed", {})
    weights = {f"{TEXT_ONLY}.{name}": tensor, f"{TEXT_ONLY}.scales": np.zeros((1, 6), np.float32)}
    save(folder / "model.safetensors", weights)
    mine = adapter(tmp_path / "mine", pair(TEXT_ONLY))
    diagnosis = examine("mine", mine, str(folder), ask=dense(frozenset()))
    assert (statuses(diagnosis), diagnosis.healthy) == (["matched", "matched"], True)


@pytest.mark.parametrize("weights", ["experts.0.up_proj.weight", "experts.gate_up_proj"])
def test_weights_of_all_experts_at_once_are_no_fault(tmp_path: Path, weights: str) -> None:
    mlp = "model.layers.0.mlp"
    shape = (6, 4) if weights.endswith("weight") else (3, 6, 4)
    folder = base(tmp_path / "moe", {**TIED, f"{mlp}.{weights}": shape})
    tensors = {
        **pair(TEXT_ONLY),
        **pair(f"{mlp}.experts", rank=6),
        **pair(f"{mlp}.experts.base_layer", rank=6),
    }
    diagnosis = examine("mine", adapter(tmp_path / "mine", tensors), str(folder), ask=dense(frozenset()))
    assert statuses(diagnosis) == ["matched"] * 2 + ["unchecked"] * 4
    assert diagnosis.healthy


# The file by itself


def faults(tmp_path: Path, tensors: dict[str, Any], **config: Any) -> tuple[str, ...]:
    folder = adapter(tmp_path / "mine", tensors, **config)
    return examine("mine", folder, None, ask=no_engine).faults


def test_half_a_module_is_a_fault(tmp_path: Path) -> None:
    tensors = pair(LANGUAGE)
    tensors.popitem()
    assert faults(tmp_path, tensors) == (
        f"base_model.model.{LANGUAGE} has lora_A only: save the adapter again",
    )


def test_weights_of_another_rank_than_configured_are_a_fault(tmp_path: Path) -> None:
    sentences = faults(tmp_path, pair(LANGUAGE, rank=4))
    assert len(sentences) == 2 and "has rank 4, but adapter_config.json says 2" in sentences[0]


def test_a_rank_pattern_is_read_as_peft_reads_it(tmp_path: Path) -> None:
    assert faults(tmp_path, pair(LANGUAGE, rank=4), rank_pattern={"q_proj": 4, "k_proj": 8}) == ()


def test_an_adapter_that_was_never_trained_is_a_fault(tmp_path: Path) -> None:
    tensors = pair(LANGUAGE)
    tensors[f"base_model.model.{LANGUAGE}.lora_B.weight"][:] = 0
    assert faults(tmp_path, tensors) == (
        "every lora_B is zero, as before training: the adapter has no effect",
    )


def test_weights_that_are_no_numbers_are_a_fault(tmp_path: Path) -> None:
    sentences = faults(tmp_path, pair(LANGUAGE, value=float("nan")))
    assert len(sentences) == 2 and "infinite values or no numbers" in sentences[0]


def test_many_faults_of_a_kind_are_not_all_shown(tmp_path: Path) -> None:
    tensors = {
        key: value for layer in range(4) for key, value in pair(f"layers.{layer}.q_proj", rank=4).items()
    }
    assert faults(tmp_path, tensors)[-1] == "and 3 more of the same kind"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"use_dora": True}, "use_dora=False"),
        ({"r": 600}, "rank 600 is above 512"),
        ({"r": 0}, "export it again"),
    ],
)
def test_what_vllm_refuses_is_a_fault_with_the_way_out(
    config: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    assert any(sentence in fault for fault in faults(tmp_path, pair(LANGUAGE), **config))


def test_a_rank_above_the_engines_default_is_noted_with_the_flag(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE, rank=24), r=24)
    assert examine("mine", folder, None, ask=no_engine).notes == (
        "rank 24: vLLM takes it with --max-lora-rank 32 (`modint-guard serve` sets it)",
    )


# What cannot be checked


def test_without_the_base_names_are_unchecked_and_that_is_said(tmp_path: Path) -> None:
    diagnosis = examine("mine", adapter(tmp_path / "mine", pair(LANGUAGE)), None, ask=llava)
    assert statuses(diagnosis) == ["unchecked", "unchecked"] and diagnosis.healthy
    assert diagnosis.unchecked == (
        "names and sizes: the base is not on this machine; name its folder with --model",
    )


def test_without_vllm_names_are_unchecked_and_that_is_said(tmp_path: Path, tiny: Path) -> None:
    diagnosis = examine("mine", adapter(tmp_path / "mine", pair(LANGUAGE)), str(tiny), ask=no_engine)
    assert statuses(diagnosis) == ["unchecked", "unchecked"]
    assert diagnosis.unchecked == ("names: no vLLM is installed here",)


def test_a_base_without_safetensors_is_said(tmp_path: Path, tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    diagnosis = examined(tmp_path, tiny, pair(LANGUAGE))
    assert diagnosis.unchecked[0].endswith("has no safetensors to compare with")


def test_a_base_without_an_architecture_is_said(tmp_path: Path, tiny: Path) -> None:
    (tiny / "config.json").write_text("{}", "utf-8")
    assert examined(tmp_path, tiny, pair(LANGUAGE)).unchecked[0].endswith("names no architecture")


def test_the_base_is_the_one_on_the_card_and_another_is_noted(tmp_path: Path, tiny: Path) -> None:
    folder = adapter(tmp_path / "mine", pair(LANGUAGE), base_model_name_or_path=str(tiny))
    assert examine("mine", folder, None, ask=llava).healthy
    other = adapter(tmp_path / "other", pair(LANGUAGE), base_model_name_or_path="org/large")
    assert "its card names the base 'org/large'" in examine("other", other, str(tiny), ask=llava).notes[0]


def test_a_model_of_the_hubs_cache_is_found(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    tiny.rename(snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert local_folder("org/tiny") == snapshot
    assert local_folder("org/other") is None
    with pytest.raises(ConfigError, match="--model org/other: not on this machine"):
        examine("mine", adapter(tmp_path / "mine", pair(LANGUAGE)), "org/other", ask=llava)


def test_a_folder_without_weights_is_no_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "mine", {})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        examine("mine", folder, None, ask=no_engine)


# The child that asks vLLM


def test_the_childs_last_marked_line_is_its_answer() -> None:
    answer = {
        "vllm": "0.32",
        "adapter": {},
        "base": {},
        "language": ["lm"],
        "tower": ["v"],
        "multimodal": True,
        "embeddings": ["lm_head"],
    }
    printed = f"{MARK}{{}}\nnoise\n{MARK}{json.dumps({**answer, 'tower_lora': False})}\n"
    rules = rules_of(printed)
    assert (rules.applied, rules.with_tower) == (("lm",), ("lm",))  # the model takes none in its tower
    assert rules_of(printed.replace("false", "true")).with_tower == ("lm", "v")
    assert rules_of(printed.replace('multimodal": true', 'multimodal": false')).applied is None


def test_a_child_that_fails_is_quoted() -> None:
    with pytest.raises(EngineError, match="could not be asked: ImportError: no torch"):
        rules_of(f'{MARK}{{"problem": "ImportError: no torch"}}')
    with pytest.raises(EngineError, match="could not be asked: Killed"):
        rules_of("", "some\nKilled\n")
    with pytest.raises(EngineError, match="it said nothing"):
        rules_of("")
