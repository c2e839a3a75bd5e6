"""`modint-guard results relevance`: what the lexical rules say ought to decide, on the three families.

No engine is asked. What the model itself says (`self_ask`) is measured with all else in TinyWorld's tables.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modint_guard.chat import parse
from modint_guard.item import FAMILIES, RELEVANT, Family
from modint_guard.relevance import decide
from modint_guard.results import write_results
from modint_guard.runner import request_for
from modint_guard.types import Relevant
from modint_training.tinyworld import suite

BESIDE = {"image-heavy": "true_description", "text-heavy": "agreeing_image", "vqa": "clean"}
NOTES = """\
Questions of the test split as a client sends them, with a caption or a picture beside them and without a word
on what ought to decide; shares of what the rules say. `needs` is what the family is made to need; many `vqa`
questions name the picture alone ("the shape that is red"). With `unknown` the report speaks of influence
only. What the model says when it is asked itself stands in [tinyworld.md](tinyworld.md), task `self_ask`."""


def measure_relevance(output: Path, *, count: int, seed: int) -> None:
    """Write the table."""
    write_results(
        output,
        command=f"modint-guard results relevance --count {count} --seed {seed}",
        seeds=[seed],
        rows=list(rows(count, seed)),
        title="Which modality ought to decide, by the lexical rules",
        notes=NOTES,
    )


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row a family, in trained and in held-out wordings."""
    for family in FAMILIES:
        for held_out in (False, True):
            said = Counter(said_of(family, count, seed, held_out=held_out))
            yield {
                "family": family,
                "held_out": "wording" if held_out else "no",
                "n": count,
                "needs": RELEVANT[family],
                **{name: said[name] / count for name in Relevant},
            }


def said_of(family: Family, count: int, seed: int, *, held_out: bool) -> Iterator[Relevant]:
    """What the rules say of each item."""
    for item in suite.items(family, "test", count, seed=seed, held_out=held_out):
        body = request_for(suite.perturbed(item, BESIDE[family], seed=seed), "any")
        yield decide(parse(body))[0]
