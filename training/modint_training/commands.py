"""`modint-guard train`, `evaluate` and `results`."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modint_guard.errors import AdapterError
from modint_guard.models import bundled
from modint_training.config import LoraRecipe, PretrainRecipe, load_recipe
from modint_training.export import check_target, export_adapter, export_base, run_record
from modint_training.lora import load_base, train_lora
from modint_training.predict import WATCHED, accuracy
from modint_training.pretrain import pretrain
from modint_training.tinyworld import suite

TEST_ITEMS = 400  # of each family and perturbation in a card's table


def train(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dots go deeper.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the model or adapter is written; default ./runs/NAME/export.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Checkpoints lie here.")] = Path("runs"),
    resume: Annotated[
        Literal["auto", "no"],
        typer.Option(help="`auto` continues from the last checkpoint, `no` starts anew."),
    ] = "no",
) -> None:
    """Train a model or an adapter by a recipe, and export what vLLM loads."""
    settings = load_recipe(recipe, overrides or [])
    folder = runs / settings.name
    target = output or folder / "export"
    check_target(target)
    began = time.monotonic()
    if isinstance(settings, PretrainRecipe):
        model, processor, history = pretrain(settings, folder, resume=resume)
        export_base(model, processor, target, _record(settings, model, processor, history, began))
    else:
        model, processor, history = train_lora(settings, folder, resume=resume)
        export_adapter(model, target, _record(settings, model, processor, history, began))
    typer.echo(f"wrote {target}")


def _record(
    settings: PretrainRecipe | LoraRecipe,
    model: Any,
    processor: Any,
    history: list[dict[str, float]],
    began: float,
) -> dict[str, Any]:
    seconds = time.monotonic() - began
    typer.echo(f"evaluating on {TEST_ITEMS} test items a condition", err=True)
    return run_record(settings, history, test_figures(model, processor, TEST_ITEMS), seconds)


def test_figures(model: Any, processor: Any, count: int) -> dict[str, float]:
    """Test accuracy under each watched condition, keyed `family/perturbation`."""
    return {
        f"{family}/{name}": accuracy(
            model, processor, [suite.perturbed(item, name) for item in suite.items(family, "test", count)]
        )
        for family, name in WATCHED
    }


def adapter_folder(name: str) -> Path:
    """The folder of a bundled adapter's name or a PEFT folder; AdapterError where there is none."""
    folder = Path(name) if Path(name).is_dir() else bundled(name)
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(
            f"no adapter {name!r}: neither a PEFT folder nor a bundled adapter; train it first"
        )
    return folder


def evaluate(
    model: Annotated[str, typer.Option(help="A bundled model or a model folder.")] = "tinyworld-base",
    adapter: Annotated[str | None, typer.Option(help="A bundled adapter or a PEFT folder.")] = None,
    count: Annotated[int, typer.Option(help="Test items a condition.")] = TEST_ITEMS,
) -> None:
    """Accuracy of a local model on TinyWorld's test split, clean and perturbed."""
    folder = adapter_folder(adapter) if adapter else None
    net, processor = load_base(model)
    if folder:
        from peft import PeftModel  # slow to import

        net = PeftModel.from_pretrained(net, folder)
    for name, value in test_figures(net, processor, count).items():
        typer.echo(f"{name:44} {value:.3f}")
