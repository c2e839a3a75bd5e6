"""What a run's folder says of itself, so that its checkpoints are taken up by the same run and no other."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from modint_guard.data.item import FAMILIES, Item, prompt
from modint_guard.errors import ConfigError
from modint_guard.models import located
from modint_training.data.reading import PLAIN, read_examples
from modint_training.loop.disk import written
from modint_training.models.loading import revision
from modint_training.recipe import TINYWORLD, ReadingConfig, TuneRecipe
from modint_training.world import world_named

PACKAGES = ("modint-guard", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "numpy")

RECORD = "recipe.json"
# What a checkpoint's weights, or the batches behind it, depend on, and the method, which the card names for
# all steps; all else may differ when it is taken up, the learning rate included.
FIXED = (
    *("kind", "base", "scope", "targets", "rank", "alpha", "dropout", "weights"),
    *("data", "reading", "letter", "seed", "batch", "quotas", "perturbations", "controls", "control_share"),
    *("task_weight", "consistency", "consistency_weight", "temperature", "stop_gradient", "attack"),
)
LATER = {"reading": PLAIN.model_dump(mode="json")}  # what runs did before there was a key for it


def rows_hash(recipe: TuneRecipe) -> str | None:
    """The SHA-256 of the rows that a run begins with, as `data validate` prints it; None for a generated
    world, whose items depend on the recipe alone."""
    return None if world_named(recipe.data) else data_hash(data=recipe.data, reading=recipe.reading)


def check_taken_up(folder: Path, recipe: TuneRecipe, rows: str | None = None) -> None:
    """ConfigError where the checkpoints in `folder` are of another base, of another training, or of other
    rows than those with the hash `rows`; a run that is older than the record of these is taken up."""
    record = _record(folder)
    if record is None:
        return
    before, now = LATER | record["recipe"], recipe.model_dump(mode="json")
    for key in FIXED:
        if before.get(key) != now[key]:
            raise ConfigError(
                f"{folder} holds checkpoints of a run with {key}: {before.get(key)!r}, and not {now[key]!r}: "
                "name this run otherwise (name=…), or begin anew with --resume no"
            )
    trained = record.get("data_sha256")
    if trained and rows and trained != rows:
        raise ConfigError(
            f"{folder} holds checkpoints of a run on other rows: the SHA-256 of {recipe.data} was "
            f"{trained[:12]}…, and is {rows[:12]}… now: bring the old rows back, name this run otherwise "
            "(name=…), or begin anew with --resume no"
        )
    found = revision(located(recipe.base))
    if record["base_revision"] != found:
        raise ConfigError(
            f"{folder} holds checkpoints on revision {record['base_revision']} of {recipe.base!r}, which is "
            f"{found} now: bring the old weights back, or begin anew with --resume no"
        )


def write_record(
    folder: Path, recipe: TuneRecipe, rows: str | None = None, *, command: str | None = None
) -> None:
    """Say which recipe, which base and which rows the checkpoints in `folder` are of, and what was typed."""
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "base_revision": revision(located(recipe.base)),
        "data_sha256": rows,
        "command": command,
    }
    with written(str(folder / RECORD), "start again"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def rows_hash_in(folder: Path) -> str | None:
    """The SHA-256 of the rows that the run in `folder` was trained on, where it says so."""
    record = _record(folder) or {}
    return record.get("data_sha256")


def recipe_of(folder: Path) -> TuneRecipe:
    """The recipe of the run in `folder`; ConfigError where there is none."""
    record = _record(folder)
    if record is None:
        raise ConfigError(f"{folder} is no run's folder: it has no {RECORD}; give one such as runs/NAME")
    try:
        return TuneRecipe.model_validate(record["recipe"])
    except ValidationError as exc:
        raise ConfigError(f"{folder / RECORD} is of another version of modint-guard: train again") from exc


def command_of(folder: Path) -> str | None:
    """What was typed to start the run in `folder`, where that is known."""
    return (_record(folder) or {}).get("command")


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise ConfigError(f"{folder / RECORD} was cut off: begin anew with --resume no") from exc
    return dict(found)


def run_record(
    recipe: BaseModel,
    history: list[dict[str, float]],
    rows: list[dict[str, Any]],
    seconds: float,
    baseline: Mapping[str, Any] | None = None,
    rows_sha256: str | None = None,
    *,
    command: str | None = None,
) -> dict[str, Any]:
    """What made these weights: command, recipe, seed, data hash, versions, machine, figures.

    `baseline` is what `predict.flip_baseline` found, which the gateway's alerts compare traffic with,
    `rows_sha256` the hash of the data when the run began, where they may have changed since.
    """
    settings = recipe.model_dump()
    reading = getattr(recipe, "reading", PLAIN)
    return {
        **({"command": command} if command else {}),
        "recipe": settings,
        "seed": settings["seed"],
        "base_revision": revision(located(settings["base"])) if "base" in settings else None,
        "data_sha256": rows_sha256 or data_hash(data=settings.get("data", TINYWORLD), reading=reading),
        **(
            {"validation_sha256": data_hash(data=settings["validation"], reading=reading)}
            if settings.get("validation")
            else {}
        ),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        },
        "train_seconds": round(seconds),
        "validation": history,
        "test": rows,
        **({"baseline": dict(baseline)} if baseline else {}),
    }


def data_hash(count: int = 300, *, data: str = TINYWORLD, reading: ReadingConfig = PLAIN) -> str:
    """SHA-256 over prompts, answers and pixels of the first training items of each family of a world;
    of a data set over the files that hold its rows, as `data validate` prints it."""
    world = world_named(data)
    if world is None:
        return read_examples(data, reading, check=False).digest()
    digest = hashlib.sha256()
    for family in FAMILIES:
        for item in world.items(family, "train", count):
            digest.update(_bytes(item))
    return digest.hexdigest()


def _bytes(item: Item) -> bytes:
    picture = item.image.tobytes() if item.image else b""
    return "\x1f".join((prompt(item), item.answer, item.wrong)).encode() + picture
