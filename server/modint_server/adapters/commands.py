"""`modint-guard adapters list|inspect|doctor`: the adapters here, what is in one, whether vLLM applies it."""

import hashlib
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modint_guard.cli import printable
from modint_guard.errors import AdapterError
from modint_guard.models import FOLDER
from modint_server.adapters.doctor import WEIGHTS, AdapterDiagnosis, Status, examine, fix
from modint_server.adapters.files import json_in, regular
from modint_server.adapters.folders import bundled_names, locate, read, read_config, record_modules
from modint_server.adapters.tensors import TensorFile, read_header

adapters = typer.Typer(
    help="List adapters, look at one, and check that vLLM would apply it.", no_args_is_help=True
)

Which = Annotated[str, typer.Argument(metavar="NAME[=PATH]", help="An adapter, by name or folder.")]
Dir = Annotated[Path, typer.Option(help="Where adapters are looked up by name, before the bundled ones.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SHOWN = 8  # keys of one status, without --all


@adapters.command("list")
def list_adapters(adapter_dir: Dir = Path("adapters"), as_json: AsJson = False) -> None:
    """List every adapter that `serve` finds by name, and whether vLLM would load it."""
    rows = [_row(name, folder, source) for name, folder, source in _folders(adapter_dir)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "from", "rank", "made for", "MB", "loadable")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table if rows else f"no adapters in {adapter_dir}, and none bundled")


@adapters.command("inspect")
def inspect_adapter(which: Which, adapter_dir: Dir = Path("adapters"), as_json: AsJson = False) -> None:
    """Show an adapter's rank, base, modules, size, fingerprint, and the record of its training."""
    name, folder = locate(which, adapter_dir, FOLDER)
    facts = _facts(name, folder)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        table.add_row(key, _cell(json.dumps(value) if isinstance(value, dict | list) else value))
    Console().print(table)


@adapters.command("doctor")
def doctor(
    which: Which,
    adapter_dir: Dir = Path("adapters"),
    model: Annotated[
        str | None,
        typer.Option(help="The model it is served with. Default: its card's base.", show_default=False),
    ] = None,
    tower: Annotated[
        bool, typer.Option("--tower", help="The engine is started with --enable-tower-connector-lora.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--fix", help="Rename keys that vLLM would not find, in place.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Write the counts beside the weights, for the metrics of `serve`."),
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every key of an adapter by the installed vLLM's own rules; exit code 1 if one is wrong."""
    name, folder = locate(which, adapter_dir, FOLDER)
    diagnosis = examine(name, folder, model, tower=tower)
    original = None
    if repair and diagnosis.fixes:
        original = fix(diagnosis)
        diagnosis = examine(name, folder, model, tower=tower)
    if record:
        record_modules(folder, diagnosis.modules())
    if as_json:
        print(json.dumps(diagnosis.to_json(), indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for line in lines_of(diagnosis, every=every):
            console.print(printable(line), markup=False)
        if original is not None:
            console.print(f"renamed; the file as it was is {original}", markup=False)
        elif repair and not diagnosis.healthy:
            console.print("--fix changed nothing: no rename would correct this")
    if not diagnosis.healthy:
        raise typer.Exit(1)


def lines_of(diagnosis: AdapterDiagnosis, *, every: bool = False) -> Iterator[str]:
    """The diagnosis as lines of text; with `every` all keys, and not just the first few with a fault."""
    yield f"{diagnosis.name}: {_verdict(diagnosis)}"
    counts = {status: len(keys) for status in Status if (keys := diagnosis.of(status))}
    yield "  " + ", ".join(f"{count} {status}" for status, count in counts.items())
    for fault in diagnosis.faults:
        yield f"  fault: {fault}"
    for status in Status:
        keys = diagnosis.of(status)
        always_shown = status in (Status.UNMATCHED, Status.IGNORED)
        shown = keys if every else keys[:SHOWN] if always_shown else []
        for key in shown:
            yield f"  {status}: {key.name}" + (f" ({key.why})" if key.why else "")
            if key.fix:
                yield f"      --fix would write {key.fix}"
        if always_shown and len(keys) > len(shown):
            yield f"  and {len(keys) - len(shown)} more {status} (--all shows them)"
    yield from (f"  note: {note}" for note in diagnosis.notes)
    yield from (f"  not checked: {what}" for what in diagnosis.unchecked)


def _cell(value: object) -> str:
    """A value as a table shows it."""
    return escape("–" if value is None else printable(str(value)))


def _verdict(diagnosis: AdapterDiagnosis) -> str:
    if not diagnosis.healthy:
        return "something is wrong"
    if diagnosis.unchecked:
        return "nothing wrong found, but not everything was checked"
    return "vLLM applies it"


def _folders(adapter_dir: Path) -> Iterator[tuple[str, Path, str]]:
    """Name, folder and source of every adapter that `serve` finds by name."""
    names = set()
    for config in sorted(adapter_dir.glob("*/adapter_config.json")):
        names.add(config.parent.name)
        yield config.parent.name, config.parent, str(adapter_dir)
    for name in bundled_names(FOLDER):
        if name not in names:  # the user's own goes first, as in `serve`
            yield name, FOLDER / name, "bundled"


def _row(name: str, folder: Path, source: str) -> dict[str, Any]:
    try:
        adapter = read(name, folder)
    except AdapterError as exc:
        unknown = {"rank": None, "base": None, "mb": None}
        return {"name": name, "from": source, **unknown, "loadable": f"no: {exc}"}
    size = sum(path.stat().st_size for path in folder.glob("adapter_model*.safetensors"))
    return {
        "name": name,
        "from": source,
        "rank": adapter.rank,
        "base": adapter.base,
        "mb": round(size / 1e6, 1),
        "loadable": "yes",
    }


def _facts(name: str, folder: Path) -> dict[str, Any]:
    config = read_config(name, folder)
    file = read_header(folder / WEIGHTS)
    return {
        "name": name,
        "folder": str(folder),
        "base": config.get("base_model_name_or_path"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "target_modules": config.get("target_modules"),
        "peft_version": config.get("peft_version"),
        "tensors": len(file.tensors),
        "parameters": sum(prod(tensor.shape) for tensor in file.tensors.values()),
        "types": sorted({tensor.dtype for tensor in file.tensors.values()}),
        "bytes": file.path.stat().st_size,
        "sha256": _digest(file),
        "trained": _record(folder),
    }


def _digest(file: TensorFile) -> str:
    with regular(file.path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _record(folder: Path) -> dict[str, Any] | None:
    """Recipe, seed and test results from the `run.json` beside the weights; None without a full one."""
    try:
        run = json_in(folder / "run.json")
        return {"recipe": run["recipe"]["name"], "seed": run["seed"], "test": run["test"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
