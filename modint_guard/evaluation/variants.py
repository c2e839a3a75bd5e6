"""What is asked of every model alike: each item clean, and under each perturbation that fits it, in doses.

Clean is what the paper compares with: no caption for image-heavy items, no picture for text-heavy ones
(arXiv 2505.19616, section 3). Items that need both modalities are asked as they are. Perturbations are seeded
by item, so that two models see the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modint_guard.data.item import Item
from modint_guard.data.perturb import CLEAN, REGISTRY, Perturbation, clean_view, fitting, held_out, perturb
from modint_guard.data.severity import FULL, at_severity
from modint_guard.errors import ConfigError
from modint_guard.evaluation.items import labelled_items
from modint_guard.evaluation.journal import digest_of

CONDITION = ("family", "perturbation", "severity", "held_out")  # what a table has a row for
Condition = tuple[str, str, int, str]  # the values of these
_OWN_PICTURES = (CLEAN, "agreeing_image", "contradicting_image")  # variants that show the data set's pictures


@dataclass(frozen=True)
class Variant:
    """An item clean or under a perturbation at a severity (0 if clean).

    With a `base` the picture is left out of `item` and made again from the base whenever it is wanted:
    thousands of perturbed pictures need not be in memory.
    """

    item: Item
    perturbation: str
    severity: int
    base: Item | None = None
    seed: int = 0

    def whole(self) -> Item:
        """The item as it is asked, with its picture."""
        if self.base is None:
            return self.item
        disturbed = perturb(self.base, self.perturbation, seed=self.seed)
        return at_severity(disturbed, self.severity, seed=self.seed)

    @property
    def key(self) -> str:
        """A name that no other variant of the same data has."""
        return f"{self.item.id}/{self.perturbation}/{self.severity}"

    @property
    def condition(self) -> Condition:
        """The values of CONDITION; `held_out` as `perturb.held_out`."""
        unseen = held_out(self.perturbation, wording=self.item.held_out_wording)
        return self.item.family, self.perturbation, self.severity, unseen


def variants_of(
    items: Sequence[Item], names: Sequence[str], severities: Sequence[int], seed: int
) -> list[Variant]:
    """Each labelled item clean, and under each perturbation of these names that fits it, at each severity.

    names: empty for all. Controls are asked at full severity alone. Raises ConfigError for an unknown
    perturbation, two items of one id, and if no item has a label or none can be perturbed.
    """
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no perturbation: name one of {', '.join(REGISTRY)}")
    labelled = labelled_items(items)
    variants: list[Variant] = []
    for item in labelled:
        variants.append(Variant(clean_view(item), CLEAN, 0))
        for kind in fitting(item):
            if not names or kind.name in names:
                variants += _doses(item, kind, severities, seed)
    if all(variant.perturbation == CLEAN for variant in variants):
        raise ConfigError(
            f"none of {len(labelled)} items can be perturbed so: image-heavy or text-heavy ones are needed,"
            " and perturbations of the other modality"
        )
    return variants


def _doses(item: Item, kind: Perturbation, severities: Sequence[int], seed: int) -> Iterator[Variant]:
    disturbed = perturb(item, kind.name, seed=seed)
    for severity in [FULL] if kind.role == "control" else severities:
        dosed = at_severity(disturbed, severity, seed=seed)
        if kind.modality == "image":
            yield Variant(dosed.replace(image=None), kind.name, severity, item, seed)
        else:
            yield Variant(dosed, kind.name, severity)


def fingerprint(variants: Sequence[Variant]) -> str:
    """A digest of what is asked. Of the pictures only the data set's own are in it, not those that follow
    from the seed.
    """
    return digest_of((f"{variant.key}/{variant.seed}", _with_own_pictures(variant)) for variant in variants)


def _with_own_pictures(variant: Variant) -> Item:
    shown = (variant.base or variant.item) if variant.perturbation in _OWN_PICTURES else None
    pictures = {name: shown and getattr(shown, name) for name in ("image", "agreeing", "contradicting")}
    return variant.item.replace(**pictures)
