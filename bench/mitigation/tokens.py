"""The cost of verdict and correction in tokens, as clients of the gateway see it, on short and long prompts.

Long prompts begin with about 560 tokens of system text that all calls of a request share: the engine computes
them once. Every request has another system text, and every row of the table other items and so other
pictures, so that no request profits from an earlier one.
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

PADDING = 560  # words, each of one token
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
class RequestTokens:
    """The tokens of one request: of its answer (`main`), of answer, probes and rungs together (`every`), and
    of these from the cache; and the outcome of each rung."""

    flagged: bool
    cells: int
    main: int
    every: int
    cached: int
    rungs: str = ""


def tokens_of(completion: JSON) -> RequestTokens:
    """The tokens of a request from its judged completion."""
    usage, report = completion["usage"], completion["modint"]
    main = usage["prompt_tokens"] + usage["completion_tokens"]
    rungs = (report["mitigation"] or {}).get("rungs") or []
    details = usage.get("prompt_tokens_details") or {}
    return RequestTokens(
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
    """A row for each model, policy, setting, kind of prompt and verdict. `complete` is the gateway. Raises
    EndpointError."""
    slots = asyncio.Semaphore(concurrency)

    async def one(body: JSON) -> RequestTokens:
        async with slots:
            return tokens_of(await complete(body))

    rows: list[dict[str, Any]] = []
    for number, part in enumerate(product(models, POLICIES, PROMPTS, settings), 1):
        model, policy, prompt, setting = part
        items = setting.drawn(split, count, seed + number)
        bodies = [body_of(item, setting, model, policy, prompt) for item in items]
        requests = await asyncio.gather(*map(one, bodies))
        rows += rows_of(model, policy, prompt, setting.name, requests)
    return rows


def body_of(item: Item, setting: Setting, model: str, policy: str, prompt: str) -> JSON:
    """The request that asks one item; a padded one names its context, so that the padding is none."""
    modint = {"relevant": setting.relevant, "action": policy}
    if prompt == "padded":
        item = item.replace(system=padding(f"{policy} {model} {setting.name} {item.id}"))
        modint["context"] = item.context or ""
    return request_for(item, model, modint=modint)


def padding(name: str) -> str:
    """A system text that says nothing, with its words in an order drawn from `name`."""
    return " ".join(seeded("padding", name).choices(WORDS, k=PADDING))


def rows_of(
    model: str, policy: str, prompt: str, setting: str, requests: Sequence[RequestTokens]
) -> Iterator[dict[str, Any]]:
    """A row for the flagged answers and one for the others, if there are any."""
    for flagged in (False, True):
        group = [one for one in requests if one.flagged == flagged]
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


def _counted(ways: Sequence[str]) -> str | None:
    """Each sequence of rung outcomes with its number, the most frequent first; None if there are none."""
    return "; ".join(f"{way}: {often}" for way, often in Counter(ways).most_common()) or None
