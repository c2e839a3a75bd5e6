"""`modint-guard demo`: the main job on the bundled model, through the real engine and the `openai` client.

Packaged test items go to base and robust-lora; the answers, verdicts and counters are shown, and the run
succeeds only if what Prometheus would scrape equals what was seen.
"""

import asyncio
import json
import shlex
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from modint_guard.data import read_items
from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.demo import contact_sheet
from modint_guard.demo.launch import serving
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.runner import Row, request_for, row_of
from modint_guard.models import ADAPTER, BASE
from modint_guard.types import LADDER

ITEMS = Path(__file__).parent / "items"
CONCURRENCY = 6
STREAMED_EVERY = 4  # one request in so many is a stream

Counts = dict[tuple[str, ...], int]


def demo(
    sheet: Annotated[Path, typer.Option(help="Where the contact sheet is written.")] = Path("demo.png"),
) -> None:
    """Serve the bundled model and adapter with vLLM, ask packaged items, show what the guard found."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    items = read_items(ITEMS)
    console.print("[bold]1.[/] starting vLLM and the gateway: modint-guard serve --adapter robust-lora")
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
        problems = [*compare(rows, before, after), *calls_seen(rows, before, after)]
        again = asyncio.run(ask_again(served.url, rows))
    console.print(examples(rows))
    console.print(summary(rows))
    if again is not None:
        console.print('   one of the flagged once more, with `"modint": {"action": "ladder"}`')
        console.print(f"   {mended_line(again)}", highlight=False, soft_wrap=True, markup=False)
    console.print("[bold]3.[/] what Prometheus scrapes from /metrics (extract)")
    for line in metric_lines(after):
        console.print(f"   {line}", highlight=False, soft_wrap=True)
    contact_sheet.draw(rows).save(sheet)
    console.print(f"[bold]4.[/] every answer with its picture: {sheet}")
    console.print("[bold]5.[/] the same with curl, once `make serve` runs:")
    console.print(curl_line(), highlight=False, soft_wrap=True, markup=False)
    for problem in problems:
        console.print(f"[red]counters differ:[/] {problem}")
    if problems:
        raise typer.Exit(1)
    console.print(
        f"[green]The scraped counters equal the table: {len(rows)} requests, every verdict counted once.[/]"
    )


async def ask_all(url: str, items: Sequence[Item], console: Console) -> list[Row]:
    """Every item to both models; one request in `STREAMED_EVERY` as a stream."""
    try:
        import openai
    except ModuleNotFoundError:
        raise ConfigError("the demo speaks through the openai client: pip install openai") from None
    slots = asyncio.Semaphore(CONCURRENCY)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("asking", total=2 * len(items))
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:

            async def one(number: int, item: Item, model: str) -> Row:
                async with slots:
                    ask = _stream if number % STREAMED_EVERY == 0 else _whole
                    try:
                        completion = await ask(client, request_for(item, model))
                    except openai.OpenAIError as exc:
                        raise EndpointError(f"{model} gave no answer to item {item.id}: {exc}") from exc
                progress.advance(bar)
                return row_of(item, model, completion)

            return await asyncio.gather(
                *(one(n, item, model) for model in (BASE, ADAPTER) for n, item in enumerate(items))
            )


async def ask_again(url: str, rows: Sequence[Row]) -> Row | None:
    """A wrong answer of the base that was flagged, asked once more to be mended; None where there is none."""
    import openai

    flagged = (row for row in rows if row.model == BASE and row.flagged and not row.right)
    row = next(flagged, None)
    if row is None:
        return None
    body = request_for(row.item, BASE)
    body["modint"]["action"] = LADDER
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        try:
            return row_of(row.item, BASE, await _whole(client, body))
        except openai.OpenAIError as exc:
            raise EndpointError(f"{BASE} gave no answer to item {row.item.id}: {exc}") from exc


def mended_line(row: Row) -> str:
    """What came of an answer that was to be mended."""
    mended = (row.modint or {}).get("mitigation") or {}
    tried = ", ".join(f"{rung['rung']}={rung['outcome']}" for rung in mended.get("rungs", ())) or "nothing"
    asked, truth = " / ".join(prompt(row.item).splitlines()), reply_for(row.item, row.item.answer)
    return (
        f"{asked} -> the model said {mended.get('original', row.answer)!r}, served is {row.answer!r} (truth: "
        f"{truth!r}); rungs: {tried}; {mended.get('tokens', 0)} tokens more"
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


def scrape(url: str) -> dict[str, Counts]:
    """Counter samples of the gateway and of the engine behind it: metric -> sorted label values -> count."""
    found: dict[str, Counts] = {}
    for path in ("/metrics", "/engine/metrics"):
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        counts = found.setdefault(sample.name, {})
                        counts[_key(sample.labels)] = int(sample.value)
    return found


def _key(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in sorted(labels.items()))


def compare(rows: Sequence[Row], before: Mapping[str, Counts], after: Mapping[str, Counts]) -> Iterator[str]:
    """What differs between the counters' rise and the answers seen; nothing where they are equal."""
    verdicts = Counter(
        _key(
            {**_names(row), "relevant": m["relevant"], "verdict": m["verdict"], "cause": m["cause"] or "none"}
        )
        for row in rows
        if (m := row.modint)
    )
    requests = Counter(_key({**_names(row), "route": "chat", "outcome": "ok"}) for row in rows)
    for name, seen in (("modint_verdicts_total", verdicts), ("modint_requests_total", requests)):
        counted = _rise(name, before, after)
        for labels in sorted(set(seen) | set(counted)):
            rise = counted.get(labels, 0)
            if seen[labels] != rise:
                yield f"{name}{{{', '.join(labels)}}} rose by {rise}, the table has {seen[labels]}"
    unanswered = sum(row.modint is None for row in rows)
    if unanswered:
        yield f"{unanswered} answers came without a `modint` object"


def calls_seen(
    rows: Sequence[Row], before: Mapping[str, Counts], after: Mapping[str, Counts]
) -> Iterator[str]:
    """Whether vLLM itself counted at least the calls sent: one an answer and one a probe."""
    sent = len(rows) + sum(len(row.modint["probes"]) for row in rows if row.modint)
    served = sum(_rise("vllm:request_success_total", before, after).values())
    if served < sent:
        yield f"vllm:request_success_total rose by {served}, but {sent} calls were sent"


def _names(row: Row) -> dict[str, str]:
    return {"model": BASE, "adapter": "none" if row.model == BASE else row.model}


def _rise(name: str, before: Mapping[str, Counts], after: Mapping[str, Counts]) -> Counts:
    old = before.get(name, {})
    risen = {labels: count - old.get(labels, 0) for labels, count in after.get(name, {}).items()}
    return {labels: count for labels, count in risen.items() if count}


def examples(rows: Sequence[Row]) -> Table:
    """One telling answer of each kind, base beside adapter."""
    shown = Table(title="Examples", show_lines=True)
    for column in ("kind", "asked", "truth", "model", "answer", "verdict", "cause", "risk"):
        shown.add_column(column, overflow="fold", no_wrap=column not in ("kind", "asked"))
    for kind in dict.fromkeys(_kind(row.item) for row in rows):
        mine = [row for row in rows if _kind(row.item) == kind and row.model == BASE]
        base = max(mine, key=lambda row: (row.flagged, not row.right))
        twin = next(row for row in rows if row.item.id == base.item.id and row.model == ADAPTER)
        for row in (base, twin):
            first = row is base
            asked, truth = (prompt(row.item), reply_for(row.item, row.item.answer)) if first else ("", "")
            modint = row.modint or {}
            risk = modint.get("risk")
            shown.add_row(
                kind if first else "",
                asked,
                truth,
                row.model,
                f"{row.answer} {'✓' if row.right else '✗'}",
                modint.get("verdict") or "–",
                modint.get("cause") or modint.get("reason") or "–",
                "–" if risk is None else f"{risk:.2f}",
            )
    return shown


def summary(rows: Sequence[Row]) -> Table:
    """Accuracy and flags by kind, base beside adapter."""
    shown = Table(title="Accuracy, and flags on wrong and on right answers")
    for column in ("kind", "model", "n", "right", "flagged of wrong", "flagged of right"):
        shown.add_column(column, justify="left" if column in ("kind", "model") else "right", no_wrap=True)
    for kind in dict.fromkeys(_kind(row.item) for row in rows):
        for model in (BASE, ADAPTER):
            mine = [row for row in rows if _kind(row.item) == kind and row.model == model]
            right = [row for row in mine if row.right]
            wrong = [row for row in mine if not row.right]
            shown.add_row(
                kind if model == BASE else "",
                model,
                str(len(mine)),
                f"{len(right) / len(mine):.0%}",
                f"{sum(row.flagged for row in wrong)}/{len(wrong)}",
                f"{sum(row.flagged for row in right)}/{len(right)}",
            )
    return shown


def _kind(item: Item) -> str:
    return f"{item.family}, {item.perturbation.replace('_', ' ')}"


def metric_lines(after: Mapping[str, Counts]) -> Iterator[str]:
    """The non-zero request and verdict counters, as Prometheus reads them."""
    for name in ("modint_requests_total", "modint_verdicts_total"):
        for labels, count in sorted(after.get(name, {}).items()):
            if count:
                quoted = ",".join(
                    f'{label}="{value}"' for label, _, value in (pair.partition("=") for pair in labels)
                )
                yield f"{name}{{{quoted}}} {count}"


def curl_line() -> str:
    """A command line that asks the base an item whose caption lies; works against `make serve`."""
    item = next(item for item in read_items(ITEMS) if item.perturbation == "misleading_description")
    body = json.dumps(request_for(item, BASE))
    url = "http://127.0.0.1:8080/v1/chat/completions"
    return f"curl -s {url} -H 'content-type: application/json' -d {shlex.quote(body)}"
