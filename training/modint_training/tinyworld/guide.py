"""Where attention should look when something is looked up by a name: the guidance of the language warm-up.

In "Ann has a red star. Ben has a blue square. ... colour of Ben:" three steps lead to the answer: the
position of `blue` reads whose it is; the position that answers reads who is asked about; and it then finds
what belongs to that name. Trained on answers alone, a model this small names any of the colours in the text;
if it is also trained on where one head of each step should look, it learns to look things up within minutes
(bench/results/base_search.md).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modint_training.tinyworld.tasks import COLOURS, NAMES

OWNER, PERSON, VALUE = 0, 1, 2  # the layer of each step; its first head is guided
SPACE = "Ġ"  # a space as byte-level BPE writes it
_HAS_A = [f"{SPACE}has", f"{SPACE}a"]  # between a name and its colour


class Link(NamedTuple):
    """The first head of `layer` should look from the position `query` to the position `key`."""

    layer: int
    query: int
    key: int


def links(ids: Sequence[int], asks: Sequence[tuple[int, str]], tokenizer: Any) -> list[Link]:
    """The links of a row that gives colours and shapes by name; none for any other row.

    `asks` holds (position that answers, the colour or shape to be named) for every question; the question
    names somebody before that position.
    """
    people = {tokenizer.convert_tokens_to_ids(mark + name): name for name in NAMES for mark in ("", SPACE)}
    has_a = tuple(tokenizer.convert_tokens_to_ids(_HAS_A))
    mentions = [(at, people[token]) for at, token in enumerate(ids) if token in people]
    owners = {name: at for at, name in mentions if tuple(ids[at + 1 : at + 3]) == has_a}
    owner_links = [Link(OWNER, at + 3 + kind, at) for at in owners.values() for kind in (0, 1)]
    return owner_links + list(_question_links(asks, mentions, owners))


def _question_links(
    asks: Sequence[tuple[int, str]], mentions: list[tuple[int, str]], owners: dict[str, int]
) -> Iterator[Link]:
    for position, wanted in asks:
        last = max((at, name) for at, name in mentions if at < position)
        yield Link(PERSON, position, last[0])
        yield Link(VALUE, position, owners[last[1]] + (3 if wanted in COLOURS else 4))
