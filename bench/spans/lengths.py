"""Long answers beside captions that do no harm: the share that is flagged, and what the verdicts cost.

An answer is made as long as is wanted by `min_tokens`: what a small model writes then is of no interest, and
that nothing in it was turned by an unrelated sentence is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bench.spans.cases import World
from bench.spans.intervals import at_most
from modint_guard.data.item import Item
from modint_guard.data.perturb import perturb
from modint_guard.evaluation.runner import request_for
from modint_guard.types import JSON, Complete
from modint_training.picturebook import suite as picturebook
from modint_training.tinyworld import suite as tinyworld

LENGTHS = (20, 60, 150)  # tokens
HARMLESS = ("unrelated_facts", "true_description")
# A model that may not end its answer goes on with these marks: they are in no text, so it cannot be scored.
MARKS = (
    *("<|im_start|>", "<|endoftext|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>"),
    *("<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_text>", "<jupyter_code>"),
    *("<jupyter_output>", "<jupyter_script>", "<empty_output>"),
    *("<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>"),
)
OFF: JSON = {"mode": "off"}


def harmless(world: World, count: int, seed: int) -> Iterator[tuple[str, Item]]:
    """`count` items for each kind of harmless caption, with its name."""
    for name in HARMLESS:
        for index in range(count):
            if world == "tinyworld":
                item = tinyworld.item("image-heavy", "test", index, seed=seed)
            else:
                item = picturebook.item("image-heavy", "test", index, seed=seed, task="describe")
            yield name, perturb(item, name, seed=seed)


def of_length(tokens: int) -> JSON:
    """The fields of a request whose answer has exactly so many tokens."""
    return {"min_tokens": tokens, "max_tokens": tokens, "bad_words": list(MARKS)}


async def ask_long(complete: Complete, model: str, item: Item, length: int, delivery: str) -> JSON:
    """One answer of so many tokens, without and with its verdict: what it cost and what was flagged.

    complete: asks in the way that `delivery` names. The unguarded request comes first, so that what the
    prefix cache saves is saved for the guarded one, as it is when the same question comes again.
    """
    asked = {"relevant": "image", "deadline_s": 60}
    body = request_for(item, model, **of_length(length), modint=asked)
    began = time.perf_counter()
    plain = await complete({**body, "modint": OFF})
    between = time.perf_counter()
    judged = await complete(body)
    ended = time.perf_counter()
    modint = judged.get("modint") or {}
    usage = plain.get("usage") or {}
    return {
        "model": model,
        "tokens": length,
        "delivery": delivery,
        "flagged": modint.get("verdict") == "flagged",
        "cause": modint.get("cause"),
        "method": modint.get("method"),
        "verdict": modint.get("verdict"),
        "plain_s": between - began,
        "judged_s": ended - between,
        "plain_tokens": (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0),
        "probe_tokens": sum(probe["tokens"] for probe in modint.get("probes") or ()),
        "probe_cached": sum(probe["cached_tokens"] for probe in modint.get("probes") or ()),
        "words": sum(span["cause"] is not None for span in modint.get("spans") or ()),
    }


def length_row(model: str, length: int, delivery: str, records: Sequence[JSON]) -> dict[str, Any]:
    """The table's row of one length."""
    turned = sum(record["cause"] in ("text", "image") for record in records)
    return {
        "model": model,
        "tokens": length,
        "delivery": delivery,
        "answers": len(records),
        "scored whole": sum(record["method"] == "teacher_forced" for record in records),
        "turned": turned,
        "share": turned / len(records),
        "at most": at_most(turned, len(records)),
        "other flags": sum(record["flagged"] for record in records) - turned,
        "tokens ratio": median(_ratio(record, record["probe_tokens"]) for record in records),
        "computed ratio": median(
            _ratio(record, record["probe_tokens"] - record["probe_cached"]) for record in records
        ),
        "time ratio": median(record["judged_s"] / record["plain_s"] for record in records),
    }


def _ratio(record: JSON, probes: int) -> float:
    return 1 + probes / max(1, int(record["plain_tokens"]))
