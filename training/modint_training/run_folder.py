"""What a run's folder says of itself, so that its checkpoints are taken up by the same run and no other."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modint_guard.errors import ConfigError
from modint_guard.models import located
from modint_training.config import TuneRecipe
from modint_training.disk import written
from modint_training.export import revision

RECORD = "recipe.json"
# What a checkpoint's weights, or the batches behind it, depend on, and the method, which the card names for
# all steps; all else may differ when it is taken up, the learning rate included.
FIXED = (
    *("kind", "base", "scope", "targets", "rank", "alpha", "weights"),
    *("data", "seed", "batch", "quotas", "perturbations", "controls", "control_share"),
    *("task_weight", "consistency", "consistency_weight", "temperature", "stop_gradient", "attack"),
)


def check_taken_up(folder: Path, recipe: TuneRecipe) -> None:
    """ConfigError where the checkpoints in `folder` are of another base or of another training."""
    record = _record(folder)
    if record is None:
        return
    before, now = record["recipe"], recipe.model_dump(mode="json")
    for key in FIXED:
        if before.get(key) != now[key]:
            raise ConfigError(
                f"{folder} holds checkpoints of a run with {key}: {before.get(key)!r}, and not {now[key]!r}: "
                "name this run otherwise (name=…), or begin anew with --resume no"
            )
    found = revision(located(recipe.base))
    if record["base_revision"] != found:
        raise ConfigError(
            f"{folder} holds checkpoints on revision {record['base_revision']} of {recipe.base!r}, which is "
            f"{found} now: bring the old weights back, or begin anew with --resume no"
        )


def write_record(folder: Path, recipe: TuneRecipe, *, command: str | None = None) -> None:
    """Say which recipe and which base the checkpoints in `folder` are of, and what was typed."""
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "base_revision": revision(located(recipe.base)),
        "command": command,
    }
    with written(str(folder / RECORD), "start again"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


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
