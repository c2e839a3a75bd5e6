"""A smaller adapter: some modules of a trained one, by name or by the map that `modint-guard locate` drew."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modint_guard.errors import ConfigError
from modint_training.locate.adapter import least_kept, lora_modules

SHARE = 0.9  # of what the adapter gained beside lies, which the kept modules must restore


@dataclass(frozen=True)
class Keep:
    """Which modules to keep: those that a text names, one on each line, or of a `report.json` of `locate` the
    fewest that restore `share` (default 0.9) of what the adapter gained."""

    source: Path
    share: float | None = None

    def names(self, present: Collection[str]) -> list[str]:
        """The names of the modules to keep, of those of an adapter. ConfigError if the source cannot be used,
        or names others."""
        names = self._names()
        for name in names:
            if name not in present:
                raise ConfigError(
                    f"{self.source} keeps {name}, which is none of this adapter's {len(present)} modules: "
                    "the map must be of the same adapter"
                )
        return names

    def _names(self) -> list[str]:
        try:
            text = self.source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"{self.source} cannot be read: give a report.json of `modint-guard locate`, or a text with "
                "the name of a module on each line"
            ) from exc
        if text.lstrip().startswith("{"):
            return self._of_report(text)
        if self.share is not None:
            raise ConfigError(
                f"--share is of a report of `modint-guard locate`: {self.source} is a list of modules"
            )
        if names := list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())):
            return names
        raise ConfigError(f"{self.source} names no module to keep")

    def _of_report(self, text: str) -> list[str]:
        try:
            report = json.loads(text)
            modules = [row["module"] for row in report["modules"]]
            counts = [row["modules"] for row in report["kept"]]
            restored = [row["restored"] for row in report["kept"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{self.source} is no report of `modint-guard locate`: give the report.json that it wrote"
            ) from exc
        if not modules:
            raise ConfigError(
                f"{self.source} maps a model without an adapter: run `modint-guard locate` with --adapter"
            )
        return modules[: self._count(counts, restored)]

    def _count(self, counts: Sequence[int], restored: Sequence[float | None]) -> int:
        known = [share for share in restored if share is not None]
        if len(known) < len(restored):
            raise ConfigError(
                f"the adapter of {self.source} gained nothing beside lies: nothing says what to keep"
            )
        if not known:
            raise ConfigError(
                f"{self.source} does not say what few modules restore: run `modint-guard locate` again"
            )
        enough = least_kept(counts, known, SHARE if self.share is None else self.share)
        return max(1, counts[-1] if enough is None else enough)  # an adapter without modules is none


def keep_modules(model: Any, names: Collection[str]) -> None:
    """Take the adapter off all modules of a PEFT model but these, in place: as if their B were 0, without the
    weights. Its configuration then names the kept ones alone."""
    base = model.get_base_model()
    for name, module in lora_modules(model).items():
        if name not in names:
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())
    model.active_peft_config.target_modules = "|".join(re.escape(name) for name in sorted(names))
