"""The `modint-guard` command: finds each command by its entry point and turns our errors into one sentence.

Exit codes: 0 done, 1 the command itself says no (a demo whose counts differ, a failed check), 2 wrong input,
setting, data or engine.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from modint_guard.errors import ModintError

GROUP = "modint_guard.commands"
# Which extra brings what a package of ours imports beyond the base installation.
EXTRA_OF = {"modint_guard": "cpu", "modint_server": "cpu", "modint_training": "train"}


def main(argv: Sequence[str] | None = None, commands: Iterable[EntryPoint] | None = None) -> None:
    """Runs one command and leaves with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = {point.name: point for point in (entry_points(group=GROUP) if commands is None else commands)}
    called = next((word for word in arguments if not word.startswith("-")), None)
    app = build_app({} if arguments == ["--version"] else found, called)
    try:
        with errors_as_sentences():
            app(args=arguments, prog_name="modint-guard")
    except ModuleNotFoundError as error:
        if called not in found or _is_ours(error.name):
            raise
        sys.exit(_say(missing_extra(found[called])))


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Leave with exit code 2 and one sentence on standard error if one of our own errors ends the command."""
    try:
        yield
    except ModintError as error:
        sys.exit(_say(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `modint-guard … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def build_app(found: dict[str, EntryPoint], called: str | None) -> typer.Typer:
    """Loads only the command that is called, or all when help or an unknown name asks for the list."""
    app = typer.Typer(
        name="modint-guard",
        help="Serve vision-language models behind a guard that notices answers driven by the wrong modality.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in [called] if called in found else sorted(found):
        _add(app, found[name])
    return app


def missing_extra(point: EntryPoint) -> str:
    """The sentence for a command whose extra is not installed."""
    extra = EXTRA_OF.get(point.module.split(".")[0], "train")
    return f"`{point.name}` needs: pip install 'modint-guard[{extra}]'"


def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=lambda asked: _version(asked), help="Print the version."
        ),
    ] = False,
) -> None:
    return None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"modint-guard {version('modint-guard')}")
        raise typer.Exit()


def _add(app: typer.Typer, point: EntryPoint) -> None:
    try:
        command: Any = point.load()
    except ModuleNotFoundError as error:
        if _is_ours(error.name) and error.name != point.module:
            raise
        _add_placeholder(app, point)
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=point.name)
    else:
        app.command(point.name)(command)


def _add_placeholder(app: typer.Typer, point: EntryPoint) -> None:
    """Keeps a command that cannot be loaded in the list, and says what it needs when called."""
    sentence = missing_extra(point)
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(point.name, help=sentence, context_settings=anything)(_saying(sentence))


def _saying(sentence: str) -> Callable[[], None]:
    def say() -> None:
        raise typer.Exit(_say(sentence))

    return say


def _is_ours(module: str | None) -> bool:
    return (module or "").split(".")[0] in EXTRA_OF


def _say(sentence: str) -> int:
    typer.echo(sentence, err=True)
    return 2


if __name__ == "__main__":
    main()
