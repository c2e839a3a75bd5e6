"""Where attention ought to go when something is looked up by a name: what guides the language warm-up.

In "Ann has a red star. Ben has a blue square. ... colour of Ben:" three steps lead to the answer: `blue`
takes up whose it is, the position that answers takes up who is asked about, and then finds what belongs to
that name. From answers alone a model this small names any of the colours given; told where one head of each
step should look, it looks things up within minutes (bench/results/base_search.md).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modint_training.tinyworld.tasks import COLOURS, NAMES

OWNER, ASKED, FOUND = 0, 1, 2  # the layer of each step; its first head is guided
SPACE = "Ġ"  # as byte-level BPE writes it
_SAID = [f"{SPACE}has", f"{SPACE}a"]  # between a name and its colour


class Link(NamedTuple):
    """The first head of `layer` should look from the position `query` to the position `key`."""

    layer: int
    query: int
    key: int


def links(ids: Sequence[int], asks: Sequence[tuple[int, str]], tokenizer: Any) -> list[Link]:
    """The links of a row that gives colours and shapes by name; none where it says nothing of the kind.

    `asks` holds (position that answers, the colour or shape to be named) for every question, which names
    somebody before that position.
    """
    people = {tokenizer.convert_tokens_to_ids(mark + name): name for name in NAMES for mark in ("", SPACE)}
    said = tuple(tokenizer.convert_tokens_to_ids(_SAID))
    named = [(at, people[token]) for at, token in enumerate(ids) if token in people]
    owners = {name: at for at, name in named if tuple(ids[at + 1 : at + 3]) == said}
    made = [Link(OWNER, at + 3 + kind, at) for at in owners.values() for kind in (0, 1)]
    return made + list(_asked(asks, named, owners))


def _asked(
    asks: Sequence[tuple[int, str]], named: list[tuple[int, str]], owners: dict[str, int]
) -> Iterator[Link]:
    for position, wanted in asks:
        last = max((at, name) for at, name in named if at < position)
        yield Link(ASKED, position, last[0])
        yield Link(FOUND, position, owners[last[1]] + (3 if wanted in COLOURS else 4))
