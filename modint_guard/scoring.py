"""The one definition of interference: how far an answer moves when a modality is taken away.

All distributions are those of the first content position: the first generated token that is not whitespace.
Server, training and evaluation import these functions, so they mean the same by "divergence", "flip" and
"influence". Divergences are Jensen-Shannon in base 2, in [0, 1]; log-probabilities are natural.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from modint_guard.config import Thresholds
from modint_guard.types import (
    CELLS,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    PRIOR,
    CellScore,
    Chat,
    Failure,
    Outcome,
    ProbeResult,
    Replies,
    Reply,
    Score,
)

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
    p, q = _probabilities(p_top), _probabilities(q_top)
    p_tail, q_tail = _tail(p), _tail(q)
    p_cap, q_cap = min(p_tail, _least_listed(p)), min(q_tail, _least_listed(q))
    total = sum(_js_term(p[key], q[key]) for key in p.keys() & q.keys())
    total += sum(_js_term(p[key], min(p[key], q_cap)) for key in p.keys() - q.keys())
    total += sum(_js_term(min(q[key], p_cap), q[key]) for key in q.keys() - p.keys())
    p_rest = (max(0.0, p_tail - p_cap * len(q.keys() - p.keys())), p_tail)
    q_rest = (max(0.0, q_tail - q_cap * len(p.keys() - q.keys())), q_tail)
    return _bounded(total + _least_term(p_rest, q_rest))


def option_distribution(
    top: Mapping[str, float], labels: Iterable[str], min_mass: float
) -> Distribution | None:
    """Probabilities of the labels, renormalised over them; None unless all are listed and hold `min_mass`
    together.

    Tokens that differ by surrounding blanks only (" A" and "A") are one label.
    """
    masses: dict[str, float] = {}
    for token, logprob in top.items():
        masses[plain(token)] = masses.get(plain(token), 0.0) + math.exp(logprob)
    chosen = {label: masses.get(label, 0.0) for label in labels}
    total = sum(chosen.values())
    if not chosen or min(chosen.values()) <= 0.0 or total < min_mass:
        return None
    return {label: mass / total for label, mass in chosen.items()}


def word_distribution(top: Mapping[str, float]) -> Distribution:
    """Probabilities of the listed tokens, merged where only blanks or case differ; the tail is left out."""
    merged: dict[str, float] = {}
    for token, probability in _probabilities(top).items():
        key = plain(token).casefold()
        merged[key] = merged.get(key, 0.0) + probability
    return merged


def plain(token: str) -> str:
    """A token without surrounding blanks and tokenizers' marks for them."""
    return token.strip().strip("\u2581\u0120\u010a").strip()


def first_word(text: str, labels: Iterable[str]) -> str:
    """What a given answer says first, without marks around it: "(a) red" is "A" where that is a label."""
    found = re.search(r"\w+", text)
    word = found.group() if found else text.split()[0]
    return next((label for label in labels if label.casefold() == word.casefold()), word)


def is_listed(word: str, replies: Iterable[Reply | Failure]) -> bool:
    """Whether one of them lists the word whole, blanks and case aside. It is then a token, so one that does
    not list it gives it no more than its last entry; else its first piece may be anything they list."""
    lists = (reply.top for reply in replies if isinstance(reply, Reply) and reply.top)
    return any(word.casefold() in word_distribution(top) for top in lists)


def compare(answer: Reply, view: Reply, labels: tuple[str, ...], thresholds: Thresholds) -> CellScore | None:
    """One view against the served answer; None where either has no log-probabilities.

    Over the option labels, exactly, when the answer is one of them and both sides list them all; else over
    words with a lower bound. `delta_logprob` is always that of the words, so that it compares across views.
    """
    if answer.token is None or not answer.top or not view.top:
        return None
    p, q = word_distribution(answer.top), word_distribution(view.top)
    said = plain(answer.token)
    exact = _over_options(answer, view, labels, thresholds) if said in labels else None
    seen = exact[1] if exact else q
    y = said if exact else said.casefold()
    best = max(seen, key=seen.__getitem__)
    p_y = seen.get(y, 0.0)
    return CellScore(
        divergence=js_divergence(*exact) if exact else js_lower_bound(answer.top, view.top),
        exact=exact is not None,
        flip=_flip(best == y, seen[best] - p_y, thresholds),
        margin=seen[best] - p_y if best != y else _runner_up(seen, y) - p_y,
        confidence=min(1.0, seen[best]),
        p_answer=min(1.0, p_y),
        reproduces=best == y,
        delta_logprob=_log(_p_of(p, said), thresholds) - _log(_p_of(q, said), thresholds),
        entropy=_entropy(seen),
        answer=_answer_text(view, best),
    )


def score(answer: Reply, replies: Replies, chat: Chat, thresholds: Thresholds | None = None) -> Score:
    """All features of the answer from the cells among `replies`; cells that cannot be scored are named as
    missing.
    """
    thresholds = thresholds or Thresholds()
    labels = tuple(option.label for option in chat.options)
    cells: dict[str, CellScore] = {}
    missing: dict[str, str] = {}
    for name in (name for name in CELLS if name in replies):
        reply = replies[name]
        if isinstance(reply, Failure):
            missing[name] = reply.reason
        elif (cell := compare(answer, reply, labels, thresholds)) is None:
            missing[name] = "no_logprobs"
        else:
            cells[name] = cell
    text, image = influence(cells, has_context=chat.context is not None)
    return Score(
        cells=cells,
        missing=missing,
        influence_text=text,
        influence_image=image,
        relative_entropy=_relative_entropy(cells),
        image_only=cells[NO_CONTEXT].answer if NO_CONTEXT in cells else None,
        text_only=cells[NEUTRAL_IMAGE].answer if NEUTRAL_IMAGE in cells else None,
    )


def influence(cells: Mapping[str, CellScore], *, has_context: bool) -> tuple[float | None, float | None]:
    """Shapley values (context, image) of f = log p(y) in the game of two players; nats.

    With M = f(image, context): phi_context = ((M - no_context) + (neutral_image - prior)) / 2, phi_image
    alike. A cell enters as its delta to M. Without a context the image is the only player: phi_image = M -
    neutral_image.
    """
    delta = {name: cell.delta_logprob for name, cell in cells.items()}
    if not has_context:
        return None, delta.get(NEUTRAL_IMAGE)
    if any(name not in delta for name in CELLS):
        return None, None
    text = (delta[NO_CONTEXT] + delta[PRIOR] - delta[NEUTRAL_IMAGE]) / 2
    image = (delta[NEUTRAL_IMAGE] + delta[PRIOR] - delta[NO_CONTEXT]) / 2
    return text, image


def probe_result(
    name: str, answer: Reply, reply: Reply | Failure, chat: Chat, thresholds: Thresholds | None = None
) -> ProbeResult:
    """The report's row of one probe. `answer` is the view's first word when its text goes on after it: a view
    is only asked for a token or two."""
    if isinstance(reply, Failure):
        return unjudged_result(name, reply)
    labels = tuple(option.label for option in chat.options)
    cell = compare(answer, reply, labels, thresholds or Thresholds())
    if cell is None:
        return replace(unjudged_result(name, reply), outcome=Outcome.ERROR)
    return replace(
        unjudged_result(name, reply),
        outcome={True: Outcome.FLIPPED, False: Outcome.CONSISTENT, None: Outcome.UNDECIDED}[cell.flip],
        divergence=cell.divergence,
        exact=cell.exact,
        flip=cell.flip,
        delta_logprob=cell.delta_logprob,
        answer=cell.answer,
    )


def unjudged_result(name: str, reply: Reply | Failure) -> ProbeResult:
    """The row of a probe that was not compared with an answer: what it cost, and nothing else."""
    if isinstance(reply, Failure):
        return ProbeResult(name, reply.outcome, ms=reply.ms)
    tokens = reply.prompt_tokens + reply.completion_tokens
    return ProbeResult(name, Outcome.UNDECIDED, tokens=tokens, cached_tokens=reply.cached_tokens, ms=reply.ms)


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


def _probabilities(top: Mapping[str, float]) -> dict[str, float]:
    return {token: math.exp(min(0.0, logprob)) for token, logprob in top.items()}


def _tail(probabilities: Distribution) -> float:
    return max(0.0, 1.0 - sum(probabilities.values()))


def _least_listed(probabilities: Distribution) -> float:
    """At most this likely is what a top-k list leaves out. The last entry may be a sampled token from outside
    the top k, so the last but one is taken."""
    ordered = sorted(probabilities.values())
    return ordered[1] if len(ordered) > 1 else 1.0


def _over_options(
    answer: Reply, view: Reply, labels: tuple[str, ...], thresholds: Thresholds
) -> tuple[Distribution, Distribution] | None:
    p = option_distribution(answer.top or {}, labels, thresholds.min_option_mass)
    q = option_distribution(view.top or {}, labels, thresholds.min_option_mass)
    return (p, q) if p is not None and q is not None else None


def _flip(same: bool, lead: float, thresholds: Thresholds) -> bool | None:
    if same:
        return False
    return True if lead > thresholds.flip_margin else None


def _runner_up(distribution: Distribution, y: str) -> float:
    return max((p for key, p in distribution.items() if key != y), default=0.0)


def _p_of(words: Distribution, said: str) -> float:
    """p of the served word; one that is not listed is at most as likely as the last one listed and as the
    tail.
    """
    listed = words.get(said.casefold())
    return listed if listed is not None else min(_tail(words), _least_listed(words))


def _log(probability: float, thresholds: Thresholds) -> float:
    return math.log(min(1.0, max(probability, thresholds.min_probability)))


def _entropy(distribution: Distribution) -> float:
    masses = [*distribution.values(), _tail(distribution)]
    return -sum(mass * math.log2(mass) for mass in masses if 0.0 < mass < 1.0)


def _relative_entropy(cells: Mapping[str, CellScore]) -> float | None:
    if NO_CONTEXT not in cells or NEUTRAL_IMAGE not in cells:
        return None
    image, text = cells[NO_CONTEXT].entropy, cells[NEUTRAL_IMAGE].entropy
    return (text - image) / (text + image) if text + image > 0.0 else 0.0


def _answer_text(view: Reply, best: str) -> str:
    text = view.text.strip()
    return text if view.finish_reason == "stop" and text else plain(view.token or best)
