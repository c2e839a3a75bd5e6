"""The tables of the ablation: a row for each condition, the shipped adapter's goals, groups, components."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modint_guard.data.perturb import REGISTRY
from modint_guard.evaluation.effects import EFFECTS, Answered, direction, effect, shares, sources
from modint_guard.evaluation.results import table
from modint_guard.evaluation.statistics import cluster_interval, mean, paired_interval
from modint_guard.models import ADAPTER
from modint_training.tinyworld.conditions import CLEAN_KIND, Condition, every_condition

# Each part of the method, with the run that lacks it and the run that has it.
COMPONENTS = (
    ("perturbed twins (+AUG)", "tinyworld-sft", "tinyworld-aug"),
    ("consistency by KL", "tinyworld-aug", "tinyworld-cons-kl"),
    ("consistency by JS", "tinyworld-aug", "tinyworld-cons-js"),
    ("the adversarial loss", "tinyworld-aug", "tinyworld-adv"),
    ("twins under Gaussian noise, weighed as the adversarial loss", "tinyworld-aug", "tinyworld-gaussian"),
    ("the attack in place of Gaussian noise", "tinyworld-gaussian", "tinyworld-adv"),
    ("the adversarial loss beside consistency", "tinyworld-cons-js", "tinyworld-full"),
    ("the attack's mask", "tinyworld-full-nomask", "tinyworld-full"),
    ("PCGrad between the losses", "tinyworld-full", "tinyworld-pcgrad"),
    ("rows that need both modalities last", "tinyworld-full", "tinyworld-progressive"),
    ("these last in place of first", "tinyworld-reverse", "tinyworld-progressive"),
    ("our settings for the paper's", "tinyworld-paper", "tinyworld-full"),
)
# What every seed must gain or lose, at least, for a component to be said to help or harm; set before any two
# runs were compared.
MARGIN = 0.005
# The goals of the shipped adapter: how much of its clean accuracy it may lose, how many answers may turn
# wrong.
TRAINED_LOSS, HELD_OUT_LOSS, HARMFUL = -0.01, -0.03, 0.02
Answers = Mapping[Condition, Sequence[Answered]]  # of one model


@dataclass(frozen=True)
class MeasuredModel:
    """One group of rows of the table: the base, the shipped adapter, or an ablation adapter with its seed."""

    name: str
    seed: int
    folder: Path
    record: Mapping[str, Any]

    @property
    def is_base(self) -> bool:
        """Whether it is the base itself, without an adapter."""
        return not (self.folder / "adapter_config.json").is_file()

    @property
    def key(self) -> str:
        """Its name among the adapters of one loaded model."""
        return f"{self.name}-seed{self.seed}"


def table_conditions() -> list[Condition]:
    """Every family clean, under every perturbation, and in held-out wordings; clean ones first."""
    conditions = [condition for condition in every_condition() if not condition.self_ask]
    return sorted(conditions, key=is_undisturbed, reverse=True)


def clean_of(condition: Condition) -> Condition:
    """The condition to compare with: without a caption, or without a picture, in the same wordings."""
    return replace(condition, perturbation=CLEAN_KIND[condition.family])


def is_undisturbed(condition: Condition) -> bool:
    """Whether its items contain nothing of the modality that must not matter."""
    return condition == clean_of(condition)


def rows_of(model: MeasuredModel, answers_by_condition: Answers) -> Iterator[dict[str, Any]]:
    """A row for each condition, then one for the cost of the training; effects are None for clean
    conditions."""
    nothing = dict.fromkeys(("train_seconds", "steps"))
    for condition, answers in answers_by_condition.items():
        clean = answers_by_condition[clean_of(condition)]
        effects = dict.fromkeys(EFFECTS) if is_undisturbed(condition) else effect(clean, answers)
        group = {
            "family": condition.family,
            "perturbation": condition.perturbation,
            "held_out": condition.held_out,
        }
        yield {"name": model.name, "seed": model.seed, **group, **shares(answers), **effects, **nothing}
    keys = ("n", "accuracy", "ci_low", "ci_high", "unparsable", *EFFECTS)
    yield {
        **{"name": model.name, "seed": model.seed, "family": "all", "perturbation": "cost", "held_out": "no"},
        **dict.fromkeys(keys),
        **nothing,
        **({} if model.is_base else _cost(model.record)),
    }


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"train_seconds": record.get("train_seconds"), "steps": record["recipe"].get("steps")}


def _of_role(role: str) -> Callable[[Condition], bool]:
    return lambda condition: _is_disturbed_here(condition) and REGISTRY[condition.perturbation].role == role


def _of_kind(name: str) -> Callable[[Condition], bool]:
    return lambda condition: _is_disturbed_here(condition) and condition.perturbation == name


def _is_disturbed_here(condition: Condition) -> bool:
    return not is_undisturbed(condition) and not condition.held_out_wording


# The conditions that each group of the summary averages over; a condition may belong to several.
GROUPS: Mapping[str, Callable[[Condition], bool]] = {
    "clean": lambda condition: (
        is_undisturbed(condition) and condition.family != "vqa" and not condition.held_out_wording
    ),
    "vqa": lambda condition: condition.family == "vqa" and not condition.held_out_wording,
    "control": _of_role("control"),
    "trained": _of_role("trained"),
    "misleading_description": _of_kind("misleading_description"),
    "contradicting_image": _of_kind("contradicting_image"),
    "held out": _of_role("held_out"),
    "wording": lambda condition: is_undisturbed(condition) and condition.held_out_wording,
    "wording, disturbed": lambda condition: not is_undisturbed(condition) and condition.held_out_wording,
}


# The goals of the shipped adapter


def goal_rows(adapter: Answers, base: Answers) -> list[dict[str, Any]]:
    """A row for each goal, decided by its worst condition, which `worst` names.

    Changes of accuracy have a paired interval, except between wordings, which have different items.
    """
    trained, held_out, reworded, restated = (
        list(filter(GROUPS[group], adapter))
        for group in ("trained", "held out", "wording, disturbed", "wording")
    )
    vqa = [condition for condition in adapter if condition.family == "vqa"]

    def loss(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        return [
            _gain(condition, adapter[clean_of(condition)], adapter[condition]) for condition in conditions
        ]

    less = "accuracy less clean"
    by_wording = [
        _unpaired_gain(condition, adapter[replace(condition, held_out_wording=False)], adapter[condition])
        for condition in restated
    ]
    flips = [
        _harmful_flips(condition, adapter[clean_of(condition)], adapter[condition])
        for condition in (*trained, *held_out, *reworded)
    ]
    over_base = [_gain(condition, base[condition], adapter[condition]) for condition in vqa]
    return [
        _goal("trained kinds within 1 point of clean", less, loss(trained), TRAINED_LOSS),
        _goal("held-out kinds within 3 points of clean", less, loss(held_out), HELD_OUT_LOSS),
        _goal("in held-out wordings within 3 points of clean", less, loss(reworded), HELD_OUT_LOSS),
        _goal(
            "held-out wordings within 3 points of trained ones", "clean accuracy", by_wording, HELD_OUT_LOSS
        ),
        _goal("harmful flips at most 2 %, all of these", "harmful flips", flips, HARMFUL, at_most=True),
        _goal("vqa not below the base", "accuracy less the base's", over_base, 0.0),
    ]


def _gain(condition: Condition, before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, Any]:
    """The gain in accuracy from the first answers to the second, to the same items, with its interval."""
    low, high = paired_interval(
        [answer.right for answer in before], [answer.right for answer in after], sources(before)
    )
    return {**_unpaired_gain(condition, before, after), "ci_low": low, "ci_high": high}


def _unpaired_gain(
    condition: Condition, before: Sequence[Answered], after: Sequence[Answered]
) -> dict[str, Any]:
    """The same for answers to different items, without an interval."""
    one, two = (sum(answer.right for answer in answers) for answers in (before, after))
    value = (two * len(before) - one * len(after)) / (
        len(before) * len(after)
    )  # a single rounding: a bar that is just met counts as met
    return {"worst": condition.name, "n": len(after), "value": value, "ci_low": None, "ci_high": None}


def _harmful_flips(
    condition: Condition, before: Sequence[Answered], after: Sequence[Answered]
) -> dict[str, Any]:
    """The share of answers that turn from right to wrong."""
    flips = [float(direction(*pair) == "harmful") for pair in zip(before, after, strict=True)]
    low, high = cluster_interval(flips, sources(before))
    return {
        **{"worst": condition.name, "n": len(flips), "value": sum(flips) / len(flips)},
        **{"ci_low": low, "ci_high": high},
    }


def _goal(
    goal: str, measure: str, figures: Sequence[Mapping[str, Any]], bar: float, *, at_most: bool = False
) -> dict[str, Any]:
    """The worst of the figures against the bar."""
    nothing: Mapping[str, Any] = dict.fromkeys(("worst", "n", "value", "ci_low", "ci_high"))
    worst = (max if at_most else min)(figures, key=lambda figure: figure["value"], default=nothing)
    value = worst["value"]
    met = value is not None and (value <= bar if at_most else value >= bar)
    verdict = "not measured" if value is None else "met" if met else "missed"
    return {"goal": goal, "measure": measure, **worst, "bar": bar, "verdict": verdict}


# The summary


def notes(
    models: Sequence[MeasuredModel], answers: Mapping[str, Answers], *, missing: Sequence[str] = ()
) -> str:
    """The text above the table: missing adapters, the shipped adapter's goals, accuracy by group, and the
    gain by component. `answers` are by the key of each model; the base comes first among `models`."""
    gains = list(gains_of(models, answers))
    parts = [NOTES]
    if missing:
        parts.append(f"Not measured, for there was no adapter: {', '.join(missing)}.")
    for shipped in (model for model in models if model.name == ADAPTER):
        goals = goal_rows(answers[shipped.key], answers[models[0].key])
        parts += [f"## The goals of {ADAPTER}", GOAL_NOTES, table(goals)]
    parts += ["## By group", GROUP_NOTES, table(list(summary(models, answers)))]
    if gains:
        lines = "\n".join(f"- {line}" for line in verdict_lines(gains))
        parts += ["## By component", GAIN_NOTES.format(margin=MARGIN, count=len(gains)), lines, table(gains)]
    return "\n\n".join([*parts, "## Every condition"])


NOTES = """\
Greedy first tokens in transformers. `change`, the flips, `js` (base 2, over the options) and the changes of
log-probability (nats) are against the same items clean: without a caption, or without a picture. Intervals:
95 %, bootstrap clustered by source digit, paired where two answers to one item are compared; they do not hold
how much a training run varies with its seed, which the seeds beside one another show. `held_out` marks the
kinds that the registry bars from all training, and wordings that none has seen. Rows of the perturbation
`cost` hold the steps of the training and its seconds by the clock, with its looks at the validation split and
whatever ran beside it: multiples of a step are in training_bench.json."""
GOAL_NOTES = """\
The worst condition decides a goal and is named. Harmful flips are of right answers to wrong ones, a share of
all, under trained and held-out kinds in either wording; vqa is asked in both wordings."""


def _named(role: str) -> str:
    return ", ".join(f"`{kind.name}`" for kind in REGISTRY.values() if kind.role == role)


GROUP_NOTES = f"""\
Accuracy and harmful flips over all conditions of a group, mean of the seeds. `clean`: image-heavy without a
caption, text-heavy without a picture; `control`: harmless captions and pictures; `trained`: the kinds of
which twins are drawn, in runs that have twins: {_named("trained")};
of these the two that mislead most stand alone as well; `held out`: {_named("held_out")};
`wording`: nothing disturbs, in held-out wordings; `wording, disturbed`: lying captions and contradicting
pictures in these. `{ADAPTER}` had another budget than the ablations: rank 16, 900 steps, one seed."""
GAIN_NOTES = """\
Accuracy with a part of the method less that without it, on the same items, over all seeds that both have. A
part helps or harms where the paired interval excludes 0 and every seed, of two at least, gains or loses
{margin} (half a point) or more; the margin was set before any two runs were compared. {count}
comparisons, none corrected.

What a pair differs in beside its name: the adversarial loss is a second cross-entropy on the same twins, so
that these weigh two thirds of the loss and not one, whatever the noise (hence the Gaussian control);
perturbed twins take a third of the loss from clean examples; beside consistency the attacked twins count to
that as well; where the two sides nearly agree, KL of one weight pulls about four times as hard as JS. Only
twins are attacked, never vqa rows: the mask's pair does not test the paper's finding about those.
`tinyworld-paper` has the paper's losses, its epsilon and lambda unscaled, which is next to no attack and no
consistency here (0.001 is about half a percent of a word's embedding), and none of the harmless twins that
the other is trained on."""


def summary(models: Sequence[MeasuredModel], answers: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    """A row for each name: mean accuracy by group, and the harmful flips under trained and held-out kinds."""
    for name in dict.fromkeys(model.name for model in models):
        keys = [model.key for model in models if model.name == name]
        right = {
            group: [
                answer.right
                for key in keys
                for condition, of_condition in answers[key].items()
                if GROUPS[group](condition)
                for answer in of_condition
            ]
            for group in GROUPS
        }
        flips = {
            group: [
                direction(before, after) == "harmful"
                for key in keys
                for condition, of_condition in answers[key].items()
                if GROUPS[group](condition)
                for before, after in zip(answers[key][clean_of(condition)], of_condition, strict=True)
            ]
            for group in ("trained", "held out")
        }
        yield {
            "name": name,
            "seeds": len(keys),
            **{group: mean(right[group]) for group in GROUPS},
            **{f"harmful flips, {group}": mean(values) for group, values in flips.items()},
        }


def gains_of(models: Sequence[MeasuredModel], answers: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    """The gain in accuracy by each component and group, if at least one seed was trained with and without
    it."""
    by_name = {(model.name, model.seed): answers[model.key] for model in models}
    for component, without, with_ in COMPONENTS:
        seeds = [seed for name, seed in by_name if name == with_ and (without, seed) in by_name]
        for group in GROUPS if seeds else ():
            pairs = [
                (before, after)
                for seed in seeds
                for condition, of_condition in by_name[without, seed].items()
                if GROUPS[group](condition)
                for before, after in zip(of_condition, by_name[with_, seed][condition], strict=True)
            ]
            if not pairs:
                continue
            before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            low, high = paired_interval(
                [answer.right for answer in before], [answer.right for answer in after], sources(before)
            )
            by_seed = [
                _accuracy(by_name[with_, seed], group) - _accuracy(by_name[without, seed], group)
                for seed in seeds
            ]
            gain = {
                "component": component,
                "from": without,
                "to": with_,
                "group": group,
                "gain": sum(after.right - before.right for before, after in pairs) / len(pairs),
                "gain_low": low,
                "gain_high": high,
                "gain_least": min(by_seed),
                "gain_most": max(by_seed),
                "seeds": len(seeds),
            }
            yield {**gain, "verdict": verdict(gain)}


def verdict(gain: Mapping[str, Any]) -> str:
    """`helps` or `harms` if the interval and every seed, of at least two, say so; otherwise `no difference
    shown`."""
    if gain["seeds"] < 2:
        return "no difference shown"
    if gain["gain_low"] > 0 and gain["gain_least"] >= MARGIN:
        return "helps"
    return "harms" if gain["gain_high"] < 0 and gain["gain_most"] <= -MARGIN else "no difference shown"


def verdict_lines(gains: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each component: the groups that it helps and harms, each with its gain, and how many show no
    difference."""
    for component, without, with_ in dict.fromkeys((g["component"], g["from"], g["to"]) for g in gains):
        groups = [gain for gain in gains if (gain["component"], gain["from"]) == (component, without)]
        effects = [_groups_of(groups, word) for word in ("helps", "harms")]
        rest = sum(gain["verdict"] == "no difference shown" for gain in groups)
        parts = [
            *filter(None, effects),
            *([f"no difference shown in {rest} of {len(groups)} groups"] if rest else []),
        ]
        yield f"{component} ({without} → {with_}): {'; '.join(parts)}"


def _groups_of(gains: Sequence[Mapping[str, Any]], word: str) -> str:
    groups = [f"{gain['group']} ({gain['gain']:+.3f})" for gain in gains if gain["verdict"] == word]
    return f"{word} {', '.join(groups)}" if groups else ""


def _accuracy(answers: Answers, group: str) -> float:
    right = (
        answer.right
        for condition, of_condition in answers.items()
        if GROUPS[group](condition)
        for answer in of_condition
    )
    return mean(right) or 0.0
