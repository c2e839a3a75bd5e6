"""The one definition of interference: how far an answer moves if a modality is left out.

All distributions are those of the first content position: the first generated token that is more than white
space. Server, training and evaluation import these functions, so that "divergence", "flip" and "influence"
mean the same everywhere. Log-probabilities are natural.

A view can only change an answer that the request itself prefers. One that was drawn by chance, or that comes
from elsewhere, may be led by the same other answer with and without a modality: that is no flip, and its
margin is what the view adds to that lead.

A flip needs a lead above the noise floor, which is `flip_margin`, or twice the noise if that is more. The
noise is the largest change of a probability when the same input was asked again (`noop`). It counts twice
because a lead is the difference of two probabilities, and each of them may have moved by as much.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist, fmean, median

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
from modint_guard.judging.evidence import evidence_of, going_on
from modint_guard.judging.risk import Thresholds
from modint_guard.report import ProbeResult
from modint_guard.types import (
    CELLS,
    CONTROLS,
    FIRST_TOKEN,
    LEFT_OUT,
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
    Influence,
    Option,
    Position,
    ProbeOutcome,
    Replies,
    Reply,
    Score,
    TokenScore,
)

_CHANCE = 0.01  # the share of answers of any length in which noise alone moves a position that far
_LOGIT_NOISE = 1.0  # nats: the least standard deviation of a logit under a change that means nothing
_ENOUGH_POSITIONS = 10  # from here on an answer's own positions tell how far its words move


def first_word(text: str, labels: Iterable[str]) -> str:
    """The first word of an answer, without punctuation. If it is a label but for case, the label: "(a) red"
    gives "A".

    Raises IndexError for a text of white space only.
    """
    match = re.search(r"\w+", text)
    word = match.group() if match else text.split()[0]
    return next((label for label in labels if label.casefold() == word.casefold()), word)


def is_listed(word: str, replies: Iterable[Reply | Failure]) -> bool:
    """Whether one of the replies lists the whole word, ignoring white space and case.

    If one does, the word is a single token, and a reply that does not list it gives it no more than the
    probability of its last entry. Otherwise the word's first token may be any that they list.
    """
    lists = (reply.top for reply in replies if isinstance(reply, Reply) and reply.top)
    return any(word.casefold() in word_distribution(top) for top in lists)


def compare(answer: Reply, view: Reply, labels: tuple[str, ...], thresholds: Thresholds) -> CellScore | None:
    """One view compared with the served answer; None if either has no log-probabilities, or if it scored the
    answer as a whole and nothing of that counts (`evidence`).

    labels: those of the options, if there are any. If the view scored the whole answer, all of it is compared
    (`compare_forced`). Otherwise the first content position is: over the option labels and exactly, if the
    answer is one of them and both sides list them all; else over words, with a lower bound of the divergence.
    `delta_logprob` is always that of the words, so that it can be compared between views.
    """
    if view.forced:
        evidence, positions = evidence_of(answer), answer_positions(answer)
        if not evidence.tokens:
            return None
        inside = going_on(answer.text, evidence)
        return compare_forced(answer, positions, view.forced, thresholds, evidence.tokens, inside)
    if answer.token is None or not answer.top or not view.top:
        return None
    p, q = word_distribution(answer.top), word_distribution(view.top)
    word = token_text(answer.token)
    exact = _over_options(answer, view, labels, thresholds) if word in labels else None
    view_p = exact[1] if exact else q
    y = word if exact else word.casefold()
    best = max(view_p, key=view_p.__getitem__)
    p_y = view_p.get(y, 0.0)
    lead, request_lead = _lead_over(view_p, y), _lead_over(exact[0] if exact else p, y)
    preferred = request_lead < -thresholds.flip_margin
    lost = _log(_p_of(p, word), thresholds) - _log(_p_of(q, word), thresholds)
    odds = _log_odds(view_p, y, thresholds)
    shift = _log_odds(exact[0] if exact else p, y, thresholds) - odds
    return CellScore(
        divergence=js_divergence(*exact) if exact else js_lower_bound(answer.top, view.top),
        exact=exact is not None,
        coverage=coverage(answer.top, view.top),
        flip=_flip(best == y, lead, thresholds) if preferred or best == y else None,
        margin=_added(lead, request_lead),
        confidence=min(1.0, view_p[best]),
        p_answer=min(1.0, p_y),
        reproduces=best == y,
        delta_logprob=lost,
        entropy=entropy(view_p),
        answer=_answer_text(view, best),
        preferred=preferred,
        shift=shift,
        tokens=(TokenScore(lost, shift, odds, _best_other(view_p, y), preferred),),
    )


def compare_forced(
    answer: Reply,
    whole: Sequence[Position],
    view: Sequence[Position],
    thresholds: Thresholds,
    counted: Sequence[int] | None = None,
    inside: Collection[int] = (),
) -> CellScore:
    """One view compared over the whole answer.

    whole, view: the same tokens y_t, one or more, as the request itself and the view score them, with
    alternatives. counted: the indices of those that are compared (`evidence`), in order, one or more; None
    for all. inside: of these such as go on with a word, by their indices among them. Only positions at which
    the request prefers y_t by more than the noise floor can decide, and of these only such as moved further
    than chance moves one of so many (`moved`). The deciding one is that at which another token leads y_t by
    most under the view. The divergence is the largest of the positions that moved; if none did, margin and
    divergence are means, which do not grow with the length of an answer; the shift likewise, over all words,
    those that were drawn by chance included: what made them likelier had influence. `p_answer` is the
    smallest p(y_t) of the positions that can decide, and `delta_logprob` the mean over all that are compared
    (pointwise mutual information), in nats per token.
    """
    counted = range(len(whole)) if counted is None else counted
    full, view = [whole[t] for t in counted], [view[t] for t in counted]
    leads = [_lead(position) for position in view]
    added = [_added(lead, _lead(position)) for lead, position in zip(leads, full, strict=True)]
    divergences = [js_lower_bound(p.top, q.top) for p, q in zip(full, view, strict=True)]
    preferred = [t for t, position in enumerate(full) if _lead(position) < -thresholds.flip_margin]
    certain = [t for t in preferred if token_text(full[t].token)]
    able = certain or list(range(len(full)))
    begun = _begun_words(view, inside)
    tokens = tuple(
        _token(p, q, thresholds, begun=begun[t], preferred=t in certain)
        for t, (p, q) in enumerate(zip(full, view, strict=True))
    )
    shifts = {t: tokens[t].shift for t, position in enumerate(full) if token_text(position.token)}
    shifts = shifts or {t: token.shift for t, token in enumerate(tokens)}
    moving = moved({t: tokens[t].shift for t in certain})
    deciding = max(moving or able, key=leads.__getitem__)
    view_p = word_distribution(view[deciding].top)
    best = max(view_p, key=view_p.__getitem__)
    p_answer = min(1.0, min(math.exp(min(0.0, view[t].logprob)) for t in able))
    reproduces = all(leads[t] < 0.0 for t in able)
    flips = bool(moving) and leads[deciding] > thresholds.flip_margin
    return CellScore(
        divergence=max(divergences[t] for t in moving) if moving else fmean(divergences),
        exact=False,
        coverage=coverage(full[deciding].top, view[deciding].top),
        flip=True if flips else False if certain and reproduces else None,
        margin=added[deciding] if moving else fmean(added[t] for t in able),
        confidence=p_answer if reproduces else min(1.0, view_p[best]),
        p_answer=p_answer,
        reproduces=reproduces,
        delta_logprob=pointwise_mutual_information(
            [max(position.logprob, math.log(thresholds.min_probability)) for position in full],
            [max(position.logprob, math.log(thresholds.min_probability)) for position in view],
        ),
        entropy=entropy(view_p),
        answer=answer.text.strip()
        if leads[deciding] < 0.0
        else _begun(whole[: counted[deciding]], view[deciding].top) + best,
        preferred=bool(certain),
        shift=max((shifts[t] for t in moved(shifts)), default=fmean(shifts.values())),
        at=deciding,
        tokens=tokens,
    )


def _begun_words(view: Sequence[Position], inside: Collection[int]) -> list[float]:
    """The probability that a view gives to what stands before each token of the word that it goes on with; 1
    for one that begins a word.
    """
    begun: list[float] = []
    for t, before in enumerate([None, *view[:-1]]):
        is_inside = before is not None and t in inside
        begun.append(begun[-1] * math.exp(min(0.0, before.logprob)) if before and is_inside else 1.0)
    return begun


def _token(
    full: Position, view: Position, thresholds: Thresholds, *, begun: float, preferred: bool
) -> TokenScore:
    """One token of the answer, as the request itself and a view score it. begun: the probability that the
    view gives to what stands before it of its word.
    """
    least = math.log(thresholds.min_probability)
    odds = _log_odds_at(view, thresholds)
    return TokenScore(
        lost=max(full.logprob, least) - max(view.logprob, least),
        shift=_log_odds_at(full, thresholds) - odds,
        odds=odds,
        other=begun * _best_other(word_distribution(view.top), token_text(view.token).casefold()),
        preferred=preferred,
    )


def moved(shifts: Mapping[int, float]) -> list[int]:
    """The positions that a view moves further than chance would move the furthest of them.

    shifts: by position, the log-odds of y_t against the best other token, request minus view. If nothing but
    noise moves them, one of n moves further than the normal quantile of 1 - _CHANCE / n with probability
    _CHANCE (Bonferroni), however many there are. The noise is that of _LOGIT_NOISE in each of the two logits,
    or the spread of the answer's own positions (median absolute deviation) if that is more and there are
    enough to tell.
    """
    if not shifts:
        return []
    spread = _LOGIT_NOISE * math.sqrt(2)
    if len(shifts) >= _ENOUGH_POSITIONS:
        spread = max(spread, median(map(abs, shifts.values())) / NormalDist().inv_cdf(0.75))
    bound = spread * NormalDist().inv_cdf(1.0 - _CHANCE / len(shifts))
    return [t for t, shift in shifts.items() if shift > bound]


def _log_odds_at(position: Position, thresholds: Thresholds) -> float:
    """log p(y_t) - log p(the best other token), in nats."""
    y = token_text(position.token).casefold()
    return _log_odds(word_distribution(position.top), y, thresholds)


def _log_odds(distribution: Distribution, y: str, thresholds: Thresholds) -> float:
    """log p(y) - log p(the best other answer), in nats."""
    return _log(distribution.get(y, 0.0), thresholds) - _log(_best_other(distribution, y), thresholds)


def _lead(position: Position) -> float:
    """p(the best other token) - p(y_t), in [-1, 1]."""
    return _lead_over(word_distribution(position.top), token_text(position.token).casefold())


def _lead_over(distribution: Distribution, y: str) -> float:
    """p(the best other answer) - p(y), in [-1, 1]."""
    return _best_other(distribution, y) - distribution.get(y, 0.0)


def _best_other(distribution: Distribution, y: str) -> float:
    return max((p for key, p in distribution.items() if key != y), default=0.0)


def _added(lead: float, request_lead: float) -> float:
    """What a view adds to the lead that another answer has over y in the request, if it has one there."""
    return max(-1.0, lead - max(0.0, request_lead))


def comparable(answer: Reply, replies: Replies) -> Replies:
    """The replies, without the scores of the whole answer unless every cell has them: values of one token and
    of a whole answer must not be mixed.
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
    """The reply to shifted options, read with the labels of the request.

    moved: as from `shifted_labels`.
    """
    if not view.top:
        return view
    top: dict[str, float] = {}
    for listed, logprob in view.top.items():
        label = moved.get(token_text(listed), listed)
        top[label] = logprob if label not in top else log_sum(top[label], logprob)
    token = moved.get(token_text(view.token or "")) or view.token
    text = moved.get(view.text.strip().rstrip("."), view.text)
    return replace(view, top=top, token=token, text=text)


def score(answer: Reply, replies: Replies, chat: Chat, thresholds: Thresholds | None = None) -> Score:
    """All features of the answer, from the cells and controls among `replies`. Cells that cannot be scored
    are listed as missing.
    """
    replies = comparable(answer, replies)
    noise = noise_of(answer, replies.get(NOOP))
    thresholds = with_noise_floor(thresholds or Thresholds(), noise)
    labels = tuple(option.label for option in chat.options)
    cells, missing = cells_of(replies, lambda view: compare(answer, view, labels, thresholds))
    forced = any(isinstance(reply, Reply) and reply.forced for reply in replies.values())
    flipped = (name for name in CONTROLS if _flips(name, answer, replies.get(name), chat, thresholds))
    influences = influence(cells, has_context=chat.context is not None)
    return Score(
        cells=cells,
        missing=missing,
        influence_text=influences.text,
        influence_image=influences.image,
        synergy=influences.synergy,
        influence_images=tuple(
            _influence_of_picture(answer, replies[name], labels, thresholds, forced=forced)
            for name in LEFT_OUT
            if name in replies
        ),
        tokens=token_influences(cells, has_context=chat.context is not None),
        relative_entropy=_relative_entropy(cells),
        noise=noise,
        unstable=tuple(flipped),
        method=TEACHER_FORCED if forced else FIRST_TOKEN,
        entropy=entropy(word_distribution(answer.top or {})) if answer.top else 0.0,
        partial=not forced and _is_only_begun(answer, labels),
        image_only=cells[NO_CONTEXT].answer if NO_CONTEXT in cells else None,
        text_only=cells[NEUTRAL_IMAGE].answer if NEUTRAL_IMAGE in cells else None,
    )


def _influence_of_picture(
    answer: Reply, view: Reply | Failure, labels: tuple[str, ...], thresholds: Thresholds, *, forced: bool
) -> float | None:
    """What log p(y) loses if one picture of several is left out, nats; None if the view was not compared at
    the same tokens as the cells.
    """
    if isinstance(view, Failure) or bool(view.forced) != forced:
        return None
    cell = compare(answer, view, labels, thresholds)
    return None if cell is None else cell.delta_logprob


def cells_of(
    replies: Replies, compared: Callable[[Reply], CellScore | None]
) -> tuple[dict[str, CellScore], dict[str, str]]:
    """The cells among the replies compared with the answer, and, for those that cannot be, the reason from
    UNSCORED_REASONS.

    compared: compares one view with the answer; None if it has no log-probabilities.
    """
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
    """Shapley values and synergy of context and image for f = log p(y), in nats.

    Each cell enters by its difference to f(image, context). Without a context the image is the only player,
    and its value is f(image) - f(neutral image).
    """
    return _influence({name: cell.delta_logprob for name, cell in cells.items()}, has_context=has_context)


def influence_on_odds(cells: Mapping[str, CellScore], *, has_context: bool) -> Influence:
    """The same for f = the log-odds of y against the best other answer. Probabilities near 1 do not hide it:
    whoever raises p(y) from 0.95 to 0.99 has influence.
    """
    return _influence({name: cell.shift for name, cell in cells.items()}, has_context=has_context)


def token_influences(cells: Mapping[str, CellScore], *, has_context: bool) -> tuple[Influence, ...]:
    """The same as `influence` for log p(y_t) of each token that was compared; empty if a cell is missing.

    A Shapley value is linear in f, so the means over the tokens are those of `influence`.
    """
    return _of_each_token(cells, lambda token: token.lost, has_context=has_context)


def token_influences_on_odds(cells: Mapping[str, CellScore], *, has_context: bool) -> tuple[Influence, ...]:
    """The same for the log-odds of y_t against the best other token."""
    return _of_each_token(cells, lambda token: token.shift, has_context=has_context)


def _of_each_token(
    cells: Mapping[str, CellScore], lost: Callable[[TokenScore], float], *, has_context: bool
) -> tuple[Influence, ...]:
    needed = CELLS if has_context else (NEUTRAL_IMAGE,)
    if any(name not in cells for name in needed):
        return ()
    by_token = zip(*(cells[name].tokens for name in needed), strict=True)
    return tuple(
        _influence(
            {name: lost(token) for name, token in zip(needed, tokens, strict=True)}, has_context=has_context
        )
        for tokens in by_token
    )


def _influence(lost: Mapping[str, float], *, has_context: bool) -> Influence:
    """lost: what f loses under each cell, in nats."""
    if not has_context:
        return Influence(None, lost.get(NEUTRAL_IMAGE), None)
    if any(name not in lost for name in CELLS):
        return Influence(None, None, None)
    return shapley(0.0, first=-lost[NEUTRAL_IMAGE], second=-lost[NO_CONTEXT], neither=-lost[PRIOR])


def shapley(both: float, *, first: float, second: float, neither: float) -> Influence:
    """Shapley values (Shapley 1953) of two players, text first, from the values of the four coalitions.

    phi_1 = ((both - second) + (first - neither)) / 2, and phi_2 likewise; they add up to both - neither.
    Synergy = both - first - second + neither (Harsanyi's dividend of the pair), which is negative if the two
    are redundant.
    """
    text = ((both - second) + (first - neither)) / 2
    image = ((both - first) + (second - neither)) / 2
    return Influence(text, image, both - first - second + neither)


def pointwise_mutual_information(answer: Sequence[float], view: Sequence[float]) -> float:
    """The mean over tokens of log p(y_t) - log p_view(y_t), in nats per token: how much the part that the
    view leaves out contributed to the answer; negative if it spoke against it.

    answer, view: log-probabilities of the same tokens, (T,) each. Raises ValueError for T = 0 or unequal
    lengths.
    """
    if not answer or len(answer) != len(view):
        raise ValueError(f"need the same tokens twice, one or more; got {len(answer)} and {len(view)}")
    return math.fsum(full - without for full, without in zip(answer, view, strict=True)) / len(answer)


def noise_of(answer: Reply, again: Reply | Failure | None) -> float | None:
    """The engine's noise: the largest change of a probability when the same input was asked again, in [0, 1].
    None if it was not asked again, or if one of the two replies has no log-probabilities.
    """
    if not isinstance(again, Reply) or not answer.top or not again.top:
        return None
    return largest_shift(answer.top, again.top)


def with_noise_floor(thresholds: Thresholds, noise: float | None) -> Thresholds:
    """The same thresholds, with a flip margin of at least twice the noise."""
    floor = min(1.0, max(thresholds.flip_margin, 2 * (noise or 0.0)))
    return thresholds if floor == thresholds.flip_margin else replace(thresholds, flip_margin=floor)


def probe_result(
    name: str, answer: Reply, reply: Reply | Failure, chat: Chat, thresholds: Thresholds | None = None
) -> ProbeResult:
    """The report's row of one probe. Its `answer` is the view's first word if the view was cut off after a
    token or two.
    """
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
    """The row of a probe that was not compared with an answer; it states the cost and nothing else."""
    if isinstance(reply, Failure):
        return ProbeResult(name, reply.outcome, ms=reply.ms)
    tokens = reply.prompt_tokens + reply.completion_tokens
    return ProbeResult(
        name, ProbeOutcome.UNDECIDED, tokens=tokens, cached_tokens=reply.cached_tokens, ms=reply.ms
    )


def _is_only_begun(answer: Reply, labels: Sequence[str]) -> bool:
    """Whether the answer has more than one word, and the first one is not an option's label."""
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
    """For every label in `permuted_options`, the label that its text has in the request."""
    labels = [option.label for option in options]
    return dict(zip(labels, [*labels[-1:], *labels[:-1]], strict=True))


def _over_options(
    answer: Reply, view: Reply, labels: tuple[str, ...], thresholds: Thresholds
) -> tuple[Distribution, Distribution] | None:
    p = option_distribution(answer.top or {}, labels, thresholds.min_option_mass)
    q = option_distribution(view.top or {}, labels, thresholds.min_option_mass)
    return (p, q) if p is not None and q is not None else None


def _flip(is_same: bool, lead: float, thresholds: Thresholds) -> bool | None:
    if is_same:
        return False
    return True if lead > thresholds.flip_margin else None


def _p_of(words: Distribution, word: str) -> float:
    """The probability of a word; an upper bound on it if it is not listed."""
    listed = words.get(word.casefold())
    return listed if listed is not None else max_unlisted(words)


def _log(probability: float, thresholds: Thresholds) -> float:
    return math.log(min(1.0, max(probability, thresholds.min_probability)))


def _relative_entropy(cells: Mapping[str, CellScore]) -> float | None:
    if NO_CONTEXT not in cells or NEUTRAL_IMAGE not in cells:
        return None
    return relative_entropy(cells[NO_CONTEXT].entropy, cells[NEUTRAL_IMAGE].entropy)


def _answer_text(view: Reply, best: str) -> str:
    """What a view says: a whole text, or the first word of one that was cut off. A word that may itself have
    been cut ends in "…": most names are several tokens."""
    text = view.text.strip()
    if view.finish_reason == "stop" and text:
        return text
    if (word := _FIRST_WORD.match(text)) is None:
        return token_text(view.token or best)
    is_whole = word.end() < len(text) and text[word.end()] not in "-'’"
    return word[0] if is_whole else f"{text}…"


def _begun(before: Sequence[Position], top: Mapping[str, float]) -> str:
    """What the answer has of a word that the likeliest token goes on with: "c" before "at", to show "cat";
    nothing if that token begins a word."""
    likeliest = max(top, key=top.__getitem__)
    if not likeliest[:1].isalnum() or likeliest != token_text(likeliest):  # a blank, or a mark for one
        return ""
    begun = _LAST_WORD.search("".join(position.token for position in before))
    return begun[0].casefold() if begun else ""


_FIRST_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_LAST_WORD = re.compile(r"\w+$")
