"""The ablation: adapters with some parts of the method, trained by one command and measured by another."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm import tqdm

from bench.ablation.table import MeasuredModel, notes, rows_of, table_conditions
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
MAX_BYTES = int(0.3 * 2**20)  # of an adapter's weights, since they are committed
MAX_SECONDS = 600  # of a run on two cores
CARD_ITEMS = 200  # for each condition in an adapter's own card; the table is made of more


def train_ablation(
    folder: Path = ADAPTERS,
    runs: Path = Path("runs/ablation"),
    *,
    recipes: Sequence[str] = RECIPES,
    seeds: Sequence[int] = SEEDS,
    overrides: Sequence[str] = (),
    card_items: int = CARD_ITEMS,
) -> Iterator[tuple[Path, bool]]:
    """Train every recipe with every seed, seed by seed; yields each adapter's folder and whether it was
    trained now. An adapter of the same recipe and base that exists is kept; an interrupted run is resumed.

    Raises ConfigError for an adapter that is too large to commit.
    """
    for seed, name in product(seeds, recipes):
        with_seed = [f"seed={seed}", *overrides]
        recipe = load_recipe(name, with_seed)
        assert isinstance(recipe, TuneRecipe)
        target = folder / f"{name}-seed{seed}"
        if is_current(target, recipe):
            yield target, False
            continue
        run = runs / f"seed{seed}-{_fingerprint(recipe)}"  # never resumed by another recipe or base
        run_recipe(name, with_seed, output=target, runs=run, resume="auto", test_items=card_items)
        check_size(target)
        shutil.rmtree(run)
        yield target, True


def is_current(folder: Path, recipe: TuneRecipe) -> bool:
    """Whether `folder` holds an adapter of this recipe on the base's present weights."""
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        trained = TuneRecipe.model_validate(record["recipe"])
    except (OSError, ValueError, KeyError):
        return False
    return trained == recipe and record.get("base_revision") == _revision(recipe.base)


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


def models_in(folder: Path, base: Path, shipped: Path | None) -> list[MeasuredModel]:
    """The base, the shipped adapter, and every ablation adapter in a folder, ordered by recipe and seed.

    Raises ConfigError if there is none, and for one that was trained on other weights of the base, or for
    another number of steps than the rest.
    """
    folders = [path.parent for path in folder.glob("*/adapter_config.json")]
    if not folders:
        raise ConfigError(f"{folder} holds no adapters: train them first, `make bench-train-ablation`")
    adapters = [_read(path) for path in folders]
    if len({adapter.key for adapter in adapters}) < len(adapters):
        raise ConfigError(f"{folder} holds one recipe twice with the same seed: remove one of the two")
    for adapter in adapters:
        if adapter.record.get("base_revision") != revision(base):
            raise ConfigError(
                f"{adapter.folder} was trained on other weights of the base: train it again, "
                "`make bench-train-ablation`"
            )
    if len({adapter.record["recipe"].get("steps") for adapter in adapters}) > 1:
        raise ConfigError(
            f"{folder} holds adapters of different steps: train them again, `make bench-train-ablation`"
        )
    order = {name: place for place, name in enumerate(RECIPES)}
    adapters.sort(key=lambda adapter: (order.get(adapter.name, len(order)), adapter.name, adapter.seed))
    return [_read(base), *([_read(shipped)] if shipped else []), *adapters]


def _read(folder: Path) -> MeasuredModel:
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        return MeasuredModel(record["recipe"]["name"], int(record["seed"]), folder, record)
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
    """Measure base, shipped adapter and ablation adapters on TinyWorld's test split under every perturbation,
    in transformers, and write the table. A missing adapter has no rows, and the table names it."""
    models = models_in(folder, located(base), located(shipped) if shipped else None)
    net, processor = load_base(base)
    net = with_adapters(net, models)
    conditions = table_conditions()
    answers: dict[str, dict[Condition, list[Answered]]] = {model.key: {} for model in models}
    with tqdm(total=len(conditions) * len(models), unit="condition") as bar:
        for condition in conditions:
            prepared = prepare(condition.items("test", count, seed), processor)
            for model in models:
                with net.disable_adapter() if model.is_base else nullcontext():
                    if not model.is_base:
                        net.set_adapter(model.key)
                    answers[model.key][condition] = first_answers(net, processor, prepared)
                bar.update()
    write_results(
        output,
        command=f"python -m bench ablation --count {count} --seed {seed}",
        seeds=sorted({model.seed for model in models}),
        rows=[row for model in models for row in rows_of(model, answers[model.key])],
        title="What each part of the method adds",
        notes=notes(models, answers, missing=missing_of(models)),
    )


def with_adapters(base: Any, models: Sequence[MeasuredModel]) -> Any:
    """The base with all adapters loaded, one of which can be active at a time."""
    adapters = [model for model in models if not model.is_base]
    net = PeftModel.from_pretrained(base, adapters[0].folder, adapter_name=adapters[0].key)
    for adapter in adapters[1:]:
        net.load_adapter(str(adapter.folder), adapter_name=adapter.key)
    return net


def missing_of(models: Sequence[MeasuredModel]) -> list[str]:
    """The recipes of the ablation, each with a seed, for which there is no adapter."""
    present = {model.key for model in models}
    expected = (f"{name}-seed{seed}" for name, seed in product(RECIPES, SEEDS))
    return [key for key in expected if key not in present]
