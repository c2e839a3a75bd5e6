"""The scores of other detectors of wrong answers for the same answers; higher is worse. Pure functions.

surprise              minus the mean log-probability of the answer's tokens, nats (of one token: of 1 - p)
entropy               of the first word, bits
semantic entropy      of clusters of answers sampled at T = 1, bits (Farquhar et al. 2024), discrete; two
                      answers are in one cluster if they give the same choice, or the same words
VL-Uncertainty-like   the same of answers to blurred pictures (arXiv 2411.11919)
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from PIL import ImageFilter

from modint_guard.data.item import Item
from modint_guard.judging.divergence import entropy, word_distribution


def first_entropy(top: Mapping[str, float]) -> float:
    """The entropy in bits of a list of natural log-probabilities; 0 of an empty one."""
    return entropy(word_distribution(top)) if top else 0.0


def semantic_entropy(clusters: Sequence[str]) -> float:
    """Entropy in bits of answers, given by their clusters; 0 if all are in one. ValueError without
    answers."""
    if not clusters:
        raise ValueError("need one answer or more")
    shares = {name: count / len(clusters) for name, count in Counter(clusters).items()}
    return entropy(shares)


def blurred(item: Item, strength: int) -> Item:
    """The item with its picture blurred: by a radius of `strength` hundredths of the shorter side, and of at
    least `strength` half pixels.
    """
    if item.image is None:
        return item
    radius = strength * max(0.5, 0.01 * min(item.image.size))
    return item.replace(image=item.image.convert("RGB").filter(ImageFilter.GaussianBlur(radius)))
