"""A perturbation in doses: severity 5 is the whole perturbation, 0 would be none of it."""

import math

from PIL import Image

from modint_guard.chat.images import NEUTRAL_GREY
from modint_guard.data.item import Item
from modint_guard.data.perturb import REGISTRY, seeded

FULL = 5
GREY = (NEUTRAL_GREY,) * 3


def at_severity(disturbed: Item, severity: int, *, seed: int = 0) -> Item:
    """A perturbed item, weakened to a severity from 1 to 5.

    disturbed: an item from `perturb`. A picture is blended with mean grey, with weight severity / 5. A
    context keeps the share severity / 5 of its words (rounded up), drawn so that a higher severity keeps the
    words of a lower one. Raises ValueError for another severity, and KeyError for an item that is not
    perturbed.
    """
    if not 1 <= severity <= FULL:
        raise ValueError(f"a severity lies between 1 and {FULL}, not at {severity}")
    if severity == FULL:
        return disturbed
    if REGISTRY[disturbed.perturbation].modality == "image":
        return disturbed.replace(image=_faded(disturbed.image, severity / FULL))
    return disturbed.replace(context=_thinned(disturbed.context or "", severity / FULL, disturbed.id, seed))


def _faded(image: Image.Image | None, share: float) -> Image.Image | None:
    if image is None:
        return None
    rgb = image.convert("RGB")
    return Image.blend(Image.new("RGB", rgb.size, GREY), rgb, share)


def _thinned(context: str, share: float, *parts: object) -> str:
    words = context.split()
    order = list(range(len(words)))
    seeded("severity", *parts).shuffle(order)
    kept = sorted(order[: math.ceil(share * len(words))])
    return " ".join(words[index] for index in kept)
