"""The ablation: each part of the method as a committed adapter, trained in one go and measured in one go."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm import tqdm

from modint_guard.effects import EFFECTS, Answered, direction, effect, shares, sources
from modint_guard.errors import ConfigError
from modint_guard.models import ADAPTER, BASE, located
from modint_guard.perturb import REGISTRY, seeded
from modint_guard.results import table, write_results
from modint_guard.statistics import cluster_interval, mean, paired_interval
from modint_training.config import TuneRecipe, load_recipe
from modint_training.export import revision
from modint_training.predict import answered, prepare
from modint_training.runs import run_recipe
from modint_training.tinyworld.conditions import Condition, every_condition
from modint_training.tune import load_base

PARTS = ("sft", "aug", "cons-kl", "cons-js", "adv", "full", "full-nomask", "paper")
RECIPES = tuple(f"tinyworld-{part}" for part in PARTS)
SEEDS = (0, 1, 2)
ADAPTERS = Path("training/results/ablation")
MAX_BYTES = int(0.3 * 2**20)  # of an adapter's weights, which are committed
MAX_SECONDS = 600  # of a run on two cores
CARD_ITEMS = 200  # a condition in an ablation's own card: the table is made of more
# What each part of the method adds to which run without it.
COMPONENTS = (
    ("perturbed twins (+AUG)", "tinyworld-sft", "tinyworld-aug"),
    ("consistency by KL", "tinyworld-aug", "tinyworld-cons-kl"),
    ("consistency by JS", "tinyworld-aug", "tinyworld-cons-js"),
    ("the adversarial loss", "tinyworld-aug", "tinyworld-adv"),
    ("the adversarial loss beside consistency", "tinyworld-cons-js", "tinyworld-full"),
    ("the attack's mask", "tinyworld-full-nomask", "tinyworld-full"),
    ("our settings for the paper's", "tinyworld-paper", "tinyworld-full"),
)
GROUPS = ("clean", "vqa", "control", "trained", "held out", "held-out wording")
# The goals of the shipped adapter: what it may lose of its clean accuracy, how many answers may turn wrong.
TRAINED_LOSS, HELD_OUT_LOSS, HARMFUL = -0.01, -0.03, 0.02
Found = Mapping[Condition, Sequence[Answered]]  # one model's answers


def train_ablation(
    folder: Path = ADAPTERS,
    runs: Path = Path("runs/ablation"),
    *,
    recipes: Sequence[str] = RECIPES,
    seeds: Sequence[int] = SEEDS,
    overrides: Sequence[str] = (),
    card_items: int = CARD_ITEMS,
) -> Iterator[tuple[Path, bool]]:
    """Train every recipe with every seed, seed by seed; yields each adapter's folder and whether it was made
    now. One that is there, of the same recipe and base, is left; an interrupted run is taken up.

    Raises ConfigError for an adapter that is too large to commit.
    """
    for seed, name in product(seeds, recipes):
        wanted = [f"seed={seed}", *overrides]
        settings = load_recipe(name, wanted)
        assert isinstance(settings, TuneRecipe)
        target = folder / f"{name}-seed{seed}"
        if is_current(target, settings):
            yield target, False
            continue
        run = runs / f"seed{seed}-{_fingerprint(settings)}"  # never taken up by another recipe or base
        run_recipe(name, wanted, output=target, runs=run, resume="auto", test_items=card_items)
        check_size(target)
        shutil.rmtree(run)
        yield target, True


def is_current(folder: Path, recipe: TuneRecipe) -> bool:
    """Whether the adapter there was made by this recipe from the base's present weights."""
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        made = TuneRecipe.model_validate(record["recipe"])
    except (OSError, ValueError, KeyError):
        return False
    return made == recipe and record.get("base_revision") == _revision(recipe.base)


def check_size(folder: Path) -> None:
    """ConfigError for weights that are too large to commit."""
    size = (folder / "adapter_model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(
            f"{folder} holds {size} bytes of weights, more than {MAX_BYTES}: lower its rank, or set "
            "save_dtype: bf16"
        )


def _fingerprint(recipe: TuneRecipe) -> str:
    parts = seeded(recipe.model_dump_json(), _revision(recipe.base))
    return f"{parts.getrandbits(32):08x}"


def _revision(base: str) -> str | None:
    return revision(located(base))


# Measuring


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


def found_in(folder: Path, base: Path, shipped: Path | None) -> list[Measured]:
    """The base, the shipped adapter, and every ablation in a folder, by recipe and seed.

    Raises ConfigError where there is none, and for one that was trained on other weights of the base.
    """
    folders = [path.parent for path in folder.glob("*/adapter_config.json")]
    if not folders:
        raise ConfigError(f"{folder} holds no adapters: train them first, `make train-ablation`")
    read = [_read(path) for path in folders]
    if len({each.key for each in read}) < len(read):
        raise ConfigError(f"{folder} holds one recipe twice with one seed: remove one of the two")
    for each in read:
        if each.record.get("base_revision") != revision(base):
            raise ConfigError(
                f"{each.folder} was trained on other weights of the base: train it again, "
                "`make train-ablation`"
            )
    known = {name: place for place, name in enumerate(RECIPES)}
    read.sort(key=lambda each: (known.get(each.name, len(known)), each.name, each.seed))
    return [_read(base), *([_read(shipped)] if shipped else []), *read]


def _read(folder: Path) -> Measured:
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        return Measured(record["recipe"]["name"], int(record["seed"]), folder, record)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{folder} has no run.json of a training run: train it again") from exc


def measure_ablation(
    output: Path,
    folder: Path = ADAPTERS,
    *,
    count: int,
    seed: int,
    base: str = BASE,
    shipped: str | None = ADAPTER,
) -> None:
    """Base, shipped adapter and ablations on TinyWorld's test split under every perturbation, in
    transformers."""
    measured = found_in(folder, located(base), located(shipped) if shipped else None)
    model, processor = load_base(base)
    net = with_adapters(model, measured)
    cells = cells_of()
    found: dict[str, dict[Condition, list[Answered]]] = {each.key: {} for each in measured}
    with tqdm(total=len(cells) * len(measured), unit="cell") as bar:
        for cell in cells:
            ready = prepare(cell.items("test", count, seed), processor)
            for each in measured:
                with net.disable_adapter() if each.is_base else nullcontext():
                    if not each.is_base:
                        net.set_adapter(each.key)
                    found[each.key][cell] = answered(net, processor, ready)
                bar.update()
    write_results(
        output,
        command=f"modint-guard results ablation --count {count} --seed {seed}",
        seeds=[seed],
        rows=[row for each in measured for row in rows_of(each, found[each.key])],
        title="What each part of the method adds",
        notes=notes(measured, found),
    )


def with_adapters(model: Any, measured: Sequence[Measured]) -> Any:
    """One model that can wear each of the adapters in turn."""
    adapters = [each for each in measured if not each.is_base]
    net = PeftModel.from_pretrained(model, adapters[0].folder, adapter_name=adapters[0].key)
    for each in adapters[1:]:
        net.load_adapter(str(each.folder), adapter_name=each.key)
    return net


def cells_of() -> list[Condition]:
    """Every family clean, under every perturbation, and in held-out wordings; clean ones first."""
    cells = [cell for cell in every_condition() if not cell.self_ask]
    return sorted(cells, key=lambda cell: cell != clean_of(cell))


def clean_of(cell: Condition) -> Condition:
    """The condition that a cell is compared with: no caption, or no picture, in the same wordings."""
    return replace(cell, perturbation="no_image" if cell.family == "text-heavy" else "clean")


def rows_of(each: Measured, found: Found) -> Iterator[dict[str, Any]]:
    """A row for each condition, then one of what the training cost; effects are None for clean conditions."""
    nothing = dict.fromkeys(("train_seconds", "steps"))
    for cell, answers in found.items():
        clean = found[clean_of(cell)]
        moved = dict.fromkeys(EFFECTS) if cell == clean_of(cell) else effect(clean, answers)
        shown = {"family": cell.family, "perturbation": cell.perturbation, "held_out": cell.held_out}
        yield {"name": each.name, "seed": each.seed, **shown, **shares(answers), **moved, **nothing}
    keys = ("n", "accuracy", "ci_low", "ci_high", "unparsable", *EFFECTS)
    yield {
        **{"name": each.name, "seed": each.seed, "family": "all", "perturbation": "cost", "held_out": "no"},
        **dict.fromkeys(keys),
        "train_seconds": each.record.get("train_seconds"),
        "steps": each.record["recipe"].get("steps"),
    }


def group_of(cell: Condition) -> str:
    """Which of GROUPS a condition counts to in the summary."""
    if cell.held_out_wording:
        return "held-out wording"
    if cell.family == "vqa":
        return "vqa"
    if cell == clean_of(cell):
        return "clean"
    return REGISTRY[cell.perturbation].role.replace("_", " ")


# The goals of the shipped adapter


def goal_rows(own: Found, base: Found) -> list[dict[str, Any]]:
    """A row for each goal, decided by its worst condition, which `worst` names.

    Changes of accuracy have a paired interval, but between wordings, whose items are others.
    """
    disturbed = [cell for cell in own if cell != clean_of(cell)]
    trained = [cell for cell in disturbed if group_of(cell) == "trained"]
    held_out = [cell for cell in disturbed if group_of(cell) == "held out"]
    reworded = [cell for cell in disturbed if cell.held_out_wording]
    restated = [cell for cell in own if cell == clean_of(cell) and cell.held_out_wording]
    vqa = [cell for cell in own if cell.family == "vqa"]

    def loss(cells: Sequence[Condition]) -> list[dict[str, Any]]:
        return [_gained(cell, own[clean_of(cell)], own[cell]) for cell in cells]

    less = "accuracy less clean"
    other = [_other_items(cell, own[replace(cell, held_out_wording=False)], own[cell]) for cell in restated]
    flips = [_harmed(cell, own[clean_of(cell)], own[cell]) for cell in trained]
    beside = [_gained(cell, base[cell], own[cell]) for cell in vqa]
    return [
        _goal("trained kinds within 1 point of clean", less, loss(trained), TRAINED_LOSS),
        _goal("held-out kinds within 3 points of clean", less, loss(held_out), HELD_OUT_LOSS),
        _goal("in held-out wordings within 3 points of clean", less, loss(reworded), HELD_OUT_LOSS),
        _goal("held-out wordings within 3 points of trained ones", "clean accuracy", other, HELD_OUT_LOSS),
        _goal("harmful flips at most 2 %, trained kinds", "harmful flips", flips, HARMFUL, at_most=True),
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


def notes(measured: Sequence[Measured], found: Mapping[str, Found]) -> str:
    """What stands above the table: the shipped adapter's goals, accuracies by group, and what each component
    adds."""
    gains = list(gains_of(measured, found))
    said = [f"- {verdict(each)}" for each in gains]
    parts = [NOTES]
    for shipped in (each for each in measured if each.name == ADAPTER):
        goals = goal_rows(found[shipped.key], found[measured[0].key])  # the base comes first
        parts += [f"## The goals of {ADAPTER}", GOAL_NOTES, table(goals)]
    parts += ["## By group", GROUP_NOTES, table(list(summary(measured, found)))]
    if gains:
        parts += ["## By component", GAIN_NOTES, table(gains), "\n".join(said)]
    return "\n\n".join([*parts, "## Every condition"])


NOTES = """\
Greedy first tokens in transformers. `change`, the flips, `js` (base 2, over the options) and the changes of
log-probability (nats) are against the same items clean: without a caption, or without a picture. Intervals:
95 %, bootstrap clustered by source digit, paired where two answers to one item are compared; they do not hold
how much a training run varies with its seed, which the seeds beside one another show. `held_out` says what no
training has seen. Rows of the perturbation `cost` hold the seconds and steps of the training."""
GOAL_NOTES = """\
The worst condition decides a goal and is named. Harmful flips are of right answers to wrong ones, a share of
all; vqa is asked in both wordings."""
GROUP_NOTES = """\
Accuracy and harmful flips over all conditions of a group, mean of the seeds."""
GAIN_NOTES = """\
Accuracy with a part of the method less that without it, on the same items, over all seeds that both have;
`seeds_better` counts those where it is higher."""


def summary(measured: Sequence[Measured], found: Mapping[str, Found]) -> Iterator[dict[str, Any]]:
    """A row for each name: mean accuracy by group, and the harmful flips under trained and held-out kinds."""
    for name in dict.fromkeys(each.name for each in measured):
        keys = [each.key for each in measured if each.name == name]
        seen = {
            group: [
                answers for key in keys for cell, answers in found[key].items() if group_of(cell) == group
            ]
            for group in GROUPS
        }
        flips = {
            group: [
                direction(before, after) == "harmful"
                for key in keys
                for cell, answers in found[key].items()
                if group_of(cell) == group
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
                if group_of(cell) == group
                for before, after in zip(answers, by_name[with_, seed][cell], strict=True)
            ]
            if not pairs:
                continue
            before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            low, high = paired_interval(
                [each.right for each in before], [each.right for each in after], sources(before)
            )
            yield {
                "component": component,
                "from": without,
                "to": with_,
                "group": group,
                "gain": sum(two.right - one.right for one, two in pairs) / len(pairs),
                "gain_low": low,
                "gain_high": high,
                "seeds": len(seeds),
                "seeds_better": sum(
                    _accuracy(by_name[with_, seed], group) > _accuracy(by_name[without, seed], group)
                    for seed in seeds
                ),
            }


def verdict(gain: Mapping[str, Any]) -> str:
    """One sentence on a component, by its interval and its seeds."""
    what = f"{gain['component']}, {gain['group']}"
    size = f"({gain['gain']:+.3f}, {gain['seeds_better']} of {gain['seeds']} seeds better)"
    if gain["gain_low"] > 0 and gain["seeds_better"] == gain["seeds"]:
        return f"{what}: helps {size}"
    if gain["gain_high"] < 0 and gain["seeds_better"] == 0:
        return f"{what}: harms {size}"
    return f"{what}: no difference shown {size}"


def _accuracy(found: Found, group: str) -> float:
    right = (each.right for cell, answers in found.items() if group_of(cell) == group for each in answers)
    return mean(right) or 0.0
