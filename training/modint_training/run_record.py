"""The record of a finished run, `run.json` beside its weights: recipe, data, versions, machine, figures."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from modint_guard.models import located
from modint_training.data.reading import PLAIN
from modint_training.loop.predict import FlipBaseline
from modint_training.method.conflict import Summary
from modint_training.models.loading import revision
from modint_training.recipe_files import Recipe
from modint_training.world import data_digest

PACKAGES = ("modint-guard", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "numpy")


def run_record(
    recipe: Recipe,
    history: Sequence[Mapping[str, float]],
    rows: Sequence[Mapping[str, Any]],
    seconds: float,
    baseline: FlipBaseline | None = None,
    rows_sha256: str | None = None,
    *,
    command: str | None = None,
    conflict: Mapping[str, Summary] | None = None,
) -> dict[str, Any]:
    """The record as JSON; `history` are the validation figures by step, `rows` those of the test items.

    `baseline` is that of `predict.flip_baseline`, which the gateway's alerts compare traffic with;
    `rows_sha256` is the hash of the data when the run started, if they may have changed since; `conflict` is
    that of `loop.conflict.conflict_summary`.
    """
    settings = recipe.model_dump()
    reading = getattr(recipe, "reading", PLAIN)
    return {
        **({"command": command} if command else {}),
        "recipe": settings,
        "seed": recipe.seed,
        "base_revision": revision(located(settings["base"])) if "base" in settings else None,
        "data_sha256": rows_sha256 or data_digest(recipe.data, reading),
        **(
            {"validation_sha256": data_digest(settings["validation"], reading)}
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
        **({"conflict": dict(conflict)} if conflict else {}),
    }
