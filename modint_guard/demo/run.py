"""`modint-guard demo`: the main job through the real engine and the `openai` client.

The items of a world go to its bundled models, or those of the check-up to a model of one's own. Answers,
verdicts and counters are shown, and the run succeeds only if what Prometheus would scrape equals what was
seen.
"""

import asyncio
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modint_guard.data.item import prompt, reply_for
from modint_guard.demo import contact_sheet
from modint_guard.demo.asking import ask_again, ask_all, check_answers, served_model
from modint_guard.demo.counters import Counts, calls_seen, compare, metric_lines, scrape
from modint_guard.demo.curl_script import write_script
from modint_guard.demo.launch import serving
from modint_guard.demo.shows import Show, World, show_of
from modint_guard.demo.tables import Answers, examples, summary
from modint_guard.errors import ConfigError
from modint_guard.evaluation.checkup_verdict import checkup_finding
from modint_guard.evaluation.runner import Row
from modint_guard.evaluation.tables import Answer
from modint_guard.models import BASE, picturebook
from modint_guard.models.fetch import say

MAX_WIDTH = 160  # characters of a line, in however wide a terminal


def demo(
    vllm_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- VLLM_OPTION",
            help="Options of `vllm serve` for --model, passed on as they are: `-- --max-model-len 4096`.",
            show_default=False,
        ),
    ] = None,
    world: Annotated[
        World | None,
        typer.Option(
            help="Whose items and models. picturebook is fetched (93 MB). Default: tinyworld.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Ask the check-up's items of this model: a folder or a hub id; with --url its name there.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask an engine that runs already, in place of starting one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --model or --url: the first items of each family.")
    ] = None,
    sheet: Annotated[
        Path, typer.Option(help="The contact sheet, a PNG; a script for curl is written beside it.")
    ] = Path("demo.png"),
) -> None:
    """Serve a model with vLLM behind the guard, ask it packaged items, show answers and verdicts."""
    check_sheet(sheet)
    show = show_of(world, model, url, vllm_options=vllm_options or [], limit=limit)
    if show.model == picturebook.NAME:
        picturebook.fetch(say=say)  # before a start is waited for
    run(show, sheet, Console(width=min(shutil.get_terminal_size((120, 24)).columns, MAX_WIDTH)))
    if show.model == BASE:
        say_what_else(Console(highlight=False, soft_wrap=True))


def run(show: Show, sheet: Path, console: Console) -> None:
    """Serve, ask, and show. Raises typer.Exit if the counters differ from what was seen, ConfigError for a
    model that cannot be asked, EngineError and EndpointError.
    """
    console.print(f"[bold]1.[/] starting the gateway: modint-guard serve {shlex.join(show.serve)}")
    with serving(show.serve, ready_s=show.ready_s, dtype=show.dtype) as served:
        console.print(f"   it was ready after {served.ready_s:.0f} s at {served.url}")
        base = asyncio.run(served_model(served.url, show.model))
        if show.variants:
            asyncio.run(check_answers(served.url, base, here=show.own_engine))
        ways = show.asked(base)
        before = scrape(served.url, engine=show.own_engine)
        asked = " and of ".join(dict.fromkeys(way.model for way in ways))
        console.print(f"[bold]2.[/] asking {len(show.items)} items of {asked} with the openai client")
        began = time.monotonic()
        answers = asyncio.run(ask_all(served.url, ways, show.items, console))
        rows = [row for of_way in answers.values() for row in of_way]
        console.print(f"   {len(rows)} answers in {time.monotonic() - began:.0f} s")
        after = scrape(served.url, engine=show.own_engine)
        flagged = flagged_answer(answers[ways[0].label])
        again = asyncio.run(ask_again(served.url, flagged)) if flagged else None
        console.print("   stopping the gateway")
    show_answers(console, answers, again, show, base)
    show_metrics(console, after)
    write_files(console, answers, sheet, base, show.command)
    problems = [*compare(rows, base, before, after)]
    problems += calls_seen(rows, before, after) if show.own_engine else ()
    for problem in problems:
        console.print(f"[red]counters differ:[/] {problem}")
    if problems:
        raise typer.Exit(1)
    console.print(
        f"[green]The scraped counters equal the table: {len(rows)} requests, every verdict counted once.[/]"
    )


def check_sheet(sheet: Path) -> None:
    """Raises ConfigError, before anything is started, if the contact sheet could not be written."""
    if sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {sheet}: the contact sheet is a PNG: name a file that ends in .png")
    if not sheet.parent.is_dir():
        raise ConfigError(f"--sheet {sheet}: there is no folder {sheet.parent}: create it first")


def show_answers(console: Console, answers: Answers, again: Row | None, show: Show, base: str) -> None:
    """The tables of the answers, what the check-up says, and the flagged answer that was asked again."""
    console.print(examples(answers, by=show.by))
    console.print(summary(answers, by=show.by))
    if show.note:
        console.print(show.note, highlight=False, markup=False)
    if show.variants:
        for sentence in checkup_finding(base, checkup_answers(show, next(iter(answers.values())))):
            console.print(f"   {sentence}", highlight=False, markup=False)
    if again is not None:
        console.print('one of the flagged answers once more, with `"modint": {"action": "ladder"}`:')
        console.print(f"   {correction(again)}", highlight=False, markup=False)


def checkup_answers(show: Show, rows: Sequence[Row]) -> list[Answer]:
    """The rows as the check-up counts them."""
    return [
        Answer(variant, row.answer, method="none") for variant, row in zip(show.variants, rows, strict=True)
    ]


def show_metrics(console: Console, counters: Mapping[str, Counts]) -> None:
    """What Prometheus would scrape: a metric a line, which is not wrapped."""
    console.print("[bold]3.[/] what Prometheus scrapes from /metrics (extract)")
    for line in metric_lines(counters):
        console.print(f"   {line}", highlight=False, soft_wrap=True)


def write_files(console: Console, answers: Answers, sheet: Path, base: str, server: str) -> None:
    """Write the contact sheet, and beside it a script that asks with curl; say where they are.

    server: the command that serves the base.
    """
    contact_sheet.draw(answers).save(sheet)
    console.print(f"[bold]4.[/] every answer with its picture: {sheet}", soft_wrap=True)
    script = sheet.with_suffix(".sh")
    items = [row.item for row in next(iter(answers.values()))]
    lying = next(item for item in items if item.perturbation == "misleading_description")
    write_script(script, lying, base, server)
    console.print("[bold]5.[/] the same with curl: start the server, and in another terminal send the script")
    console.print(f"   {server}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"   sh {shlex.quote(str(script))}", highlight=False, soft_wrap=True, markup=False)


def say_what_else(console: Console) -> None:
    """How to show the same on a language model, and on a model of one's own."""
    console.print("the same on a small language model, which is fetched (93 MB), and on a model of your own:")
    console.print(f"   {program()} demo --world picturebook", markup=False)
    console.print(f"   {program()} demo --model FOLDER_OR_HUB_ID", markup=False)


def program() -> str:
    """How this program was called."""
    name = Path(sys.argv[0])
    on_path = shutil.which(name.name)
    return name.name if on_path and Path(on_path) == name else str(name)


def flagged_answer(rows: Sequence[Row]) -> Row | None:
    """A wrong answer that was flagged; None if there is none."""
    return next((row for row in rows if row.flagged and not row.right), None)


def correction(row: Row) -> str:
    """What became of an answer that was to be corrected: before, after, and the rungs that were tried."""
    report = (row.modint or {}).get("mitigation") or {}
    tried = ", ".join(f"{rung['rung']}={rung['outcome']}" for rung in report.get("rungs", ())) or "nothing"
    question, truth = " / ".join(prompt(row.item).splitlines()), reply_for(row.item, row.item.answer)
    return (
        f"{question} -> the model said {report.get('original', row.answer)!r}, served is {row.answer!r} "
        f"(truth: {truth!r}); rungs: {tried}; {report.get('tokens', 0)} tokens more"
    )
