"""`modint-guard calibrate`: labelled items through a live endpoint, a calibration file out of it.

Every item is asked clean and under each perturbation that fits it. An answer that is wrong under a
perturbation and right on the clean twin is a positive, one that is right on both a negative; of a clean twin
that is answered wrongly nothing is learnt of interference. Every answer is kept as it comes, beside the file:
the same call goes on after a kill.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modint_guard.chat.reply import reply_of
from modint_guard.data import read_data
from modint_guard.data.item import RELEVANT, Item, is_right
from modint_guard.data.options import Family, Format, ImageRoot, Split
from modint_guard.data.perturb import applicable, perturb
from modint_guard.endpoint import Endpoint, read_key
from modint_guard.errors import ConfigError
from modint_guard.evaluation.asking import ask_each
from modint_guard.evaluation.calibration_curves import Judged, draw_curves
from modint_guard.evaluation.fit_calibration import calibrate, halves, write_calibration
from modint_guard.evaluation.journal import Job, Journal, collect, digest_of
from modint_guard.evaluation.results import command_line, versions
from modint_guard.evaluation.runner import request_for, row_of, with_views, without_guard
from modint_guard.guard import Guard
from modint_guard.judging.calibration import Calibration, Fitted, Labelled
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
    items: Annotated[
        Path, typer.Argument(help="Labelled: a JSON, JSONL, Parquet or Arrow file, or a folder.")
    ],
    model: Annotated[str, typer.Option(help="The base model as it is served.")],
    output: Annotated[Path, typer.Option(help="The calibration file to write.")],
    url: Annotated[str, typer.Option(help="The gateway, or any endpoint with log-probabilities.")] = (
        "http://127.0.0.1:8080"
    ),
    adapter: Annotated[str | None, typer.Option(help="The adapter, if it is one that is calibrated.")] = None,
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
    seed: Annotated[int, typer.Option(help="Of the perturbations and of the split.")] = 0,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
) -> None:
    """Fit the risk and its threshold to labelled items, for one model and adapter."""
    key = read_key(api_key_file)
    read = read_data(items, format=format, image_root=image_root, split=split, family=family)
    twins = twins_of([read[index] for index in range(len(read))], seed)
    made_by: JSON = {"run": "calibrate", "model": adapter or model, "data": fingerprint(twins), "seed": seed}
    with Journal(output.with_suffix(".answers.jsonl"), made_by) as journal:
        found = asyncio.run(_through(url, key, twins, adapter or model, journal))
    fit = partial(calibrate, alpha=alpha, error=error, delta=delta, probes=probes, seed=seed)
    fitted = {name: fitted_where(name, each, fit) for name, each in found.items()}
    calibration = Calibration(
        model=model,
        adapter=adapter,
        fitted=fitted,
        command=command_line(
            "calibrate",
            items.name,
            model=model,
            adapter=adapter,
            alpha=alpha,
            error=error,
            delta=None if error is None else delta,
            probes=probes,
            format=format,
            image_root=image_root and image_root.name,
            split=split,
            family=family,
            seed=seed,
        ),
        versions=versions(),
    )
    write_calibration(output, calibration)
    _show(fitted, output)
    picture = output.with_suffix(".png")
    if draw_curves(picture, {name: judged(found[name], each, seed) for name, each in fitted.items()}):
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
    """Each labelled item with each perturbation that its data allow. Raises ConfigError where an id stands
    twice, where no item has a label, and where no perturbation fits any.
    """
    labelled = [item for item in items if item.labelled]
    if items and not labelled:
        raise ConfigError(f"none of {len(items)} items has an answer: a calibration needs the truth")
    twice = [name for name, count in Counter(item.id for item in labelled).items() if count > 1]
    if twice:
        raise ConfigError(f"the id {twice[0]!r} stands twice in the data: give every item its own")
    found = [
        twin
        for item in labelled
        for kind in applicable(item.family)
        if (twin := twin_of(item, kind.name, seed))
    ]
    if not found:
        raise ConfigError(
            f"none of {len(items)} items can be perturbed: image-heavy or text-heavy ones are needed"
        )
    return found


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
    """Truth and features of one answer; no features where it is no plain answer or cannot be compared. Raises
    EndpointError where a view fails: nothing is learnt of an answer that might have been compared.
    """
    plan = guard.plan(request_for(twin.disturbed, model))
    answer, replies = await with_views(plan, main_body(plan), complete, twin.disturbed.id)
    reply = reply_of(answer)
    score = None if reply.skip else guard.judge.score(plan, reply, replies)
    features = None if score is None else features_of_score(score, Relevant(RELEVANT[twin.clean.family]))
    return {"right": is_right(twin.disturbed, reply.text), "features": features}


def twin_of(item: Item, name: str, seed: int) -> Twin | None:
    """The item clean and under a perturbation; None where its data do not allow it."""
    clean = item if item.family == "image-heavy" else item.replace(image=None)
    try:
        return Twin(
            clean.replace(context=None) if item.family == "image-heavy" else clean,
            perturb(item, name, seed=seed),
        )
    except ValueError:  # the data hold no picture for it
        return None


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
