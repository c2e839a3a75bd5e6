"""How far two answer distributions lie apart: exactly, or as far as two top-k lists can show.

Divergences are Jensen-Shannon in base 2, in [0, 1] (Lin 1991). Entropies are in bits. Log-probabilities are
natural. A top-k list is a mapping from token to log-probability; the probability that it leaves out is its
tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from modint_guard.chat.reply import token_text

Distribution = Mapping[str, float]  # token or label -> probability


def js_divergence(p: Distribution, q: Distribution) -> float:
    """Jensen-Shannon divergence of two complete distributions, base 2, in [0, 1] (Lin 1991).

    A key that one of them lacks has probability 0 there.
    """
    return _bounded(sum(_js_term(p.get(key, 0.0), q.get(key, 0.0)) for key in p.keys() | q.keys()))


def js_lower_bound(p_top: Mapping[str, float], q_top: Mapping[str, float]) -> float:
    """The smallest Jensen-Shannon divergence, base 2, that two top-k lists of natural log-probabilities
    allow, in [0, 1]. Exact if both lists are complete.

    A token that only one list holds is, under the other, at most as probable as that list's last entry and as
    its tail; the possible value nearest to its known one is taken. Everything that neither list holds counts
    as one symbol. Each term of the divergence is non-negative and grows with the distance between its two
    probabilities, so the sum is a lower bound.
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
    """How much of both distributions their lists hold, in [0, 1]: 1 minus the larger of the two tails."""
    return 1.0 - max(tail(probabilities(p_top)), tail(probabilities(q_top)))


def largest_shift(p_top: Mapping[str, float], q_top: Mapping[str, float]) -> float:
    """The largest change of a single token's probability that two lists prove, in [0, 1]; 0 for equal lists.

    Between two calls with the same input, it is the engine's noise.
    """
    p, q = probabilities(p_top), probabilities(q_top)
    p_cap, q_cap = max_unlisted(p), max_unlisted(q)
    in_both = (abs(p[key] - q[key]) for key in p.keys() & q.keys())
    only_p = (p[key] - q_cap for key in p.keys() - q.keys())
    only_q = (q[key] - p_cap for key in q.keys() - p.keys())
    return _bounded(max((*in_both, *only_p, *only_q), default=0.0))


def option_distribution(
    top: Mapping[str, float], labels: Iterable[str], min_mass: float
) -> Distribution | None:
    """The probabilities of the labels, renormalised to sum to 1; None unless the list holds all of them and
    they have at least the probability `min_mass` together.

    Tokens that differ only in the white space around them (" A" and "A") are one label.
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
    """The probabilities of the listed tokens, added up if they differ only in white space or case."""
    merged: dict[str, float] = {}
    for token, probability in probabilities(top).items():
        key = _word(token)
        merged[key] = merged.get(key, 0.0) + probability
    return merged


@lru_cache(maxsize=4096)
def _word(token: str) -> str:
    """A token without white space and case. The same few are listed at each position, in every view."""
    return token_text(token).casefold()


def entropy(distribution: Distribution) -> float:
    """Shannon entropy in bits. The tail counts as one symbol: for a top-k list this is a lower bound."""
    masses = [*distribution.values(), tail(distribution)]
    return -sum(mass * math.log2(mass) for mass in masses if 0.0 < mass < 1.0)


def relative_entropy(first: float, second: float) -> float:
    """(second - first) / (second + first) of two entropies, in [-1, 1]: positive if the first distribution is
    more certain, 0 if both entropies are 0.
    """
    return (second - first) / (second + first) if first + second > 0.0 else 0.0


def probabilities(top: Mapping[str, float]) -> dict[str, float]:
    """The probabilities of a top-k list by token, at most 1 each."""
    return {token: math.exp(min(0.0, logprob)) for token, logprob in top.items()}


def tail(listed: Distribution) -> float:
    """The probability that a list leaves out, in [0, 1]."""
    return max(0.0, 1.0 - sum(listed.values()))


def max_unlisted(listed: Distribution) -> float:
    """An upper bound on the probability of a single token that a top-k list leaves out: the smaller of its
    tail and its last entry. The last entry may be a sampled token from outside the top k, so the last but one
    is taken.
    """
    ordered = sorted(listed.values())
    return min(tail(listed), ordered[1] if len(ordered) > 1 else 1.0)


def _js_term(p: float, q: float) -> float:
    """One symbol's term of the divergence, 0 or more: p/2 log2(p/m) + q/2 log2(q/m) with m = (p + q)/2."""
    middle = (p + q) / 2
    left = p * math.log2(p / middle) if p > 0.0 and middle > 0.0 else 0.0
    right = q * math.log2(q / middle) if q > 0.0 and middle > 0.0 else 0.0
    return max(0.0, (left + right) / 2)


def _least_term(p: tuple[float, float], q: tuple[float, float]) -> float:
    """The smallest share of one symbol whose two probabilities are known as ranges only."""
    if p[0] > q[1]:
        return _js_term(p[0], q[1])
    return _js_term(p[1], q[0]) if q[0] > p[1] else 0.0


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value))
