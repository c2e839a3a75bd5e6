"""`modint-guard serve` with the stand-in for vLLM: python stub_serve.py FAULT MODEL ADAPTER PORT."""

import sys
from pathlib import Path

from modint_guard.errors import ModintError
from modint_server import serving

if __name__ == "__main__":
    fault, model, adapter, port = sys.argv[1:]
    stub = [sys.executable, str(Path(__file__).with_name("stub_engine.py")), fault]
    try:
        serving.start(model, [adapter], Path("adapters"), "127.0.0.1", int(port), command=stub)
    except ModintError as error:
        sys.exit(f"{error}")
