"""`modint-guard serve` with the stand-in for vLLM: stub_serve.py FAULT MODEL ADAPTER PORT [-- OPTIONS]."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

from typer import Argument

from modint_guard.cli import GROUP, main
from modint_server import serving


def serve(
    fault: str,
    model: str,
    adapter: str,
    port: int,
    vllm_options: Annotated[list[str] | None, Argument()] = None,
) -> None:
    stub = [sys.executable, str(Path(__file__).with_name("stub_engine.py")), fault]
    options = vllm_options or []
    serving.start(model, [adapter], Path("adapters"), "127.0.0.1", port, vllm_options=options, command=stub)


if __name__ == "__main__":
    main(["serve", *sys.argv[1:]], [EntryPoint("serve", "stub_serve:serve", GROUP)])
