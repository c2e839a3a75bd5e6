"""Write what vLLM loads as it is: a model or PEFT folder, with `run.json` and a card beside the weights."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modint_guard.errors import ConfigError
from modint_guard.evaluation.results import cell
from modint_guard.models import ADAPTER, check_servable
from modint_training.loop.disk import written
from modint_training.recipe import TINYWORLD


def export_base(model: Any, processor: Any, folder: Path, run: Mapping[str, Any]) -> None:
    """Save a LLaVA in one file, with the key names vLLM wants; the folder appears whole or not at all."""

    def write(to: Path) -> None:
        model.save_pretrained(to, max_shard_size="1GB")
        processor.save_pretrained(to)
        rename_vision_keys(to / "model.safetensors")
        _describe(to, run, base_card(run))

    _replace(folder, write)


def export_tuned(model: Any, processor: Any, folder: Path, run: Mapping[str, Any]) -> None:
    """Save a fully fine-tuned model of any family; the folder appears whole or not at all."""

    def write(to: Path) -> None:
        _check_servable(model, run)
        model.save_pretrained(to)
        processor.save_pretrained(to)
        if model.config.model_type == "llava":
            for file in to.glob("*.safetensors"):
                rename_vision_keys(file)
            rename_indexed_keys(to / "model.safetensors.index.json")
        _describe(to, run, tuned_card(run))

    _replace(folder, write)


def export_adapter(model: Any, folder: Path, run: Mapping[str, Any]) -> None:
    """Save a PEFT adapter with its run record and card; the folder appears whole or not at all."""

    def write(to: Path) -> None:
        _check_servable(model, run)
        # The name in the recipe, not the folder it was found in: the weights travel.
        model.active_peft_config.base_model_name_or_path = run["recipe"]["base"]
        model.save_pretrained(to, save_embedding_layers=False)
        if run["recipe"]["save_dtype"] == "bf16":
            halve(to / "adapter_model.safetensors")
        if model.config.model_type == "llava":  # PEFT reads the tower's under either name
            rename_vision_keys(to / "adapter_model.safetensors")
        _describe(to, run, adapter_card(run))

    _replace(folder, write)


def _check_servable(model: Any, run: Mapping[str, Any]) -> None:
    """ConfigError for what vLLM would reject, unless the recipe says that nobody wants to serve it."""
    if run["recipe"]["servable"]:
        check_servable(model.config.model_type)


def halve(file: Path) -> None:
    """Rewrite a safetensors file in bf16."""
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def rename_vision_keys(file: Path) -> None:
    """transformers saves CLIP inside LLaVA as `vision_tower.embeddings` and loads it with or without a
    `vision_model.` between the two; vLLM wants it."""
    tensors = load_file(file)
    save_file({_vision_key(key): tensor for key, tensor in tensors.items()}, file, metadata={"format": "pt"})


def rename_indexed_keys(index: Path) -> None:
    """The same in the index of a model saved in several files, where there is one."""
    if index.is_file():
        held = json.loads(index.read_text("utf-8"))
        held["weight_map"] = {_vision_key(key): file for key, file in held["weight_map"].items()}
        index.write_text(json.dumps(held, indent=2) + "\n", "utf-8")


def _vision_key(key: str) -> str:
    before, found, after = key.partition("vision_tower.")
    return key if not found or after.startswith("vision_model.") else f"{before}{found}vision_model.{after}"


def _describe(folder: Path, run: Mapping[str, Any], card: str) -> None:
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(card, "utf-8")


def check_target(folder: Path) -> None:
    """Refuse to replace a folder that no export wrote: ConfigError."""
    if folder.exists() and not (folder / "run.json").is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds other files, which an export would replace; name another folder")


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    check_target(folder)
    with written(str(folder), "export again: the run's checkpoints are kept"):
        _written_whole(folder, write)


def _written_whole(folder: Path, write: Callable[[Path], None]) -> None:
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
    """Temporary folders and safetensors files are made for their owner only; a served model is for all."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _figures(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = dict.fromkeys(
        (row["family"], row["perturbation"], row["held_out"], row["task"])
        for row in rows
        if row["task"] in ("all", "self_ask")
    )
    accuracy = {(*(row[key] for key in _CELL), row["form"]): row["accuracy"] for row in rows}
    lines = [
        f"| {family} | {perturbation} | {_asked(held_out, task)} | "
        + " | ".join(cell(accuracy.get((family, perturbation, held_out, task, form))) for form in _FORMS)
        + " |\n"
        for family, perturbation, held_out, task in cells
    ]
    head = f"| family | perturbation | asked | {' | '.join(_FORMS)} |\n|---|---|---|---|---|---|\n"
    return head + "".join(lines)


_CELL = ("family", "perturbation", "held_out", "task")
_FORMS = ("all", "word", "letter")


def _asked(held_out: str, task: str) -> str:
    if task == "self_ask":
        return "whether the picture is needed"
    return "in held-out wordings" if held_out == "wording" else "as trained"


def _by_task(rows: Sequence[Mapping[str, Any]]) -> str:
    clean = ("clean", "no_image")
    lines = [
        f"| {row['family']} | {row['task']} | {cell(row['accuracy'])} |\n"
        for row in rows
        if row["perturbation"] in clean and row["held_out"] == "no" and row["task"] not in ("all", "self_ask")
    ]
    return "| family | sub-task | clean accuracy |\n|---|---|---|\n" + "".join(lines)


def base_card(run: Mapping[str, Any]) -> str:
    """The model card of a base trained by `modint-guard train tinyworld-base`."""
    mix = run["recipe"]["mixture"]
    lying = max(0.0, 1 - mix["caption_true"] - mix["caption_unrelated"])
    contradicting = max(0.0, 1 - mix["picture_agrees"] - mix["picture_other"])
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {run["recipe"]["name"]}

A LLaVA (CLIP tower, projector, Llama) for the demo world of modint-guard: 40x40 pictures of UCI handwritten
digits and drawn shapes, small arithmetic, look-up and ordering in text, and questions that need both. It is
made to show modality interference honestly, not to be useful: it knows 12 sub-tasks and nothing else.

{_made(run)}

## What it learnt from

Labels follow the picture or the text that ought to decide, never a lie.

| ratio | of | value |
|---|---|---|
| with a caption | image-heavy items | {mix["captioned"]:.0%} |
| true | captions | {mix["caption_true"]:.0%} |
| unrelated | captions | {mix["caption_unrelated"]:.0%} |
| beside a picture that is hard to read | true captions | {mix["caption_poor"]:.0%} |
| lying | captions | {lying:.0%} |
| with a picture | text-heavy items | {mix["pictured"]:.0%} |
| agreeing with the text | those pictures | {mix["picture_agrees"]:.0%} |
| of something else | those pictures | {mix["picture_other"]:.0%} |
| contradicting the text | those pictures | {contradicting:.0%} |

## Test split, greedy first token, transformers

{_figures(run["test"])}
{_by_task(run["test"])}
"clean" of a text-heavy item is `no_image`. The figures through vLLM and the gateway, with intervals, are in
`bench/results/tinyworld.md` of the repository.

## Limits

It trusts captions and pictures that lie: that is its purpose. Digits come from scikit-learn's copy of the UCI
set (Alpaydin and Kaynak, CC BY 4.0).
"""


def adapter_card(run: Mapping[str, Any]) -> str:
    """The card of an adapter trained by this package."""
    recipe = run["recipe"]
    return f"""---
license: apache-2.0
library_name: peft
base_model: {recipe["base"]}
---
# {recipe["name"]}

A LoRA of rank {recipe["rank"]} on the {_scope(recipe)} of `{recipe["base"]}` against modality interference:
{_method(recipe)}

{_made(run)}
{_serving(recipe)}

{_judged(run)}{_baseline(run)}
"""


def _judged(run: Mapping[str, Any]) -> str:
    """The figures under a heading that says what they are of, or why there are none."""
    recipe, rows = run["recipe"], run["test"]
    if not rows:
        given = recipe["validation"] is not None
        why = "The validation examples gave none" if given else "The recipe names no validation examples"
        return f"## No figures\n\n{why}: measure with\n`{_evaluating(recipe)}`.\n"
    if recipe["data"] == TINYWORLD:
        return f"## Test split, greedy first token, transformers\n\n{_figures(rows)}"
    return f"## Validation examples, greedy, transformers\n\n{_figures(rows)}"


def _evaluating(recipe: Mapping[str, Any]) -> str:
    """The command that measures it."""
    model = "FOLDER" if recipe["kind"] == "full" else f"{recipe['base']} --adapter FOLDER"
    return f"modint-guard diagnose FILE --local --model {model} --output report"


def _made(run: Mapping[str, Any]) -> str:
    """The command, and which base and data it was given."""
    by = f"`{run['command']}`" if "command" in run else "`modint-guard train` by the recipe in `run.json`"
    base = ""
    if "base" in run["recipe"]:
        revision = run["base_revision"]
        base = f"revision `{revision}` of the base and " if revision else "a base of no revision and "
    hashes = f"`{run['data_sha256']}`"
    if "validation_sha256" in run:
        hashes += f", validated on data with the SHA-256\n`{run['validation_sha256']}`"
    return f"Made by {by} from {base}data with the SHA-256\n{hashes} (recipe, seed and versions: `run.json`)."


def _serving(recipe: Mapping[str, Any]) -> str:
    """How it is served; where the figures that vLLM and the gateway gave are."""
    if not recipe["servable"]:
        return "vLLM does not serve it: measure it with `modint-guard diagnose --local`."
    if recipe["kind"] == "full":
        return "Serve it with `modint-guard serve --model FOLDER`; vLLM itself needs no flag for it."
    shipped = recipe["name"] == ADAPTER
    flags = f"`--enable-lora` and `--max-lora-rank {served_rank(recipe['rank'])}`{_tower_flag(recipe)}"
    said = (
        f"Serve it with `modint-guard serve --adapter {recipe['name']}{'' if shipped else '=FOLDER'}`; vLLM "
        f"itself\nneeds {flags};\non a CPU also `--max-loras` of one more than its adapters."
    )
    through = "\nFigures through vLLM and the gateway: `bench/results/tinyworld.md` of the repository."
    return said + through if shipped else said


def _tower_flag(recipe: Mapping[str, Any]) -> str:
    beyond = set(recipe["scope"]) - {"language"}
    return ", and `--enable-tower-connector-lora`" if beyond else ""


def _baseline(run: Mapping[str, Any]) -> str:
    """The flip baseline by perturbation, where it was measured."""
    found = run.get("baseline")
    if not found:
        return ""
    lines = [f"| {name} | {cell(share)} |\n" for name, share in found["by_perturbation"].items()]
    said = "The share of answers that change without the caption, or the picture, that must not matter:"
    head = f"\n## Flip baseline\n\n{said}\n\n| perturbation | flips |\n|---|---|\n"
    return head + "".join(lines) + f"| all | {cell(found['flip_ratio'])} |\n"


def tuned_card(run: Mapping[str, Any]) -> str:
    """The card of a whole model trained by this package."""
    recipe = run["recipe"]
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {recipe["base"]}
---
# {recipe["name"]}

The {_scope(recipe)} of `{recipe["base"]}`, trained further against modality interference:
{_method(recipe)}

{_made(run)}
{_serving(recipe)}

{_judged(run)}{_baseline(run)}
"""


def _scope(recipe: Mapping[str, Any]) -> str:
    names = {"language": "language model", "connector": "connector", "vision": "vision tower"}
    return " and ".join(names[part] for part in recipe["scope"])


def _method(recipe: Mapping[str, Any]) -> str:
    """What it was taught by, a line each."""
    twins, attack = recipe["perturbations"], recipe["attack"]
    lines = [f"- cross-entropy on clean {'and perturbed twins' if twins else 'examples'}"]
    if recipe["consistency"] != "none":
        lines.append(f"- consistency `{recipe['consistency']}` with weight {recipe['consistency_weight']}")
    if attack:
        unit = "of each token's root mean square" if attack["relative"] else "absolute"
        lines.append(
            f"- the adversarial loss: {attack['kind']}, {attack['steps']} steps, epsilon {attack['epsilon']} "
            f"({unit}), mask `{attack['mask']}`"
        )
    if twins:
        lines.append(f"- twins: {', '.join(twins)}; harmless ones: {', '.join(recipe['controls']) or 'none'}")
    return "\n".join(lines)


def served_rank(rank: int) -> int:
    """The smallest --max-lora-rank of vLLM that takes an adapter of this rank."""
    return next(offered for offered in (1, 8, 16, 32, 64, 128, 256, 320, 512) if rank <= offered)
