"""`modint-guard diagnose`: how a model answers a data set clean and under interference, as a report.

Any endpoint or local model, on any data set or generated world; with a second model, side by side. Every
variant of every item is asked with the guard's views of it. Without data the check-up's items are asked, and
nothing but these. Each answer is kept as it comes, so that the same call goes on after a kill.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from modint_guard.chat.reply import reply_of
from modint_guard.config import GuardConfig
from modint_guard.data.item import Item, reply_for
from modint_guard.data.options import Column, Family, Format, ImageRoot, NumberRows, ReadingOptions, Split
from modint_guard.data.perturb import CLEAN
from modint_guard.data.severity import FULL
from modint_guard.endpoint import TOP_LOGPROBS, read_key
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.checkup import NAME as CHECKUP
from modint_guard.evaluation.checkup import checkup_variants
from modint_guard.evaluation.coloured import with_colours
from modint_guard.evaluation.diagnosis import diagnosis_of
from modint_guard.evaluation.extensions import LOCAL, load
from modint_guard.evaluation.items import KINDS_OF_DATA, Limit, items_of
from modint_guard.evaluation.journal import Journal, collect
from modint_guard.evaluation.page import write_report
from modint_guard.evaluation.results import command_line
from modint_guard.evaluation.runner import request_for, with_views
from modint_guard.evaluation.tables import Answer
from modint_guard.evaluation.targets import (
    GATEWAY,
    Reach,
    Target,
    endpoint_reach,
    have_one_name,
    labels_of,
    local_reach,
    names_of,
    targets_of,
    without_user,
)
from modint_guard.evaluation.variants import Variant, fingerprint, variants_of
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
DataOrCheckup = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help=f"{KINDS_OF_DATA} Default: the check-up.",
    ),
]
AGREEING = ("true_description", "agreeing_image")


def command(
    model: Annotated[
        str, typer.Option(help="The model's name at the endpoint; with --local a bundled one or a folder.")
    ],
    output: Annotated[Path, typer.Option(help="The folder of answers and report; the same call goes on.")],
    data: DataOrCheckup = None,
    adapter: Annotated[
        str | None, typer.Option(help="The adapter on the model: its name there; with --local also a folder.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help=f"Any OpenAI-compatible endpoint; default: {GATEWAY}.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A second model or adapter, side by side; `base` for the model without --adapter."),
    ] = None,
    against_url: Annotated[str | None, typer.Option(help="Its endpoint, if it is another.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run the models here, with transformers.")] = False,
    image_attention: Annotated[
        float, typer.Option(min=0, max=10, help="Scale a local model's attention to pictures (experimental).")
    ] = 1.0,
    logprobs: Annotated[
        bool, typer.Option(help="Ask for log-probabilities; without, answers are compared by their words.")
    ] = True,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="By name, repeatable; default: all that fit an item.")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option(min=1, max=FULL, help="1 to 5, repeatable; default: 5 alone.")
    ] = None,
    limit: Limit = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 8,
    per_second: Annotated[float | None, typer.Option(min=0.01, help="Calls a second at most.")] = None,
    seed: Annotated[int, typer.Option(help="Of the perturbations, and of a world's items.")] = 0,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
    column: Column = None,
    number_rows: NumberRows = False,
) -> None:
    """How a model's answers change under interference: tables, figures, and a report to read.

    Without DATA a check-up: about 200 packaged questions, answered by three sentences and a page.
    """
    if against_url and not against:
        raise ConfigError("--against-url names the endpoint of a second model: name it with --against")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: --output names the folder of answers and report")
    _check_local(local, image_attention, url=url, against_url=against_url, api_key_file=api_key_file)
    how = ReadingOptions(format, image_root, split, family, tuple(column or ()), number_rows)
    first = Target(model, adapter, None if local else url or GATEWAY)
    targets = targets_of(first, against, against_url)
    reach = (
        local_reach(load(entry_points(group=LOCAL), "--local"), image_attention)
        if local
        else endpoint_reach(read_key(api_key_file))
    )
    if data is None:
        of_data = {**how.typed, "image_root": image_root}
        _check_of_data(**of_data, perturbation=perturbation, severity=severity)
        variants = checkup_variants(limit, seed=seed)
    else:
        items = items_of(data, how, limit=limit, seed=seed, split="test")
        variants = variants_of(items, perturbation or [], sorted(set(severity or [FULL])), seed)
    made_by = {"run": "diagnose", "data": fingerprint(variants), "seed": seed, "models": names_of(targets)}
    made_by |= differing_from_usual(targets, image_attention, logprobs)
    with Journal(output / JOURNAL, made_by) as journal:
        answers = asyncio.run(
            ask_all(
                targets,
                variants,
                journal,
                reach=reach,
                logprobs=logprobs,
                views=data is not None,
                concurrency=concurrency,
                per_second=per_second,
            )
        )
    words, alike = [Path(data).name] if data is not None else [], have_one_name(targets)
    typed = command_line(
        "diagnose",
        *words,
        model=model,
        adapter=adapter,
        url=without_user(first.url) if alike and first.url else None,
        against=against,
        against_url=without_user(against_url) if alike and against_url else None,
        local=local,
        image_attention=image_attention if image_attention != 1.0 else None,
        no_logprobs=not logprobs,
        perturbation=perturbation,
        severity=severity,
        limit=limit,
        **how.typed,
        seed=seed,
    )
    by_model = dict(zip(labels_of(targets), answers, strict=True))
    diagnosis = diagnosis_of(by_model, data=" ".join(words) or CHECKUP, is_checkup=data is None)
    files = write_report(output, diagnosis, command=typed, seed=seed)
    if data is None:
        typer.echo("\n".join(diagnosis.finding))
    typer.echo(f"wrote {', '.join(str(file) for file in files)}")


def _check_local(local: bool, image_attention: float, **of_endpoints: object) -> None:
    """Raises ConfigError for options of endpoints beside --local, and for those of local models without."""
    named = [name for name, value in of_endpoints.items() if value]
    if local and named:
        raise ConfigError(f"--local runs the models here: drop --{named[0].replace('_', '-')}")
    if not local and image_attention != 1.0:
        raise ConfigError(
            f"--image-attention {image_attention:g} scales a model that runs here: add --local; of a served"
            " one MODINT_IMAGE_ATTENTION of its engine says it"
        )


def _check_of_data(**of_data: object) -> None:
    """Raises ConfigError for options that say how a data set is read or disturbed."""
    if named := [name for name, value in of_data.items() if value]:
        raise ConfigError(
            f"--{named[0].replace('_', '-')} says how a data set is read or disturbed, and the check-up has"
            " its own items: name DATA, or leave it out"
        )


def differing_from_usual(targets: Sequence[Target], image_attention: float, logprobs: bool) -> JSON:
    """What else the answers depend on, as far as it differs from what is usual."""
    differing: JSON = {}
    if targets[0].url is None:
        differing["bases"] = [target.model for target in targets]
    if have_one_name(targets):  # else an endpoint may move
        differing["urls"] = [target.url for target in targets]
    if image_attention != 1.0:
        differing["image_attention"] = image_attention
    if not logprobs:
        differing["no_logprobs"] = True
    return differing


# -- asking ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model under diagnosis: its name, how it is asked, how many log-probabilities it gives (0: none)."""

    model: str
    complete: Complete
    top_logprobs: int


async def ask_all(
    targets: Sequence[Target],
    variants: Sequence[Variant],
    journal: Journal,
    *,
    reach: Reach,
    logprobs: bool = True,
    views: bool = True,
    concurrency: int = 8,
    per_second: float | None = None,
) -> list[list[Answer]]:
    """The answers of every model, in the variants' order, a few of them judged as well; one model is let go
    before the next is reached.

    logprobs: whether to ask for them. views: whether to ask the guard's views as well; without these no
    log-probabilities are asked for. per_second: calls that may begin in a second; None for any number.
    Raises EndpointError.
    """

    async def ask_one(number: int, target: Target, progress: Progress) -> list[Answer]:
        bar = progress.add_task(target.name, total=len(variants))
        tried = target.top_logprobs if logprobs else ()
        async with reach(target) as reached:
            complete = paced(reached, per_second)
            answers = await ask_each_variant(
                target.name,
                complete,
                variants,
                journal,
                name=str(number),
                tried=tried,
                views=views,
                concurrency=concurrency,
                done=partial(_advance, progress, bar),
            )
            if not views:
                return answers
            return await with_colours(
                target.name,
                complete,
                answers,
                journal,
                top_logprobs=partial(top_logprobs_of, complete, target.name, variants[0].item, tried),
                name=str(number),
                concurrency=concurrency,
            )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        return [await ask_one(number, target, progress) for number, target in enumerate(targets)]


def _advance(progress: Progress, bar: TaskID, _: str) -> None:
    progress.advance(bar)


async def ask_each_variant(
    model: str,
    complete: Complete,
    variants: Sequence[Variant],
    journal: Journal,
    *,
    name: str = "0",
    tried: Sequence[int] = TOP_LOGPROBS,
    views: bool = True,
    concurrency: int = 8,
    done: Callable[[str], None] = lambda key: None,
) -> list[Answer]:
    """What a model answers to every variant; what the journal holds is not asked again.

    name: the model's, in the journal. tried: as in `top_logprobs_of`. views: as in `ask_all`. Raises
    EndpointError.
    """
    keys = [f"{name}/{variant.key}" for variant in variants]
    missing = any(key not in journal.records for key in keys)
    top = await top_logprobs_of(complete, model, variants[0].item, tried) if missing and views else 0
    subject = Subject(model, complete, top)
    guard = Guard(GuardConfig(regenerate=not top))
    one = partial(ask, subject, guard) if views else partial(ask_alone, subject)
    jobs = {key: partial(one, variant) for key, variant in zip(keys, variants, strict=True)}
    records = await collect(jobs, journal, concurrency=concurrency, done=done)
    return [Answer.from_json(variant, records[key]) for key, variant in zip(keys, variants, strict=True)]


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


async def top_logprobs_of(
    complete: Complete, model: str, item: Item, tried: Sequence[int] = TOP_LOGPROBS
) -> int:
    """How many log-probabilities the endpoint gives: the first of `tried` that it takes, 0 for none.

    Raises EndpointError if it does not answer even without them.
    """
    for top in (*tried, 0):
        fields: JSON = {"logprobs": True, "top_logprobs": top} if top else {}
        try:
            reply = reply_of(await complete(_bare_request(item, model, **fields)))
        except EndpointError as exc:
            if exc.status is None or not 400 <= exc.status < 500 or exc.status in (401, 408, 429) or not top:
                raise
            continue
        if not top or reply.top:
            return top
    return 0


def _bare_request(item: Item, model: str, **fields: Any) -> JSON:
    """The request for an item without a word of what is relevant."""
    return {key: value for key, value in request_for(item, model, **fields).items() if key != "modint"}


async def ask_alone(subject: Subject, variant: Variant) -> JSON:
    """One answer without views, as `Answer` holds it. Raises EndpointError if the question fails."""
    reply = reply_of(await subject.complete(_bare_request(variant.whole(), subject.model)))
    return {"text": reply.text, "method": "none", "skip": reply.skip}


async def ask(subject: Subject, guard: Guard, variant: Variant) -> JSON:
    """One answer with its views, as `Answer` holds it. Raises EndpointError if the question or a view
    fails.
    """
    item = variant.whole()
    order = _order_of(variant)
    probes = {"probes": [order]} if order else {}
    body = request_for(item, subject.model)
    plan = guard.plan({**body, "modint": {**body["modint"], **probes}}, max_top_logprobs=subject.top_logprobs)
    asked = main_body(plan)
    if subject.top_logprobs:
        asked = {**asked, "logprobs": True, "top_logprobs": subject.top_logprobs}
    completion, replies = await with_views(plan, asked, subject.complete, variant.key)
    reply = reply_of(completion)
    score = _score(guard, plan, reply, replies)
    return {
        "text": reply.text,
        "options": option_probabilities(item, reply, guard.config.thresholds.min_option_mass),
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
    """The order that is tried as well: of the options if a lettered item is clean, of question and context if
    both modalities say the same.
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


def option_probabilities(item: Item, reply: Reply, min_mass: float) -> dict[str, float] | None:
    """Probabilities of the item's choices, renormalised; None if the reply's list leaves out one of them, or
    they hold less than `min_mass` together.
    """
    choices = {reply_for(item, choice): choice for choice in item.choices}
    listed = option_distribution(reply.top or {}, choices, min_mass)
    return None if listed is None else {choices[label]: p for label, p in listed.items()}
