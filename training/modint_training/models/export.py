"""Export in the form that vLLM loads: a model or PEFT folder, with `run.json` and a card beside the
weights."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modint_guard.errors import ConfigError
from modint_guard.models import check_servable
from modint_training.loop.disk import disk_errors_as_sentences
from modint_training.models.card import Run, adapter_card, tuned_card


def export_model(
    model: Any, processor: Any, folder: Path, run: Run, *, card: Callable[[Run], str] = tuned_card
) -> None:
    """Save a whole model of any family, with its run record and card; the folder appears complete or not at
    all."""

    def write(to: Path) -> None:
        _check_servable(model, run)
        model.save_pretrained(to)
        processor.save_pretrained(to)
        if model.config.model_type == "llava":
            for file in to.glob("*.safetensors"):
                rename_vision_keys(file)
            rename_indexed_keys(to / "model.safetensors.index.json")
        describe(to, run, card(run))

    replace_folder(folder, write)


def export_adapter(model: Any, folder: Path, run: Run) -> None:
    """Save a PEFT adapter with its run record and card; the folder appears complete or not at all."""

    def write(to: Path) -> None:
        _check_servable(model, run)
        # The base's name in the recipe, not the folder it was loaded from: the weights travel.
        model.active_peft_config.base_model_name_or_path = run["recipe"]["base"]
        model.save_pretrained(to, save_embedding_layers=False)
        if run["recipe"]["save_dtype"] == "bf16":
            halve(to / "adapter_model.safetensors")
        if model.config.model_type == "llava":  # PEFT reads the vision tower's weights under either name
            rename_vision_keys(to / "adapter_model.safetensors")
        describe(to, run, adapter_card(run))

    replace_folder(folder, write)


def _check_servable(model: Any, run: Run) -> None:
    """ConfigError for a model that vLLM would reject, unless the recipe says `servable: false`."""
    if run["recipe"].get("servable", True):
        check_servable(model.config.model_type)


def halve(file: Path) -> None:
    """Rewrite a safetensors file in bf16."""
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def rename_vision_keys(file: Path) -> None:
    """Rename the vision tower's weights in a LLaVA's safetensors file as vLLM expects them.

    transformers saves CLIP inside LLaVA as `vision_tower.embeddings` and loads it with or without a
    `vision_model.` between the two; vLLM requires it.
    """
    tensors = load_file(file)
    save_file({_vision_key(key): tensor for key, tensor in tensors.items()}, file, metadata={"format": "pt"})


def rename_indexed_keys(index: Path) -> None:
    """The same in the index file of a model saved in several files, if there is one."""
    if index.is_file():
        content = json.loads(index.read_text("utf-8"))
        content["weight_map"] = {_vision_key(key): file for key, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _vision_key(key: str) -> str:
    before, tower, after = key.partition("vision_tower.")
    return key if not tower or after.startswith("vision_model.") else f"{before}{tower}vision_model.{after}"


def describe(folder: Path, run: Run, card: str) -> None:
    """Write the run record and the card beside the weights."""
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(card, "utf-8")


def check_target(folder: Path) -> None:
    """ConfigError for a folder that no export wrote: it must not be replaced."""
    if folder.exists() and not (folder / "run.json").is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds other files, which an export would replace; name another folder")


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """`write` a folder that then takes the place of `folder`, complete or not at all. ConfigError if no
    export wrote the folder that is there."""
    check_target(folder)
    with disk_errors_as_sentences(str(folder), "export again: the run's checkpoints are kept"):
        _write_complete(folder, write)


def _write_complete(folder: Path, write: Callable[[Path], object]) -> None:
    """Write into a temporary folder beside `folder`, which then takes its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        write(fresh)
        _make_readable(fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Let everybody read a served model: temporary folders and safetensors files are readable only for the
    user who wrote them."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
