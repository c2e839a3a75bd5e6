"""The card (`README.md`) of a trained model or adapter, written from its run record."""

from collections.abc import Mapping, Sequence
from typing import Any

from modint_guard.evaluation.results import cell
from modint_guard.models import ADAPTER, picturebook
from modint_training.recipe import names_world

Run = Mapping[str, Any]  # a run record, as `run.json` holds it


def adapter_card(run: Run) -> str:
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

{origin(run)}{_kept(run)}
{_serving(recipe)}

{_figures(run)}{_baseline(run)}
"""


def _kept(run: Run) -> str:
    """A sentence on the modules that are left of an adapter, if some were taken away."""
    if "kept_modules" not in run:
        return ""
    kept = len(run["kept_modules"])
    return f"\nOf its {run['trained_modules']} modules {kept} are kept (`run.json` names them)."


def _figures(run: Run) -> str:
    """The figures, under a heading that says what was measured, or the reason why there are none."""
    recipe, rows = run["recipe"], run["test"]
    if not rows:
        has_validation = recipe["validation"] is not None
        why = (
            "The validation examples gave none"
            if has_validation
            else "The recipe names no validation examples"
        )
        return f"## No figures\n\n{why}: measure with\n`{_evaluate_command(recipe)}`.\n"
    if names_world(recipe["data"]):
        if "form" in rows[0]:
            return f"## Test split, greedy first token, transformers\n\n{accuracy_table(rows)}"
        return f"## Test split, greedy whole replies, transformers\n\n{interval_table(rows)}"
    return f"## Validation examples, greedy, transformers\n\n{accuracy_table(rows)}"


def _evaluate_command(recipe: Mapping[str, Any]) -> str:
    model = "FOLDER" if recipe["kind"] == "full" else f"{recipe['base']} --adapter FOLDER"
    return f"modint-guard diagnose FILE --local --model {model} --output report"


def origin(run: Run) -> str:
    """The command that made the weights, and the base and the data that it was given."""
    by = f"`{run['command']}`" if "command" in run else "`modint-guard train` by the recipe in `run.json`"
    base = ""
    if "base" in run["recipe"]:
        revision = run["base_revision"]
        base = f"revision `{revision}` of the base and " if revision else "a base of no revision and "
    hashes = f"`{run['data_sha256']}`"
    if "validation_sha256" in run:
        hashes += f", validated on data with the SHA-256\n`{run['validation_sha256']}`"
    return f"Made by {by} from {base}data with the SHA-256\n{hashes} (recipe, seed and versions: `run.json`)."


def mixture_table(mix: Mapping[str, Any]) -> str:
    """The ratios of a base's data (the recipe's `mixture`), as a Markdown table."""
    lying = max(0.0, 1 - mix["caption_true"] - mix["caption_unrelated"])
    contradicting = max(0.0, 1 - mix["picture_agrees"] - mix["picture_other"])
    return f"""| ratio | of | value |
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
"""


def _serving(recipe: Mapping[str, Any]) -> str:
    """How to serve it, and where its figures through vLLM and the gateway are."""
    if not recipe["servable"]:
        return "vLLM does not serve it: measure it with `modint-guard diagnose --local`."
    if recipe["kind"] == "full":
        return "Serve it with `modint-guard serve --model FOLDER`; vLLM itself needs no flag for it."
    results = _RESULTS.get(recipe["name"])  # of an adapter that ships
    flags = f"`--enable-lora` and `--max-lora-rank {served_rank(recipe['rank'])}`{_tower_flag(recipe)}"
    model = f"--model {picturebook.NAME} " if recipe["base"] == picturebook.NAME else ""
    text = (
        f"Serve it with `modint-guard serve {model}--adapter {recipe['name']}{'' if results else '=FOLDER'}`;"
        f" vLLM itself\nneeds {flags};\non a CPU also `--max-loras` of one more than its adapters."
    )
    return f"{text}\n{results}" if results else text


_RESULTS = {
    ADAPTER: "Figures through vLLM and the gateway: `bench/results/tinyworld.md` of the repository.",
    picturebook.ADAPTER: "How its base does on the same items: `docs/picturebook-lora.md` of the repository.",
}


def _tower_flag(recipe: Mapping[str, Any]) -> str:
    beyond = set(recipe["scope"]) - {"language"}
    return ", and `--enable-tower-connector-lora`" if beyond else ""


def _baseline(run: Run) -> str:
    """The flip baseline by perturbation, if it was measured."""
    baseline = run.get("baseline")
    if not baseline:
        return ""
    lines = [f"| {name} | {cell(share)} |\n" for name, share in baseline["by_perturbation"].items()]
    text = "The share of answers that change without the caption, or the picture, that must not matter:"
    head = f"\n## Flip baseline\n\n{text}\n\n| perturbation | flips |\n|---|---|\n"
    return head + "".join(lines) + f"| all | {cell(baseline['flip_ratio'])} |\n"


def tuned_card(run: Run) -> str:
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

{origin(run)}
{_serving(recipe)}

{_figures(run)}{_baseline(run)}
"""


def _scope(recipe: Mapping[str, Any]) -> str:
    names = {"language": "language model", "connector": "connector", "vision": "vision tower"}
    return " and ".join(names[part] for part in recipe["scope"])


def _method(recipe: Mapping[str, Any]) -> str:
    """What it was trained with, a line each."""
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
    if recipe.get("balance") == "pcgrad":
        lines.append("- PCGrad between these losses: their gradients lose what in them undoes each other")
    if recipe.get("order", "joint") != "joint":
        last = "last" if recipe["order"] == "progressive" else "first"
        lines.append(f"- rows that need both modalities came {last} (`order: {recipe['order']}`)")
    if twins:
        lines.append(f"- twins: {', '.join(twins)}; harmless ones: {', '.join(recipe['controls']) or 'none'}")
    return "\n".join(lines)


def served_rank(rank: int) -> int:
    """The smallest --max-lora-rank of vLLM that takes an adapter of this rank."""
    return next(offered for offered in (1, 8, 16, 32, 64, 128, 256, 320, 512) if rank <= offered)


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by family, perturbation and wording, for all items and each form, as a Markdown table."""
    cells = dict.fromkeys(
        (row["family"], row["perturbation"], row["held_out"], row["task"])
        for row in rows
        if row["task"] in ("all", "self_ask")
    )
    accuracy = {(*(row[key] for key in _CELL), row["form"]): row["accuracy"] for row in rows}
    lines = [
        f"| {family} | {perturbation} | {_wording(held_out, task)} | "
        + " | ".join(cell(accuracy.get((family, perturbation, held_out, task, form))) for form in _FORMS)
        + " |\n"
        for family, perturbation, held_out, task in cells
    ]
    head = f"| family | perturbation | asked | {' | '.join(_FORMS)} |\n|---|---|---|---|---|---|\n"
    return head + "".join(lines)


def interval_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy with its interval by family, perturbation and what was held out, a row for each sub-task."""
    head = (
        "| family | perturbation | held out | task | n | accuracy | 95 % |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row['family']} | {row['perturbation']} | {row['held_out']} | {row['task']} | {row['n']} "
        f"| {row['accuracy']:.2f} | [{row['ci_low']:.2f}, {row['ci_high']:.2f}] |\n"
        for row in rows
    )


_CELL = ("family", "perturbation", "held_out", "task")
_FORMS = ("all", "word", "letter")


def _wording(held_out: str, task: str) -> str:
    if task == "self_ask":
        return "whether the picture is needed"
    return "in held-out wordings" if held_out == "wording" else "as trained"


def sub_task_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Clean accuracy by family and sub-task, as a Markdown table."""
    clean = ("clean", "no_image")
    lines = [
        f"| {row['family']} | {row['task']} | {cell(row['accuracy'])} |\n"
        for row in rows
        if row["perturbation"] in clean and row["held_out"] == "no" and row["task"] not in ("all", "self_ask")
    ]
    return "| family | sub-task | clean accuracy |\n|---|---|---|\n" + "".join(lines)
