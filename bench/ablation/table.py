"""What the ablation's answers say: a row a condition, the shipped adapter's goals, groups and components."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modint_guard.data.perturb import REGISTRY
from modint_guard.evaluation.effects import EFFECTS, Answered, direction, effect, shares, sources
from modint_guard.evaluation.results import table
from modint_guard.evaluation.statistics import cluster_interval, mean, paired_interval
from modint_guard.models import ADAPTER
from modint_training.tinyworld.conditions import Condition, every_condition

# What each part of the method adds to which run without it.
COMPONENTS = (
    ("perturbed twins (+AUG)", "tinyworld-sft", "tinyworld-aug"),
    ("consistency by KL", "tinyworld-aug", "tinyworld-cons-kl"),
    ("consistency by JS", "tinyworld-aug", "tinyworld-cons-js"),
    ("the adversarial loss", "tinyworld-aug", "tinyworld-adv"),
    ("twins under Gaussian noise, weighed as the adversarial loss", "tinyworld-aug", "tinyworld-gaussian"),
    ("the attack in place of Gaussian noise", "tinyworld-gaussian", "tinyworld-adv"),
    ("the adversarial loss beside consistency", "tinyworld-cons-js", "tinyworld-full"),
    ("the attack's mask", "tinyworld-full-nomask", "tinyworld-full"),
    ("our settings for the paper's", "tinyworld-paper", "tinyworld-full"),
)
# The least that every seed must gain, or lose, before a component is said to help or harm; set before any two
# runs were compared.
MARGIN = 0.005
# The goals of the shipped adapter: what it may lose of its clean accuracy, how many answers may turn wrong.
TRAINED_LOSS, HELD_OUT_LOSS, HARMFUL = -0.01, -0.03, 0.02
Found = Mapping[Condition, Sequence[Answered]]  # one model's answers


@dataclass(frozen=True)
class Measured:
    """One row group of the table: the base, the shipped adapter, or an ablation with its seed."""

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
        """Its name as an adapter of one loaded model."""
        return f"{self.name}-seed{self.seed}"


def cells_of() -> list[Condition]:
    """Every family clean, under every perturbation, and in held-out wordings; clean ones first."""
    cells = [cell for cell in every_condition() if not cell.self_ask]
    return sorted(cells, key=is_undisturbed, reverse=True)


def clean_of(cell: Condition) -> Condition:
    """The condition that a cell is compared with: no caption, or no picture, in the same wordings."""
    return replace(cell, perturbation="no_image" if cell.family == "text-heavy" else "clean")


def is_undisturbed(cell: Condition) -> bool:
    """Whether nothing of the modality that must not matter is in it."""
    return cell == clean_of(cell)


def rows_of(each: Measured, found: Found) -> Iterator[dict[str, Any]]:
    """A row for each condition, then one of what the training cost; effects are None for clean conditions."""
    nothing = dict.fromkeys(("train_seconds", "steps"))
    for cell, answers in found.items():
        clean = found[clean_of(cell)]
        moved = dict.fromkeys(EFFECTS) if is_undisturbed(cell) else effect(clean, answers)
        shown = {"family": cell.family, "perturbation": cell.perturbation, "held_out": cell.held_out}
        yield {"name": each.name, "seed": each.seed, **shown, **shares(answers), **moved, **nothing}
    keys = ("n", "accuracy", "ci_low", "ci_high", "unparsable", *EFFECTS)
    yield {
        **{"name": each.name, "seed": each.seed, "family": "all", "perturbation": "cost", "held_out": "no"},
        **dict.fromkeys(keys),
        **nothing,
        **({} if each.is_base else _cost(each.record)),
    }


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"train_seconds": record.get("train_seconds"), "steps": record["recipe"].get("steps")}


def _of_role(role: str) -> Callable[[Condition], bool]:
    return lambda cell: _is_disturbed_here(cell) and REGISTRY[cell.perturbation].role == role


def _of_kind(name: str) -> Callable[[Condition], bool]:
    return lambda cell: _is_disturbed_here(cell) and cell.perturbation == name


def _is_disturbed_here(cell: Condition) -> bool:
    return not is_undisturbed(cell) and not cell.held_out_wording


# Which conditions an accuracy of the summary is the mean of; a condition may count to several.
GROUPS: Mapping[str, Callable[[Condition], bool]] = {
    "clean": lambda cell: is_undisturbed(cell) and cell.family != "vqa" and not cell.held_out_wording,
    "vqa": lambda cell: cell.family == "vqa" and not cell.held_out_wording,
    "control": _of_role("control"),
    "trained": _of_role("trained"),
    "misleading_description": _of_kind("misleading_description"),
    "contradicting_image": _of_kind("contradicting_image"),
    "held out": _of_role("held_out"),
    "wording": lambda cell: is_undisturbed(cell) and cell.held_out_wording,
    "wording, disturbed": lambda cell: not is_undisturbed(cell) and cell.held_out_wording,
}


# The goals of the shipped adapter


def goal_rows(own: Found, base: Found) -> list[dict[str, Any]]:
    """A row for each goal, decided by its worst condition, which `worst` names.

    Changes of accuracy have a paired interval, but between wordings, whose items are others.
    """
    trained, held_out, reworded, restated = (
        list(filter(GROUPS[group], own)) for group in ("trained", "held out", "wording, disturbed", "wording")
    )
    vqa = [cell for cell in own if cell.family == "vqa"]

    def loss(cells: Sequence[Condition]) -> list[dict[str, Any]]:
        return [_gained(cell, own[clean_of(cell)], own[cell]) for cell in cells]

    less = "accuracy less clean"
    other = [_other_items(cell, own[replace(cell, held_out_wording=False)], own[cell]) for cell in restated]
    flips = [_harmed(cell, own[clean_of(cell)], own[cell]) for cell in (*trained, *held_out, *reworded)]
    beside = [_gained(cell, base[cell], own[cell]) for cell in vqa]
    return [
        _goal("trained kinds within 1 point of clean", less, loss(trained), TRAINED_LOSS),
        _goal("held-out kinds within 3 points of clean", less, loss(held_out), HELD_OUT_LOSS),
        _goal("in held-out wordings within 3 points of clean", less, loss(reworded), HELD_OUT_LOSS),
        _goal("held-out wordings within 3 points of trained ones", "clean accuracy", other, HELD_OUT_LOSS),
        _goal("harmful flips at most 2 %, all of these", "harmful flips", flips, HARMFUL, at_most=True),
        _goal("vqa not below the base", "accuracy less the base's", beside, 0.0),
    ]


def _gained(cell: Condition, before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, Any]:
    """By how much the second answers to the same items are more often right."""
    low, high = paired_interval(
        [each.right for each in before], [each.right for each in after], sources(before)
    )
    return {**_other_items(cell, before, after), "ci_low": low, "ci_high": high}


def _other_items(cell: Condition, before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, Any]:
    """The same of answers to other items, without an interval."""
    one, two = (sum(each.right for each in answers) for answers in (before, after))
    value = (two * len(before) - one * len(after)) / (len(before) * len(after))  # one rounding: bars are met
    return {"worst": cell.name, "n": len(after), "value": value, "ci_low": None, "ci_high": None}


def _harmed(cell: Condition, before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, Any]:
    """The share of answers that turn from right to wrong."""
    flips = [float(direction(*pair) == "harmful") for pair in zip(before, after, strict=True)]
    low, high = cluster_interval(flips, sources(before))
    return {
        **{"worst": cell.name, "n": len(flips), "value": sum(flips) / len(flips)},
        **{"ci_low": low, "ci_high": high},
    }


def _goal(
    goal: str, measure: str, figures: Sequence[Mapping[str, Any]], bar: float, *, at_most: bool = False
) -> dict[str, Any]:
    """The worst of the figures against the bar."""
    nothing: Mapping[str, Any] = dict.fromkeys(("worst", "n", "value", "ci_low", "ci_high"))
    worst = (max if at_most else min)(figures, key=lambda each: each["value"], default=nothing)
    value = worst["value"]
    met = value is not None and (value <= bar if at_most else value >= bar)
    verdict = "not measured" if value is None else "met" if met else "missed"
    return {"goal": goal, "measure": measure, **worst, "bar": bar, "verdict": verdict}


# The summary


def notes(measured: Sequence[Measured], found: Mapping[str, Found], *, missing: Sequence[str] = ()) -> str:
    """What stands above the table: the shipped adapter's goals, accuracies by group, and what each component
    adds; which adapters are missing."""
    gains = list(gains_of(measured, found))
    parts = [NOTES]
    if missing:
        parts.append(f"Not measured, for there was no adapter: {', '.join(missing)}.")
    for shipped in (each for each in measured if each.name == ADAPTER):
        goals = goal_rows(found[shipped.key], found[measured[0].key])  # the base comes first
        parts += [f"## The goals of {ADAPTER}", GOAL_NOTES, table(goals)]
    parts += ["## By group", GROUP_NOTES, table(list(summary(measured, found)))]
    if gains:
        said = "\n".join(f"- {line}" for line in verdicts(gains))
        parts += ["## By component", GAIN_NOTES.format(margin=MARGIN, count=len(gains)), said, table(gains)]
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


def summary(measured: Sequence[Measured], found: Mapping[str, Found]) -> Iterator[dict[str, Any]]:
    """A row for each name: mean accuracy by group, and the harmful flips under trained and held-out kinds."""
    for name in dict.fromkeys(each.name for each in measured):
        keys = [each.key for each in measured if each.name == name]
        seen = {
            group: [answers for key in keys for cell, answers in found[key].items() if GROUPS[group](cell)]
            for group in GROUPS
        }
        flips = {
            group: [
                direction(before, after) == "harmful"
                for key in keys
                for cell, answers in found[key].items()
                if GROUPS[group](cell)
                for before, after in zip(found[key][clean_of(cell)], answers, strict=True)
            ]
            for group in ("trained", "held out")
        }
        yield {
            "name": name,
            "seeds": len(keys),
            **{group: mean(each.right for answers in seen[group] for each in answers) for group in GROUPS},
            **{f"harmful flips, {group}": mean(values) for group, values in flips.items()},
        }


def gains_of(measured: Sequence[Measured], found: Mapping[str, Found]) -> Iterator[dict[str, Any]]:
    """Accuracy with and without each component, where both were trained with one seed at least."""
    by_name = {(each.name, each.seed): found[each.key] for each in measured}
    for component, without, with_ in COMPONENTS:
        seeds = [seed for name, seed in by_name if name == with_ and (without, seed) in by_name]
        for group in GROUPS if seeds else ():
            pairs = [
                (before, after)
                for seed in seeds
                for cell, answers in by_name[without, seed].items()
                if GROUPS[group](cell)
                for before, after in zip(answers, by_name[with_, seed][cell], strict=True)
            ]
            if not pairs:
                continue
            before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            low, high = paired_interval(
                [each.right for each in before], [each.right for each in after], sources(before)
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
                "gain": sum(two.right - one.right for one, two in pairs) / len(pairs),
                "gain_low": low,
                "gain_high": high,
                "gain_least": min(by_seed),
                "gain_most": max(by_seed),
                "seeds": len(seeds),
            }
            yield {**gain, "verdict": verdict(gain)}


def verdict(gain: Mapping[str, Any]) -> str:
    """`helps` or `harms` where the interval and every one of two seeds at least say so, else `no difference
    shown`."""
    if gain["seeds"] < 2:
        return "no difference shown"
    if gain["gain_low"] > 0 and gain["gain_least"] >= MARGIN:
        return "helps"
    return "harms" if gain["gain_high"] < 0 and gain["gain_most"] <= -MARGIN else "no difference shown"


def verdicts(gains: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a component: the groups that it helps and harms, each with its gain, and how many it does
    neither to."""
    for component, without, with_ in dict.fromkeys((g["component"], g["from"], g["to"]) for g in gains):
        own = [gain for gain in gains if (gain["component"], gain["from"]) == (component, without)]
        said = [_groups_of(own, word) for word in ("helps", "harms")]
        rest = sum(gain["verdict"] == "no difference shown" for gain in own)
        told = [
            *filter(None, said),
            *([f"no difference shown in {rest} of {len(own)} groups"] if rest else []),
        ]
        yield f"{component} ({without} → {with_}): {'; '.join(told)}"


def _groups_of(gains: Sequence[Mapping[str, Any]], word: str) -> str:
    named = [f"{gain['group']} ({gain['gain']:+.3f})" for gain in gains if gain["verdict"] == word]
    return f"{word} {', '.join(named)}" if named else ""


def _accuracy(found: Found, group: str) -> float:
    right = (each.right for cell, answers in found.items() if GROUPS[group](cell) for each in answers)
    return mean(right) or 0.0
