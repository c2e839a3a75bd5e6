"""`modint-guard evaluate --output`: a local model or an endpoint under every perturbation, as files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modint_guard.data.item import FAMILIES, Item
from modint_guard.data.severity import FULL
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.evaluate import Cell, Found, ask, cells_of, rows_of, write_evaluation
from modint_guard.evaluation.results import command_line
from modint_guard.evaluation.runner import Row
from modint_guard.models import located
from modint_guard.types import Complete
from modint_training.data.reading import PLAIN, first_of_each, read_examples
from modint_training.models.image_attention import image_attention
from modint_training.models.loading import adapter_config, is_model, loaded
from modint_training.models.local import complete_of
from modint_training.recipe import ReadingConfig
from modint_training.tinyworld import suite

EXACT = 1000  # alternatives of a local model's tokens: all there are in TinyWorld's vocabulary
CONCURRENCY = 8
Load = Callable[[str, str | None], tuple[Any, Any]]  # names of model and adapter -> model, processor


@dataclass(frozen=True)
class Wanted:
    """What is evaluated: a local model, or with `url` one that an endpoint serves; `against` is another
    model or adapter, `base` for none, or another served model. `data` None is TinyWorld's test split;
    `reading` says how rows of one's own are read."""

    model: str
    adapter: str | None = None
    against: str | None = None
    url: str | None = None
    key: str | None = None
    logprobs: bool = True
    data: Path | None = None
    reading: ReadingConfig = PLAIN
    perturbations: Sequence[str] | None = None
    count: int = 400
    seed: int = 0
    severities: Sequence[int] = (FULL,)
    image_attention: float = 1.0

    def __post_init__(self) -> None:
        if self.reading != PLAIN and self.data is None:
            name = next(name for name, value in self._read_by.items() if value)
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} says how rows of your own are read: name them with --data")
        if self.url and self.image_attention != 1.0:
            raise ConfigError(
                f"--image-attention {self.image_attention:g} is of a local model: where one is served,"
                " MODINT_IMAGE_ATTENTION of the engine says it"
            )
        if self.against:
            self._check_against()

    @property
    def names(self) -> list[str]:
        """The models asked, as the tables name them."""
        return [adapter or model for model, adapter in self.models]

    @property
    def models(self) -> list[tuple[str, str | None]]:
        """Model and adapter, of the first and, where there is one, of the second."""
        first = (self.model, self.adapter)
        if not self.against:
            return [first]
        if self.against == "base" and not self.url:
            return [first, (self.model, None)]
        if self.url or is_model(self.against):
            return [first, (self.against, None)]
        return [first, (self.model, self.against)]

    def _check_against(self) -> None:
        """ConfigError before the first model is asked, which may take long."""
        adapter = self.models[1][1]
        if adapter and not adapter_config(adapter).is_file():
            raise ConfigError(
                f"--against {self.against} names no second model: neither a model or adapter, bundled or a "
                "folder, nor `base`"
            )
        if len({name if self.url else located(name).resolve() for name in self.names}) == 1:
            raise ConfigError(
                f"--against {self.against} compares {self.names[0]} with itself: name another model or "
                "adapter"
            )

    @property
    def _read_by(self) -> dict[str, object]:
        """The options that say how rows are read."""
        how = self.reading
        return {
            "format": how.format,
            "family": how.family,
            "split": how.split,
            "image_root": how.image_root,
            "column": [f"{name}={column}" for name, column in how.columns.items()],
            "number_rows": how.number_rows,
        }

    @property
    def command(self) -> str:
        """What was typed, as far as it says what the figures are of."""
        return command_line(
            "evaluate",
            model=self.model,
            adapter=self.adapter,
            against=self.against,
            data=self.data,
            **self._read_by,
            perturbation=self.perturbations,
            severity=None if tuple(self.severities) == (FULL,) else self.severities,
            image_attention=None if self.image_attention == 1.0 else self.image_attention,
            url="URL" if self.url else None,
            count=self.count,
            seed=self.seed,
        )


def evaluate_to(output: Path, wanted: Wanted, *, load: Load = loaded) -> list[Path]:
    """Ask, judge and write: JSON, Markdown, figures; the files. Raises EndpointError and ConfigError."""
    cells = cells_of(
        items_of(wanted),
        seed=wanted.seed,
        perturbations=wanted.perturbations,
        severities=wanted.severities,
    )
    found = asyncio.run(_ask_all(wanted, cells, load))
    first, *others = found
    rows = list(rows_of(wanted.names[0], first, others[0] if others else None))
    for name, other in zip(wanted.names[1:], others, strict=True):
        rows += rows_of(name, other)
    return write_evaluation(output, rows, command=wanted.command, seed=wanted.seed)


def items_of(wanted: Wanted) -> list[Item]:
    """The first `count` labelled items of each family and, of TinyWorld, as many in held-out wordings."""
    if wanted.data is None:
        return [
            item
            for family in FAMILIES
            for held_out in (False, True)
            for item in suite.items(family, "test", wanted.count, seed=wanted.seed, held_out=held_out)
        ]
    return first_of_each(read_examples(wanted.data, wanted.reading), wanted.count)


async def _ask_all(wanted: Wanted, cells: dict[Cell, list[Item]], load: Load) -> list[Found]:
    total = len(wanted.names) * sum(map(len, cells.values()))
    found: list[Found] = []
    with tqdm(total=total, unit="item") as bar:

        def advance(_: Row) -> None:
            bar.update()

        top = (20 if wanted.url else EXACT) if wanted.logprobs else 0
        for place, name in enumerate(wanted.names):
            async with _complete(wanted, place, load) as complete:
                found.append(
                    await ask(cells, complete, name, top_logprobs=top, concurrency=CONCURRENCY, done=advance)
                )
            del complete  # the first model goes before the second is loaded
    return found


@asynccontextmanager
async def _complete(wanted: Wanted, place: int, load: Load) -> AsyncIterator[Complete]:
    """The endpoint, with a guard that may be there switched off, or the model loaded here."""
    if wanted.url:
        async with Endpoint(wanted.url, wanted.key, headers={"x-modint-mode": "off"}) as endpoint:
            yield endpoint.complete
        return
    model, processor = load(*wanted.models[place])
    with image_attention(model, wanted.image_attention):
        yield complete_of(model, processor)
