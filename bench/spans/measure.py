"""`python -m bench spans`: which words of an answer came from a lie, through vLLM and the gateway.

Each case is asked twice with its caption, with `relevant` named and left to the gateway, one of the two as a
stream, by turns; and once without caption and guard. Records are kept as they come; the tables are made from
them alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from tqdm import tqdm

from bench.spans.cases import FORMS, SCENES, SpanCase, World, cases, shows
from bench.spans.intervals import interval
from bench.spans.lengths import LENGTHS, ask_long, harmless, length_row
from bench.spans.marks import RULES, counted, marks
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import EndpointError
from modint_guard.evaluation.journal import Job, Journal, collect
from modint_guard.evaluation.results import table, write_results
from modint_guard.evaluation.runner import request_for, without_guard
from modint_guard.models import BASE
from modint_guard.types import JSON, Complete

Stream = Callable[
    [JSON], Awaitable[JSON]
]  # a body that asks for a stream -> the completion that it adds up to
WHOLE, STREAMED = "whole", "streamed"
RELEVANT = {"named": "image", "auto": "auto"}
TIMEOUT_S = 300.0
NULL_S = 3600.0
DEADLINE_S = 60.0  # of the views: what is late on a busy machine is no matter of spans
NOTES = """\
Greedy answers through vLLM and the gateway. `mentions`: answers that name what the caption's lie claims, and
that do not name it without the caption. `found`: those in which the rule marks a word of the first mention.
`false`: all other words that it marks, in answers that were lied to and in those that were told the truth.
`precision` = found / (found + false), `recall` = found / mentions, `f1` their harmonic mean; intervals are
Clopper-Pearson, 95 %. `spans` marks the words of spans flagged as `text`; `influence` those that the text
gave 3.3 nats or more, and more than the picture, flagged or not; `in context` those that the caption holds
too; `differs` those that the answer without caption lacks; `both` what is marked by these two rules. The
rules leave out words of the question and such as "the". `relevant` is named by the client (image), or left
to the gateway (auto); of the two answers to a case one came as a stream (`delivery`), by turns. `wording`
says whether the captions' words were seen in training. `seen`: answers to cases of which the model, asked
without a caption, names all that the picture shows. `by null`: answers that were judged by the model's own
null, measured on the packaged items before; the others by the default thresholds or by a bundled calibration.
`scored`: answers that were scored as a whole. What holds by construction: a true caption names only what the
picture shows, so that `in context` is wrong on every right answer to one."""
LENGTH_NOTES = """\
Answers made as long as `tokens` says (`min_tokens`), beside captions that do no harm: unrelated sentences,
and true ones; requests say that the picture is relevant. `share` of them is flagged as `turned` by the text,
with 95 % confidence `at most` so many; `other flags`: `prior` and `neglect`, which say that the picture was
not needed. `tokens ratio`: all tokens
of request and probes by those of the request, `computed ratio` without those that the prefix cache held;
`time ratio`: the answer with its verdict by the answer
without one, medians of pairs that were asked one after the other, one at a time."""


@dataclass(frozen=True)
class Setup:
    """What is measured: a model of a world, perhaps with an adapter, on `count` items of each form."""

    world: World
    model: str
    adapter: str | None
    count: int
    long: int
    seed: int
    null: bool = True
    concurrency: int = 4


def measure_spans(output: Path, raw: Path, setup: Setup) -> None:
    """Base and adapter; the records of the run are kept in `raw`, and the same call goes on from them."""
    named = {"--model": None if setup.model == BASE else setup.model, "--adapter": setup.adapter}
    options = [word for name, value in named.items() if value for word in (name, value)]
    if setup.null:
        os.environ["MODINT_NULL_CHECKUP"] = "on"  # `serving` leaves it out of measurements otherwise
    made_by: JSON = {"run": "spans", **asdict(setup), "concurrency": None}
    with Journal(raw, made_by) as journal, serving(options) as served:
        asyncio.run(_measure(served.url, setup, journal))
        records = dict(journal.records)
    write_tables(output, records, setup)


def write_tables(output: Path, records: Mapping[str, JSON], setup: Setup) -> None:
    """The tables of words and of long answers, each as JSON and Markdown; of the first, Markdown has the rows
    of all wordings and ways of delivery only."""
    adapter = f" --adapter {setup.adapter}" if setup.adapter else ""
    command = (
        f"python -m bench spans --world {setup.world} --model {setup.model}{adapter} --count {setup.count} "
        f"--long {setup.long} --seed {setup.seed}{'' if setup.null else ' --no-null'}"
    )
    write = partial(write_results, command=command, seeds=[setup.seed])
    rows = list(span_rows(records))
    whole = [row for row in rows if row["wording"] == row["delivery"] == "all"]
    write(output, rows=rows, title="Which words came from the lie", notes=NOTES, shown=table(whole))
    write(
        output.with_name(f"{output.stem}_lengths{output.suffix}"),
        rows=list(length_rows(records)),
        title="Long answers beside what does no harm",
        notes=LENGTH_NOTES,
    )


async def _measure(url: str, setup: Setup, journal: Journal) -> None:
    async def asked(jobs: dict[str, Job], unit: str, concurrency: int) -> None:
        with tqdm(total=len(jobs), unit=unit) as bar:
            await collect(jobs, journal, concurrency=concurrency, done=lambda key: _advance(bar))

    async with Endpoint(url, timeout_s=TIMEOUT_S) as endpoint, aiohttp.ClientSession() as session:
        names = [str(listed["id"]) for listed in await endpoint.models()]
        if setup.null:
            # The bundled base is judged by its calibration, so that its null is not measured.
            await nulls_measured(session, url, [name for name in names if name != BASE])
        stream = partial(streamed, session, url)
        jobs = {
            key: job
            for name in names
            for key, job in case_jobs(setup, name, endpoint.complete, stream).items()
        }
        await asked(jobs, "case", setup.concurrency)
        ways: dict[str, Complete] = {WHOLE: endpoint.complete, STREAMED: stream}
        long = {key: job for name in names for key, job in long_jobs(setup, name, ways).items()}
        await asked(long, "long answer", 1)


async def nulls_measured(
    session: aiohttp.ClientSession, url: str, names: Sequence[str], *, every_s: float = 5.0
) -> None:
    """Return once the packaged items were asked of each model, so that answers are judged by its null, if
    that is large enough. Raises EndpointError if it takes longer than NULL_S.
    """
    until = time.monotonic() + NULL_S
    while time.monotonic() < until:
        async with session.get(f"{url}/readyz") as response:
            models = (await response.json())["null"]["models"]
        if all(models.get(name, {}).get("n") for name in names):
            return
        await asyncio.sleep(every_s)
    raise EndpointError(f"{url} has not measured the null of {', '.join(names)} within {NULL_S:.0f} s.")


def case_jobs(setup: Setup, model: str, complete: Complete, stream: Stream) -> dict[str, Job]:
    """One job for each case."""
    return {
        f"{model}/{case.key}": partial(ask_case, case, model, complete, stream)
        for case in cases(setup.world, setup.count, setup.seed)
    }


async def ask_case(case: SpanCase, model: str, complete: Complete, stream: Stream) -> JSON:
    """The answers to one case, and what each rule marks in them."""
    clean_body = request_for(case.clean, model, **case.fields)
    clean = _text(await without_guard(complete)(clean_body))
    found: list[JSON] = []
    first = zlib.crc32(case.key.encode()) % len(RELEVANT)  # whose answer is streamed
    for index, (said, relevant) in enumerate(RELEVANT.items()):
        is_streamed = index == first
        options = {"relevant": relevant, "deadline_s": DEADLINE_S}
        body = request_for(case.item, model, **case.fields, modint=options)
        completion = await (stream(body) if is_streamed else complete(body))
        answer, modint = _text(completion), completion.get("modint")
        by_rule = marks(answer, clean, case.item.context or "", case.item.question, modint)
        counts = {rule: asdict(counted(answer, clean, case.claimed, by_rule[rule])) for rule in RULES}
        found.append(
            {
                **{"relevant": said, "streamed": is_streamed, "answer": answer, "counts": counts},
                **{
                    name: (modint or {}).get(name) for name in ("verdict", "cause", "method", "score", "risk")
                },
                **{"ought": (modint or {}).get("relevant"), "null": (modint or {}).get("null")},
            }
        )
    told = {"kind": case.kind, "form": case.form, "wording": case.wording, "model": model}
    seen = shows(case.clean, clean)
    return {**told, "clean": clean, "seen": seen, "claimed": list(case.claimed), "answers": found}


def long_jobs(setup: Setup, model: str, ways: Mapping[str, Complete]) -> dict[str, Job]:
    """One job for each long answer, the ways of delivery by turns."""
    return {
        f"{model}/{length} tokens/{name}/{item.id}": partial(ask_long, ways[way], model, item, length, way)
        for length in LENGTHS
        for (name, item), way in zip(harmless(setup.world, setup.long, setup.seed), cycle(ways), strict=False)
    }


def span_rows(records: Mapping[str, JSON]) -> Iterator[dict[str, Any]]:
    """A row for each rule and group of answers (`_groups`)."""
    for head, found in _groups(records).items():
        answers = [answer for _, answer in found]
        row = {
            **dict(zip(("model", "relevant", "form", "wording", "delivery"), head, strict=True)),
            "answers": len(answers),
            "seen": sum(record["seen"] for record, _ in found),
            "scored": sum(answer["method"] == "teacher_forced" for answer in answers),
            "by null": sum(answer["null"] is not None for answer in answers),
        }
        for rule in RULES:
            yield {**row, "rule": rule, **figures([answer["counts"][rule] for answer in answers])}


def _groups(records: Mapping[str, JSON]) -> dict[tuple[str, ...], list[tuple[JSON, JSON]]]:
    """Records and their answers by model, relevance, form, wording and way of delivery: of all forms about
    one thing and of scenes, of each form, of its wordings, and of each way of delivery.
    """
    groups: dict[tuple[str, ...], list[tuple[JSON, JSON]]] = {}
    for record in records.values():
        pooled = "scenes" if record.get("form") in SCENES else "one thing"
        for answer in record.get("answers", ()):
            delivery = STREAMED if answer["streamed"] else WHOLE
            for head in (
                (pooled, "all", "all"),
                (pooled, "all", delivery),
                (pooled, record["wording"], "all"),
                (record["form"], "all", "all"),
                (record["form"], record["wording"], "all"),
            ):
                key = (record["model"], answer["relevant"], *head)
                groups.setdefault(key, []).append((record, answer))
    order = ["one thing", *(form for form in FORMS if form not in SCENES), "scenes", *SCENES]
    return dict(
        sorted(groups.items(), key=lambda each: (*each[0][:2], order.index(each[0][2]), *each[0][3:]))
    )


def figures(counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Precision, recall and F1 of one rule; None where there is nothing to take it of."""
    mentions, found, false = (sum(each[name] for each in counts) for name in ("mentions", "found", "false"))
    precision, recall = _share(found, found + false), _share(found, mentions)
    both = (precision or 0.0) + (recall or 0.0)
    low, high = interval(found, found + false)
    recall_low, recall_high = interval(found, mentions)
    return {
        **{"mentions": mentions, "found": found, "false": false},
        **{"precision": precision, "precision low": low, "precision high": high},
        **{"recall": recall, "recall low": recall_low, "recall high": recall_high},
        "f1": None if recall is None else 2 * (precision or 0.0) * recall / both if both else 0.0,
    }


def length_rows(records: Mapping[str, JSON]) -> Iterator[dict[str, Any]]:
    """A row for each model, length and way of delivery, and one for both ways."""
    groups: dict[tuple[str, int, str], list[JSON]] = {}
    for record in records.values():
        if "tokens" in record:
            for delivery in ("all", record["delivery"]):
                groups.setdefault((record["model"], record["tokens"], delivery), []).append(record)
    for (model, tokens, delivery), group in sorted(groups.items()):
        yield length_row(model, tokens, delivery, group)


async def streamed(session: aiohttp.ClientSession, url: str, body: JSON) -> JSON:
    """The completion that a stream adds up to. Raises EndpointError if it is refused, or ends early."""
    asked = orjson.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    headers = {"content-type": "application/json"}
    text: list[str] = []
    modint: JSON | None = None
    usage: JSON | None = None
    async with session.post(f"{url}/v1/chat/completions", data=asked, headers=headers) as response:
        if response.status != 200:
            raise EndpointError(f"{url} answered {response.status} to a stream", status=response.status)
        async for line in response.content:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            modint, usage = chunk.get("modint") or modint, chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                text.append((choice.get("delta") or {}).get("content") or "")
    message = {"content": "".join(text)}
    return {"choices": [{"index": 0, "message": message}], "modint": modint, "usage": usage}


def _advance(bar: Any) -> None:
    bar.update()


def _text(completion: JSON) -> str:
    return str(completion["choices"][0]["message"].get("content") or "")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
