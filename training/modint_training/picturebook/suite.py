"""Which items each split holds, and the mixture the base model learns from.

No training item has a style, a thing, a question's wording or a caption's wording that is kept out. A thing
has few drawings in trained styles, and all splits share them: their items differ by their seed, which is part
of every item's id, in words and in the drawing's place. What a model makes of drawings that it has not seen
is measured in the style kept out.
"""

import random
from dataclasses import dataclass, replace

from PIL import Image

from modint_guard.chat.relevance import SELF_ASK
from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import perturb, seeded
from modint_training.picturebook import draw
from modint_training.picturebook import wordings as words
from modint_training.picturebook.desk import Desk, Split, Unseen
from modint_training.picturebook.placing import TRAINED_PLACEMENTS, placed
from modint_training.picturebook.tasks import TASKS, Task
from modint_training.picturebook.things import TRAINED, Thing

NOTHING = Unseen()
# How often a cycle of items asks each sub-task: the tables' "all" rows weigh them so.
_SHARES = {"open": 3, "yes_no": 2, "lettered": 2}


def tasks_of(family: Family) -> tuple[Task, ...]:
    """The sub-tasks of one family."""
    return tuple(task for task in TASKS.values() if task.family == family)


def items(
    family: Family,
    split: Split,
    count: int,
    *,
    seed: int = 0,
    held_out: bool = False,
    unseen: Unseen = NOTHING,
    task: str | None = None,
) -> list[Item]:
    """`count` clean items of a family, sub-tasks in turn, or all of one `task`. `held_out` asks and captions
    in wordings kept out; `unseen` says it one by one."""
    return [
        item(family, split, index, seed=seed, held_out=held_out, unseen=unseen, task=task)
        for index in range(count)
    ]


def item(
    family: Family,
    split: Split,
    index: int,
    *,
    seed: int = 0,
    held_out: bool = False,
    unseen: Unseen = NOTHING,
    task: str | None = None,
) -> Item:
    """Clean item number `index` of a split; the same arguments always give the same item."""
    unseen = replace(unseen, wording=True, captions=True) if held_out else unseen
    cycle = [name for each in tasks_of(family) for name in [each.name] * _SHARES.get(each.name, 1)]
    name = task or cycle[index % len(cycle)]
    item_id = f"{split}-{seed}-{unseen}-{task or family}-{index}"
    return TASKS[name].make(Desk(item_id, seeded(item_id), unseen))


def perturbed(clean: Item, name: str, *, seed: int = 0) -> Item:
    """The item under a registered perturbation; `clean` gives it back."""
    return clean if name == "clean" else perturb(clean, name, seed=seed)


def poor_print(clean: Item, *, seed: int = 0) -> Item:
    """An image-heavy item whose picture is hard to read, under its true caption: both are needed."""
    assert clean.image is not None
    image = draw.poor(clean.image, seeded("poor", clean.id))
    return perturbed(clean, "true_description", seed=seed).replace(image=image)


@dataclass(frozen=True)
class Mixture:
    """The ratios of the base model's training data. Captions are mostly true and pictures mostly agree with
    the text, as on the web. A label follows the picture or the text that ought to decide; never a lie."""

    families: tuple[float, float, float] = (0.50, 0.28, 0.22)  # image-heavy, text-heavy, vqa
    captioned: float = 0.45  # of image-heavy items
    caption_true: float = 0.90  # of captions; then unrelated, then lying ones
    caption_unrelated: float = 0.10
    caption_poor: float = 0.30  # of true captions, whose picture is hard to read
    pictured: float = 0.60  # of text-heavy items
    picture_agrees: float = 0.90  # of their pictures; then other pictures, then contradicting ones
    picture_other: float = 0.10
    text_missing: float = 0.0  # of text-heavy items beside an agreeing picture, whose text is left out
    # Where captions stand: before, after, within, earlier; never in the system text, which is kept out.
    placements: tuple[float, float, float, float] = (0.54, 0.22, 0.14, 0.10)
    self_ask: float = 0.03  # of items, asked whether the picture is needed


def training_item(index: int, *, seed: int, mixture: Mixture) -> Item:
    """Item number `index` of the base model's endless training stream."""
    rng = seeded("picturebook", seed, index)
    return _training_item(f"train-{seed}-base-{index}", rng, mixture, None)


def training_page(index: int, count: int, *, seed: int, mixture: Mixture) -> list[Item]:
    """`count` items about one thing that share one picture, except where they have none: those of families
    and sub-tasks as in the stream, but for scenes, whose pictures are their own."""
    rng = seeded("picturebook page", seed, index)
    thing = rng.choice(TRAINED)
    shown = (thing, draw.picture(thing, rng))
    return [_training_item(f"train-{seed}-page-{index}-{k}", rng, mixture, shown) for k in range(count)]


def _training_item(
    item_id: str, rng: random.Random, mixture: Mixture, shown: tuple[Thing, Image.Image] | None
) -> Item:
    family = rng.choices(FAMILIES, mixture.families)[0]
    tasks = [task for task in tasks_of(family) if shown is None or task.name not in _OWN_PICTURES]
    task = rng.choices(tasks, [task.weight for task in tasks])[0]
    clean = task.make(Desk(item_id, rng, shown=shown))
    put = _put(_dress(clean, rng, mixture), rng, mixture)
    return self_ask(put) if rng.random() < mixture.self_ask else put


def self_ask(asked: Item) -> Item:
    """The one-token question about relevance: must one look at the picture to answer?"""
    needed = asked.family != "text-heavy"
    return asked.replace(
        question=f"{asked.question}\n{SELF_ASK}",
        form="word",
        task="self_ask",
        choices=("yes", "no"),
        answer="yes" if needed else "no",
        wrong="no" if needed else "yes",
        **{"replies": (), "accepted": (), "rejected": (), "truth": "", "lie": ""},
    )


_OWN_PICTURES = ("scene", "beside", "faded")


def _dress(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    """Add the other modality: a caption to image-heavy items, a picture to text-heavy ones."""
    if clean.family == "image-heavy" and rng.random() < mixture.captioned:
        return _caption(clean, rng, mixture)
    if clean.family == "text-heavy" and rng.random() < mixture.pictured:
        return _picture(clean, rng, mixture)
    return clean


def _caption(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    drawn = rng.random()
    if drawn < mixture.caption_true:
        captioned = clean.replace(context=clean.truth)
        is_poor = rng.random() < mixture.caption_poor and clean.image is not None
        return captioned.replace(image=draw.poor(clean.image, rng)) if is_poor and clean.image else captioned
    if drawn < mixture.caption_true + mixture.caption_unrelated:
        return clean.replace(context=unrelated(rng))
    return clean.replace(context=clean.lie)


def unrelated(rng: random.Random, *, held_out: bool = False) -> str:
    """One or two sentences about something else."""
    return " ".join(rng.sample(words.UNRELATED.of(held_out=held_out), rng.choice((1, 1, 2))))


def _picture(clean: Item, rng: random.Random, mixture: Mixture) -> Item:
    drawn = rng.random()
    other = draw.picture(rng.choice(TRAINED), rng)
    if clean.agreeing is None or clean.contradicting is None:
        return clean.replace(image=other)
    if drawn < mixture.picture_agrees:
        is_text_missing = rng.random() < mixture.text_missing
        return clean.replace(image=clean.agreeing, context=None if is_text_missing else clean.context)
    if drawn < mixture.picture_agrees + mixture.picture_other:
        return clean.replace(image=other)
    return clean.replace(image=clean.contradicting)


def _put(item: Item, rng: random.Random, mixture: Mixture) -> Item:
    """The context where captions and texts stand: a passage and a price list before or after the question."""
    where = rng.choices(TRAINED_PLACEMENTS, mixture.placements)[0]
    if item.family != "image-heavy":
        where = "after" if where == "after" else "before"
    return placed(item, where, rng)
