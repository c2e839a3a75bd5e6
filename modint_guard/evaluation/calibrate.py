"""`modint-guard calibrate`: labelled items through a live endpoint, a calibration file out of it.

With `--unlabelled` the model's null is measured on the same file instead (`calibrate_null`).

Every item is asked clean and under each perturbation that fits it. An answer that is wrong under a
perturbation and right on the clean twin is a positive, one that is right on both a negative; a clean twin
that is answered wrongly says nothing about interference. Every answer is kept as it comes, beside the file:
the same call goes on after a kill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modint_guard.chat.reply import reply_of
from modint_guard.data.item import RELEVANT, Item, is_right
from modint_guard.data.options import Column, Family, Format, ImageRoot, NumberRows, ReadingOptions, Split
from modint_guard.data.perturb import clean_view, fitting, perturb
from modint_guard.endpoint import Endpoint, read_key
from modint_guard.errors import ConfigError
from modint_guard.evaluation.asking import ask_each
from modint_guard.evaluation.calibrate_null import ORIGIN, null_of_requests
from modint_guard.evaluation.calibration_curves import Judged, draw_curves
from modint_guard.evaluation.fit_calibration import calibrate, halves, write_calibration
from modint_guard.evaluation.items import Data, Limit, items_of, labelled_items
from modint_guard.evaluation.journal import Job, Journal, collect, digest_of
from modint_guard.evaluation.results import command_line, versions
from modint_guard.evaluation.runner import request_for, row_of, with_views, without_guard
from modint_guard.evaluation.targets import GATEWAY
from modint_guard.guard import Guard
from modint_guard.judging.calibration import Calibration, Fitted, Labelled
from modint_guard.judging.null import Null
from modint_guard.judging.null_file import read_nulls, write_nulls
from modint_guard.judging.risk import features_of_score
from modint_guard.plan import main_body
from modint_guard.types import JSON, Complete, Relevant

CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Twin:
    """A clean item and the same under a perturbation."""

    clean: Item
    disturbed: Item


def command(
    data: Data,
    model: Annotated[str, typer.Option(help="The base model as it is served.")],
    output: Annotated[Path, typer.Option(help="The calibration file to write.")],
    url: Annotated[str, typer.Option(help="The gateway, or any endpoint with log-probabilities.")] = GATEWAY,
    adapter: Annotated[
        str | None, typer.Option(help="The adapter on the model, if it is one that is calibrated.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="The share of wrong answers that may be missed.")] = 0.1,
    error: Annotated[
        float | None,
        typer.Option(
            help="The share of unflagged answers that may be wrong, if promised too; of those alone that are"
            " right on the clean twin."
        ),
    ] = None,
    delta: Annotated[float, typer.Option(help="How often that second promise may fail.")] = 0.1,
    probes: Annotated[
        float | None, typer.Option(help="Probes a request on average; fewer by clearing answers early.")
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="Measure the model's null on these requests instead: needs no labels, promises alpha 0.01.",
        ),
    ] = False,
    limit: Limit = None,
    seed: Annotated[
        int, typer.Option(help="Of the perturbations, of the halves of the data, and of a world's items.")
    ] = 0,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
    column: Column = None,
    number_rows: NumberRows = False,
) -> None:
    """Fit the risk and its threshold to labelled items, for one model and adapter."""
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: --output names the calibration file")
    key = read_key(api_key_file)
    how = ReadingOptions(format, image_root, split, family, tuple(column or ()), number_rows)
    items = items_of(data, how, limit=limit, seed=seed, split="validation")
    if unlabelled:
        others = read_nulls(output, Null(client_share=1.0))
        null = asyncio.run(_null_through(url, key, items, adapter or model, seed))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_nulls(output, {**others, adapter or model: null})
        _show_null(null, adapter or model, output)
        return
    twins = twins_of(items, seed)
    made_by: JSON = {"run": "calibrate", "model": adapter or model, "data": fingerprint(twins), "seed": seed}
    with Journal(output.with_suffix(".answers.jsonl"), made_by) as journal:
        answers = asyncio.run(_through(url, key, twins, adapter or model, journal))
    fit = partial(calibrate, alpha=alpha, error=error, delta=delta, probes=probes, seed=seed)
    fitted = {name: fitted_where(name, of_name, fit) for name, of_name in answers.items()}
    calibration = Calibration(
        model=model,
        adapter=adapter,
        fitted=fitted,
        command=command_line(
            "calibrate",
            Path(data).name,
            model=model,
            adapter=adapter,
            alpha=alpha,
            error=error,
            delta=None if error is None else delta,
            probes=probes,
            limit=limit,
            **how.typed,
            seed=seed,
        ),
        versions=versions(),
    )
    write_calibration(output, calibration)
    _show(fitted, output)
    picture = output.with_suffix(".png")
    if draw_curves(picture, {name: judged(answers[name], each, seed) for name, each in fitted.items()}):
        typer.echo(f"drew reliability, ROC and risk over coverage to {picture}")
    else:
        typer.echo("no curves were drawn: they need pip install 'modint-guard[report]'")


def fitted_where(
    relevant: str, answers: Sequence[Labelled], fit: Callable[[Sequence[Labelled]], Fitted]
) -> Fitted:
    """The fit to the answers that one modality ought to decide; its refusals name the modality."""
    try:
        return fit(answers)
    except ConfigError as exc:
        raise ConfigError(f"where the {relevant} ought to decide: {exc}") from exc


def judged(answers: Sequence[Labelled], fitted: Fitted, seed: int) -> Judged:
    """Risk and truth of the half that the risk was not fitted on, with the threshold set there."""
    _, setting = halves(answers, seed)
    return Judged([fitted.risk(a) for a in setting], [a.positive for a in setting], fitted.flag_at)


def twins_of(items: Sequence[Item], seed: int) -> list[Twin]:
    """Each labelled item with each perturbation that its data allow. Raises ConfigError if an id stands
    twice, if no item has a label, and if no perturbation fits any.
    """
    twins = [twin_of(item, kind.name, seed) for item in labelled_items(items) for kind in fitting(item)]
    if not twins:
        raise ConfigError(
            f"none of {len(items)} items can be perturbed: image-heavy or text-heavy ones are needed"
        )
    return twins


def twin_of(item: Item, name: str, seed: int) -> Twin:
    """The item clean and under a perturbation. Raises ValueError as `perturb` does."""
    return Twin(clean_view(item), perturb(item, name, seed=seed))


def fingerprint(twins: Sequence[Twin]) -> str:
    """A digest of what is asked, pictures included."""
    return digest_of(
        (f"{twin.disturbed.id}/{twin.disturbed.perturbation}", item)
        for twin in twins
        for item in (twin.clean, twin.disturbed)
    )


async def labelled_answers(
    twins: Sequence[Twin],
    complete: Complete,
    model: str,
    *,
    guard: Guard | None = None,
    journal: Journal | None = None,
) -> dict[str, list[Labelled]]:
    """The answers with features and truth, by the modality that ought to decide. Those without features (the
    endpoint gave no log-probabilities, or no plain answer) are left out. Raises EndpointError; what a journal
    holds by then is not asked again.
    """
    guard = guard or Guard()
    clean = {f"clean/{twin.clean.id}": twin.clean for twin in twins}
    jobs: dict[str, Job] = {key: partial(_clean_answer, complete, item, model) for key, item in clean.items()}
    for twin in twins:
        jobs[_key(twin)] = partial(_answer, guard, complete, twin, model)
    records = await (ask_each(jobs, concurrency=CONCURRENCY) if journal is None else collect(jobs, journal))
    by_relevant: dict[str, list[Labelled]] = {}
    for twin in twins:
        record = records[_key(twin)]
        if record["features"] is not None:
            right_when_clean = records[f"clean/{twin.clean.id}"]["right"]
            source = twin.clean.source or twin.clean.id
            answer = Labelled(record["features"], record["right"], right_when_clean, source)
            by_relevant.setdefault(RELEVANT[twin.clean.family], []).append(answer)
    if not by_relevant:
        raise ConfigError(
            f"none of {len(twins)} answers could be scored: does the endpoint give log-probabilities?"
        )
    return by_relevant


def _key(twin: Twin) -> str:
    return f"{twin.disturbed.perturbation}/{twin.disturbed.id}"


async def _clean_answer(complete: Complete, item: Item, model: str) -> JSON:
    return {"right": row_of(item, model, await complete(request_for(item, model))).right}


async def _answer(guard: Guard, complete: Complete, twin: Twin, model: str) -> JSON:
    """Truth and features of one answer; no features if it is no plain answer or cannot be compared. Raises
    EndpointError if a view fails: an answer that might have been compared must not count as one that cannot.
    """
    plan = guard.plan(request_for(twin.disturbed, model))
    answer, replies = await with_views(plan, main_body(plan), complete, twin.disturbed.id)
    reply = reply_of(answer)
    score = None if reply.skip else guard.judge.score(plan, reply, replies)
    features = None if score is None else features_of_score(score, Relevant(RELEVANT[twin.clean.family]))
    return {"right": is_right(twin.disturbed, reply.text), "features": features}


async def _null_through(url: str, key: str | None, items: Sequence[Item], model: str, seed: int) -> Null:
    async with Endpoint(url, key) as endpoint:
        return await null_of_requests(items, without_guard(endpoint.complete), model, seed=seed)


def _show_null(null: Null, model: str, output: Path) -> None:
    power = "unknown" if null.power is None else f"{null.power:.0%} of {len(null.lies)}"
    sure = "unknown" if null.sure is None else f"{null.sure:.3f}"
    counts = f"{len(null.scores)} scores of harmless inputs, {null.origins[ORIGIN]} of them of your requests"
    typer.echo(f"{model}: {counts}, written to {output}")
    typer.echo(f"planted lies found: {power}; sure from a probability of {sure}")


async def _through(
    url: str, key: str | None, twins: Sequence[Twin], model: str, journal: Journal
) -> dict[str, list[Labelled]]:
    async with Endpoint(url, key) as endpoint:
        return await labelled_answers(twins, without_guard(endpoint.complete), model, journal=journal)


def _show(fitted: dict[str, Fitted], output: Path) -> None:
    table = Table(title=f"Calibration, written to {output}")
    columns = (
        "relevant",
        "positives",
        "negatives",
        "wrong on both",
        "flag at",
        "right ones flagged",
        "least flags",
        "AUROC",
    )
    for column in columns:
        table.add_column(column)
    for name, each in fitted.items():
        counts = (each.positives, each.negatives, each.wrong_on_both)
        shares = (each.flag_at, each.flagged_of_negatives, each.feasible_flags, each.auroc)
        table.add_row(name, *map(str, counts), *(f"{share:.3f}" for share in shares))
    Console().print(table)
    for name, each in fitted.items():
        share = each.positives / (each.positives + each.negatives)
        bound = f"at least {each.feasible_flags:.1%} of them have to be flagged, were every flag right"
        typer.echo(f"{name}: {share:.1%} of the answers are positive; {bound}")
