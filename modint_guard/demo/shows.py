"""What a demo serves and asks: a world's packaged items, or the check-up's of a model of one's own.

TinyWorld's base and adapter are asked alike. A model that is shown alone is asked twice: with the relevant
input named, and with nothing said of it.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modint_guard.data import read_items
from modint_guard.data.item import Item
from modint_guard.demo.launch import READY_S
from modint_guard.errors import ConfigError
from modint_guard.evaluation.checkup import checkup_variants
from modint_guard.evaluation.runner import request_for
from modint_guard.evaluation.variants import Variant
from modint_guard.models import ADAPTER, BASE, picturebook
from modint_guard.types import JSON

World = Literal["tinyworld", "picturebook"]
ITEMS = Path(__file__).parent / "items"
TINYWORLD_ITEMS, PICTUREBOOK_ITEMS = ITEMS / "tinyworld", ITEMS / "picturebook"
OWN_READY_S = 2000.0  # longer than `serve` gives an engine, whose own words then say why it is not ready
NAMED, AUTO = "named", "auto"


@dataclass(frozen=True)
class Asked:
    """One way of asking every item: of which model, and whether the request names the relevant input."""

    label: str
    model: str
    named: bool = True

    def request(self, item: Item) -> JSON:
        """The chat body that asks an item so."""
        body = request_for(item, self.model)
        return body if self.named else {**body, "modint": {"relevant": AUTO}}


@dataclass(frozen=True)
class Show:
    """What is served, and what is asked of it.

    serve: arguments of `modint-guard serve`; dtype: one more. model: the base's name; None for the first that
    is listed. adapter: asked beside the base, if there is one. variants: of the check-up; empty for a world.
    note: what a reader of the tables has to know. served_by: what serves the same again, if it is no `serve`.
    """

    serve: tuple[str, ...]
    items: Sequence[Item]
    model: str | None
    adapter: str | None = None
    variants: Sequence[Variant] = ()
    note: str = ""
    dtype: str = "float32"
    ready_s: float = READY_S
    served_by: str = ""

    @property
    def own_engine(self) -> bool:
        """Whether the demo starts the engine, so that nobody else asks it."""
        return "--upstream" not in self.serve

    @property
    def command(self) -> str:
        """What serves the same again."""
        return self.served_by or f"modint-guard serve {shlex.join(self.serve)}"

    @property
    def by(self) -> str:
        """What tells the rows of a table apart."""
        return "model" if self.adapter else "relevance"

    def asked(self, base: str) -> tuple[Asked, ...]:
        """The ways of asking, of a base of this name."""
        if self.adapter:
            return Asked(base, base), Asked(self.adapter, self.adapter)
        return Asked(NAMED, base), Asked(AUTO, base, named=False)


def of_world(world: World) -> Show:
    """A world's own demo."""
    if world == "tinyworld":
        return Show(
            ("--adapter", ADAPTER), read_items(TINYWORLD_ITEMS), BASE, ADAPTER, served_by="make serve"
        )
    return Show(
        ("--model", picturebook.NAME, "--adapter", picturebook.ADAPTER),
        read_items(PICTUREBOOK_ITEMS),
        picturebook.NAME,
        picturebook.ADAPTER,
        note="Neither model can read documents, and each says about the same without them: that is neglect."
        " Nothing in them misleads it: any other flag on one is wrongful, whatever the answer.",
    )


def of_own(
    model: str | None, url: str | None, *, vllm_options: Sequence[str] = (), limit: int | None = None
) -> Show:
    """The check-up of a model that vLLM is started with, or of one at an endpoint that runs.

    model: a folder or hub id; with a `url` a name there, None for the first. limit: the first items of each
    family. Raises ConfigError for options of an engine that is not started here.
    """
    if url and vllm_options:
        raise ConfigError(
            f"--url asks an engine that runs already: start that engine with {vllm_options[0]}, and drop what"
            " stands behind `--`"
        )
    behind = ("--", *vllm_options) if vllm_options else ()
    variants = checkup_variants(limit)
    return Show(
        ("--upstream", url) if url else ("--model", str(model), *behind),
        [variant.whole() for variant in variants],
        model if url else None,
        variants=variants,
        note="How far harmless inputs move this model was not measured: a fixed rule judged, and gave no"
        " risk. `modint-guard serve` measures it while it runs, and judges by that.",
        dtype="auto",
        ready_s=OWN_READY_S,
    )


def show_of(
    world: World | None,
    model: str | None,
    url: str | None,
    *,
    vllm_options: Sequence[str] = (),
    limit: int | None = None,
) -> Show:
    """What the options of the command ask for; TinyWorld's demo without any. Raises ConfigError for options
    that do not go together.
    """
    if world and (model or url):
        option = "url" if url else "model"
        raise ConfigError(f"--world {world} has its own items and model: drop --{option}")
    if model or url:
        return of_own(model, url, vllm_options=vllm_options, limit=limit)
    if vllm_options or limit:
        option = vllm_options[0] if vllm_options else "--limit"
        raise ConfigError(f"{option} is for a model of your own: name it with --model")
    return of_world(world or "tinyworld")
