"""`modint-guard serve` with the stand-in for vLLM: python stub_serve.py FAULT MODEL ADAPTER PORT."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

from modint_guard.cli import GROUP, main
from modint_server import serving


def serve(fault: str, model: str, adapter: str, port: int) -> None:
    stub = [sys.executable, str(Path(__file__).with_name("stub_engine.py")), fault]
    serving.start(model, [adapter], Path("adapters"), "127.0.0.1", port, command=stub)


if __name__ == "__main__":
    main(["serve", *sys.argv[1:]], [EntryPoint("serve", "stub_serve:serve", GROUP)])
