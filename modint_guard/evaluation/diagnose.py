"""`modint-guard diagnose`: any endpoint on any data set, clean and perturbed, in doses; a report of it.

Every variant of every item is asked with the guard's views of it, and each answer is kept as it comes: the
same call goes on after a kill. Perturbations are seeded by item, so that two models see the same inputs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from modint_guard.chat.reply import reply_of
from modint_guard.config import GuardConfig
from modint_guard.data import read_data
from modint_guard.data.item import Item, reply_for
from modint_guard.data.options import Family, Format, ImageRoot, Split
from modint_guard.data.perturb import CLEAN, REGISTRY, clean_view, fitting, perturb
from modint_guard.data.severity import FULL, at_severity
from modint_guard.endpoint import TOP_LOGPROBS, Endpoint, read_key
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.journal import Journal, collect, digest_of
from modint_guard.evaluation.report import write_report
from modint_guard.evaluation.results import command_line
from modint_guard.evaluation.runner import request_for, with_views
from modint_guard.evaluation.tables import Found, Variant
from modint_guard.guard import Guard
from modint_guard.judging.divergence import option_distribution
from modint_guard.judging.text_match import score_words
from modint_guard.plan import main_body
from modint_guard.types import (
    JSON,
    PERMUTED_OPTIONS,
    QUESTION_FIRST,
    REGENERATED,
    Complete,
    Plan,
    Replies,
    Reply,
    Score,
)

JOURNAL = "answers.jsonl"
LOCAL = "modint_guard.local"  # entry points: a model's name -> a `Complete` that runs it here
Reach = Callable[[str, str], AbstractAsyncContextManager[Complete]]  # a model's name and URL -> how to ask it
OFF = {"x-modint-mode": "off"}  # where the endpoint is our own gateway
AGREEING = ("true_description", "agreeing_image")
_OWN = (CLEAN, "agreeing_image", "contradicting_image")  # variants that show the data set's own pictures


@dataclass(frozen=True)
class Subject:
    """A model under diagnosis: its name, how to reach it, how many log-probabilities it gives (0: none)."""

    model: str
    complete: Complete
    top_logprobs: int


def command(
    data: Annotated[Path, typer.Argument(help="A JSON, JSONL, Parquet or Arrow file, or a folder.")],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")],
    output: Annotated[Path, typer.Option(help="The folder of answers and report; the same call goes on.")],
    url: Annotated[str, typer.Option(help="Any OpenAI-compatible endpoint.")] = "http://127.0.0.1:8080",
    against: Annotated[str | None, typer.Option(help="A second model, side by side.")] = None,
    against_url: Annotated[str | None, typer.Option(help="Its endpoint, where it is another.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run the models here: NAME or NAME+ADAPTER, bundled or folders.")
    ] = False,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="By name, repeatable; default: all that fit an item.")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option(min=1, max=FULL, help="1 to 5, repeatable; default: 5 alone.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first items alone.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 8,
    per_second: Annotated[float | None, typer.Option(min=0.01, help="Calls a second at most.")] = None,
    seed: Annotated[int, typer.Option(help="Of the perturbations.")] = 0,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
) -> None:
    """How a model's answers change under interference: tables, figures, and a report to read."""
    if against_url and not against:
        raise ConfigError("--against-url names the endpoint of a second model: name it with --against")
    if against_url and local:
        raise ConfigError("--local runs both models here: drop --against-url")
    if against == model and (local or against_url in (None, url)):
        raise ConfigError(f"--against {model} is the same model at the same endpoint: name another")
    reach: Reach = (
        local_reach(entry_points(group=LOCAL)) if local else partial(_endpoint, read_key(api_key_file))
    )
    read = read_data(data, format=format, image_root=image_root, split=split, family=family)
    items = [read[index] for index in range(min(len(read), limit or len(read)))]
    asked = variants(items, perturbation or [], sorted(set(severity or [FULL])), seed)
    urls = [url, *([against_url or url] if against else [])]
    names = [model, *([against] if against else [])]
    made_by: JSON = {"run": "diagnose", "data": fingerprint(asked), "seed": seed, "models": names}
    if names != labels_of(names):
        made_by["urls"] = urls  # nothing else tells them apart
    with Journal(output / JOURNAL, made_by) as journal:
        found = asyncio.run(
            _ask(
                list(zip(names, urls, strict=True)),
                asked,
                journal,
                reach=reach,
                concurrency=concurrency,
                per_second=per_second,
            )
        )
    labels = labels_of(names)
    alike = labels != names  # then the figures are told apart by the endpoints alone
    typed = command_line(
        "diagnose",
        data.name,
        model=model,
        url=_without_user(url) if alike else None,
        against=against,
        against_url=_without_user(against_url) if alike and against_url else None,
        local=local,
        perturbation=perturbation,
        severity=severity,
        limit=limit,
        format=format,
        image_root=image_root and image_root.name,
        split=split,
        family=family,
        seed=seed,
    )
    written = write_report(
        output, dict(zip(labels, found, strict=True)), command=typed, seed=seed, data=data.name
    )
    typer.echo(f"wrote {', '.join(str(path) for path in written)}")


def labels_of(names: Sequence[str]) -> list[str]:
    """The models' names, told apart where two endpoints give them the same."""
    return list(names) if len(set(names)) == len(names) else [f"{n} ({i})" for i, n in enumerate(names, 1)]


def _without_user(url: str) -> str:
    """The address without a name and password in it: reports are passed on."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def variants(
    items: Sequence[Item], names: Sequence[str], severities: Sequence[int], seed: int
) -> list[Variant]:
    """Each labelled item clean and under each perturbation that fits it, at each severity.

    Controls are asked at full severity alone. Raises ConfigError for an unknown perturbation, a duplicate id,
    and where no item has a label or none can be perturbed.
    """
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no perturbation: name one of {', '.join(REGISTRY)}")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise ConfigError(f"the id {twice[0]!r} stands twice in the data: give every item its own")
    labelled = [item for item in items if item.labelled]
    if not labelled:
        raise ConfigError(f"none of {len(items)} items has an answer: accuracy and flips need the truth")
    found: list[Variant] = []
    for item in labelled:
        found.append(Variant(clean_view(item), CLEAN, 0))
        for kind in fitting(item):
            if names and kind.name not in names:
                continue
            disturbed = perturb(item, kind.name, seed=seed)
            for dose in [FULL] if kind.role == "control" else severities:
                given = at_severity(disturbed, dose, seed=seed)
                if kind.modality == "image":
                    found.append(Variant(given.replace(image=None), kind.name, dose, item, seed))
                else:
                    found.append(Variant(given, kind.name, dose))
    if all(variant.perturbation == CLEAN for variant in found):
        raise ConfigError(
            f"none of {len(labelled)} items can be perturbed so: image-heavy or text-heavy ones are needed,"
            " and perturbations of the other modality"
        )
    return found


def fingerprint(asked: Sequence[Variant]) -> str:
    """A digest of what is asked, pictures included; those that the seed makes are not made for it."""
    return digest_of((f"{variant.key}/{variant.seed}", _of_the_data(variant)) for variant in asked)


def _of_the_data(variant: Variant) -> Item:
    """The item with the data set's own pictures where the variant shows one."""
    held = (variant.base or variant.item) if variant.perturbation in _OWN else None
    pictures = {name: held and getattr(held, name) for name in ("image", "agreeing", "contradicting")}
    return variant.item.replace(**pictures)


def paced(complete: Complete, per_second: float | None) -> Complete:
    """The same, with calls that begin at least 1 / per_second seconds apart."""
    if per_second is None:
        return complete
    free = 0.0

    async def later(body: JSON) -> JSON:
        nonlocal free
        now = time.monotonic()
        free = max(now, free) + 1 / per_second
        await asyncio.sleep(free - 1 / per_second - now)
        return await complete(body)

    return later


async def top_logprobs_of(complete: Complete, model: str, item: Item) -> int:
    """How many log-probabilities the endpoint gives, 0 for none. Raises EndpointError where it answers not
    even without them.
    """
    for top in (*TOP_LOGPROBS, 0):
        more: JSON = {"logprobs": True, "top_logprobs": top} if top else {}
        try:
            reply = reply_of(await complete(_bare(request_for(item, model, **more))))
        except EndpointError as exc:
            if exc.status is None or not 400 <= exc.status < 500 or exc.status in (401, 408, 429) or not top:
                raise
            continue
        if not top or reply.top:
            return top
    return 0


def _bare(body: JSON) -> JSON:
    return {key: value for key, value in body.items() if key != "modint"}


async def ask(subject: Subject, guard: Guard, variant: Variant) -> JSON:
    """One answer with its views, as `Found` holds it. Raises EndpointError where the question or a view
    fails.
    """
    item = variant.whole()
    order = _order_of(variant)
    probes = {"probes": [order]} if order else {}
    body = request_for(item, subject.model)
    plan = guard.plan({**body, "modint": {**body["modint"], **probes}}, max_top_logprobs=subject.top_logprobs)
    own = main_body(plan)
    if subject.top_logprobs:
        own = {**own, "logprobs": True, "top_logprobs": subject.top_logprobs}
    answer, replies = await with_views(plan, own, subject.complete, variant.key)
    reply = reply_of(answer)
    score = _score(guard, plan, reply, replies)
    return {
        "text": reply.text,
        "options": _options(item, reply, guard.config.thresholds.min_option_mass),
        "top": dict(reply.top) if reply.top else None,
        "cells": {name: cell.answer for name, cell in score.cells.items()} if score else {},
        "influence": {
            "text": score.influence_text if score else None,
            "image": score.influence_image if score else None,
            "synergy": score.synergy if score else None,
        },
        "reordered": (order in score.unstable) if score and order in replies else None,
        "method": score.method if score else "none",
        "skip": reply.skip,
    }


def _order_of(variant: Variant) -> str | None:
    """The order that is tried as well: of the options where a lettered item is clean, of question and context
    where both modalities say the same.
    """
    if variant.perturbation == CLEAN:
        return PERMUTED_OPTIONS if variant.item.form == "letter" else None
    return QUESTION_FIRST if variant.perturbation in AGREEING and variant.severity == FULL else None


def _score(guard: Guard, plan: Plan, reply: Reply, replies: Replies) -> Score | None:
    if reply.skip or plan.skip or not plan.views:
        return None
    if plan.schedule.method == REGENERATED:
        return score_words(reply, replies, plan.chat)
    return guard.judge.score(plan, reply, replies)


def _options(item: Item, reply: Reply, min_mass: float) -> dict[str, float] | None:
    """Probabilities of the choices, renormalised; None where they are not all listed."""
    said = {reply_for(item, choice): choice for choice in item.choices}
    found = option_distribution(reply.top or {}, said, min_mass)
    return None if found is None else {said[label]: p for label, p in found.items()}


@asynccontextmanager
async def _endpoint(key: str | None, model: str, url: str) -> AsyncIterator[Complete]:
    async with Endpoint(url, key, headers=OFF) as endpoint:
        yield endpoint.complete


def local_reach(found: Iterable[EntryPoint]) -> Reach:
    """Models loaded here, by what the training package supplies. Raises ConfigError where it is missing."""
    loaders = list(found)
    if not loaders:
        raise ConfigError("--local needs: pip install 'modint-guard[train]'")

    @asynccontextmanager
    async def reach(model: str, url: str) -> AsyncIterator[Complete]:
        yield loaders[0].load()(model)

    return reach


async def _ask(
    models: Sequence[tuple[str, str]],
    asked: Sequence[Variant],
    journal: Journal,
    *,
    reach: Reach,
    concurrency: int,
    per_second: float | None,
) -> list[list[Found]]:
    """The answers of every model, in the variants' order."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: list[list[Found]] = []
    with Progress(*columns, console=console) as progress:
        for number, (model, url) in enumerate(models):
            async with reach(model, url) as complete:
                bar = progress.add_task(model, total=len(asked))
                found.append(
                    await answers(
                        model,
                        paced(complete, per_second),
                        asked,
                        journal,
                        name=str(number),
                        concurrency=concurrency,
                        done=partial(_advance, progress, bar),
                    )
                )
    return found


def _advance(progress: Progress, bar: TaskID, _: str) -> None:
    progress.advance(bar)


async def answers(
    model: str,
    complete: Complete,
    asked: Sequence[Variant],
    journal: Journal,
    *,
    name: str = "0",
    concurrency: int = 8,
    done: Callable[[str], None] = lambda key: None,
) -> list[Found]:
    """What a model answers to every variant; what the journal holds is not asked again. Raises
    EndpointError.
    """
    keys = [f"{name}/{variant.key}" for variant in asked]
    if any(key not in journal.records for key in keys):
        top = await top_logprobs_of(complete, model, asked[0].item)
    else:
        top = 0
    subject = Subject(model, complete, top)
    guard = Guard(GuardConfig(regenerate=not top))
    jobs = {key: partial(ask, subject, guard, variant) for key, variant in zip(keys, asked, strict=True)}
    records = await collect(jobs, journal, concurrency=concurrency, done=done)
    return [Found.from_json(variant, records[key]) for key, variant in zip(keys, asked, strict=True)]
