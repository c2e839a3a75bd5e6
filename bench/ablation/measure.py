"""The ablation: each part of the method as a committed adapter, trained in one go and measured in one go."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm import tqdm

from bench.ablation.table import Measured, cells_of, notes, rows_of
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_guard.evaluation.effects import Answered
from modint_guard.evaluation.results import write_results
from modint_guard.models import ADAPTER, BASE, located
from modint_training.loop.predict import first_answers, prepare
from modint_training.models.loading import load_base, revision
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.runs import run_recipe
from modint_training.tinyworld.conditions import Condition

PARTS = ("sft", "aug", "cons-kl", "cons-js", "gaussian", "adv", "full", "full-nomask", "paper")
RECIPES = tuple(f"tinyworld-{part}" for part in PARTS)
SEEDS = (0, 1, 2)
ADAPTERS = Path("bench/results/ablation")
MAX_BYTES = int(0.3 * 2**20)  # of an adapter's weights, which are committed
MAX_SECONDS = 600  # of a run on two cores
CARD_ITEMS = 200  # a condition in an ablation's own card: the table is made of more


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


def found_in(folder: Path, base: Path, shipped: Path | None) -> list[Measured]:
    """The base, the shipped adapter, and every ablation in a folder, by recipe and seed.

    Raises ConfigError where there is none, and for one that was trained on other weights of the base, or in
    another number of steps than the rest.
    """
    folders = [path.parent for path in folder.glob("*/adapter_config.json")]
    if not folders:
        raise ConfigError(f"{folder} holds no adapters: train them first, `make bench-train-ablation`")
    read = [_read(path) for path in folders]
    if len({each.key for each in read}) < len(read):
        raise ConfigError(f"{folder} holds one recipe twice with one seed: remove one of the two")
    for each in read:
        if each.record.get("base_revision") != revision(base):
            raise ConfigError(
                f"{each.folder} was trained on other weights of the base: train it again, "
                "`make bench-train-ablation`"
            )
    if len({each.record["recipe"].get("steps") for each in read}) > 1:
        raise ConfigError(
            f"{folder} holds adapters of different steps: train them again, `make bench-train-ablation`"
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
    transformers. Where one is missing its rows are, and the table says which."""
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
                    found[each.key][cell] = first_answers(net, processor, ready)
                bar.update()
    write_results(
        output,
        command=f"python -m bench ablation --count {count} --seed {seed}",
        seeds=sorted({each.seed for each in measured}),
        rows=[row for each in measured for row in rows_of(each, found[each.key])],
        title="What each part of the method adds",
        notes=notes(measured, found, missing=missing_of(measured)),
    )


def with_adapters(model: Any, measured: Sequence[Measured]) -> Any:
    """One model that can wear each of the adapters in turn."""
    adapters = [each for each in measured if not each.is_base]
    net = PeftModel.from_pretrained(model, adapters[0].folder, adapter_name=adapters[0].key)
    for each in adapters[1:]:
        net.load_adapter(str(each.folder), adapter_name=each.key)
    return net


def missing_of(measured: Sequence[Measured]) -> list[str]:
    """The recipes of the ablation, each with a seed, of which there is no adapter."""
    there = {each.key for each in measured}
    wanted = (f"{name}-seed{seed}" for name, seed in product(RECIPES, SEEDS))
    return [key for key in wanted if key not in there]
