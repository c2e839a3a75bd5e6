"""What is written for vLLM: key names, whole folders, readable files, and a record of how they came about."""

import errno
import hashlib
import json
import resource
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from modint_guard.data import read_data, write_items
from modint_guard.data.item import FAMILIES, prompt
from modint_guard.errors import ConfigError
from modint_training.loop.disk import disk_errors_as_sentences
from modint_training.loop.predict import FlipBaseline
from modint_training.models.card import adapter_card, served_rank, tuned_card
from modint_training.models.export import (
    check_target,
    export_adapter,
    export_model,
    rename_indexed_keys,
    rename_vision_keys,
)
from modint_training.models.loading import lora_config
from modint_training.recipe_files import load_recipe
from modint_training.run_record import run_record
from modint_training.tinyworld import suite
from modint_training.tinyworld.card import base_card
from modint_training.world import data_digest
from tests.training.small import lora_recipe, pretrain_recipe, save_small_base, small_model


def figure(family: str, perturbation: str, accuracy: float, **more: Any) -> dict[str, Any]:
    cell = {"family": family, "perturbation": perturbation, "held_out": "no", "task": "all", "form": "all"}
    return {**cell, **more, "accuracy": accuracy}


ROWS = [
    figure("image-heavy", "clean", 0.91234),
    figure("image-heavy", "clean", 0.9, form="word"),
    figure("image-heavy", "clean", 0.92, form="letter"),
    figure("image-heavy", "clean", 0.875, task="digit"),
    figure("vqa", "clean", 0.8),
    figure("vqa", "clean", 0.79, held_out="wording"),
    figure("vqa", "clean", 0.99, task="self_ask"),
]
HISTORY = [{"step": 2, "vqa/clean": 0.5}]


def run(recipe: Any = None) -> dict[str, Any]:
    return run_record(recipe or pretrain_recipe(), HISTORY, ROWS, 61.7)


def export_base(model: Any, processor: Any, folder: Path) -> None:
    export_model(model, processor, folder, run(), card=base_card)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def same_tensors(first: Any, second: Any) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def exported(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "base"
    export_base(small_model(processor), processor, folder)
    return folder


def test_an_export_that_finds_the_disk_full_is_one_sentence_and_leaves_nothing(
    processor: Any, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights are more
    try:
        with pytest.raises(
            ConfigError, match=r"base cannot be written \(File too large\): make room, and export again: the"
        ):
            export_base(small_model(processor), processor, tmp_path / "base")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_of_the_disk_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="share memory"), disk_errors_as_sentences("x", "y"):
        raise RuntimeError("Some tensors share memory")
    said = r"x cannot be written \(Read-only file system\): let it be written, and y"
    with pytest.raises(ConfigError, match=said), disk_errors_as_sentences("x", "y"):
        raise OSError(errno.EROFS, "no")


# Key names


def test_the_vision_keys_are_named_as_vllm_wants_them(exported: Path) -> None:
    keys = set(load_file(exported / "model.safetensors"))
    vision = {key for key in keys if "vision_tower" in key}
    assert "vision_tower.vision_model.embeddings.class_embedding" in vision
    assert all(key.startswith("vision_tower.vision_model.") for key in vision)
    assert "language_model.model.embed_tokens.weight" in keys
    assert any(key.startswith("multi_modal_projector.") for key in keys)


def test_transformers_loads_the_exported_names_and_its_own(
    processor: Any, tmp_path: Path, exported: Path
) -> None:
    model = small_model(processor)
    model.save_pretrained(tmp_path)
    own = set(load_file(tmp_path / "model.safetensors"))
    assert own != set(load_file(exported / "model.safetensors"))
    for folder in (tmp_path, exported):
        loaded, said = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not said["missing_keys"] and not said["unexpected_keys"]
        assert same_tensors(loaded, model)


def test_renaming_twice_is_renaming_once(processor: Any, tmp_path: Path) -> None:
    small_model(processor).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    rename_vision_keys(file)
    once = load_file(file)
    rename_vision_keys(file)
    twice = load_file(file)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


# The folder


def test_a_model_folder_is_whole(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "run.json",
        "README.md",
    }
    assert [path.name for path in exported.glob("*.safetensors")] == ["model.safetensors"]


def test_the_exported_model_stops_at_the_end_token(exported: Path, processor: Any) -> None:
    settings = json.loads((exported / "config.json").read_text())
    tokenizer = processor.tokenizer
    assert settings["text_config"]["eos_token_id"] == tokenizer.eos_token_id
    assert settings["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>")
    loaded = AutoProcessor.from_pretrained(exported)
    assert loaded.chat_template == processor.chat_template


def test_everyone_may_read_the_export(exported: Path) -> None:
    assert mode(exported) == 0o755
    assert {path.name: mode(path) for path in exported.iterdir()} == {
        path.name: 0o644 for path in exported.iterdir()
    }


def test_an_earlier_export_is_replaced_whole(processor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    export_base(small_model(processor), processor, folder)
    (folder / "stale.bin").write_text("old")
    export_base(small_model(processor, seed=1), processor, folder)
    assert not (folder / "stale.bin").exists()
    loaded = LlavaForConditionalGeneration.from_pretrained(folder)
    assert same_tensors(loaded, small_model(processor, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


class HalfWritten:
    """A model whose disk is full after the first file."""

    config = SimpleNamespace(model_type="llava")

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")


def test_an_export_that_fails_leaves_the_earlier_one_alone(processor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    export_base(small_model(processor), processor, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="no space left"):
        export_base(HalfWritten(), processor, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_export_that_fails_leaves_nothing_where_nothing_was(processor: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        export_base(HalfWritten(), processor, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_never_replaced(processor: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ConfigError, match="holds other files, which an export would replace; name another folder"
    ):
        export_base(small_model(processor), processor, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(tmp_path / "new")


# The adapter


@pytest.fixture(scope="module")
def adapter(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("adapter")
    base = LlavaForConditionalGeneration.from_pretrained(save_small_base(processor, home / "base"))
    recipe = lora_recipe("tinyworld-base")
    export_adapter(get_peft_model(base, lora_config(recipe, "llava")), home / "lora", run(recipe))
    return home / "lora"


def test_an_adapter_folder_is_what_peft_and_vllm_load(adapter: Path, processor: Any) -> None:
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
        "README.md",
    }
    assert {mode(path) for path in adapter.iterdir()} == {0o644}
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"]) == ("LORA", 2)
    loaded = PeftModel.from_pretrained(small_model(processor), adapter)
    assert loaded.active_adapter == "default"


def test_an_adapter_names_its_base_and_no_path_of_the_machine_that_made_it(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tinyworld-base"
    for path in adapter.glob("*.json"):
        assert str(adapter.parent) not in path.read_text()


def test_an_adapter_holds_weights_of_the_language_model_only(adapter: Path) -> None:
    keys = set(load_file(adapter / "adapter_model.safetensors"))
    assert len(keys) == 7 * 2  # seven linear layers, A and B
    assert all("language_model" in key and "lora_" in key for key in keys)


def test_an_adapter_on_the_vision_tower_has_vllms_names_and_peft_reads_them(
    processor: Any, tmp_path: Path
) -> None:
    recipe = lora_recipe("tinyworld-base", "scope=[language, connector, vision]")
    model = get_peft_model(small_model(processor), lora_config(recipe, "llava"))
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
            parameter.fill_(0.5)
    export_adapter(model, tmp_path / "lora", run(recipe))
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    tower = {key for key in keys if "vision_tower" in key}
    # q, k, v, out, fc1 and fc2 of one layer, A and B; un-renamed ones vLLM would leave out in silence.
    assert len(tower) == 6 * 2
    assert all("model.vision_tower.vision_model.encoder.layers.0" in key for key in tower)
    loaded = PeftModel.from_pretrained(small_model(processor), tmp_path / "lora")
    held = [tensor for name, tensor in loaded.named_parameters() if "lora_B" in name]
    assert len(held) == 7 + 2 + 6 and all((tensor == 0.5).all() for tensor in held)
    assert "`--max-lora-rank 8`, and `--enable-tower-connector-lora`;" in adapter_card(run(recipe))


# The record and the card


def test_the_record_names_what_made_the_weights(exported: Path) -> None:
    record = json.loads((exported / "run.json").read_text())
    recipe = pretrain_recipe()
    assert record["recipe"] == json.loads(recipe.model_dump_json())
    assert (record["seed"], record["train_seconds"]) == (0, 62)
    assert record["data_sha256"] == data_digest("tinyworld")
    assert set(record["versions"]) >= {"modint-guard", "torch", "transformers", "peft", "tokenizers", "numpy"}
    assert set(record["machine"]) == {"system", "processor", "python"}
    assert (record["validation"], record["test"]) == (HISTORY, ROWS)


def test_the_data_hash_is_over_prompts_answers_and_pixels() -> None:
    digest = hashlib.sha256()
    for family in FAMILIES:
        for item in suite.items(family, "train", 2):
            digest.update("\x1f".join((prompt(item), item.answer, item.wrong)).encode())
            digest.update(item.image.tobytes() if item.image else b"")
    assert data_digest("tinyworld", count=2) == digest.hexdigest() != data_digest("tinyworld", count=3)


def test_data_of_ones_own_are_named_by_their_files(tmp_path: Path) -> None:
    write_items(suite.items("vqa", "train", 2), tmp_path)
    told = read_data(tmp_path).digest()  # what `data validate` prints
    assert data_digest(str(tmp_path)) == told != data_digest("tinyworld")
    own = (f"data={tmp_path}", f"validation={tmp_path}", "letter=null")
    record = run_record(lora_recipe("tinyworld-base", *own), HISTORY, ROWS, 1)
    assert record["validation_sha256"] == record["data_sha256"] == told
    assert "## Validation examples, greedy, transformers" in adapter_card(record).splitlines()
    card = adapter_card(record)
    assert f"and data with the SHA-256\n`{told}`, validated on data with the SHA-256\n`{told}` (" in card
    assert "validation_sha256" not in run() and "validated on" not in adapter_card(run(lora_recipe("x")))


def test_a_card_without_validation_examples_says_so_and_shows_no_empty_table(tmp_path: Path) -> None:
    write_items(suite.items("vqa", "train", 2), tmp_path)
    mine = lora_recipe("tinyworld-base", f"data={tmp_path}", "letter=null")
    card = adapter_card(run_record(mine, [], [], 1))
    assert "\n## No figures\n\nThe recipe names no validation examples: measure with\n" in card
    assert "`modint-guard diagnose FILE --local --model tinyworld-base --adapter FOLDER --output" in card
    assert "Validation examples" not in card and "| family |" not in card
    watched = mine.model_copy(update={"validation": str(tmp_path)})
    assert "The validation examples gave none: measure" in adapter_card(run_record(watched, [], [], 1))


def test_a_card_says_the_command_that_was_typed_or_that_it_is_not_known() -> None:
    recipe = lora_recipe("tinyworld-base", "name=mine")
    typed = "modint-guard train robust-lora name=mine 'quotas=[1, 0, 0]'"
    record = run_record(recipe, HISTORY, ROWS, 1, command=typed)
    assert record["command"] == typed
    assert f"Made by `{typed}` from " in adapter_card(record)
    unknown = run(recipe)
    assert "command" not in unknown
    assert "Made by `modint-guard train` by the recipe in `run.json` from " in adapter_card(unknown)
    typed = "modint-guard train tinyworld-base seed=1"
    base = run_record(pretrain_recipe(), HISTORY, ROWS, 1, command=typed)
    made = f"Made by `{typed}` from data with the SHA-256\n`{base['data_sha256']}` (recipe"
    assert made in base_card(base)


def test_the_card_of_a_base_states_its_ratios_and_figures() -> None:
    card = base_card(run())
    for line in (
        "# tinyworld-base",
        "| with a caption | image-heavy items | 65% |",
        "| true | captions | 92% |",
        "| unrelated | captions | 8% |",
        "| lying | captions | 0% |",
        "| beside a picture that is hard to read | true captions | 60% |",
        "| with a picture | text-heavy items | 30% |",
        "| agreeing with the text | those pictures | 90% |",
        "| of something else | those pictures | 10% |",
        "| contradicting the text | those pictures | 0% |",
        "| image-heavy | clean | as trained | 0.912 | 0.900 | 0.920 |",
        "| vqa | clean | as trained | 0.800 | – | – |",
        "| vqa | clean | in held-out wordings | 0.790 | – | – |",
        "| vqa | clean | whether the picture is needed | 0.990 | – | – |",
        "| image-heavy | digit | 0.875 |",
    ):
        assert line in card.splitlines()
    assert card.startswith("---\nlicense: apache-2.0\n")


def test_the_card_of_an_adapter_states_what_it_was_trained_on() -> None:
    card = adapter_card(run(lora_recipe("tinyworld-base"))).splitlines()
    assert "base_model: tinyworld-base" in card
    made = run(lora_recipe("tinyworld-base"))
    assert f"from revision `{made['base_revision']}` of the base" in " ".join(card)
    assert f"`{made['data_sha256']}` (recipe, seed and versions: `run.json`)." in card
    assert "A LoRA of rank 2 on the language model of `tinyworld-base` against modality interference:" in card
    assert "needs `--enable-lora` and `--max-lora-rank 8`;" in card  # vLLM has no limit of 2
    assert "on a CPU also `--max-loras` of one more than its adapters." in card
    assert "- cross-entropy on clean and perturbed twins" in card
    assert "- consistency `js` with weight 0.5" in card
    twins = "misleading_description, unrelated_facts, contradicting_image, noise, black"
    harmless = "true_description, agreeing_image, neutral_text"
    assert f"- twins: {twins}; harmless ones: {harmless}" in card


def test_the_card_of_the_picture_books_adapter_gives_intervals_of_whole_replies_and_its_command() -> None:
    row = figure("image-heavy", "misleading_description", 0.75, n=80, ci_low=0.625, ci_high=0.875)
    del row["form"]  # whole replies are of any form
    record = run_record(load_recipe("picturebook-lora"), HISTORY, [row], 1, rows_sha256="0")
    card = adapter_card(record).splitlines()
    assert "## Test split, greedy whole replies, transformers" in card
    assert "| image-heavy | misleading_description | no | all | 80 | 0.75 | [0.62, 0.88] |" in card
    assert [line for line in card if line.startswith("Serve it with")] == [
        "Serve it with `modint-guard serve --model picturebook-base --adapter picturebook-lora`; vLLM itself"
    ]
    twins = "- twins: misleading_description, contradicting_image; harmless ones: true_description, "
    assert f"{twins}agreeing_image, neutral_text" in card


def test_the_flip_baseline_stands_in_record_and_card() -> None:
    recipe = load_recipe("tinyworld-aug")
    found: FlipBaseline = {"flip_ratio": 0.25, "n": 40, "by_perturbation": {"noise": 0.5, "black": 0.0}}
    record = run_record(recipe, HISTORY, ROWS, 1, found)
    assert record["baseline"] == found  # where the gateway looks for it
    card = adapter_card(record).splitlines()
    assert [line for line in card if line.startswith(("| noise", "| black", "| all |"))] == [
        "| noise | 0.500 |",
        "| black | 0.000 |",
        "| all | 0.250 |",
    ]
    without = run_record(recipe, HISTORY, ROWS, 1)
    assert "baseline" not in without and "Flip baseline" not in adapter_card(without)


def test_a_family_that_vllm_does_not_serve_is_not_exported_as_if_it_did(tmp_path: Path) -> None:
    record = run(lora_recipe("tinyworld-base"))
    model = SimpleNamespace(config=SimpleNamespace(model_type="instructblip"))
    with pytest.raises(ConfigError, match="vLLM does not serve models of type 'instructblip'"):
        export_adapter(model, tmp_path / "lora", record)
    assert not list(tmp_path.iterdir())
    card = adapter_card(run(lora_recipe("tinyworld-base", "servable=false")))
    assert "vLLM does not serve it" in card and "--enable-lora" not in card


def test_the_card_names_the_attack_and_nothing_that_was_not_done() -> None:
    full, plain = (load_recipe(f"tinyworld-{name}") for name in ("full", "sft"))
    attack = (
        "- the adversarial loss: pgd, 1 steps, epsilon 0.2 (of each token's root mean square), mask `span`"
    )
    assert attack in adapter_card(run(full)).splitlines()
    card = adapter_card(run(plain))
    assert "- cross-entropy on clean examples" in card.splitlines()
    assert "adversarial" not in card and "consistency" not in card and "twins" not in card


@pytest.mark.parametrize(
    ("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (128, 128), (300, 320), (512, 512)]
)
def test_an_adapter_is_served_with_the_next_limit_that_vllm_offers(rank: int, served: int) -> None:
    assert served_rank(rank) == served


# Whole models


def test_a_fully_tuned_model_is_written_whole_and_loads_again(processor: Any, tmp_path: Path) -> None:
    model = small_model(processor)
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null")
    export_model(model, processor, tmp_path / "full", run(lora_recipe("tinyworld-base", *without)))
    keys = load_file(tmp_path / "full" / "model.safetensors")
    assert any("vision_tower.vision_model." in key for key in keys)
    assert same_tensors(LlavaForConditionalGeneration.from_pretrained(tmp_path / "full"), model)
    card = (tmp_path / "full" / "README.md").read_text("utf-8")
    assert "The language model of `tinyworld-base`, trained further against modality interference:" in card


def test_the_card_of_a_whole_model_says_how_it_is_served_and_how_often_its_answers_flip() -> None:
    without = ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null")
    found: FlipBaseline = {"flip_ratio": 0.25, "n": 40, "by_perturbation": {"noise": 0.5}}
    card = tuned_card(run_record(lora_recipe("x", *without), HISTORY, ROWS, 1, found))
    assert "Serve it with `modint-guard serve --model FOLDER`; vLLM itself needs no flag for it." in card
    assert "\n## Flip baseline\n" in card and "| noise | 0.500 |\n| all | 0.250 |\n" in card
    card = tuned_card(run(lora_recipe("x", *without, "servable=false")))
    assert "vLLM does not serve it" in card and "serve --model" not in card
    card = tuned_card(run_record(lora_recipe("x", *without), HISTORY, [], 1))
    assert "`modint-guard diagnose FILE --local --model FOLDER --output report`" in card


def test_the_keys_of_a_model_in_several_files_are_renamed_in_their_index_too(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    rename_indexed_keys(index)  # a model in one file has none
    index.write_text(json.dumps({"weight_map": {"vision_tower.embeddings.x": "1", "lm_head.weight": "2"}}))
    rename_indexed_keys(index)
    assert json.loads(index.read_text())["weight_map"] == {
        "vision_tower.vision_model.embeddings.x": "1",
        "lm_head.weight": "2",
    }
