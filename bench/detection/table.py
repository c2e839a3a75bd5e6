"""From the records of detection to its table: a row for each score and group of answers. Pure functions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.detection import baselines
from bench.detection.inputs import HELD_OUT, KINDS, LYING, NEEDED, SETTINGS, TEXT_DRIVEN, WORDING
from bench.spans.intervals import interval
from modint_guard.evaluation import curves
from modint_guard.evaluation.results import table
from modint_guard.evaluation.statistics import auroc_resamples, percentile_interval
from modint_guard.judging.risk import fit_logistic
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT

INTERFERENCE, WRONG, NEGLECT = TRUTHS = ("interference", "wrong", "neglect")
MODES = ("auto", "named")
GUARD, WITH_SURPRISE, NEGLECT_SCORE = "guard", "guard and surprise", "neglect"
FALSE_FLAGS = 0.02  # of right answers, at which a baseline has its threshold, on validation answers
FEWEST = 10  # positives and negatives of a group, below which there is no AUROC
PREVALENCES = (0.01, 0.02, 0.05, 0.10)
ALL = "all"
_UNCHANGED = -30.0  # nats: the score of an answer that has none, below every other
_CLIP = 15.0  # nats: a logistic sees no larger score

NOTES = f"""\
Greedy answers of the bundled models through vLLM and the gateway, as it ships: `tinyworld-base` is judged by
its calibration, `robust-lora` by its null as soon as that is measured (two minutes), `picturebook-base` by
the fixed rule, for too few of its answers to packaged items are right. `relevance` auto: nobody says what
ought to decide; named: the client does.

`truth` interference: positives are wrong, and right on the clean twin; negatives are all other answers, those
that are wrong on both included. wrong: wrong against right. neglect: answers to needed inputs that are wrong,
against all right ones. No answer is left out, whatever its kind of input and its length.

`guard`: as served; the score in nats orders answers, those without one last, and `recall` and `fpr` are those
of its flags (`neglect`, which is no interference, apart). `guard and surprise` adds the answer's own
uncertainty, weighed on validation answers. Baselines get the same: flip, divergence and loss are of the view
without what ought not to decide, as named or as the guard guesses it (without the context, where nobody
knows); any flip is that of either view. surprise and entropy are of the answer itself; semantic_entropy has
three samples and vl_uncertainty three blurred pictures, as many calls as the guard. A baseline's threshold
flags {FALSE_FLAGS:.0%} of right validation answers.

`recall` is of positives, `fpr` of right answers. `precision_at_Npct`: if N in a hundred answers are
positives. `macro_f1`: of the cause (text, image, none). `auroc` needs {FEWEST} of each class; its interval:
95 %, bootstrap of whole sources; of recall and fpr: exact. `probes` and `new_tokens` are means a request.

By construction: a clean twin is the request without what ought not to decide, and so is the first view. In
TinyWorld it asks in other words, in the picture-book world in the same, so that a flip or a score above 0
nearly repeats the label `interference` there. Neither false flags nor `wrong` nor what `auto` misses has such
help."""


@dataclass(frozen=True)
class View:
    """What one view found: whether it prefers another answer, the divergence, what log p(y) lost in nats."""

    flip: bool
    divergence: float
    loss: float


@dataclass(frozen=True)
class Judged:
    """A verdict on an answer, and its views by name. tokens: that views computed."""

    verdict: str
    cause: str | None
    reason: str | None
    score: float | None
    neglect: float | None
    relevant: str
    relevant_source: str
    calibrated: bool
    views: Mapping[str, View]
    tokens: int

    @property
    def flagged(self) -> bool:
        """Whether it is flagged as interference."""
        return self.verdict == "flagged" and self.cause != "neglect"

    @property
    def first(self) -> View:
        """The view without what ought not to decide; without the context, if that is not known. In one that
        was not asked, nothing moved."""
        name = NEUTRAL_IMAGE if self.relevant == "text" else NO_CONTEXT
        return self.views.get(name, View(False, 0.0, 0.0))


@dataclass(frozen=True)
class Answer:
    """One answer with its truth and all measurements. judged: by MODES. surprise: minus the mean
    log-probability of its tokens, nats. entropy: of its first word, bits. sampled, varied: the clusters of
    other answers.
    """

    world: str
    model: str
    split: str
    setting: str
    kind: str
    held_out: str
    placement: str
    source: str
    task: str
    length: int
    right: bool
    right_when_clean: bool
    judged: Mapping[str, Judged]
    surprise: float
    entropy: float
    sampled: Sequence[str]
    varied: Sequence[str]

    @classmethod
    def from_json(cls, record: JSON) -> "Answer":
        """The answer from its JSON (`dataclasses.asdict`)."""
        judged = {
            mode: Judged(**{**each, "views": {name: View(**view) for name, view in each["views"].items()}})
            for mode, each in record["judged"].items()
        }
        return cls(**{**record, "judged": judged})

    def is_positive(self, truth: str) -> bool:
        """Whether it is one of those that a detector should find."""
        if truth == INTERFERENCE:
            return not self.right and self.right_when_clean
        return not self.right and (truth == WRONG or self.kind == NEEDED)


Value = Callable[[Answer], float]


@dataclass(frozen=True)
class Detector:
    """A score of answers: higher is worse. flags: whether it flags an answer. probes: calls beyond the
    answer. tokens: that these compute. cause: what it says moved an answer, "none" if nothing.
    """

    name: str
    value: Value
    flags: Callable[[Answer], bool]
    probes: Value
    tokens: Value | None = None
    cause: Callable[[Answer], str] | None = None


def detectors(answers: Sequence[Answer], mode: str) -> Iterator[Detector]:
    """Ours, and the baselines with thresholds from these validation answers."""

    def verdict(answer: Answer) -> Judged:
        return answer.judged[mode]

    def score(answer: Answer) -> float:
        found = verdict(answer).score
        return found if found is not None else 0.0 if verdict(answer).flagged else _UNCHANGED

    def probes(answer: Answer) -> float:
        return len(verdict(answer).views)

    def new_tokens(answer: Answer) -> float:
        return verdict(answer).tokens

    def cause(answer: Answer) -> str:
        return verdict(answer).cause or "none" if verdict(answer).flagged else "none"

    yield Detector(GUARD, score, lambda a: verdict(a).flagged, probes, new_tokens, cause)
    yield Detector(
        NEGLECT_SCORE,
        lambda a: _UNCHANGED if verdict(a).neglect is None else verdict(a).neglect or 0.0,
        lambda a: verdict(a).cause in ("neglect", "prior"),
        probes,
        new_tokens,
    )
    both = _with_surprise(answers, score)
    for name, value, calls in (
        (WITH_SURPRISE, both, probes),
        ("flip", lambda a: float(verdict(a).first.flip), lambda a: 1.0),
        ("any flip", lambda a: float(any(view.flip for view in verdict(a).views.values())), probes),
        ("divergence", lambda a: verdict(a).first.divergence, lambda a: 1.0),
        ("loss", lambda a: verdict(a).first.loss, lambda a: 1.0),
        ("surprise", lambda a: a.surprise, lambda a: 0.0),
        ("entropy", lambda a: a.entropy, lambda a: 0.0),
        ("semantic_entropy", lambda a: baselines.semantic_entropy(a.sampled), lambda a: len(a.sampled)),
        ("vl_uncertainty", lambda a: baselines.semantic_entropy(a.varied), lambda a: len(a.varied)),
    ):
        least = threshold([value(a) for a in answers if a.right])
        yield Detector(name, value, lambda a, value=value, least=least: value(a) > least, calls)  # type: ignore[misc]


def threshold(right: Sequence[float]) -> float:
    """The value that at most FALSE_FLAGS of these right answers exceed."""
    return float(np.quantile(right, 1 - FALSE_FLAGS, method="higher")) if right else 0.0


def _with_surprise(answers: Sequence[Answer], score: Value) -> Value:
    """Score and surprise in one, by a logistic of wrong answers among these."""
    wrong = np.array([not answer.right for answer in answers], dtype=float)
    if not 0 < wrong.sum() < len(wrong):
        return score
    features = np.array([[_clipped(score(a)), a.surprise] for a in answers])
    bias, weights = fit_logistic(features, wrong, ridge=0.1)
    return lambda a: float(bias + weights @ np.array([_clipped(score(a)), a.surprise]))


def _clipped(score: float) -> float:
    return float(np.clip(score, -_CLIP, _CLIP))


def rows(answers: Sequence[Answer], *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """A row for each model, relevance, truth, setting, held-out part and score, and for each placement of a
    lying caption."""
    for model in dict.fromkeys(a.model for a in answers):
        of_model = [a for a in answers if a.model == model]
        test = [a for a in of_model if a.split == "test"]
        for mode in MODES:
            found = list(detectors([a for a in of_model if a.split == "validation"], mode))
            for truth in TRUTHS:
                for held_out in HELD_OUT:
                    for setting in (ALL, *SETTINGS):
                        group = [a for a in test if a.held_out == held_out and setting in (ALL, a.setting)]
                        head = {"world": test[0].world, "model": model, "relevance": mode, "truth": truth}
                        where = {"setting": setting, "held_out": held_out, "placement": ALL, "kind": ALL}
                        for detector in found:
                            if _is_asked(detector.name, truth):
                                yield {**head, **where, **_row(detector, group, truth, seed)}
            for group, where in _parts(test):
                head = {"world": test[0].world, "model": model, "relevance": mode, "truth": INTERFERENCE}
                yield {**head, **where, **_row(found[0], group, INTERFERENCE, seed)}


def _parts(answers: Sequence[Answer]) -> Iterator[tuple[list[Answer], dict[str, str]]]:
    """The answers by kind of input, and those to lying captions in unseen words by placement."""
    for held_out in HELD_OUT:
        for setting in SETTINGS:
            for kind in KINDS:
                asked = (setting, held_out, kind)
                if group := [a for a in answers if (a.setting, a.held_out, a.kind) == asked]:
                    where = {"setting": setting, "held_out": held_out, "placement": ALL, "kind": kind}
                    yield group, where
    lies = [a for a in answers if (a.setting, a.kind, a.held_out) == (TEXT_DRIVEN, LYING, WORDING)]
    places = dict.fromkeys(a.placement for a in lies)
    for place in places if len(places) > 1 else ():
        where = {"setting": TEXT_DRIVEN, "held_out": WORDING, "placement": place, "kind": LYING}
        yield [a for a in lies if a.placement == place], where


def _is_asked(name: str, truth: str) -> bool:
    """Whether a score is compared under a truth: `neglect` has one of its own."""
    return (name == NEGLECT_SCORE) == (truth == NEGLECT) or (
        truth == NEGLECT and name in ("surprise", "entropy")
    )


def _row(detector: Detector, group: Sequence[Answer], truth: str, seed: int) -> dict[str, Any]:
    counted = [a for a in group if truth != NEGLECT or a.right or a.is_positive(truth)]
    positive = [a.is_positive(truth) for a in counted]
    values = [detector.value(a) for a in counted]
    auroc = low = high = None
    if min(sum(positive), len(positive) - sum(positive)) >= FEWEST:
        auroc = curves.auroc(values, positive)
        low, high = percentile_interval(
            auroc_resamples(values, positive, [a.source or a.task for a in counted], seed=seed)
        )
    found = [detector.flags(a) for a in counted if a.is_positive(truth)]
    false = [detector.flags(a) for a in counted if a.right]
    recall, fpr = _share(found), _share(false)
    return {
        "score": detector.name,
        "auroc": auroc,
        "ci_low": low,
        "ci_high": high,
        "n": len(counted),
        "positives": sum(positive),
        "recall": recall,
        "recall_low": interval(sum(found), len(found))[0],
        "recall_high": interval(sum(found), len(found))[1],
        "right": len(false),
        "fpr": fpr,
        "fpr_high": interval(sum(false), len(false))[1],
        "macro_f1": cause_f1(counted, detector.cause) if detector.cause and truth == INTERFERENCE else None,
        **{f"precision_at_{100 * share:.0f}pct": precision(share, recall, fpr) for share in PREVALENCES},
        "probes": _mean([detector.probes(a) for a in group]),
        "new_tokens": _mean([detector.tokens(a) for a in group]) if detector.tokens else None,
    }


def cause_f1(answers: Sequence[Answer], cause: Callable[[Answer], str]) -> float | None:
    """The mean F1 over the causes that occur: "text" and "image" of positives by their setting, else "none".
    None without answers.
    """
    truth = [
        ("text" if a.setting == TEXT_DRIVEN else "image") if a.is_positive(INTERFERENCE) else "none"
        for a in answers
    ]
    named = [cause(a) for a in answers]
    scores = []
    for name in sorted(set(truth)):
        hits = sum(t == n == name for t, n in zip(truth, named, strict=True))
        scores.append(2 * hits / (truth.count(name) + named.count(name)))
    return _mean(scores)


def precision(prevalence: float, recall: float | None, fpr: float | None) -> float | None:
    """The share of flags that are positives, if so many answers are; None if nothing is flagged or known."""
    if recall is None or fpr is None or not recall + fpr:
        return None
    found = prevalence * recall
    return found / (found + (1 - prevalence) * fpr)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


# -- the page ------------------------------------------------------------------------------------------

COLUMNS = (
    *("score", "auroc", "ci_low", "ci_high", "recall", "fpr", "fpr_high"),
    *("precision_at_5pct", "macro_f1", "probes"),
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page: first the headline of each model, in held-out wordings, then every group in short."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for mode in MODES:
            for truth in TRUTHS:
                shown = [
                    row
                    for row in rows
                    if (row["model"], row["relevance"], row["truth"]) == (model, mode, truth)
                    and (row["setting"], row["held_out"], row["kind"]) == (ALL, WORDING, ALL)
                ]
                if not shown or (truth == NEGLECT and mode == "auto"):
                    continue
                head = shown[0]
                parts.append(
                    f"## {model}, relevance {mode}, {truth}\n\nHeld-out wordings; {head['positives']} of "
                    f"{head['n']} answers are positives, {head['right']} are right."
                )
                parts.append(table([{name: row[name] for name in COLUMNS} for row in shown]))
    ours = [row for row in rows if row["score"] == (NEGLECT_SCORE if row["truth"] == NEGLECT else GUARD)]
    names = (
        *("model", "relevance", "truth", "setting", "held_out", "kind", "placement"),
        *("n", "positives", "right", "auroc", "recall", "fpr"),
    )
    parts += ["## Ours, by group", table([{name: row[name] for name in names} for row in ours])]
    return "\n\n".join(part.strip() for part in parts)
