"""Each model family, as a tiny checkpoint: read at answers, replayed from the decoder, adapted where it is
meant."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from modint_guard.cli import main
from modint_guard.data.item import Item, Turn, prompt
from modint_guard.data.perturb import perturb
from modint_guard.errors import ConfigError
from modint_guard.models import check_servable
from modint_training.data.collate import chat_messages, collate, encode
from modint_training.loop.predict import first_logits
from modint_training.method.families import FAMILIES, family_of, vision_of
from modint_training.method.labels import Part
from modint_training.method.masks import predicting_mask
from modint_training.method.passes import decoder_pass, unwrap, whole_pass
from modint_training.method.step import twin_loss
from modint_training.models.loading import load_base, lora_config
from modint_training.runs import run_recipe
from modint_training.tinyworld import suite
from modint_training.tune import check_served, tune
from tests.training.small import lora_recipe, tinyworld_batches
from tests.training.small_families import FAMILIES as NAMES
from tests.training.small_families import save_small_family, small_family

PGD = (
    "attack={kind: pgd, step: normalised, epsilon: 0.1, relative: true, alpha: 0.1, steps: 2, mask: span, "
    "weight: 1}"
)
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def made(processor: Any) -> dict[str, tuple[Any, Any]]:
    """Model and processor of every family."""
    return {name: small_family(name, processor) for name in NAMES}


def items() -> list[Item]:
    """With a picture and without."""
    return [
        item for family in ("image-heavy", "text-heavy", "vqa") for item in suite.items(family, "train", 2)
    ]


@each
def test_every_known_family_has_a_tiny_checkpoint(name: str) -> None:
    assert set(NAMES) == set(FAMILIES)
    assert family_of(name).model_type == name


@each
def test_a_pass_reads_the_models_own_logits_at_the_answers(name: str, made: Any) -> None:
    model, processor = made[name]
    batch = collate([encode(item, processor) for item in items()], processor)
    where = predicting_mask(batch.labels)
    whole = model(**batch.inputs, use_cache=False).logits
    outputs, given = whole_pass(model, family_of(name), batch.inputs, where)
    assert torch.allclose(outputs.logits, whole[where], atol=1e-6)
    again = decoder_pass(model, family_of(name), given, given.embeds, where)
    assert torch.allclose(again.logits, whole[where], atol=1e-6)  # position ids and all
    assert again.hidden.shape == outputs.hidden.shape == (int(where.sum()), 32)


@each
@pytest.mark.parametrize("chosen", [[0, 3], [5], [2, 3, 4]])
def test_some_rows_can_be_run_again_alone(name: str, chosen: list[int], made: Any) -> None:
    model, processor = made[name]
    batch = collate([encode(item, processor) for item in items()], processor)
    where, rows = predicting_mask(batch.labels), torch.tensor(chosen)
    whole = model(**batch.inputs, use_cache=False).logits
    _, given = whole_pass(model, family_of(name), batch.inputs, where)
    some = given.rows(rows)
    again = decoder_pass(model, family_of(name), some, some.embeds, where[rows])
    assert torch.allclose(again.logits, whole[rows][where[rows]], atol=1e-5)


@each
def test_the_hooks_are_gone_after_a_pass(name: str, made: Any) -> None:
    model, processor = made[name]
    batch = collate([encode(items()[0], processor)], processor)
    whole_pass(model, family_of(name), batch.inputs, predicting_mask(batch.labels))
    assert not any(module._forward_pre_hooks for module in model.modules())


@each
def test_a_batch_without_any_picture_is_read_too(name: str, made: Any) -> None:
    model, processor = made[name]
    texts = [item.replace(image=None) for item in suite.items("text-heavy", "train", 3)]
    assert first_logits(model, processor, texts).isfinite().all()


@each
def test_prompts_have_the_ids_that_the_processor_itself_makes(name: str, made: Any) -> None:
    _, processor = made[name]
    vision = vision_of(processor)
    for item in items():
        item = perturb(item, "misleading_description") if item.family == "image-heavy" else item
        row = encode(item, processor)
        shown = vision.image_tokens(processor, item.image) if item.image else 0
        assert row.parts.count(Part.IMAGE) == shown
        context = [token for token, part in zip(row.ids, row.parts, strict=True) if part == Part.CONTEXT]
        assert processor.tokenizer.decode(context) == (item.context or "")
        if item.image is None:
            continue
        # InstructBLIP's processor puts the queries first, the others expand a placeholder; a real one's
        # tokenizer puts the begin token there, which TinyWorld's does not.
        begun = processor.tokenizer.bos_token if name == "instructblip" else ""
        text = prompt(item) if begun else vision.render(processor, chat_messages(item, prompt(item)))
        own = processor(text=[text], images=[item.image], return_tensors="pt", add_special_tokens=False)
        begin = processor.tokenizer.convert_tokens_to_ids([begun] if begun else [])
        assert row.ids[: -row.answer_length] == [
            *own["input_ids"][0, : shown if begun else 0].tolist(),
            *begin,
            *own["input_ids"][0, shown if begun else 0 :].tolist(),
        ]
        batch = collate([row], processor)
        for key in own.keys() - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}:
            assert torch.allclose(batch.inputs[key].float(), own[key].float(), atol=1e-6), key


@each
def test_earlier_turns_and_a_system_text_stand_before_the_question(name: str, made: Any) -> None:
    _, processor = made[name]
    item = next(item for item in items() if item.family == "image-heavy")
    earlier = (Turn("user", "Look at this.", has_image=True), Turn("assistant", "I see it."))
    chat = perturb(item, "misleading_description").replace(turns=earlier, system="Be brief.")
    if name == "instructblip":
        with pytest.raises(
            ConfigError, match=f"^item {chat.id}: a model without a chat template reads a single question"
        ):
            encode(chat, processor)
        return
    row = encode(chat, processor)
    said = processor.tokenizer.decode(row.ids[: -row.answer_length])
    shown = vision_of(processor).image_tokens(processor, item.image)
    assert said == (
        "<|begin|><|system|>Be brief.<|end|><|user|>"
        + str(processor.image_token) * shown
        + "Look at this.<|end|><|assistant|>I see it.<|end|><|user|>"
        + f"{prompt(chat)}<|end|><|assistant|>"
    )
    context = [token for token, part in zip(row.ids, row.parts, strict=True) if part == Part.CONTEXT]
    assert processor.tokenizer.decode(context) == chat.context
    # Nobody is shown the picture of an item that has none, whatever its turns say.
    assert Part.IMAGE not in encode(chat.replace(image=None), processor).parts


@each
def test_adapters_sit_in_the_language_model_unless_other_scopes_are_asked_for(name: str, made: Any) -> None:
    family = family_of(name)
    for scopes in (("language",), ("connector",), ("vision",), ("language", "connector", "vision")):
        recipe = lora_recipe("x", f"scope=[{', '.join(scopes)}]")
        model = get_peft_model(small_copy(made[name][0]), lora_config(recipe, name))
        found = {family.scope_of(module + ".weight") for module in model.targeted_module_names}
        assert found == set(scopes)


def small_copy(model: Any) -> Any:
    """Another model of the same shape, for PEFT changes the one it is given."""
    return type(model)(model.config)


@each
def test_attention_alone_can_be_adapted_as_in_the_paper(name: str, made: Any) -> None:
    recipe = lora_recipe("x", "targets=attention")
    model = get_peft_model(small_copy(made[name][0]), lora_config(recipe, name))
    assert {module.rpartition(".")[2] for module in model.targeted_module_names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj")
    }


@each
def test_a_whole_step_reaches_the_adapter_and_nothing_else(name: str, made: Any) -> None:
    model, processor = made[name]
    recipe = lora_recipe("x", PGD, "quotas=[1, 1, 1]", "batch=3")
    adapted = get_peft_model(small_copy(model), lora_config(recipe, name))
    with torch.no_grad():
        for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
            parameter.normal_(std=0.1)
    before = {key: tensor.clone() for key, tensor in adapted.state_dict().items()}
    wanted = {key: parameter.requires_grad for key, parameter in adapted.named_parameters()}
    twin_loss(recipe)(adapted, tinyworld_batches(recipe, processor)(0)[0]).backward()
    reached = {key for key, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert reached == {key for key in wanted if "lora_" in key}
    assert {key: parameter.requires_grad for key, parameter in adapted.named_parameters()} == wanted
    assert all(torch.equal(before[key], tensor) for key, tensor in adapted.state_dict().items())


def test_wrappers_are_taken_off(made: Any) -> None:
    model = made["llava"][0]
    adapted = get_peft_model(small_copy(model), lora_config(lora_recipe("x"), "llava"))
    assert unwrap(model) is model
    assert unwrap(torch.nn.ModuleDict({"module": adapted}).module) is adapted.get_base_model()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "instructblip"])
def test_a_saved_checkpoint_is_loaded_trained_and_evaluated(
    name: str, processor: Any, tmp_path: Path
) -> None:
    base = save_small_family(name, processor, tmp_path / "base")
    settings = ("lr=0.05", "quotas=[1, 1, 2]", "batch=4", "evaluate_items=2")
    recipe = lora_recipe(base, PGD, *settings, f"servable={str(name != 'instructblip').lower()}")
    trained = tune(recipe, tmp_path / "run")
    assert load_base(str(base))[0].config.model_type == name
    assert any(tensor.abs().sum() > 0 for key, tensor in trained.model.named_parameters() if "lora_B" in key)
    assert [figures["step"] for figures in trained.history] == [2]


def test_what_vllm_cannot_serve_is_trained_exported_and_evaluated_here(
    processor: Any, tmp_path: Path
) -> None:
    base = save_small_family("instructblip", processor, tmp_path / "base")
    short = (f"base={base}", "servable=false", "rank=2", "steps=2", "batch=4", "evaluate_steps=2")
    small = (*short, "quotas=[1, 1, 2]", "evaluate_items=2", "warmup_steps=1", "lr=0.05", PGD)
    adapter = run_recipe("robust-lora", small, output=None, runs=tmp_path / "runs", resume="no", test_items=2)
    models = ("--model", str(base), "--adapter", str(adapter), "--against", "base")
    asked = ("--limit", "1", "--perturbation", "noise", "--output", str(tmp_path / "report"))
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "tinyworld", "--local", *models, *asked])
    assert not stop.value.code
    rows = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))["rows"]
    assert {row["model"] for row in rows} == {str(adapter), str(base)}
    assert {row["family"] for row in rows} == {"image-heavy", "text-heavy", "vqa"}
    assert all(0 <= row["accuracy"] <= 1 and row["n"] == 1 for row in rows)


def test_a_family_that_vllm_cannot_serve_says_so() -> None:
    for name in ("llava", "qwen2_vl", "qwen2_5_vl"):
        check_servable(name)
    with pytest.raises(
        ConfigError, match="vLLM does not serve models of type 'instructblip': train and evaluate"
    ):
        check_servable("instructblip")


def test_a_recipe_whose_adapter_nobody_could_serve_is_refused_before_training(
    processor: Any, tmp_path: Path
) -> None:
    base = save_small_family("instructblip", processor, tmp_path / "base")
    with pytest.raises(ConfigError, match="with servable: false, and serve a LLaVA"):
        tune(lora_recipe(base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_would_kill_the_engine_is_refused_before_training(
    processor: Any, tmp_path: Path
) -> None:
    model, _ = small_family("llava", processor)
    model.config.vision_feature_select_strategy = "default"
    model.config.save_pretrained(tmp_path / "base")
    for scope in ("[vision]", "[language, connector]"):
        with pytest.raises(ConfigError, match=r"vLLM crashes on the first picture .* train with scope"):
            tune(lora_recipe(tmp_path / "base", f"scope={scope}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_served(lora_recipe(tmp_path / "base"))
    check_served(lora_recipe(tmp_path / "base", "scope=[vision]", "servable=false"))


def test_an_unknown_processor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="a processor of type 'dict'; known: LlavaProcessor, Qwen2VLProcessor"
    ):
        vision_of({})
