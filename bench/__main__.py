"""`python -m bench NAME`: each result table and benchmark has one command that rewrites it.

Commands that need the real engine start it themselves. `make bench-NAME` is the same command.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modint_guard.cli import errors_as_sentences

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

# For commands that parse their own options.
OWN_OPTIONS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
Count = Annotated[int, typer.Option(min=1, help="Items for each condition.")]
Seed = Annotated[int, typer.Option(help="The seed of items and perturbations.")]
Output = Annotated[Path, typer.Option(help="The JSON file to rewrite; a Markdown table goes beside it.")]


@app.command()
def tinyworld(
    output: Output = Path("bench/results/tinyworld.json"),
    count: Count = 400,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time, at most.")] = 12,
) -> None:
    """Base and robust-lora on the test split under every perturbation, through vLLM and the gateway."""
    from bench.tinyworld import measure_tinyworld

    measure_tinyworld(output, count=count, seed=seed, concurrency=concurrency)
    typer.echo(f"wrote {output}")


@app.command()
def faults(
    output: Output = Path("bench/results/faults.json"),
    limit: Annotated[int | None, typer.Option(min=1, help="Cases; all by default.")] = None,
) -> None:
    """Every fault of the engine at every stage of a request: is the answer lost, is anything left behind?"""
    from bench.faults import measure_faults

    measure_faults(output, limit=limit)
    typer.echo(f"wrote {output}")


@app.command()
def gateway(
    output: Output = Path("bench/results/gateway.json"),
    seconds: Annotated[float, typer.Option(min=0.2, help="The length of a turn under full load.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each arm.")] = 5,
) -> None:
    """Requests a second, CPU a request and added time, beside LiteLLM's proxy and no gateway."""
    from bench.gateway.measure import measure_gateway

    measure_gateway(output, seconds=seconds, rounds=rounds)
    typer.echo(f"wrote {output}")


@app.command()
def fuzz(
    output: Output = Path("bench/results/fuzz.json"),
    bodies: Annotated[int, typer.Option(min=1, help="Damaged requests of clients.")] = 1_000_000,
    replies: Annotated[
        int, typer.Option(min=1, help="Requests whose replies are damaged, six in seven of them.")
    ] = 250_000,
    seed: Seed = 0,
    processes: Annotated[int, typer.Option(min=1, help="That share the work.")] = 1,
    resume: Annotated[bool, typer.Option(help="Go on where a run was stopped.")] = False,
) -> None:
    """Damaged requests and damaged replies: does anything end the gateway's work, or lose an answer?"""
    from bench.fuzz import measure_fuzz

    findings = measure_fuzz(
        output, bodies=bodies, replies=replies, seed=seed, processes=processes, resume=resume
    )
    for finding in findings:
        typer.echo(
            f"{finding.kind} of request {finding.number}:\n{finding.trace}\n{finding.body!r}", err=True
        )
    typer.echo(f"wrote {output}")
    if findings:
        raise typer.Exit(1)


@app.command()
def soak(
    output: Output = Path("bench/results/soak.json"),
    count: Annotated[int, typer.Option(min=20, help="Requests.")] = 100_000,
    seed: Seed = 0,
) -> None:
    """Many requests of every kind: memory, sockets and counters of the gateway's process."""
    from bench.soak import measure_soak

    measure_soak(output, count=count, seed=seed)
    typer.echo(f"wrote {output}")


@app.command()
def tenants(
    output: Output = Path("bench/results/tenants.json"),
    requests: Annotated[int, typer.Option(min=1, help="Of the victim, under each attack.")] = 120,
) -> None:
    """One client attacks: another's verdicts and times, and those of /livez. Needs quiet cores."""
    from bench.tenants import measure_tenants

    measure_tenants(output, requests=requests)
    typer.echo(f"wrote {output}")


@app.command()
def base(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            exists=True, help="run.json of each seed; default: the bundled base's and those in bench/results."
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
    runs: Annotated[Path, typer.Option(help="The folder of checkpoints of unfinished runs.")] = Path(
        "runs/ablation"
    ),
) -> None:
    """Train the ablation adapters that are missing, and resume one that was interrupted."""
    from bench.ablation.measure import train_ablation

    for folder, trained in train_ablation(output, runs):
        typer.echo(f"{'wrote' if trained else 'kept'} {folder}")


@app.command()
def ablation(
    output: Output = Path("bench/results/ablation.json"),
    adapters: Annotated[Path, typer.Option(help="Folders that train-ablation wrote.")] = Path(
        "bench/results/ablation"
    ),
    count: Count = 400,
    seed: Seed = 0,
) -> None:
    """The effect of each part of the method: base and committed adapters under every perturbation."""
    from bench.ablation.measure import measure_ablation

    measure_ablation(output, adapters, count=count, seed=seed)
    typer.echo(f"wrote {output}")


@app.command()
def spans(
    output: Output = Path("bench/results/spans.json"),
    world: Annotated[Literal["picturebook", "tinyworld"], typer.Option(help="Whose items.")] = "picturebook",
    model: Annotated[str, typer.Option(help="The base.")] = "picturebook-base",
    adapter: Annotated[str | None, typer.Option(help="A name or a folder, measured too.")] = None,
    count: Count = 20,
    long: Annotated[int, typer.Option(min=1, help="Long answers for each length and harmless caption.")] = 12,
    seed: Seed = 0,
    null: Annotated[bool, typer.Option(help="Judge by the model's own null, measured first.")] = True,
    raw: Annotated[Path, typer.Option(help="The records, from which the same run goes on.")] = Path(
        "runs/spans.jsonl"
    ),
) -> None:
    """Which words of an answer came from a lie, beside simple rules; and long answers, where nothing lies."""
    from bench.spans.measure import Setup, measure_spans

    measure_spans(output, raw, Setup(world, model, adapter, count, long, seed, null))
    typer.echo(f"wrote {output}")


@app.command()
def nulls(
    output: Output = Path("bench/results/nulls.json"),
    model: Annotated[str, typer.Option(help="A name or a folder.")] = "picturebook-base",
    count: Annotated[
        int,
        typer.Option(
            min=1,
            help="Long answers that are tested for each length and temperature, and twice as many of all "
            "others. With much less than 60 the null knows too little.",
        ),
    ] = 60,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
    raw: Annotated[
        Path, typer.Option(help="The records, kept as they come; the same call goes on from them.")
    ] = Path("runs/nulls.jsonl"),
) -> None:
    """A null from half of all kinds of harmless inputs: its flags on the other half, and on lies."""
    from bench.nulls.measure import Run, measure_nulls

    measure_nulls(output, raw, Run(model, count, seed, concurrency))
    typer.echo(f"wrote {output}")


@app.command()
def mitigation(
    output: Annotated[
        Path | None, typer.Option(help="The JSON file to write; default: the world's committed one.")
    ] = None,
    split: Annotated[
        Literal["validation", "test"],
        typer.Option(
            help="`validation` fits, into NAME_validation.json; `test` measures with what it chose."
        ),
    ] = "test",
    count: Count = 160,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Items at the same time, at most.")] = 8,
    raw: Annotated[
        Path | None, typer.Option(help="The journal of raw answers; default runs/mitigation-SPLIT-….jsonl.")
    ] = None,
    timed: Annotated[int, typer.Option(min=0, help="Requests timed for each row.")] = 5,
    world: Annotated[
        Literal["tinyworld", "picturebook"], typer.Option(help="Whose base, adapter and items.")
    ] = "tinyworld",
) -> None:
    """Every rung and the ladder against controls, through vLLM; a stopped run continues where it stopped.
    Code and page are rewritten too if the output is TinyWorld's committed file.
    """
    from bench.mitigation.measure import OUTPUTS, Run, measure_mitigation

    run = Run(split, count, seed, concurrency, timed, raw, world)
    path = measure_mitigation(output or OUTPUTS[world], run)
    typer.echo(f"wrote {path}")


@app.command()
def calibration(
    output: Output = Path("bench/results/calibration.json"),
    scores: Annotated[
        Path, typer.Option(help="The file of scores, from which the test of coverage draws.")
    ] = Path("tests/bench/calibration_scores.jsonl"),
    count: Count = 200,
    seed: Seed = 0,
    alpha: Annotated[float, typer.Option(help="The share of wrong answers that may be missed.")] = 0.1,
    probes: Annotated[float, typer.Option(min=1, help="Probes for each request, on average.")] = 1.6,
    again: Annotated[
        bool, typer.Option("--ask/--from-scores", help="Ask the models, or fit the existing scores.")
    ] = True,
) -> None:
    """Calibrate the bundled models on the validation split, and evaluate them on the test split."""
    from bench.calibrations import measure_calibration

    measure_calibration(output, scores, count=count, seed=seed, alpha=alpha, probes=probes, again=again)
    typer.echo(f"wrote {output}, {scores} and the bundled models' calibration.json")


@app.command()
def detection(
    output: Output = Path("bench/results/detection.json"),
    raw: Annotated[
        Path, typer.Option(help="The journal of records, one a world; a stopped run continues from it.")
    ] = Path("runs/detection.jsonl"),
    count: Annotated[int, typer.Option(min=1, help="Lying cases of each setting and held-out part.")] = 60,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Cases at the same time, at most.")] = 6,
    world: Annotated[
        Literal["tinyworld", "picturebook", "both"], typer.Option(help="Which to ask.")
    ] = "both",
) -> None:
    """Verdicts and other detectors on the same answers, nobody saying what is relevant, and somebody."""
    from bench.detection.inputs import WORLDS
    from bench.detection.measure import Run, measure_detection

    measure_detection(output, raw, Run(count, seed, concurrency, WORLDS if world == "both" else (world,)))
    typer.echo(f"wrote {output}")


@app.command()
def relevance(
    output: Output = Path("bench/results/relevance.json"),
    judging: Annotated[
        bool,
        typer.Option("--judging/--learning-only", help="Also read the requests that are for judging."),
    ] = True,
) -> None:
    """Which modality ought to decide and what is context, on requests labelled by hand; needs no engine."""
    from bench.relevance.measure import measure_relevance

    measure_relevance(output, judging=judging)
    typer.echo(f"wrote {output}")


@app.command("relevance-fit")
def relevance_fit(
    output: Annotated[Path | None, typer.Option(help="The file to write; default: the package's.")] = None,
) -> None:
    """Fit the shipped classifier of relevance on the labelled requests; takes a few minutes."""
    from bench.relevance.fit import write_fitted

    typer.echo(f"wrote {write_fitted(output)}")


@app.command("splitting-fit")
def splitting_fit(
    output: Annotated[Path | None, typer.Option(help="The file to write; default: the package's.")] = None,
) -> None:
    """Fit the shipped splitter of context and question on the labelled requests; takes some minutes."""
    from bench.relevance.fit_splitting import write_fitted_splitter

    typer.echo(f"wrote {write_fitted_splitter(output)}")


@app.command()
def latency(
    output: Output = Path("bench/results/latency.json"),
    seconds: Annotated[
        float, typer.Option(min=1, help="The length of a block in open loop, if 12 to 32 requests come then.")
    ] = 12,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of each arm.")] = 4,
    seed: Seed = 0,
    world: Annotated[
        Literal["tinyworld", "picturebook", "both"], typer.Option(help="Whose base to ask.")
    ] = "both",
) -> None:
    """The time that the guard adds to a request: in open loop below capacity, and under full load."""
    from bench.detection.inputs import WORLDS
    from bench.latency.measure import Lengths, measure_latency

    measure_latency(output, Lengths(seconds, blocks, seed), WORLDS if world == "both" else (world,))
    typer.echo(f"wrote {output}")


@app.command()
def picturebook(
    output: Output = Path("bench/results/picturebook.json"),
    model: Annotated[str, typer.Option(help="A name or a folder.")] = "picturebook-base",
    adapter: Annotated[str | None, typer.Option(help="Of that model: a name or a folder.")] = None,
    count: Count = 400,
    judged: Annotated[int, typer.Option(min=1, help="Of them, that the guard judges.")] = 40,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 12,
    raw: Annotated[
        Path, typer.Option(help="The rows, kept as they come; the same call goes on from them.")
    ] = Path("runs/picturebook.jsonl"),
) -> None:
    """The picture-book's base, and an adapter, on the test split, through vLLM and the gateway."""
    from bench.picturebook import Run, measure_picturebook

    measure_picturebook(output, raw, Run(model, adapter, count, judged, seed, concurrency))
    typer.echo(f"wrote {output}")


@app.command("picturebook-bars")
def picturebook_bars(
    model: Annotated[str, typer.Option(help="A name or a folder.")] = "picturebook-base",
    adapter: Annotated[str | None, typer.Option(help="Of that model: a name or a folder.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Items a figure.")] = 100,
) -> None:
    """The figures by which the picture-book's base is chosen, quickly: in transformers, without an engine."""
    from bench.picturebook import print_bars

    print_bars(model, adapter, count)


@app.command("picturebook-drawings")
def picturebook_drawings(
    work: Annotated[Path, typer.Option(help="Where npm packages are kept.")] = Path(
        "runs/picturebook-drawings"
    ),
) -> None:
    """Pack the picture-book's drawings anew; needs npm and the package resvg_py."""
    from bench.picturebook_drawings import rebuild

    for path in rebuild(work):
        typer.echo(f"wrote {path}")


@app.command()
def locate(
    output: Output = Path("bench/results/locate.json"),
    pages: Annotated[
        Path, typer.Option(help="Records and pages of both studies; the same call goes on from them.")
    ] = Path("runs/locate"),
    limit: Annotated[int, typer.Option(min=1, help="Items of each family, and of held-out wordings.")] = 20,
    seed: Seed = 0,
) -> None:
    """Where interference sits in base and robust-lora: sites, edges, heads, modules; needs no engine."""
    from bench.locate import measure_locate

    drawn = measure_locate(output, pages, limit=limit, seed=seed)
    typer.echo(f"wrote {', '.join(str(path) for path in (output, *drawn))}")


@app.command("demo-items")
def demo_items() -> None:
    """Rewrite the items that are packaged for the demo."""
    from bench.demo_items import rewrite_demo_items

    for folder in rewrite_demo_items():
        typer.echo(f"wrote {folder}")


@app.command("checkup-items")
def checkup_items() -> None:
    """Rewrite the items that are packaged for the check-up of `diagnose`."""
    from bench.checkup_items import rewrite_checkup_items

    typer.echo(f"wrote {rewrite_checkup_items()}")


@app.command()
def picture(
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("docs/flagged.png"),
) -> None:
    """The picture in the README: one flagged answer of the bundled base, drawn from a real run."""
    from bench.picture import draw_picture

    typer.echo(draw_picture(output).summary)
    typer.echo(f"wrote {output}")


@app.command()
def coloured(
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("docs/coloured.png"),
) -> None:
    """The coloured answer in the README: of the picture-book's base, drawn from a real run."""
    from bench.coloured import draw_coloured

    typer.echo(draw_coloured(output).summary)
    typer.echo(f"wrote {output}")


@app.command(**OWN_OPTIONS)
def training(context: typer.Context) -> None:
    """The cost of a training step of each part of the method, against plain SFT."""
    from bench.step_cost.training import main

    main(context.args)


@app.command("training-gpu", **OWN_OPTIONS)
def training_gpu(context: typer.Context) -> None:
    """The cost of a training step at 7B with random weights on one GPU, plain SFT against the whole
    method."""
    from bench.step_cost.training_gpu import main

    main(context.args)


if __name__ == "__main__":
    with errors_as_sentences():
        app(prog_name="python -m bench")
