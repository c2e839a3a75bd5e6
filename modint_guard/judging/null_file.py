"""The nulls of the served models in one file: scores, lengths and origins, nothing of any request."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modint_guard.errors import ConfigError
from modint_guard.judging.null import LIES, Null, from_rows, to_rows


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    scores: list[tuple[float, int, str]]
    lies: list[bool] = []
    sure: float | None = Field(default=None, ge=0, le=1)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["modint-null-1"] = "modint-null-1"
    models: dict[str, _Model]


def write_nulls(path: Path, nulls: Mapping[str, Null]) -> None:
    """Writes the nulls by served name, so that a reader finds the whole old file or the whole new one.

    Raises OSError.
    """
    models = {
        name: {"scores": to_rows(null), "lies": list(null.lies), "sure": null.sure}
        for name, null in nulls.items()
    }
    data = json.dumps({"format": "modint-null-1", "models": models}).encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
        try:
            fresh.write(data)
            fresh.flush()
            os.fsync(fresh.fileno())
            Path(fresh.name).replace(path)
        except BaseException:
            Path(fresh.name).unlink(missing_ok=True)
            raise


def read_nulls(path: Path, empty: Null | None = None) -> dict[str, Null]:
    """The nulls in a file by served name; none if there is no file.

    empty: holds the bounds that they get. Raises ConfigError, in one sentence, for a file that cannot be
    read or is damaged.
    """
    empty = empty or Null()
    try:
        models = _File.model_validate_json(path.read_bytes()).models
        return {
            name: replace(from_rows(each.scores, empty), lies=tuple(each.lies[-LIES:]), sure=each.sure)
            for name, each in models.items()
        }
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be read ({type(exc).__name__}): the null is measured anew."
        ) from exc
    except ValidationError as exc:
        where = ".".join(map(str, exc.errors()[0]["loc"])) or "its beginning"
        raise ConfigError(
            f"{path} is no file of nulls, at {where}: delete it, and the null is measured anew."
        ) from exc
    except ValueError as exc:
        raise ConfigError(
            f"{path} is no file of nulls ({exc}): delete it, and the null is measured anew."
        ) from exc
