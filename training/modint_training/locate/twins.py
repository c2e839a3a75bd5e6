"""Twins: one item twice in equally many tokens, beside the truth and beside a lie.

They differ in nothing but what the caption claims or the picture shows, so that the states of one fit into
the other, position by position.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modint_guard.data.item import Item, reply_for
from modint_guard.data.perturb import clean_view, perturb, seeded, uniform_grey
from modint_training.data.collate import Encoded, encode
from modint_training.method.labels import IGNORED, Part

# Token groups; `last` is the position that decides the answer, `template` the chat template's own text.
GROUPS = ("image", "context", "question", "template", "last")
IMAGE, CONTEXT, QUESTION, TEMPLATE, LAST = range(len(GROUPS))
_GROUP_OF = {Part.IMAGE: IMAGE, Part.CONTEXT: CONTEXT, Part.QUESTION: QUESTION, Part.FRAME: TEMPLATE}

MAX_TOKENS = 2048  # of a batch, padding included: the states of all its layers are in memory

# Why an item has no twins.
NO_LIE = "without a lie to plant"
UNEQUAL = "of unequal length as truth and as lie"
ONE_TOKEN = "whose true and false answers begin with the same token"


@dataclass(frozen=True)
class Twins:
    """An item beside the truth (`clean`), beside a lie (`lie`), and without either (`bare`), as prompts.

    `told` is an image-heavy item's true caption beside a grey picture: the fact that its own picture shows.
    `groups` gives the token group of each position of `clean` and `lie`. `true` and `false` are the first
    tokens of the right answer and of the one that the lie claims.
    """

    item: Item
    clean: Encoded
    lie: Encoded
    bare: Encoded
    told: Encoded | None
    groups: tuple[int, ...]
    true: int
    false: int

    @property
    def family(self) -> str:
        """The family of the item: image-heavy ones are lied to by a caption, text-heavy ones by a picture."""
        return self.item.family

    @property
    def source(self) -> str:
        """What intervals are clustered by."""
        return self.item.source or self.item.id

    def count(self, group: int) -> int:
        """The number of tokens of a group."""
        return self.groups.count(group)


def twins_of(items: Sequence[Item], processor: Any, *, seed: int) -> tuple[list[Twins], Counter[str]]:
    """The twins of all image-heavy and text-heavy items, and how many items have none, by reason.

    `seed` draws the wording of captions. Raises DataError for an item that the model cannot read.
    """
    twins: list[Twins] = []
    dropped: Counter[str] = Counter()
    for item in items:
        if item.family in ("image-heavy", "text-heavy"):
            made = _twins(item, processor, seed)
            if isinstance(made, Twins):
                twins.append(made)
            else:
                dropped[made] += 1
    return twins, dropped


def _twins(item: Item, processor: Any, seed: int) -> Twins | str:
    pair = _disturbed(item, seed)
    if pair is None:
        return NO_LIE
    clean, lie = (prompt_row(each, processor) for each in pair)
    if clean.parts != lie.parts:
        return UNEQUAL
    true, false = (first_token(item, choice, processor) for choice in (item.answer, item.wrong))
    if true == false:
        return ONE_TOKEN
    bare, told = prompt_row(clean_view(item), processor), _told(pair[0], processor)
    return Twins(item, clean, lie, bare, told, groups_of(clean), true, false)


def _told(clean: Item, processor: Any) -> Encoded | None:
    if clean.family != "image-heavy" or clean.image is None:
        return None
    grey = uniform_grey(128)(clean.image.size, seeded())
    return prompt_row(clean.replace(image=grey), processor)


def _disturbed(item: Item, seed: int) -> tuple[Item, Item] | None:
    """The item beside the truth and beside the lie; None if it lacks an answer, a lie, or the pictures."""
    if not (item.answer and item.wrong):
        return None
    if item.family == "image-heavy":
        lie = perturb(item, "misleading_description", seed=seed)
        return lie.replace(context=_truth_like(item, lie.context or "", seed)), lie
    if item.agreeing is None or item.contradicting is None:
        return None
    return perturb(item, "agreeing_image", seed=seed), perturb(item, "contradicting_image", seed=seed)


def _truth_like(item: Item, lie: str, seed: int) -> str | None:
    """The truth in the lie's own wording; the data set's own true caption if the lie is its own too."""
    claimed = item.claim.format(item.wrong)
    if not item.lie and lie.count(claimed) == 1:
        return lie.replace(claimed, item.claim.format(item.answer))
    return perturb(item, "true_description", seed=seed).context


def prompt_row(item: Item, processor: Any) -> Encoded:
    """An item as tokens up to the position that predicts the first token of its answer."""
    row = encode(item, processor)
    end = len(row.ids) - row.answer_length
    return Encoded(row.ids[:end], [IGNORED] * end, row.image, row.parts[:end], row.text)


def groups_of(row: Encoded) -> tuple[int, ...]:
    """The token group of each position of a prompt."""
    return (*(_GROUP_OF[part] for part in row.parts[:-1]), LAST)


def first_token(item: Item, choice: str, processor: Any) -> int:
    """The first token of a reply that means `choice`."""
    return int(processor.tokenizer(reply_for(item, choice), add_special_tokens=False).input_ids[0])


def in_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of rows of these lengths, those of similar length together, at most MAX_TOKENS a batch."""
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if chosen and (len(chosen) + 1) * lengths[index] > MAX_TOKENS:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def in_halves(twins: Sequence[Twins]) -> tuple[list[Twins], list[Twins]]:
    """Half of each family's twins to make a map of, and the others to try it on; drawn by the items' ids.

    Items of one source are in the same half.
    """
    sources = sorted({each.source for each in twins}, key=lambda name: seeded("halves", name).random())
    first = set(sources[: (len(sources) + 1) // 2])
    return [each for each in twins if each.source in first], [
        each for each in twins if each.source not in first
    ]
