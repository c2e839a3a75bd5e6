"""The options of `modint-guard train`, `export`, `recipes`, `locate` and `export-tinyworld`; torch is loaded
only if it is needed."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from modint_guard.data.options import Column, Family, Format, ImageRoot, NumberRows, ReadingOptions, Split
from modint_guard.evaluation.items import Data, Limit


def train(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value; dots lead into sections.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the model or adapter is written; default ./runs/NAME/export.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of checkpoints.")] = Path("runs"),
    resume: Annotated[
        Literal["auto", "no"],
        typer.Option(help="`auto` continues from the last checkpoint, `no` starts from scratch."),
    ] = "no",
) -> None:
    """Train a model or an adapter by a recipe, and export it as vLLM loads it."""
    from modint_training.runs import run_recipe

    if written := run_recipe(recipe, overrides or [], output=output, runs=runs, resume=resume):
        typer.echo(f"wrote {written}")


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/NAME.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the model or adapter is written; default RUN/export, of some modules RUN/smaller."
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint; default: the last.")] = None,
    keep_modules: Annotated[
        Path | None,
        typer.Option(
            help="A smaller adapter: a report.json of `locate`, or a text with a module's name on each line."
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of what the adapter gained, by that report; default 0.9."),
    ] = None,
) -> None:
    """Export a checkpoint as vLLM loads it: of a stopped run, of an earlier step, or some modules."""
    from modint_guard.errors import ConfigError
    from modint_training.locate.smaller import Keep
    from modint_training.runs import export_run

    if share is not None and keep_modules is None:
        raise ConfigError("--share says how much the modules of --keep-modules must restore: name a report")
    keep = Keep(keep_modules, share) if keep_modules else None
    typer.echo(f"wrote {export_run(run, output=output, step=step, keep=keep)}")


def recipes(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes instead.")
    ] = False,
    accelerate: Annotated[
        Literal["ddp", "ddp-cpu", "fsdp2"] | None,
        typer.Option(help="Print the path of a configuration for `accelerate launch` instead."),
    ] = None,
) -> None:
    """List the bundled recipes, or print the schema with which editors check recipes."""
    from modint_training.recipe_files import accelerate_config, recipe_names, recipe_schema, recipe_summary

    if accelerate:
        typer.echo(accelerate_config(accelerate))
        return
    if schema:
        typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    for name in recipe_names():
        typer.echo(f"{name:24} {recipe_summary(name)}")


def locate(
    model: Annotated[str, typer.Argument(help="A bundled model's name or a model folder.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="The folder of records and report; the same call goes on.")],
    adapter: Annotated[
        str | None, typer.Option(help="The adapter on the model: a bundled one or a PEFT folder.")
    ] = None,
    exact: Annotated[
        int, typer.Option(min=1, help="Sites of each kind that are patched exactly, the likeliest first.")
    ] = 10,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the captions' wordings, and of a world's items.")] = 0,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
    column: Column = None,
    number_rows: NumberRows = False,
) -> None:
    """Locate interference: the layers, heads, edges and adapter modules by which a lie reaches the answer."""
    from modint_training.locate.report import Options, locate_interference

    how = ReadingOptions(format, image_root, split, family, tuple(column or ()), number_rows)
    options = Options(model, data, adapter, exact=exact, limit=limit, seed=seed, how=how)
    located, files = locate_interference(options, output)
    typer.echo("\n".join(located.finding))
    typer.echo(f"wrote {', '.join(str(file) for file in files)}")


def export_tinyworld(
    output: Annotated[Path, typer.Option(help="The folder to write: data.json and images/.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Of the suite.")] = "train",
    family: Annotated[
        Literal["all", "image-heavy", "text-heavy", "vqa"], typer.Option(help="Of the items.")
    ] = "all",
    count: Annotated[int, typer.Option(min=1, help="Items of each family.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the items.")] = 0,
    held_out_wordings: Annotated[
        bool, typer.Option("--held-out-wordings", help="Ask in wordings that no recipe trains on.")
    ] = False,
) -> None:
    """Write TinyWorld items in LLaVA's format, as a data set to look at or to train on."""
    from modint_guard.data import write_llava
    from modint_guard.data.item import FAMILIES
    from modint_guard.errors import ConfigError
    from modint_training.tinyworld import suite

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not an empty folder: name another with --output")
    items = [
        item
        for name in FAMILIES
        if family in ("all", name)
        for item in suite.items(name, split, count, seed=seed, held_out=held_out_wordings)
    ]
    typer.echo(f"wrote {len(items)} items to {write_llava(items, output)}")
