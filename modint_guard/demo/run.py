"""`modint-guard demo`: the main job on the bundled model, through the real engine and the `openai` client.

Packaged test items go to base and robust-lora. The answers, verdicts and counters are shown, and the run
succeeds only if what Prometheus would scrape equals what was seen.
"""

import asyncio
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from modint_guard.data import read_items
from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.demo import contact_sheet
from modint_guard.demo.counters import Counts, calls_seen, compare, metric_lines, scrape
from modint_guard.demo.curl_script import write_script
from modint_guard.demo.launch import serving
from modint_guard.demo.tables import examples, summary
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.runner import Row, request_for, row_of
from modint_guard.models import ADAPTER, BASE
from modint_guard.types import LADDER

ITEMS = Path(__file__).parent / "items"
CONCURRENCY = 6
STREAMED_EVERY = 4  # one request in so many is a stream
MAX_WIDTH = 160  # characters of a line, in however wide a terminal
LINES = 8  # of progress, if the output is no terminal


def demo(
    sheet: Annotated[
        Path, typer.Option(help="The contact sheet, a PNG; a script for curl is written beside it.")
    ] = Path("demo.png"),
) -> None:
    """Serve the bundled model and adapter with vLLM, ask packaged items, show the guard's verdicts."""
    check_sheet(sheet)
    console = Console(width=min(shutil.get_terminal_size((120, 24)).columns, MAX_WIDTH))
    items = read_items(ITEMS)
    console.print(f"[bold]1.[/] starting vLLM and the gateway: modint-guard serve --adapter {ADAPTER}")
    with serving(["--adapter", ADAPTER]) as served:
        console.print(
            f"   the engine and the gateway were ready after {served.ready_s:.0f} s at {served.url}"
        )
        before = scrape(served.url)
        console.print(
            f"[bold]2.[/] asking {len(items)} items of {BASE} and of {ADAPTER} with the openai client"
        )
        began = time.monotonic()
        rows = asyncio.run(ask_all(served.url, items, console))
        console.print(f"   {len(rows)} answers in {time.monotonic() - began:.0f} s")
        after = scrape(served.url)
        again = asyncio.run(ask_again(served.url, flagged)) if (flagged := flagged_answer(rows)) else None
        console.print("   stopping the gateway and the engine")
    show_answers(console, rows, again)
    show_metrics(console, after)
    write_files(console, rows, sheet)
    problems = [*compare(rows, before, after), *calls_seen(rows, before, after)]
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


def show_answers(console: Console, rows: Sequence[Row], again: Row | None) -> None:
    """The tables of the answers, and the flagged one that was asked again."""
    console.print(examples(rows))
    console.print(summary(rows))
    if again is not None:
        console.print('one of the flagged answers once more, with `"modint": {"action": "ladder"}`:')
        console.print(f"   {correction(again)}", highlight=False, markup=False)


def show_metrics(console: Console, counters: Mapping[str, Counts]) -> None:
    """What Prometheus would scrape: a metric a line, which is not wrapped."""
    console.print("[bold]3.[/] what Prometheus scrapes from /metrics (extract)")
    for line in metric_lines(counters):
        console.print(f"   {line}", highlight=False, soft_wrap=True)


def write_files(console: Console, rows: Sequence[Row], sheet: Path) -> None:
    """Write the contact sheet, and beside it a script that asks with curl; say where they are."""
    contact_sheet.draw(rows).save(sheet)
    console.print(f"[bold]4.[/] every answer with its picture: {sheet}", soft_wrap=True)
    script = sheet.with_suffix(".sh")
    write_script(script, next(row.item for row in rows if row.item.perturbation == "misleading_description"))
    console.print(
        "[bold]5.[/] the same with curl: start the server with `make serve`, and in another terminal"
    )
    console.print(f"   sh {shlex.quote(str(script))}", highlight=False, soft_wrap=True, markup=False)


@contextmanager
def counting(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """What to call after each of `total` answers: it moves a bar, or prints a line now and then if the output
    is no terminal."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("asking", total=total)
        answers = 0

        def count() -> None:
            nonlocal answers
            answers += 1
            progress.advance(bar)
            if not console.is_terminal and answers % max(1, total // LINES) == 0:
                console.print(f"   {answers} of {total} answers")

        yield count


async def ask_all(url: str, items: Sequence[Item], console: Console) -> list[Row]:
    """Every item to both models; one request in `STREAMED_EVERY` as a stream. Raises EndpointError."""
    try:
        import openai
    except ModuleNotFoundError:
        raise ConfigError("the demo speaks through the openai client: pip install openai") from None
    slots = asyncio.Semaphore(CONCURRENCY)
    with counting(console, 2 * len(items)) as count:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:

            async def one(number: int, item: Item, model: str) -> Row:
                async with slots:
                    ask = _stream if number % STREAMED_EVERY == 0 else _whole
                    try:
                        completion = await ask(client, request_for(item, model))
                    except openai.OpenAIError as exc:
                        raise EndpointError(f"{model} gave no answer to item {item.id}: {exc}") from exc
                count()
                return row_of(item, model, completion)

            return await asyncio.gather(
                *(one(n, item, model) for model in (BASE, ADAPTER) for n, item in enumerate(items))
            )


def flagged_answer(rows: Sequence[Row]) -> Row | None:
    """A wrong answer of the base that was flagged; None if there is none."""
    return next((row for row in rows if row.model == BASE and row.flagged and not row.right), None)


async def ask_again(url: str, row: Row) -> Row:
    """The same question once more, with the request for a correction. Raises EndpointError."""
    import openai

    body = request_for(row.item, row.model)
    body["modint"]["action"] = LADDER
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        try:
            return row_of(row.item, row.model, await _whole(client, body))
        except openai.OpenAIError as exc:
            raise EndpointError(f"{row.model} gave no answer to item {row.item.id}: {exc}") from exc


def correction(row: Row) -> str:
    """What became of an answer that was to be corrected: before, after, and the rungs that were tried."""
    report = (row.modint or {}).get("mitigation") or {}
    tried = ", ".join(f"{rung['rung']}={rung['outcome']}" for rung in report.get("rungs", ())) or "nothing"
    question, truth = " / ".join(prompt(row.item).splitlines()), reply_for(row.item, row.item.answer)
    return (
        f"{question} -> the model said {report.get('original', row.answer)!r}, served is {row.answer!r} "
        f"(truth: {truth!r}); rungs: {tried}; {report.get('tokens', 0)} tokens more"
    )


def _openai_arguments(body: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in body.items() if key != "modint"},
        "extra_body": {"modint": body["modint"]},
    }


async def _whole(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    completion = await client.chat.completions.create(**_openai_arguments(body))
    return dict(completion.model_dump())


async def _stream(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    text, modint = "", None
    async for chunk in await client.chat.completions.create(**_openai_arguments(body), stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
        modint = (chunk.model_extra or {}).get("modint", modint)
    return {"choices": [{"message": {"content": text}}], "modint": modint}
