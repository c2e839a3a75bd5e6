"""`modint-guard calibrate`: labelled items through a live endpoint, a calibration file out of it.

Every item is asked clean and under each perturbation that fits it. An answer that is wrong under a
perturbation and right on the clean twin is a positive, one that is right on both a negative; of a clean twin
that is answered wrongly nothing is learnt of interference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modint_guard.asking import ask_each
from modint_guard.calibration import Calibration, Fitted, Labelled, calibrate, halves, write_calibration
from modint_guard.calibration_curves import Judged, draw_curves
from modint_guard.data import read_items
from modint_guard.endpoint import Endpoint, read_key
from modint_guard.errors import ConfigError
from modint_guard.guard import Guard, reply_of
from modint_guard.item import RELEVANT, Item, is_right
from modint_guard.perturb import applicable, perturb
from modint_guard.results import versions
from modint_guard.risk import features_of_score
from modint_guard.runner import request_for, run
from modint_guard.types import JSON, Complete, Relevant

CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Twin:
    """A clean item and the same under a perturbation."""

    clean: Item
    disturbed: Item


def command(
    items: Annotated[Path, typer.Argument(help="A folder with items.jsonl and its pictures.")],
    model: Annotated[str, typer.Option(help="The base model as it is served.")],
    output: Annotated[Path, typer.Option(help="The calibration file to write.")],
    url: Annotated[str, typer.Option(help="The gateway, or any endpoint with log-probabilities.")] = (
        "http://127.0.0.1:8080"
    ),
    adapter: Annotated[str | None, typer.Option(help="The adapter, if it is one that is calibrated.")] = None,
    alpha: Annotated[float, typer.Option(help="The share of wrong answers that may be missed.")] = 0.1,
    error: Annotated[
        float | None, typer.Option(help="The share of unflagged answers that may be wrong, if promised too.")
    ] = None,
    delta: Annotated[float, typer.Option(help="How often that second promise may fail.")] = 0.1,
    probes: Annotated[
        float | None, typer.Option(help="Probes a request on average; fewer by clearing answers early.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the perturbations and of the split.")] = 0,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
) -> None:
    """Fit the risk and its threshold to labelled items, for one model and adapter."""
    key = read_key(api_key_file)
    found = asyncio.run(_through(url, key, twins_of(read_items(items), seed), adapter or model))
    fitted = {
        name: calibrate(each, alpha=alpha, error=error, delta=delta, probes=probes, seed=seed)
        for name, each in found.items()
    }
    calibration = Calibration(
        model=model,
        adapter=adapter,
        fitted=fitted,
        command=f"modint-guard calibrate {items.name} --model {model} --alpha {alpha:g} --seed {seed}",
        versions=versions(),
    )
    write_calibration(output, calibration)
    _show(fitted, output)
    picture = output.with_suffix(".png")
    if draw_curves(picture, {name: judged(found[name], each, seed) for name, each in fitted.items()}):
        typer.echo(f"drew reliability, ROC and risk over coverage to {picture}")
    else:
        typer.echo("no curves were drawn: they need pip install 'modint-guard[report]'")


def judged(answers: Sequence[Labelled], fitted: Fitted, seed: int) -> Judged:
    """Risk and truth of the half that the risk was not fitted on, with the threshold set there."""
    _, setting = halves(answers, seed)
    return Judged([fitted.risk(a) for a in setting], [a.positive for a in setting], fitted.flag_at)


def twins_of(items: Sequence[Item], seed: int) -> list[Twin]:
    """Each item with each perturbation that its data allow. Raises ConfigError where none fits any item."""
    found = [
        twin for item in items for kind in applicable(item.family) if (twin := twin_of(item, kind.name, seed))
    ]
    if not found:
        raise ConfigError(
            f"none of {len(items)} items can be perturbed: image-heavy or text-heavy ones are needed"
        )
    return found


async def labelled_answers(
    twins: Sequence[Twin], complete: Complete, model: str, *, guard: Guard | None = None
) -> dict[str, list[Labelled]]:
    """The answers with features and truth, by the modality that ought to decide. Those without features (the
    endpoint gave no log-probabilities) are left out. Raises EndpointError.
    """
    guard = guard or Guard()
    clean = list({twin.clean.id: twin.clean for twin in twins}.values())
    rows = await run(clean, complete, model, concurrency=CONCURRENCY)
    right = {row.item.id: row.right for row in rows}
    jobs = {
        number: partial(_answer, guard, complete, twin, model, right[twin.clean.id])
        for number, twin in enumerate(twins)
    }
    found = await ask_each(jobs, concurrency=CONCURRENCY)
    by_relevant: dict[str, list[Labelled]] = {}
    for twin, answer in zip(twins, found.values(), strict=True):
        if answer is not None:
            by_relevant.setdefault(RELEVANT[twin.clean.family], []).append(answer)
    if not by_relevant:
        raise ConfigError(
            f"none of {len(twins)} answers could be scored: does the endpoint give log-probabilities?"
        )
    return by_relevant


async def _answer(
    guard: Guard, complete: Complete, twin: Twin, model: str, right_when_clean: bool
) -> Labelled | None:
    plan = guard.plan(request_for(twin.disturbed, model))
    answer, replies = await asyncio.gather(complete(guard.main_body(plan)), guard.probe(plan, complete))
    reply = reply_of(answer)
    score = guard.score(plan, reply, replies)
    features = None if score is None else features_of_score(score, Relevant(RELEVANT[twin.clean.family]))
    if features is None:
        return None
    source = twin.clean.source or twin.clean.id
    return Labelled(features, is_right(twin.disturbed, reply.text), right_when_clean, source)


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


async def _through(url: str, key: str | None, twins: Sequence[Twin], model: str) -> dict[str, list[Labelled]]:
    async with Endpoint(url, key) as endpoint:

        async def unguarded(body: JSON) -> JSON:
            return await endpoint.complete({**body, "modint": {"mode": "off"}})

        return await labelled_answers(twins, unguarded, model)


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
