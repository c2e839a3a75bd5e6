"""How far two answer distributions lie apart: exactly, or as far as two top-k lists tell.

Divergences are Jensen-Shannon in base 2, in [0, 1] (Lin 1991); entropies are in bits; log-probabilities are
natural. A top-k list is a mapping from token to log-probability; what it leaves out is its tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from modint_guard.chat.reply import token_text

Distribution = Mapping[str, float]  # token or label -> probability


def js_divergence(p: Distribution, q: Distribution) -> float:
    """Jensen-Shannon divergence, base 2, of two complete distributions (a missing key has probability 0)."""
    return _bounded(sum(_js_term(p.get(key, 0.0), q.get(key, 0.0)) for key in p.keys() | q.keys()))


def js_lower_bound(p_top: Mapping[str, float], q_top: Mapping[str, float]) -> float:
    """The least JS, base 2, that two top-k lists of natural log-probabilities allow; exact when they are
    complete.

    A token that only one list holds has, under the other, at most the probability of that list's last entry
    and at most its tail; the value nearest to its known one is taken. What neither list holds counts as one
    symbol. Each term of JS is non-negative and grows with the distance of its two probabilities, so the sum
    is a lower bound.
    """
    p, q = probabilities(p_top), probabilities(q_top)
    p_tail, q_tail = tail(p), tail(q)
    p_cap, q_cap = max_unlisted(p), max_unlisted(q)
    total = sum(_js_term(p[key], q[key]) for key in p.keys() & q.keys())
    total += sum(_js_term(p[key], min(p[key], q_cap)) for key in p.keys() - q.keys())
    total += sum(_js_term(min(q[key], p_cap), q[key]) for key in q.keys() - p.keys())
    p_rest = (max(0.0, p_tail - p_cap * len(q.keys() - p.keys())), p_tail)
    q_rest = (max(0.0, q_tail - q_cap * len(p.keys() - q.keys())), q_tail)
    return _bounded(total + _least_term(p_rest, q_rest))


def coverage(p_top: Mapping[str, float], q_top: Mapping[str, float]) -> float:
    """The share of both distributions that their lists hold, in [0, 1]: 1 - the larger of the two tails."""
    return 1.0 - max(tail(probabilities(p_top)), tail(probabilities(q_top)))


def largest_shift(p_top: Mapping[str, float], q_top: Mapping[str, float]) -> float:
    """The largest change of any one token's probability that two lists prove, in [0, 1]; 0 where they are the
    same. Of the same input asked twice it is the engine's noise.
    """
    p, q = probabilities(p_top), probabilities(q_top)
    p_cap, q_cap = max_unlisted(p), max_unlisted(q)
    both = (abs(p[key] - q[key]) for key in p.keys() & q.keys())
    lost = (p[key] - q_cap for key in p.keys() - q.keys())
    new = (q[key] - p_cap for key in q.keys() - p.keys())
    return _bounded(max((*both, *lost, *new), default=0.0))


def option_distribution(
    top: Mapping[str, float], labels: Iterable[str], min_mass: float
) -> Distribution | None:
    """Probabilities of the labels, renormalised over them; None unless all are listed and hold `min_mass`
    together.

    Tokens that differ by surrounding blanks only (" A" and "A") are one label.
    """
    masses: dict[str, float] = {}
    for token, logprob in top.items():
        masses[token_text(token)] = masses.get(token_text(token), 0.0) + math.exp(logprob)
    chosen = {label: masses.get(label, 0.0) for label in labels}
    total = sum(chosen.values())
    if not chosen or min(chosen.values()) <= 0.0 or total < min_mass:
        return None
    return {label: mass / total for label, mass in chosen.items()}


def word_distribution(top: Mapping[str, float]) -> Distribution:
    """Probabilities of the listed tokens, merged where only blanks or case differ; the tail is left out."""
    merged: dict[str, float] = {}
    for token, probability in probabilities(top).items():
        key = token_text(token).casefold()
        merged[key] = merged.get(key, 0.0) + probability
    return merged


def entropy(distribution: Distribution) -> float:
    """Shannon entropy in bits. What is missing to 1 counts as one symbol: of a list it is a lower bound."""
    masses = [*distribution.values(), tail(distribution)]
    return -sum(mass * math.log2(mass) for mass in masses if 0.0 < mass < 1.0)


def relative_entropy(first: float, second: float) -> float:
    """(second - first) / (second + first) of two entropies, in [-1, 1]; positive where the first is surer. 0
    where both are certain.
    """
    return (second - first) / (second + first) if first + second > 0.0 else 0.0


def probabilities(top: Mapping[str, float]) -> dict[str, float]:
    """A list's log-probabilities as probabilities, at most 1 each."""
    return {token: math.exp(min(0.0, logprob)) for token, logprob in top.items()}


def tail(listed: Distribution) -> float:
    """The probability that a list leaves out."""
    return max(0.0, 1.0 - sum(listed.values()))


def max_unlisted(listed: Distribution) -> float:
    """At most this likely is any one token that a top-k list leaves out: as its tail and as its last entry.
    The last entry may be a sampled token from outside the top k, so the last but one is taken.
    """
    ordered = sorted(listed.values())
    return min(tail(listed), ordered[1] if len(ordered) > 1 else 1.0)


def _js_term(p: float, q: float) -> float:
    """One symbol's share of the JS divergence: p/2 log2(p/m) + q/2 log2(q/m) with m = (p + q)/2; never
    negative.
    """
    middle = (p + q) / 2
    left = p * math.log2(p / middle) if p > 0.0 and middle > 0.0 else 0.0
    right = q * math.log2(q / middle) if q > 0.0 and middle > 0.0 else 0.0
    return max(0.0, (left + right) / 2)


def _least_term(p: tuple[float, float], q: tuple[float, float]) -> float:
    """The least share of one symbol whose two probabilities are only known as ranges."""
    if p[0] > q[1]:
        return _js_term(p[0], q[1])
    return _js_term(p[1], q[0]) if q[0] > p[1] else 0.0


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value))
