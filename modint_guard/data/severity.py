"""A perturbation in doses: 5 is the perturbation itself, 0 would be nothing of it."""

import math

from PIL import Image

from modint_guard.data.item import Item
from modint_guard.data.perturb import REGISTRY, seeded

FULL = 5
GREY = (128, 128, 128)


def at_severity(disturbed: Item, severity: int, *, seed: int = 0) -> Item:
    """An item under a registered perturbation, at a severity from 1 to 5.

    A picture is mixed with mean grey, severity / 5 of it its own; of a context ceil(severity / 5) of the
    words stay, drawn so that a higher severity keeps those of a lower one. Raises ValueError for another
    severity.
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
    shown = image.convert("RGB")
    return Image.blend(Image.new("RGB", shown.size, GREY), shown, share)


def _thinned(context: str, share: float, *parts: object) -> str:
    words = context.split()
    order = list(range(len(words)))
    seeded("severity", *parts).shuffle(order)
    kept = sorted(order[: math.ceil(share * len(words))])
    return " ".join(words[index] for index in kept)
