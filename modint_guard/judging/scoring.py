"""The one definition of interference: how far an answer moves when a modality is taken away.

All distributions are those of the first content position: the first generated token that is not whitespace.
Server, training and evaluation import these functions, so they mean the same by "divergence" (`divergence`),
"flip" and "influence". Log-probabilities are natural.

A flip needs a lead above the noise floor: the configured `flip_margin`, or, where the same input was asked
again (`noop`), twice the largest change of a probability seen there, if that is more. A lead is a difference
of two probabilities, and noise may have moved each of them by so much.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from modint_guard.chat.reply import answer_positions, log_sum, token_text
from modint_guard.judging.divergence import (
    Distribution,
    coverage,
    entropy,
    js_divergence,
    js_lower_bound,
    largest_shift,
    max_unlisted,
    option_distribution,
    relative_entropy,
    word_distribution,
)
from modint_guard.judging.risk import Thresholds
from modint_guard.types import (
    CELLS,
    CONTROLS,
    FIRST_TOKEN,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    PERMUTED_OPTIONS,
    PRIOR,
    SELF_ASKED,
    TEACHER_FORCED,
    CellScore,
    Chat,
    Failure,
    Option,
    Position,
    ProbeOutcome,
    ProbeResult,
    Replies,
    Reply,
    Score,
)


class Influence(NamedTuple):
    """What each modality did for log p(y), in nats; None where a cell is missing. `synergy` is what both do
    together beyond what each does alone, and None without a context.
    """

    text: float | None
    image: float | None
    synergy: float | None


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

    Over the whole answer where the view scored it (`compare_forced`), else at the first content position:
    over the option labels, exactly, when the answer is one of them and both sides list them all; else over
    words with a lower bound. `delta_logprob` is always that of the words, so that it compares across views.
    """
    if view.forced:
        return compare_forced(answer, answer_positions(answer), view.forced, thresholds)
    if answer.token is None or not answer.top or not view.top:
        return None
    p, q = word_distribution(answer.top), word_distribution(view.top)
    said = token_text(answer.token)
    exact = _over_options(answer, view, labels, thresholds) if said in labels else None
    seen = exact[1] if exact else q
    y = said if exact else said.casefold()
    best = max(seen, key=seen.__getitem__)
    p_y = seen.get(y, 0.0)
    return CellScore(
        divergence=js_divergence(*exact) if exact else js_lower_bound(answer.top, view.top),
        exact=exact is not None,
        coverage=coverage(answer.top, view.top),
        flip=_flip(best == y, seen[best] - p_y, thresholds),
        margin=seen[best] - p_y if best != y else _runner_up(seen, y) - p_y,
        confidence=min(1.0, seen[best]),
        p_answer=min(1.0, p_y),
        reproduces=best == y,
        delta_logprob=_log(_p_of(p, said), thresholds) - _log(_p_of(q, said), thresholds),
        entropy=entropy(seen),
        answer=_answer_text(view, best),
    )


def compare_forced(
    answer: Reply, own: Sequence[Position], view: Sequence[Position], thresholds: Thresholds
) -> CellScore:
    """One view against the whole answer: `own` and `view` score the same tokens y_t, with alternatives.

    Only positions at which the request itself prefers y_t beyond the noise floor can decide; the deciding one
    is where another token leads y_t most under the view. The divergence is the largest over the positions,
    `p_answer` the least p(y_t) of those that can decide, `delta_logprob` the mean over all (pointwise mutual
    information), nats a token.
    """
    leads = [_lead(position) for position in view]
    sure = [t for t, position in enumerate(own) if _lead(position) < -thresholds.flip_margin]
    sure = [t for t in sure if token_text(own[t].token)] or list(range(len(own)))
    decided = _lead(own[deciding := max(sure, key=leads.__getitem__)]) < -thresholds.flip_margin
    seen = word_distribution(view[deciding].top)
    lead = leads[deciding]
    best = max(seen, key=seen.__getitem__)
    p_answer = min(1.0, min(math.exp(min(0.0, view[t].logprob)) for t in sure))
    return CellScore(
        divergence=max(js_lower_bound(p.top, q.top) for p, q in zip(own, view, strict=True)),
        exact=False,
        coverage=coverage(own[deciding].top, view[deciding].top),
        flip=_flip(lead < 0.0, lead, thresholds) if decided else None,
        margin=lead,
        confidence=p_answer if lead < 0.0 else min(1.0, seen[best]),
        p_answer=p_answer,
        reproduces=lead < 0.0,
        delta_logprob=pointwise_mutual_information(
            [max(position.logprob, math.log(thresholds.min_probability)) for position in own],
            [max(position.logprob, math.log(thresholds.min_probability)) for position in view],
        ),
        entropy=entropy(seen),
        answer=answer.text.strip() if lead < 0.0 else best,
    )


def _lead(position: Position) -> float:
    """p(the best other token) - p(y_t), in [-1, 1]."""
    words = word_distribution(position.top)
    y = token_text(position.token).casefold()
    return _runner_up(words, y) - words.get(y, 0.0)


def comparable(answer: Reply, replies: Replies) -> Replies:
    """The replies, with the answer's tokens as each cell scores them only where every cell does: values of
    one token and of a whole answer are not to be mixed.
    """
    cells = [reply for name, reply in replies.items() if name in CELLS]
    whole = len(answer_positions(answer))
    if cells and all(isinstance(cell, Reply) and len(cell.forced) == whole > 0 for cell in cells):
        return replies
    return {
        name: replace(reply, forced=()) if isinstance(reply, Reply) else reply
        for name, reply in replies.items()
    }


def relabelled(view: Reply, moved: Mapping[str, str]) -> Reply:
    """The reply to moved options, read with the labels that the texts have in the request."""
    if not view.top:
        return view
    top: dict[str, float] = {}
    for token, logprob in view.top.items():
        label = moved.get(token_text(token), token)
        top[label] = logprob if label not in top else log_sum(top[label], logprob)
    said = moved.get(token_text(view.token or "")) or view.token
    text = moved.get(view.text.strip().rstrip("."), view.text)
    return replace(view, top=top, token=said, text=text)


def score(answer: Reply, replies: Replies, chat: Chat, thresholds: Thresholds | None = None) -> Score:
    """All features of the answer from the cells among `replies`; cells that cannot be scored are named as
    missing.
    """
    replies = comparable(answer, replies)
    noise = noise_of(answer, replies.get(NOOP))
    known = with_noise_floor(thresholds or Thresholds(), noise)
    labels = tuple(option.label for option in chat.options)
    cells, missing = cells_of(replies, lambda view: compare(answer, view, labels, known))
    forced = any(isinstance(reply, Reply) and reply.forced for reply in replies.values())
    flipped = (name for name in CONTROLS if _flips(name, answer, replies.get(name), chat, known))
    found = influence(cells, has_context=chat.context is not None)
    return Score(
        cells=cells,
        missing=missing,
        influence_text=found.text,
        influence_image=found.image,
        synergy=found.synergy,
        relative_entropy=_relative_entropy(cells),
        noise=noise,
        unstable=tuple(flipped),
        method=TEACHER_FORCED if forced else FIRST_TOKEN,
        entropy=entropy(word_distribution(answer.top or {})) if answer.top else 0.0,
        partial=not forced and _is_only_begun(answer, labels),
        image_only=cells[NO_CONTEXT].answer if NO_CONTEXT in cells else None,
        text_only=cells[NEUTRAL_IMAGE].answer if NEUTRAL_IMAGE in cells else None,
    )


def cells_of(
    replies: Replies, compared: Callable[[Reply], CellScore | None]
) -> tuple[dict[str, CellScore], dict[str, str]]:
    """The cells among the replies as they compare with the answer, and why others cannot be."""
    cells: dict[str, CellScore] = {}
    missing: dict[str, str] = {}
    for name in (name for name in CELLS if name in replies):
        reply = replies[name]
        if isinstance(reply, Failure):
            missing[name] = reply.reason
        elif (cell := compared(reply)) is None:
            missing[name] = "no_logprobs"
        else:
            cells[name] = cell
    return cells, missing


def influence(cells: Mapping[str, CellScore], *, has_context: bool) -> Influence:
    """Shapley values and synergy of context and image in the game f = log p(y); nats. A cell enters as its
    delta to M = f(image, context). Without a context the image is the only player: its value is M -
    neutral_image.
    """
    lost = {name: cell.delta_logprob for name, cell in cells.items()}
    if not has_context:
        return Influence(None, lost.get(NEUTRAL_IMAGE), None)
    if any(name not in lost for name in CELLS):
        return Influence(None, None, None)
    return shapley(0.0, first=-lost[NEUTRAL_IMAGE], second=-lost[NO_CONTEXT], neither=-lost[PRIOR])


def shapley(both: float, *, first: float, second: float, neither: float) -> Influence:
    """Shapley values (Shapley 1953) of two players, text first, from the values of the four coalitions.

    phi_1 = ((both - second) + (first - neither)) / 2, phi_2 alike; they add up to both - neither. Synergy =
    both - first - second + neither (Harsanyi's dividend of the pair): negative where the two say the same.
    """
    text = ((both - second) + (first - neither)) / 2
    image = ((both - first) + (second - neither)) / 2
    return Influence(text, image, both - first - second + neither)


def pointwise_mutual_information(answer: Sequence[float], view: Sequence[float]) -> float:
    """mean over tokens of log p_M(y_t) - log p_view(y_t): what the removed part told of the answer, in nats a
    token; negative where it spoke against it. Raises ValueError unless both score the same tokens, one or
    more.
    """
    if not answer or len(answer) != len(view):
        raise ValueError(f"need the same tokens twice, one or more; got {len(answer)} and {len(view)}")
    return math.fsum(own - other for own, other in zip(answer, view, strict=True)) / len(answer)


def noise_of(answer: Reply, again: Reply | Failure | None) -> float | None:
    """The engine's noise: the largest change of a probability when the same input was asked again, in [0, 1];
    None where it was not, or gave no log-probabilities.
    """
    if not isinstance(again, Reply) or not answer.top or not again.top:
        return None
    return largest_shift(answer.top, again.top)


def with_noise_floor(thresholds: Thresholds, noise: float | None) -> Thresholds:
    """The same thresholds with a margin that noise of this size cannot reach."""
    floor = min(1.0, max(thresholds.flip_margin, 2 * (noise or 0.0)))
    return thresholds if floor == thresholds.flip_margin else replace(thresholds, flip_margin=floor)


def probe_result(
    name: str, answer: Reply, reply: Reply | Failure, chat: Chat, thresholds: Thresholds | None = None
) -> ProbeResult:
    """The report's row of one probe. `answer` is the view's first word when its text goes on after it: a view
    is only asked for a token or two."""
    if isinstance(reply, Failure):
        return unjudged_result(name, reply)
    if name == SELF_ASKED:
        return replace(unjudged_result(name, reply), answer=token_text(reply.token or "") or None)
    cell = _compared(name, answer, reply, chat, thresholds or Thresholds())
    if cell is None:
        return replace(unjudged_result(name, reply), outcome=ProbeOutcome.ERROR)
    return replace(
        unjudged_result(name, reply),
        outcome={True: ProbeOutcome.FLIPPED, False: ProbeOutcome.CONSISTENT, None: ProbeOutcome.UNDECIDED}[
            cell.flip
        ],
        divergence=cell.divergence,
        exact=cell.exact,
        coverage=cell.coverage,
        flip=cell.flip,
        delta_logprob=cell.delta_logprob,
        answer=cell.answer,
    )


def unjudged_result(name: str, reply: Reply | Failure) -> ProbeResult:
    """The row of a probe that was not compared with an answer: what it cost, and nothing else."""
    if isinstance(reply, Failure):
        return ProbeResult(name, reply.outcome, ms=reply.ms)
    tokens = reply.prompt_tokens + reply.completion_tokens
    return ProbeResult(
        name, ProbeOutcome.UNDECIDED, tokens=tokens, cached_tokens=reply.cached_tokens, ms=reply.ms
    )


def _is_only_begun(answer: Reply, labels: Sequence[str]) -> bool:
    """Whether more than the first word was said, and that word is no option's label."""
    return len(answer.text.split()) > 1 and token_text(answer.token or "") not in labels


def _compared(name: str, answer: Reply, view: Reply, chat: Chat, thresholds: Thresholds) -> CellScore | None:
    labels = tuple(option.label for option in chat.options)
    if name == PERMUTED_OPTIONS:
        view = relabelled(view, shifted_labels(chat.options))
    return compare(answer, view, labels, thresholds)


def _flips(
    name: str, answer: Reply, view: Reply | Failure | None, chat: Chat, thresholds: Thresholds
) -> bool:
    if not isinstance(view, Reply):
        return False
    cell = _compared(name, answer, view, chat, thresholds)
    return cell is not None and cell.flip is True


def shifted_labels(options: Sequence[Option]) -> dict[str, str]:
    """Label in `permuted_options` -> the label that its text has in the request, for texts moved by one."""
    labels = [option.label for option in options]
    return dict(zip(labels, [*labels[-1:], *labels[:-1]], strict=True))


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
    return listed if listed is not None else max_unlisted(words)


def _log(probability: float, thresholds: Thresholds) -> float:
    return math.log(min(1.0, max(probability, thresholds.min_probability)))


def _relative_entropy(cells: Mapping[str, CellScore]) -> float | None:
    if NO_CONTEXT not in cells or NEUTRAL_IMAGE not in cells:
        return None
    return relative_entropy(cells[NO_CONTEXT].entropy, cells[NEUTRAL_IMAGE].entropy)


def _answer_text(view: Reply, best: str) -> str:
    text = view.text.strip()
    return text if view.finish_reason == "stop" and text else token_text(view.token or best)
