"""`python -m bench relevance`: the modality that ought to decide, by the lexical rules and by the model
itself.

Measured on the three families, if the client does not say it. The model is asked locally, with transformers:
no engine is needed.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.chat.rebuild import with_question_after
from modint_guard.chat.relevance import SELF_ASK, decide
from modint_guard.chat.reply import reply_of
from modint_guard.chat.request import parse
from modint_guard.config import GuardConfig
from modint_guard.data.item import FAMILIES, RELEVANT, Family
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import request_for
from modint_guard.judging.self_ask import by_self_ask
from modint_guard.models import BASE
from modint_guard.probing.views import short_body
from modint_guard.types import JSON, Complete, Relevant
from modint_training.models.loading import local_model
from modint_training.tinyworld import suite

PARTS = tuple(product(FAMILIES, (False, True)))  # each family in trained and in held-out wordings
OTHER_INPUT = {"image-heavy": "true_description", "text-heavy": "agreeing_image", "vqa": "clean"}
NOTES = f"""\
Questions of the test split as a client sends them, with a caption or a picture beside them and without a
word on what ought to decide; shares of what each source says. `needs` is what the family is made to need;
many `vqa` questions name the picture alone ("the shape that is red"). With `unknown` the report speaks of
influence only. `self_ask` is {BASE} asked "{SELF_ASK}", with
transformers: yes is read as the image, no as the text, and it can say nothing else, so that a question that
needs both is read as one of the image. The gateway asks it (`MODINT_SELF_ASK=auto`) only where the rules say
unknown."""


def measure_relevance(output: Path, *, count: int, seed: int) -> None:
    """Measure both sources and write the table."""
    table_rows = list(rows(count, seed))
    with local_model(BASE, None, image_attention=1.0) as complete:
        table_rows += asyncio.run(self_ask_rows(complete, count, seed))
    write_results(
        output,
        command=f"python -m bench relevance --count {count} --seed {seed}",
        seeds=[seed],
        rows=table_rows,
        title="Which modality ought to decide, where nobody says",
        notes=NOTES,
    )


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each family, in trained and in held-out wordings, by the lexical rules."""
    for family, held_out in PARTS:
        requests = bodies(family, count, seed, held_out=held_out)
        yield _row("rules", family, held_out, [decide(parse(body))[0] for body in requests])


async def self_ask_rows(complete: Complete, count: int, seed: int) -> list[dict[str, Any]]:
    """The same rows by the model itself."""
    table_rows, config = [], GuardConfig()
    with tqdm(total=len(PARTS) * count, unit="question") as bar:

        async def self_asked(body: JSON) -> Relevant:
            question = short_body(with_question_after(parse(body), SELF_ASK), 1, config.top_logprobs)
            reply = reply_of(await complete(question))
            bar.update()
            return by_self_ask(reply, config.self_ask_confident)

        for family, held_out in PARTS:
            answers = [await self_asked(body) for body in bodies(family, count, seed, held_out=held_out)]
            table_rows.append(_row("self_ask", family, held_out, answers))
    return table_rows


def bodies(family: Family, count: int, seed: int, *, held_out: bool) -> Iterator[JSON]:
    """The chat bodies of a family's items."""
    for item in suite.items(family, "test", count, seed=seed, held_out=held_out):
        yield request_for(suite.perturbed(item, OTHER_INPUT[family], seed=seed), "any")


def _row(source: str, family: Family, held_out: bool, answers: list[Relevant]) -> dict[str, Any]:
    counts = Counter(answers)
    return {
        "source": source,
        "family": family,
        "held_out": "wording" if held_out else "no",
        "n": len(answers),
        "needs": RELEVANT[family],
        **{name: counts[name] / len(answers) for name in Relevant},
    }
