"""The scores of other detectors of wrong answers for the same answers; higher is worse. Pure functions.

maximum probability   1 - p of the likeliest first word (Hendrycks and Gimpel 2017)
entropy               of the first word, bits
semantic entropy      of clusters of answers sampled at T = 1, bits (Farquhar et al. 2024), discrete; two
                      answers are in one cluster if they name the same option
VL-Uncertainty-like   the same of answers to blurred pictures and reworded questions (arXiv 2411.11919)
VAUQ-like             entropy - alpha * (entropy without the picture - entropy) (arXiv 2602.21054), the
                      whole picture masked instead of its core region
verbalised            1 - the confidence that the model states when asked for it
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from PIL import ImageFilter

from modint_guard.data.item import Item
from modint_guard.evaluation.runner import request_for
from modint_guard.judging.divergence import entropy, word_distribution
from modint_guard.types import JSON

HOW_SURE = "How sure are you that this answer is right, from 0 to 100? Answer with a number only."
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def max_probability(top: Mapping[str, float]) -> float:
    """1 - p of the likeliest word of a list of natural log-probabilities; in [0, 1]."""
    return 1.0 - min(1.0, max(word_distribution(top).values()))


def semantic_entropy(clusters: Sequence[str]) -> float:
    """Entropy in bits of answers, given by their clusters; 0 if all are in one. ValueError without
    answers."""
    if not clusters:
        raise ValueError("need one answer or more")
    shares = {name: count / len(clusters) for name, count in Counter(clusters).items()}
    return entropy(shares)


def vauq(entropy_of_answer: float, without_image: float, alpha: float) -> float:
    """The entropy of the answer minus alpha times the entropy that the picture removed; bits, of any sign."""
    return entropy_of_answer - alpha * (without_image - entropy_of_answer)


def stated_confidence(text: str) -> float | None:
    """The first number of a reply as a confidence in [0, 1]: "85", "85 %", "0.85"; None without a number, and
    for one above 100.
    """
    number = _NUMBER.search(text)
    if number is None or float(number.group()) > 100.0:
        return None
    value = float(number.group())
    return value if "." in number.group() and value <= 1.0 else value / 100.0


def how_sure(item: Item, model: str, answer: str) -> JSON:
    """The chat body that asks a model how sure it is of an answer that it gave."""
    body = request_for(item, model, modint={"mode": "off"}, max_tokens=8)
    turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": HOW_SURE}]
    return {**body, "messages": [*body["messages"], *turns]}


def blurred(item: Item, strength: int) -> Item:
    """The item with its picture blurred: by a radius of `strength` hundredths of the shorter side, and of at
    least `strength` half pixels.
    """
    if item.image is None:
        return item
    radius = strength * max(0.5, 0.01 * min(item.image.size))
    return item.replace(image=item.image.convert("RGB").filter(ImageFilter.GaussianBlur(radius)))
