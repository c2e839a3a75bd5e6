"""`python -m bench NAME`: each result table and benchmark has one command that rewrites it.

Those through the real engine start it themselves; `make bench-NAME` is the same with the default counts.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modint_guard.cli import errors_as_sentences

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

# For what reads its options itself.
OWN_OPTIONS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
Count = Annotated[int, typer.Option(min=1, help="Items a condition.")]
Seed = Annotated[int, typer.Option(help="Of the items and the perturbations.")]
Output = Annotated[Path, typer.Option(help="The JSON file to rewrite; a Markdown table goes beside it.")]


@app.command()
def tinyworld(
    output: Output = Path("bench/results/tinyworld.json"),
    count: Count = 400,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 12,
) -> None:
    """Base and robust-lora on the test split under every perturbation, through vLLM and the gateway."""
    from bench.tinyworld import measure_tinyworld

    measure_tinyworld(output, count=count, seed=seed, concurrency=concurrency)
    typer.echo(f"wrote {output}")


@app.command()
def base(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            exists=True, help="run.json of each seed; default: the bundled base's, and bench/results/*."
        ),
    ] = None,
    output: Output = Path("bench/results/base.json"),
) -> None:
    """The base's figures of every training seed, from the records of the runs."""
    from bench.base import collect_base
    from modint_guard.models import BASE, bundled

    others = sorted(Path("bench/results").glob(f"{BASE}-seed*/run.json"))
    collect_base(output, runs or [bundled(BASE) / "run.json", *others])
    typer.echo(f"wrote {output}")


@app.command("train-ablation")
def train_ablation(
    output: Annotated[Path, typer.Option(help="One folder for each recipe and seed.")] = Path(
        "bench/results/ablation"
    ),
    runs: Annotated[Path, typer.Option(help="Checkpoints of the runs under way lie here.")] = Path(
        "runs/ablation"
    ),
) -> None:
    """Train the ablation adapters that are not there yet, and take up one that was interrupted."""
    from bench.ablation.measure import train_ablation

    for folder, made in train_ablation(output, runs):
        typer.echo(f"{'wrote' if made else 'kept'} {folder}")


@app.command()
def ablation(
    output: Output = Path("bench/results/ablation.json"),
    adapters: Annotated[Path, typer.Option(help="Folders that train-ablation wrote.")] = Path(
        "bench/results/ablation"
    ),
    count: Count = 400,
    seed: Seed = 0,
) -> None:
    """What each part of the method adds: base and committed adapters under every perturbation."""
    from bench.ablation.measure import measure_ablation

    measure_ablation(output, adapters, count=count, seed=seed)
    typer.echo(f"wrote {output}")


@app.command()
def thresholds(
    output: Output = Path("bench/results/thresholds.json"), count: Count = 200, seed: Seed = 0
) -> None:
    """Fit the default risk on the validation split, through vLLM."""
    from bench.thresholds import measure_thresholds

    measure_thresholds(output, count=count, seed=seed)
    typer.echo(f"wrote {output}")


@app.command()
def mitigation(
    output: Output = Path("bench/results/mitigation.json"),
    split: Annotated[
        Literal["validation", "test"],
        typer.Option(
            help="`validation` fits, into NAME_validation.json; `test` measures with what it chose."
        ),
    ] = "test",
    count: Count = 160,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Items under way at once.")] = 8,
    raw: Annotated[
        Path | None, typer.Option(help="Every raw answer, kept; default runs/mitigation-SPLIT-….jsonl.")
    ] = None,
    timed: Annotated[int, typer.Option(min=0, help="Requests timed for each row.")] = 5,
) -> None:
    """Every rung and the ladder against controls, through vLLM; goes on where it was stopped. Code and page
    are rewritten where the output is the committed file.
    """
    from bench.mitigation.measure import Run, measure_mitigation

    path = measure_mitigation(output, Run(split, count, seed, concurrency, timed, raw))
    typer.echo(f"wrote {path}")


@app.command()
def calibration(
    output: Output = Path("bench/results/calibration.json"),
    scores: Annotated[
        Path, typer.Option(help="Where the scores go that the test of coverage draws from.")
    ] = Path("tests/bench/calibration_scores.jsonl"),
    count: Count = 200,
    seed: Seed = 0,
    alpha: Annotated[float, typer.Option(help="The share of wrong answers that may be missed.")] = 0.1,
    probes: Annotated[float, typer.Option(min=1, help="Probes a request on average.")] = 1.6,
    again: Annotated[
        bool, typer.Option("--ask/--from-scores", help="Ask the models, or fit the scores that lie there.")
    ] = True,
) -> None:
    """Calibrate the bundled models on the validation split, and look at them on the test split."""
    from bench.calibrations import measure_calibration

    measure_calibration(output, scores, count=count, seed=seed, alpha=alpha, probes=probes, again=again)
    typer.echo(f"wrote {output}, {scores} and the bundled models' calibration.json")


@app.command()
def detection(
    output: Output = Path("bench/results/detection.json"),
    raw: Annotated[
        Path, typer.Option(help="The records, kept as they come; the same call goes on from them.")
    ] = Path("runs/detection.jsonl"),
    count: Annotated[int, typer.Option(min=1, help="Items of each setting, kind and held-out part.")] = 60,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Cases under way at once.")] = 6,
) -> None:
    """Our risk and other detectors on the same answers, through vLLM and the gateway."""
    from bench.detection.measure import measure_detection

    measure_detection(output, raw=raw, count=count, seed=seed, concurrency=concurrency)
    typer.echo(f"wrote {output}")


@app.command()
def relevance(
    output: Output = Path("bench/results/relevance.json"), count: Count = 400, seed: Seed = 0
) -> None:
    """What the lexical rules and the model itself say ought to decide, on the three families; no engine."""
    from bench.relevance import measure_relevance

    measure_relevance(output, count=count, seed=seed)
    typer.echo(f"wrote {output}")


@app.command()
def latency(
    output: Output = Path("bench/results/latency.json"),
    seconds: Annotated[float, typer.Option(min=1, help="Of a block of requests in open loop.")] = 6,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks with and as many without the guard.")] = 4,
    seed: Seed = 0,
) -> None:
    """What the guard adds to a request's time: in open loop below capacity, and under full load."""
    from bench.latency import measure_latency

    measure_latency(output, seconds=seconds, blocks=blocks, seed=seed)
    typer.echo(f"wrote {output}")


@app.command("demo-items")
def demo_items() -> None:
    """Rewrite the items that ship with the package."""
    from bench.demo_items import rewrite_demo_items

    typer.echo(f"wrote {rewrite_demo_items()}")


@app.command()
def picture(
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("docs/flagged.png"),
) -> None:
    """The picture in the README: one flagged answer of the bundled base, drawn from a real run."""
    from bench.picture import draw_picture

    typer.echo(draw_picture(output).summary)
    typer.echo(f"wrote {output}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def training(context: typer.Context) -> None:
    """A step of each part of the method against plain SFT."""
    from bench.step_cost.training import main

    main(context.args)


@app.command(
    "training-gpu",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def training_gpu(context: typer.Context) -> None:
    """SFT against the whole method at 7B, random weights, one GPU."""
    from bench.step_cost.training_gpu import main

    main(context.args)


if __name__ == "__main__":
    with errors_as_sentences():
        app(prog_name="python -m bench")
