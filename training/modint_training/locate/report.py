"""`modint-guard locate`: one study from its options to its report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modint_guard.data.options import ReadingOptions
from modint_guard.errors import ConfigError
from modint_guard.evaluation.items import items_of, labelled_items
from modint_guard.evaluation.journal import Journal, digest_of
from modint_guard.evaluation.results import command_line
from modint_guard.models import located as folder_of
from modint_guard.types import JSON
from modint_training.locate.located import Located, located
from modint_training.locate.page import write_report
from modint_training.locate.study import Desk, studied
from modint_training.locate.subject import subject_of
from modint_training.locate.twins import twins_of
from modint_training.models.loading import loaded, revision

JOURNAL = "records.jsonl"


@dataclass(frozen=True)
class Options:
    """The options of the command, under their names; `how` is how the rows of `data` are read."""

    model: str
    data: str
    adapter: str | None = None
    exact: int = 10
    limit: int | None = None
    seed: int = 0
    how: ReadingOptions = field(default_factory=ReadingOptions)


def locate_interference(options: Options, output: Path) -> tuple[Located, list[Path]]:
    """Study a model and write the report into `output`; gives the report and its files. The same call goes on
    from the records there.

    Raises ConfigError and DataError, before anything is measured, for a model, an adapter or data that cannot
    be used.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: --output names the folder of records and report")
    items = labelled_items(
        items_of(options.data, options.how, limit=options.limit, seed=options.seed, split="test")
    )
    subject = subject_of(*loaded(options.model, options.adapter))
    twins, dropped = twins_of(items, subject.processor, seed=options.seed)
    made_by = {**_made_by(options), "data": digest_of((item.id, item) for item in items)}
    with Journal(output / JOURNAL, made_by) as journal, _bars() as progress:
        measured = studied(Desk(subject, journal, progress), twins, dropped, exact=options.exact)
    report = located(measured, dropped, model=named(options), data=Path(options.data).name)
    return report, write_report(output, report, command=typed(options), seed=options.seed)


def named(options: Options) -> str:
    """The model as the report names it."""
    names = [options.model, *([options.adapter] if options.adapter else [])]
    return " + ".join(Path(name).name for name in names)


def _made_by(options: Options) -> JSON:
    names = {"model": options.model, "adapter": options.adapter}
    weights = {name: revision(folder_of(value)) if value else None for name, value in names.items()}
    return {"run": "locate", "seed": options.seed, "exact": options.exact, **weights}


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress


def typed(options: Options) -> str:
    """The command line of these options, without the paths of folders."""
    words = [Path(options.model).name, Path(options.data).name]
    return command_line(
        "locate",
        *words,
        adapter=Path(options.adapter).name if options.adapter else None,
        exact=options.exact,
        limit=options.limit,
        **options.how.typed,
        seed=options.seed,
    )
