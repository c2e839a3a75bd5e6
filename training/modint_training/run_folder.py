"""The record in a run's folder, by which its checkpoints are resumed by the same run and by no other."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modint_guard.errors import ConfigError
from modint_guard.models import located
from modint_training.data.reading import PLAIN, read_examples
from modint_training.loop.disk import disk_errors_as_sentences
from modint_training.models.loading import revision
from modint_training.recipe import TuneRecipe, names_world

RECORD = "recipe.json"
# The keys that determine a checkpoint's weights or the batches that led to it, and the method, which the card
# names for all steps. Every other key may differ on resuming, the learning rate included.
FIXED = (
    *("kind", "base", "scope", "targets", "rank", "alpha", "dropout", "weights"),
    *("data", "reading", "letter", "seed", "batch", "quotas", "perturbations", "controls", "control_share"),
    *("task_weight", "consistency", "consistency_weight", "temperature", "stop_gradient", "attack"),
    *("balance", "order"),
)
# Keys that older records lack, with what runs did then.
LATER = {"reading": PLAIN.model_dump(mode="json"), "balance": "sum", "order": "joint"}


@dataclass(frozen=True)
class FolderRecord:
    """What a run's folder holds checkpoints of: the recipe as JSON, the fingerprint of the base, the SHA-256
    of the rows (None for a generated world, and in older records), and the command that was typed."""

    recipe: dict[str, Any]
    base_revision: str | None
    data_sha256: str | None = None
    command: str | None = None


def rows_digest(recipe: TuneRecipe) -> str | None:
    """The SHA-256 of the rows that a run starts with, as `data validate` prints it; None for a generated
    world, whose items depend on the recipe alone."""
    if names_world(recipe.data):
        return None
    return read_examples(recipe.data, recipe.reading, check=False).digest()


def check_resumable(folder: Path, recipe: TuneRecipe, rows_sha256: str | None = None) -> None:
    """ConfigError if the checkpoints in `folder` belong to another base, another training or other rows than
    those with the SHA-256 `rows_sha256`. A folder whose record does not say so is not refused for it."""
    record = read_record(folder)
    if record is None:
        return
    before, now = _completed(record.recipe), recipe.model_dump(mode="json")
    # In another order than the joint one the rows of a step depend on the run's length.
    for key in FIXED if recipe.order == "joint" else (*FIXED, "steps", "epochs"):
        if before.get(key) != now[key]:
            raise ConfigError(
                f"{folder} holds checkpoints of a run with {key}: {before.get(key)!r}, and not {now[key]!r}: "
                "give this run another name (name=…), or start from scratch with --resume no"
            )
    if record.data_sha256 and rows_sha256 and record.data_sha256 != rows_sha256:
        raise ConfigError(
            f"{folder} holds checkpoints of a run on other rows: the SHA-256 of {recipe.data} was "
            f"{record.data_sha256[:12]}…, and is {rows_sha256[:12]}… now: bring the old rows back, give this "
            "run another name (name=…), or start from scratch with --resume no"
        )
    present = revision(located(recipe.base))
    if record.base_revision != present:
        raise ConfigError(
            f"{folder} holds checkpoints on revision {record.base_revision} of {recipe.base!r}, which is "
            f"{present} now: bring the old weights back, or start from scratch with --resume no"
        )


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A record's recipe with the keys that came later, with what runs did before."""
    attack = recipe.get("attack")
    return LATER | recipe | ({"attack": {"rows": "twins"} | attack} if attack else {})


def write_record(
    folder: Path, recipe: TuneRecipe, rows_sha256: str | None = None, *, command: str | None = None
) -> None:
    """Record what the checkpoints in `folder` belong to, and the command that was typed."""
    record = FolderRecord(
        recipe=recipe.model_dump(mode="json"),
        base_revision=revision(located(recipe.base)),
        data_sha256=rows_sha256,
        command=command,
    )
    with disk_errors_as_sentences(str(folder / RECORD), "start again"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")


def read_record(folder: Path) -> FolderRecord | None:
    """The record of the run in `folder`; None if there is none, ConfigError if it cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise ConfigError(f"{folder / RECORD} was cut off: start from scratch with --resume no") from exc
    return FolderRecord(
        record["recipe"], record.get("base_revision"), record.get("data_sha256"), record.get("command")
    )


def recipe_in(folder: Path) -> TuneRecipe:
    """The recipe of the run in `folder`; ConfigError if there is none."""
    record = read_record(folder)
    if record is None:
        raise ConfigError(f"{folder} is no run's folder: it has no {RECORD}; give one such as runs/NAME")
    try:
        return TuneRecipe.model_validate(record.recipe)
    except ValidationError as exc:
        raise ConfigError(f"{folder / RECORD} is of another version of modint-guard: train again") from exc
