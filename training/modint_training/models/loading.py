"""Loading a base model, with or without an adapter, for training and for answering."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from modint_guard.errors import AdapterError, ConfigError
from modint_guard.models import is_adapter, located
from modint_guard.types import Complete
from modint_training.method.families import family_of
from modint_training.models.image_attention import image_attention as scaled_image_attention
from modint_training.models.local import complete_of
from modint_training.recipe import TuneRecipe


def revision(folder: Path) -> str | None:
    """The fingerprint of a model's weights, 12 hexadecimal digits of a SHA-256; None without weights."""
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12] if files else None


def adapter_folder(name: str) -> Path:
    """The folder of an adapter, given a bundled adapter's name or a PEFT folder; AdapterError if there is
    none."""
    if not is_adapter(name):
        raise AdapterError(
            f"no adapter {name!r}: neither a PEFT folder nor a bundled adapter; train it first"
        )
    return located(name)


def with_adapter(net: Any, adapter: str, base: str) -> Any:
    """The model `base`, loaded as `net`, with a bundled adapter or a PEFT folder.

    Raises AdapterError if the adapter was trained on other weights, or does not fit these.
    """
    folder = adapter_folder(adapter)
    trained_on, present = _base_revision(folder), revision(located(base))
    if trained_on and present and trained_on != present:
        raise AdapterError(
            f"adapter {adapter!r} was trained on revision {trained_on} of its base, and {base!r} is "
            f"{present}: name the base it was trained on with --model, or train it again"
        )
    try:
        return PeftModel.from_pretrained(net, folder)
    except (RuntimeError, ValueError) as exc:  # other sizes or other module names
        raise AdapterError(
            f"adapter {adapter!r} does not fit {base!r}: name the base it was trained on with --model"
        ) from exc


def _base_revision(folder: Path) -> str | None:
    record = folder / "run.json"
    return json.loads(record.read_text("utf-8")).get("base_revision") if record.is_file() else None


@contextmanager
def local_model(model: str, adapter: str | None, *, image_attention: float) -> Iterator[Complete]:
    """A bundled model or a model folder as a `Complete`, with an adapter if one is named.

    image_attention: how strongly it attends to pictures, 1 as it was trained. Raises ConfigError for a model
    or adapter that is not there, and for a model whose attention cannot be scaled.
    """
    net, processor = loaded(model, adapter)
    with scaled_image_attention(net, image_attention):
        yield complete_of(net, processor)


def loaded(model: str, adapter: str | None) -> tuple[Any, Any]:
    """(model, processor), with an adapter if one is named; AdapterError if it does not fit."""
    if adapter:
        adapter_folder(adapter)  # refuses a wrong name before a large model is loaded
    net, processor = load_base(model)
    return (with_adapter(net, adapter, model) if adapter else net), processor


def load_base(
    name: str, *, weights: Path | None = None, placed: bool = True, **loading: Any
) -> tuple[Any, Any]:
    """The model and processor of a bundled model's name or a model folder; `weights` is the folder of a
    checkpoint whose weights replace its own, `loading` goes to `from_pretrained`.

    The model is put on the GPU if there is one, unless `loading` says where it goes (4-bit weights), or not
    `placed`, since a Trainer puts it on the GPU of its rank.
    """
    folder = located(name)
    family_of(model_type_of(name))
    model = AutoModelForImageTextToText.from_pretrained(weights or folder, **loading)
    if placed and "device_map" not in loading:
        model = model.to(fastest_device())
    return model, AutoProcessor.from_pretrained(folder)


def fastest_device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_type_of(name: str) -> str:
    """The model type of a bundled model's name or a model folder; ConfigError if there is no model."""
    config = located(name) / "config.json"
    if not config.is_file():
        raise ConfigError(
            f"no base model {name!r}: neither a model folder nor a bundled model; train it first"
        )
    return str(json.loads(config.read_text("utf-8")).get("model_type", "unknown"))


def loading_of(recipe: TuneRecipe) -> dict[str, Any]:
    """Arguments of `load_base`: the recipe's type of weights, 4 bits for QLoRA (arXiv 2305.14314)."""
    dtype = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
    if recipe.kind != "qlora":
        return {"dtype": dtype}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": dtype, "quantization_config": four_bit, "device_map": {"": torch.cuda.current_device()}}


def trainable(base: Any, recipe: TuneRecipe) -> Any:
    """The base with an adapter on the modules in scope or, for `kind: full`, with all other modules
    frozen."""
    if not torch.cuda.is_available():
        # Rows are short: plain matrix products are faster on a CPU than its flash attention.
        base.set_attn_implementation("eager")
    if recipe.kind == "full":
        family = family_of(base.config.model_type)
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(family.scope_of(name) in recipe.scope)
        return checkpointed(base) if recipe.gradient_checkpointing else base
    adapted = get_peft_model(base, lora_config(recipe, base.config.model_type))
    return checkpointed(adapted) if recipe.gradient_checkpointing else adapted


def checkpointed(model: Any) -> Any:
    """The model with gradient checkpointing.

    The Trainer's own switch also requires gradients of every embedding, the vision tower's patches included:
    a frozen tower would be run again and differentiated for nothing. Non-reentrant checkpointing does not
    need them.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
    return model


def lora_config(recipe: TuneRecipe, model_type: str) -> LoraConfig:
    """LoRA on the modules in scope: by default on the language model's linear layers only, with vision tower
    and connector unchanged."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=family_of(model_type).lora_targets(
            recipe.scope, recipe.targets or "linear", recipe.first_layer
        ),
        task_type="CAUSAL_LM",
    )
