"""The options of `modint-guard train`, `export`, `recipes`, and `evaluate`; torch is loaded where
it is needed."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from modint_guard.data.options import Column, Family, Format, ImageRoot, NumberRows, Split

Count = Annotated[int, typer.Option(min=1, help="Items a condition.")]
Seed = Annotated[int, typer.Option(help="Of the items and the perturbations.")]


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
        Path | None, typer.Option(help="Where the model or adapter is written; default RUN/export.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint; default: the last.")] = None,
) -> None:
    """Export a checkpoint as vLLM loads it: of a run that was stopped, or of an earlier step."""
    from modint_training.runs import export_run

    typer.echo(f"wrote {export_run(run, output=output, step=step)}")


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


def evaluate(
    model: Annotated[str, typer.Option(help="A bundled model or a model folder.")] = "tinyworld-base",
    adapter: Annotated[str | None, typer.Option(help="A bundled adapter or a PEFT folder.")] = None,
    count: Count = 400,
    output: Annotated[
        Path | None, typer.Option(help="Write JSON, Markdown and figures of every perturbation's effect.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A second model: a model or adapter, bundled or a folder, `base` for no adapter, or a "
            "served model's name."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint that serves them.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    logprobs: Annotated[bool, typer.Option(help="Ask the endpoint for log-probabilities.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="Items of your own, in any format of `data validate`.")
    ] = None,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
    column: Column = None,
    number_rows: NumberRows = False,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="Only these; default: all that fit an item.")
    ] = None,
    image_attention: Annotated[
        float, typer.Option(min=0, max=10, help="Scale a local model's attention to pictures (experimental).")
    ] = 1.0,
    severity: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=5, help="1 to 5, may be repeated: doses of the perturbations; default: 5, all of it."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Accuracy of a local model on TinyWorld's test split, by form and sub-task; with --output the effect of
    every perturbation on a local or served model, on these or on your own items."""
    from modint_guard.data.severity import FULL
    from modint_guard.data.validate import columns_named
    from modint_guard.endpoint import read_key
    from modint_guard.errors import ConfigError
    from modint_training.data.reading import PLAIN, reading_of
    from modint_training.models.loading import loaded
    from modint_training.tinyworld.source import split_rows

    reading = reading_of(
        format=format,
        family=family,
        split=split,
        image_root=str(image_root) if image_root else None,
        columns=columns_named(column or ()),
        number_rows=number_rows,
    )
    if output:
        from modint_training.evaluation import Wanted, evaluate_to

        key = read_key(api_key_file)
        wanted = Wanted(
            model=model,
            adapter=adapter,
            against=against,
            url=url,
            key=key,
            logprobs=logprobs,
            data=data,
            reading=reading,
            perturbations=perturbation or None,
            count=count,
            seed=seed,
            severities=severity or (FULL,),
            image_attention=image_attention,
        )
        for file in evaluate_to(output, wanted):
            typer.echo(f"wrote {file}")
        return
    if against or url or data or perturbation or severity or image_attention != 1.0 or reading != PLAIN:
        raise ConfigError(
            "--against, --url, --data and how it is read, --perturbation, --severity and --image-attention "
            "need --output FILE.json"
        )

    for row in split_rows(*loaded(model, adapter), count):
        cell = "/".join((row["family"], row["perturbation"]))
        seen = "held-out wording" if row["held_out"] == "wording" else "-"
        typer.echo(f"{cell:36} {seen:17} {row['task']:16} {row['form']:7} {row['accuracy']:.3f}")


def export_tinyworld(
    output: Annotated[Path, typer.Option(help="The folder to write: data.json and images/.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Of the suite.")] = "train",
    family: Annotated[
        Literal["all", "image-heavy", "text-heavy", "vqa"], typer.Option(help="Of the items.")
    ] = "all",
    count: Annotated[int, typer.Option(min=1, help="Items of each family.")] = 400,
    seed: Seed = 0,
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
