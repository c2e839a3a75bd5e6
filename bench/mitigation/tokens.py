"""What a verdict and mending cost in tokens, as the gateway's clients see it, on short and long prompts.

Long prompts begin with some 560 tokens of system text that all calls of a request share: the engine computes
them once. Each request has words of its own there, and each cell of the table items and so pictures of its
own, so that no request profits from an earlier one.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.mitigation.settings import Setting
from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.runner import request_for
from modint_guard.types import JSON, Complete
from modint_training.tinyworld import suite

PADDING = 560  # words of one token each
WORDS = ("the", "and", "is", "are")
PROMPTS = ("short", "padded")
POLICIES = ("annotate", "ladder")
NOTES = f"""\
Requests through the gateway, as a client sends them; `padded` prompts begin with {PADDING} tokens of system
text of the request's own, which its calls share. `ratio` is all tokens of a request (its answer, its probes
and its rungs, prompts included) to those of the answer alone; `computed` leaves out of the numerator what the
engine took from its cache (blocks of 32 tokens), so that 1 is an unguarded request whose prompt nothing
shares. `cells`: probes a request. `rungs`: what the rungs of a flagged answer came to, in order, and
how often. On a short prompt one more call is nearly another prompt: with p tokens in
the request and q in the view, one probe makes (p + q) / p, and q is hardly less than p."""


@dataclass(frozen=True)
class Spent:
    """The tokens of one request: of the answer, of it with probes and rungs, and of these from the cache; and
    what each rung came to."""

    flagged: bool
    cells: int
    main: int
    every: int
    cached: int
    rungs: str = ""


def spent(completion: JSON) -> Spent:
    """Read from a judged completion."""
    usage, report = completion["usage"], completion["modint"]
    main = usage["prompt_tokens"] + usage["completion_tokens"]
    mended = report["mitigation"] or {}
    rungs = mended.get("rungs") or []
    details = usage.get("prompt_tokens_details") or {}
    return Spent(
        flagged=report["verdict"] == "flagged",
        cells=len(report["probes"]),
        main=main,
        every=main + sum(row["tokens"] for row in (*report["probes"], *rungs)),
        cached=(details.get("cached_tokens") or 0)
        + sum(row["cached_tokens"] for row in (*report["probes"], *rungs)),
        rungs=", ".join(f"{row['rung']} {row['outcome']}" for row in rungs),
    )


async def token_rows(
    complete: Complete,
    models: Sequence[str],
    settings: Sequence[Setting],
    *,
    split: suite.Split,
    count: int,
    seed: int,
    concurrency: int,
) -> list[dict[str, Any]]:
    """A row a model, policy, setting and kind of prompt. `complete` is the gateway. Raises EndpointError."""
    slots = asyncio.Semaphore(concurrency)

    async def one(body: JSON) -> Spent:
        async with slots:
            return spent(await complete(body))

    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(product(models, POLICIES, PROMPTS, settings), 1):
        model, policy, prompt, setting = cell
        items = setting.drawn(split, count, seed + number)
        bodies = [body_of(item, setting, model, policy, prompt) for item in items]
        found = await asyncio.gather(*map(one, bodies))
        rows += rows_of(model, policy, prompt, setting.name, found)
    return rows


def body_of(item: Item, setting: Setting, model: str, policy: str, prompt: str) -> JSON:
    """The request of one item."""
    if prompt == "padded":
        item = item.replace(system=padding(f"{policy} {model} {setting.name} {item.id}"))
    return request_for(item, model, modint={"relevant": setting.relevant, "action": policy})


def padding(name: str) -> str:
    """System text that says nothing, in an order of its own."""
    return " ".join(seeded("padding", name).choices(WORDS, k=PADDING))


def rows_of(
    model: str, policy: str, prompt: str, setting: str, found: Sequence[Spent]
) -> Iterator[dict[str, Any]]:
    """A row for the flagged answers and one for the others, where there are any."""
    for flagged in (False, True):
        group = [one for one in found if one.flagged == flagged]
        if group:
            main, every = sum(one.main for one in group), sum(one.every for one in group)
            yield {
                "model": model,
                "policy": policy,
                "prompt": prompt,
                "setting": setting,
                "flagged": flagged,
                "n": len(group),
                "main_tokens": main / len(group),
                "cells": sum(one.cells for one in group) / len(group),
                "ratio": every / main,
                "computed": (every - sum(one.cached for one in group)) / main,
                "rungs": _counted([one.rungs for one in group if one.rungs]),
            }


def _counted(said: Sequence[str]) -> str | None:
    """Each way that rungs went with how often, the most frequent first; None where there were none."""
    return "; ".join(f"{way}: {often}" for way, often in Counter(said).most_common()) or None
