"""The `modint-guard` command: finds its subcommands by entry points, and reports our errors as one sentence.

Exit codes: 0 done; 1 the command's own result is negative (a failed check, a demo with unexpected counts); 2
wrong input, setting, data or engine.
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
# The extra that installs what a package of ours imports beyond the base installation.
EXTRA_OF = {"modint_guard": "cpu", "modint_server": "cpu", "modint_training": "train"}


def main(argv: Sequence[str] | None = None, commands: Iterable[EntryPoint] | None = None) -> None:
    """Run one command and exit with its code.

    argv: None for that of the process. commands: None for those of all installed packages.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    points = {point.name: point for point in (entry_points(group=GROUP) if commands is None else commands)}
    called = next((word for word in arguments if not word.startswith("-")), None)
    app = build_app({} if arguments == ["--version"] else points, called)
    try:
        with errors_as_sentences():
            app(args=arguments, prog_name="modint-guard")
    except ModuleNotFoundError as error:
        if called not in points or _is_ours(error.name):
            raise
        sys.exit(_say(missing_extra(points[called])))


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Exit with code 2 and one sentence on standard error if one of our own errors ends the command."""
    try:
        yield
    except ModintError as error:
        sys.exit(_say(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `modint-guard … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def build_app(points: dict[str, EntryPoint], called: str | None) -> typer.Typer:
    """The command line. Only the command that is called is loaded; all are, if a help text or an unknown name
    needs the list.

    points: the entry points by name.
    """
    app = typer.Typer(
        name="modint-guard",
        help="Serve vision-language models behind a guard that notices answers driven by the wrong modality.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in [called] if called in points else sorted(points):
        _add(app, points[name])
    return app


def missing_extra(point: EntryPoint) -> str:
    """The sentence that says which extra a command needs."""
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
    """Keep a command that cannot be loaded in the list; when it is called, it says what it needs."""
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
    typer.echo(printable(sentence), err=True)
    return 2


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor, colour it or reverse it is shown as an escape."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode()
        for sign in text
    )


if __name__ == "__main__":
    main()
