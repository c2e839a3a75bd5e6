"""From the records of detection to its tables: labels, fitted risk, thresholds, a row for each score. Pure
functions."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from bench.detection import baselines
from bench.detection.inputs import HELD_OUT, KINDS, MISLED, SETTINGS, TEXT_DRIVEN
from modint_guard.errors import ConfigError
from modint_guard.evaluation import curves
from modint_guard.evaluation.fit_calibration import clear_threshold
from modint_guard.evaluation.statistics import auroc_resamples, mean, percentile_interval
from modint_guard.judging import risk
from modint_guard.judging.risk import Thresholds
from modint_guard.types import CELLS, JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR

logger = logging.getLogger(__name__)
PROBES = 1.6  # the early stop's average for each request
ALPHAS = (0.0, 0.25, 0.5, 1.0, 2.0)  # candidates for VAUQ; the best on the validation items is used
ENOUGH_STATED = 0.9  # of a model's answers must name a number, for it to count as stating a confidence
BOTH_SETTINGS = "both"
INTERFERENCE, WRONG = TRUTHS = ("interference", "wrong")

NOTES = f"""\
Answers of the bundled models through vLLM and the gateway, first content token, greedy. `truth`
interference: positives are wrong and right on a clean twin worded otherwise, negatives right on both;
answers whose clean twin is wrong are left out. `truth` wrong: wrong against right, over all answers. Inputs
of four kinds, as many of each: lying, true, needed (the client says that both decide; a right answer is a
negative), neutral. `held_out` says what no training has seen; validation items have nothing held out.
`setting` both pools the two, each with its own fit. Of the adapter half as many cases are asked. Without
rows, because validation allows no fit: {{unfitted}}.

Image-driven cells hold twice as many cases, and of sub-tasks in which the base gave way to fewer than
{MISLED:.0%} of the lying pictures every third only: this time {{thinned}}, found on validation items apart
from all these.

Ours: `gateway` is the risk of the verdict as served (where it is null, 1 for a flag and 0 for none); `risk`
a logistic of js, margin, entropy and pmi fitted on the validation items; `risk_early_stop` the same with
the other cells left out where the first clears the answer or flags it, at {PROBES:g} probes on average there.
Then each feature alone, of the view without the other input: js, margin, pmi, flip; shapley is that input's
influence; a feature that an answer lacks counts as 0. Baselines: max_probability, entropy, semantic_entropy
(5 and 10 samples at T = 1, clusters by option), vl_uncertainty_5 (blurred pictures and other wordings),
vauq (whole picture masked, alpha chosen on the validation items), verbalised (empty where fewer than
{ENOUGH_STATED:.0%} of the answers came with a number; asked of the pilot first).

By construction: in text-driven items without the caption the view is the clean twin but for its words, so
that its flip and margin nearly repeat the label. The image-driven setting and `truth` wrong have no such
help.

Intervals: 95 %, bootstrap of whole sources. `gain` is the AUROC less that of the best baseline of the same
rows, `gain_low` its paired interval's end. `threshold` is the one of the best macro-F1 on the validation
items; `tpr` and `fpr` are those of the test items at it, `fpr_at_95` that of the test items' own curve.
`macro_f1` is of the cause (text, image, none) at the threshold; no baseline names one. `probes` and tokens
are means a request beyond the answer itself, `ms_p50` a median. `latency_ratio`: the median of the time that
answer and detector took over that of the answer, were all sent at once but what needs the answer first;
under the run's own load. In open loop: [latency.md](latency.md)."""
FLAG_NOTES = """\
Shares of wrong and of right answers that are flagged, by kind: as the gateway served them, and by `risk` at
its threshold from the validation items. A flag on a right answer to a needed input is a false alarm."""


@dataclass(frozen=True)
class Cost:
    """The cost of a detector beyond the answer: calls, computed and cached tokens, and the milliseconds of
    calls that are sent with the request (`ms`) and of calls that wait for the answer (`after_ms`).
    """

    calls: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0
    ms: float = 0.0
    after_ms: float = 0.0

    def beside(self, other: "Cost") -> "Cost":
        """Both at the same time: as long as the slower one."""
        return Cost(
            self.calls + other.calls,
            self.new_tokens + other.new_tokens,
            self.cached_tokens + other.cached_tokens,
            max(self.ms, other.ms),
            max(self.after_ms, other.after_ms),
        )

    def then(self, other: "Cost") -> "Cost":
        """This, and the other once the answer is complete."""
        return replace(self.beside(other), ms=self.ms, after_ms=self.after_ms + other.ms + other.after_ms)

    def slower(self, answer_ms: float) -> float:
        """The time that answer and detector take together, as a multiple of the answer alone."""
        return (max(answer_ms, self.ms) + self.after_ms) / answer_ms


@dataclass(frozen=True)
class Answer:
    """One answer with its truth and all measurements; entropies in bits, pmi and influence in nats. `cells`
    holds the features of each view, `sampled` and `varied` the clusters of other answers.
    """

    model: str
    split: str
    setting: str
    kind: str
    held_out: str
    source: str
    relevant: str
    right: bool
    right_when_clean: bool
    verdict: str
    cause: str | None
    risk: float | None
    entropy: float
    max_probability: float
    cells: Mapping[str, Mapping[str, float]]
    influence: Mapping[str, float | None]
    relative_entropy: float | None
    sampled: Sequence[str]
    varied: Sequence[str]
    stated: float | None
    answer_ms: float
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: JSON) -> "Answer":
        """The answer from its JSON (`dataclasses.asdict`)."""
        return cls(**{**record, "costs": {name: Cost(**cost) for name, cost in record["costs"].items()}})

    @property
    def other(self) -> str:
        """The modality of the other input, which ought not to decide."""
        return "text" if self.setting == TEXT_DRIVEN else "image"

    @property
    def first_cell(self) -> str:
        """The view without the other input."""
        return NO_CONTEXT if self.setting == TEXT_DRIVEN else NEUTRAL_IMAGE

    def feature(self, name: str, cell: str | None = None) -> float:
        """A feature of a view (by default the first cell); 0 if the answer lacks it."""
        return self.cells.get(cell or self.first_cell, {}).get(name, 0.0)


Value = Callable[[Answer], float]
Spent = Callable[[Answer], Cost]


@dataclass(frozen=True)
class Detector:
    """A score, fitted on validation items: higher is worse, and an answer is flagged from `threshold` on.

    `flags`, if there is one, decides instead of the threshold; `cause` names the cause of a flag.
    """

    name: str
    ours: bool
    value: Value
    cost: Spent
    threshold: float = 1.0
    cause: Callable[[Answer], str] | None = None
    flags: Callable[[Answer], bool] | None = None

    def flagged(self, answer: Answer) -> bool:
        """Whether it flags the answer."""
        return self.flags(answer) if self.flags else self.value(answer) >= self.threshold

    def named_cause(self, answer: Answer) -> str:
        """The cause that it names, or "none"."""
        return self.cause(answer) if self.cause and self.flagged(answer) else "none"


# -- scores -------------------------------------------------------------------------------------------


def as_served(answer: Answer) -> float:
    """The verdict's risk; if it is null, 1 for a flag and 0 for none."""
    return answer.risk if answer.risk is not None else float(answer.verdict == "flagged")


def _shapley(answer: Answer) -> float:
    return answer.influence.get(answer.other) or 0.0


def _relative_certainty(answer: Answer) -> float:
    """How much more certain the other modality alone is than the one that ought to decide."""
    value = answer.relative_entropy or 0.0  # above 0 if the image alone is the more certain one
    return value if answer.other == "image" else -value


FEATURES: dict[str, Value] = {
    "js": lambda a: a.feature("js"),
    "margin": lambda a: a.feature("margin"),
    "pmi": lambda a: a.feature("pmi"),
    "flip": lambda a: a.feature("flip"),
    "js_prior": lambda a: a.feature("js", PRIOR),
    "shapley": _shapley,
    "synergy": lambda a: a.influence.get("synergy") or 0.0,
    "relative_entropy": _relative_certainty,
}
BASELINES: dict[str, Value] = {
    "max_probability": lambda a: a.max_probability,
    "entropy": lambda a: a.entropy,
    "semantic_entropy_5": lambda a: baselines.semantic_entropy(a.sampled[:5]),
    "semantic_entropy_10": lambda a: baselines.semantic_entropy(a.sampled),
    "vl_uncertainty_5": lambda a: baselines.semantic_entropy(a.varied),
    "verbalised": lambda a: 1.0 - (0.5 if a.stated is None else a.stated),
}


def fitted_risk(validation: Sequence[Answer]) -> Value:
    """The logistic of the calibration's features, fitted to interference; if both modalities decide, the
    gateway's own risk or flag.
    """
    fit_on = [a for a in labelled(validation, INTERFERENCE) if a.relevant != "both"]
    model = risk.fit([_features(a) for a in fit_on], [not a.right for a in fit_on])
    return lambda a: as_served(a) if a.relevant == "both" else model.risk(_features(a))


def _features(answer: Answer) -> dict[str, float]:
    return {**{n: answer.feature(n) for n in ("js", "margin", "pmi")}, "entropy": answer.entropy}


def chosen_alpha(validation: Sequence[Answer]) -> float:
    """The alpha of VAUQ with the highest AUROC for wrong answers to the validation items."""
    wrong = [not a.right for a in validation]
    return max(ALPHAS, key=lambda alpha: curves.auroc([_vauq(a, alpha) for a in validation], wrong))


def _vauq(answer: Answer, alpha: float) -> float:
    return baselines.vauq(answer.entropy, answer.feature("entropy", NEUTRAL_IMAGE), alpha)


# -- costs --------------------------------------------------------------------------------------------


def cells_cost(answer: Answer, names: Sequence[str] = CELLS) -> Cost:
    """The cost of these cells, asked at the same time."""
    total = Cost()
    for name in names:
        total = total.beside(answer.costs.get(name, Cost()))
    return total


def early_stop_cost(answer: Answer, value: float, clear_below: float, flag_at: float) -> Cost:
    """The cost of the first cell, and of the others if it neither clears nor flags the answer. If both
    modalities decide, the prior goes first, and an answer that it does not give with confidence is cleared.
    """
    if NO_CONTEXT not in answer.cells:  # one view is all there is
        return cells_cost(answer)
    name = PRIOR if answer.relevant == "both" else answer.first_cell
    goes_on = clear_below <= value < flag_at
    if answer.relevant == "both":
        goes_on = answer.feature("sure", PRIOR) >= Thresholds().certain
    first = cells_cost(answer, [name])
    return first.then(cells_cost(answer, [each for each in CELLS if each != name])) if goes_on else first


def _named(name: str) -> Spent:
    return lambda answer: answer.costs.get(name, Cost())


# -- detectors ----------------------------------------------------------------------------------------


def detectors(validation: Sequence[Answer]) -> list[Detector]:
    """Every score, with its free constants and its threshold from the validation items of one setting.

    Raises ConfigError if these hold one class only.
    """
    risk_of = fitted_risk(validation)
    alpha = chosen_alpha(validation)

    def from_(name: str, ours: bool, value: Value, cost: Spent, **more: Any) -> Detector:
        cause = (lambda a: a.other) if ours else None
        return Detector(name, ours, value, cost, threshold_of(value, validation), cause, **more)

    ours = from_("risk", True, risk_of, cells_cost)
    risks = [risk_of(a) for a in validation if a.relevant != "both"]
    clear = clear_threshold(risks, ours.threshold, PROBES)

    def early_stop(answer: Answer) -> Cost:
        return early_stop_cost(answer, risk_of(answer), clear, ours.threshold)

    return [
        Detector(
            "gateway",
            True,
            as_served,
            _named("gateway"),
            cause=lambda a: a.cause or "none",
            flags=lambda a: a.verdict == "flagged",
        ),
        ours,
        from_("risk_early_stop", True, risk_of, early_stop),
        *(from_(name, True, value, _feature_cost(name)) for name, value in FEATURES.items()),
        *(from_(name, False, value, _named(name)) for name, value in BASELINES.items()),
        from_("vauq", False, lambda a: _vauq(a, alpha), lambda a: cells_cost(a, [NEUTRAL_IMAGE])),
    ]


def _feature_cost(name: str) -> Spent:
    if name in ("js", "margin", "pmi", "flip"):
        return lambda answer: cells_cost(answer, [answer.first_cell])
    if name == "js_prior":
        return lambda answer: cells_cost(answer, [PRIOR])
    if name == "relative_entropy":
        return lambda answer: cells_cost(answer, [NO_CONTEXT, NEUTRAL_IMAGE])
    return cells_cost


def threshold_of(value: Value, validation: Sequence[Answer]) -> float:
    """The threshold with the best macro-F1 on the validation items; of equal ones the highest."""
    answers = labelled(validation, INTERFERENCE)
    scores = np.array([value(a) for a in answers])
    truth = np.array([not a.right for a in answers])
    best, threshold = -1.0, 1.0
    for at in sorted(set(scores.tolist()), reverse=True):
        flags = scores >= at
        f1 = macro_f1([str(each) for each in truth], [str(each) for each in flags])
        if f1 > best:
            best, threshold = f1, at
    return threshold


# -- labels and figures -------------------------------------------------------------------------------


def labelled(answers: Sequence[Answer], truth: str) -> list[Answer]:
    """The answers that count: for interference, those that are right on the clean twin."""
    return [a for a in answers if truth == WRONG or a.right_when_clean]


def macro_f1(truth: Sequence[str], named: Sequence[str]) -> float:
    """The mean F1 over the classes that occur among the truths; naming any other class is a miss."""
    scores = []
    for name in sorted(set(truth)):
        hits = sum(t == n == name for t, n in zip(truth, named, strict=True))
        scores.append(2 * hits / (sum(t == name for t in truth) + sum(n == name for n in named)))
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class _Judged:
    """One answer as one detector judges it."""

    answer: Answer
    value: float
    flagged: bool
    cause: str
    cost: Cost
    threshold: float | None


def rows(answers: Sequence[Answer], *, seed: int = 0, resamples: int = 1000) -> Iterator[dict[str, Any]]:
    """A row for each model, setting, held-out part, truth and score. Groups with one class only have none."""
    for model in dict.fromkeys(a.model for a in answers):
        judged = _judge_all([a for a in answers if a.model == model])
        for setting in _fitted_settings(judged):
            for held_out in HELD_OUT:
                for truth in TRUTHS:
                    group = [
                        (
                            detector,
                            [each for each in of_detector if _is_in(each.answer, setting, held_out, truth)],
                        )
                        for detector, of_detector in judged
                    ]
                    head = {"model": model, "setting": setting, "held_out": held_out, "truth": truth}
                    yield from (
                        {**head, **row} for row in _group_rows(group, truth, seed=seed, resamples=resamples)
                    )


def unfitted(answers: Sequence[Answer]) -> Iterator[str]:
    """Model, setting and reason, for each that has no rows."""
    for model, setting in product(dict.fromkeys(a.model for a in answers), SETTINGS):
        here = [a for a in answers if (a.model, a.setting, a.split) == (model, setting, "validation")]
        try:
            detectors(here)
        except ConfigError as exc:
            yield f"{model} {setting} ({exc})"


def _judge_all(answers: Sequence[Answer]) -> list[tuple[Detector, list[_Judged]]]:
    """Every detector with its judgements of one model's test answers, fitted to each setting apart. A setting
    whose validation answers allow no fit is left out.
    """
    judged: dict[str, tuple[Detector, list[_Judged]]] = {}
    for setting in SETTINGS:
        here = [a for a in answers if a.setting == setting]
        try:
            fitted = detectors([a for a in here if a.split == "validation"])
        except ConfigError as exc:
            logger.warning("%s: no table: %s", setting, exc)
            continue
        for detector in fitted:
            of_detector = judged.setdefault(detector.name, (detector, []))[1]
            of_detector += [_judge(detector, a) for a in here if a.split == "test"]
    return list(judged.values())


def _fitted_settings(judged: Sequence[tuple[Detector, Sequence[_Judged]]]) -> tuple[str, ...]:
    """The settings that could be fitted, and both together if both could."""
    present = {each.answer.setting for _, of_detector in judged for each in of_detector}
    fitted = tuple(setting for setting in SETTINGS if setting in present)
    return (*fitted, BOTH_SETTINGS) if len(fitted) == len(SETTINGS) else fitted


def _judge(detector: Detector, answer: Answer) -> _Judged:
    threshold = None if detector.flags else detector.threshold
    value, flagged = detector.value(answer), detector.flagged(answer)
    return _Judged(answer, value, flagged, detector.named_cause(answer), detector.cost(answer), threshold)


def _is_in(answer: Answer, setting: str, held_out: str, truth: str) -> bool:
    fits = setting in (answer.setting, BOTH_SETTINGS) and answer.held_out == held_out
    return fits and (truth == WRONG or answer.right_when_clean)


def _group_rows(
    group: Sequence[tuple[Detector, Sequence[_Judged]]], truth: str, *, seed: int, resamples: int
) -> Iterator[dict[str, Any]]:
    first = group[0][1] if group else ()
    wrong = [not each.answer.right for each in first]
    if len(set(wrong)) < 2:
        return
    clusters = [each.answer.source for each in first]
    has_score = {d.name: d.name != "verbalised" or _share_stated(first) >= ENOUGH_STATED for d, _ in group}
    resampled = {
        detector.name: auroc_resamples(
            [each.value for each in judged], wrong, clusters, resamples=resamples, seed=seed
        )
        for detector, judged in group
        if has_score[detector.name]
    }
    areas = {
        detector.name: curves.auroc([each.value for each in judged], wrong)
        for detector, judged in group
        if has_score[detector.name]
    }
    best = max((d.name for d, _ in group if not d.ours and has_score[d.name]), key=areas.__getitem__)
    for detector, judged in group:
        row = _row(detector, judged, wrong, truth)
        if has_score[detector.name]:
            low, high = percentile_interval(resampled[detector.name])
            row |= {"auroc": areas[detector.name], "auroc_low": low, "auroc_high": high}
            if detector.ours:
                row["gain"] = areas[detector.name] - areas[best]
                row["gain_low"] = percentile_interval(resampled[detector.name] - resampled[best])[0]
        else:
            row |= dict.fromkeys(("auprc", "fpr_at_95", "risk_at_80", "threshold", "tpr", "fpr"))
        yield row


def _share_stated(judged: Sequence[_Judged]) -> float:
    return sum(each.answer.stated is not None for each in judged) / len(judged)


def _row(detector: Detector, judged: Sequence[_Judged], wrong: Sequence[bool], truth: str) -> dict[str, Any]:
    values = [each.value for each in judged]
    causes = [each.answer.other if bad else "none" for each, bad in zip(judged, wrong, strict=True)]
    names_cause = truth == INTERFERENCE and detector.cause is not None
    thresholds = {each.threshold for each in judged}
    costs = [each.cost for each in judged]
    return {
        "score": detector.name,
        "n": len(judged),
        "positives": sum(wrong),
        "auroc": None,
        "auroc_low": None,
        "auroc_high": None,
        "gain": None,
        "gain_low": None,
        "auprc": curves.auprc(values, wrong),
        "fpr_at_95": curves.fpr_at(values, wrong),
        "risk_at_80": curves.risk_at(values, wrong),
        "threshold": thresholds.pop() if len(thresholds) == 1 else None,
        "tpr": mean([each.flagged for each, bad in zip(judged, wrong, strict=True) if bad]),
        "fpr": mean([each.flagged for each, bad in zip(judged, wrong, strict=True) if not bad]),
        "macro_f1": macro_f1(causes, [each.cause for each in judged]) if names_cause else None,
        "probes": sum(cost.calls for cost in costs) / len(costs),
        "new_tokens": sum(cost.new_tokens for cost in costs) / len(costs),
        "cached_tokens": sum(cost.cached_tokens for cost in costs) / len(costs),
        "ms_p50": float(np.median([cost.ms + cost.after_ms for cost in costs])),
        "latency_ratio": float(np.median([each.cost.slower(each.answer.answer_ms) for each in judged])),
    }


def flag_rows(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """A row for each model, setting, held-out part and kind: the shares flagged of wrong and right
    answers."""
    for model in dict.fromkeys(a.model for a in answers):
        judged = {
            d.name: of_detector for d, of_detector in _judge_all([a for a in answers if a.model == model])
        }
        if not judged:
            continue
        groups: dict[tuple[str, str, str], list[tuple[_Judged, _Judged]]] = defaultdict(list)
        for served, fitted in zip(judged["gateway"], judged["risk"], strict=True):
            a = served.answer
            groups[a.setting, a.held_out, a.kind].append((served, fitted))
        for (setting, held_out, kind), pairs in sorted(groups.items(), key=lambda each: _order(each[0])):
            wrong = [pair for pair in pairs if not pair[0].answer.right]
            right = [pair for pair in pairs if pair[0].answer.right]
            yield {
                "model": model,
                "setting": setting,
                "held_out": held_out,
                "kind": kind,
                "n": len(pairs),
                "wrong": len(wrong),
                "gateway_flagged_of_wrong": mean([served.flagged for served, _ in wrong]),
                "gateway_flagged_of_right": mean([served.flagged for served, _ in right]),
                "risk_flagged_of_wrong": mean([fitted.flagged for _, fitted in wrong]),
                "risk_flagged_of_right": mean([fitted.flagged for _, fitted in right]),
            }


def _order(key: tuple[str, str, str]) -> tuple[int, int, int]:
    setting, held_out, kind = key
    return SETTINGS.index(setting), HELD_OUT.index(held_out), KINDS.index(kind)
