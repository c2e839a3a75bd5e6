"""A shell script that asks the demo's server with curl about a picture whose caption lies."""

import json
from pathlib import Path

from modint_guard.data.item import Item
from modint_guard.evaluation.runner import request_for

URL = "http://127.0.0.1:8080"  # where `modint-guard serve` listens
_END = "END_OF_REQUEST"


def write_script(path: Path, item: Item, model: str, server: str) -> None:
    """Write an executable script that sends `item` to the model and prints the whole answer.

    server: the command that serves it.
    """
    path.write_text(script(item, model, server), "utf-8")
    path.chmod(0o755)


def script(item: Item, model: str, server: str) -> str:
    """The script's text. The request goes in through a here-document: a shell changes nothing in it."""
    return f"""#!/bin/sh
# Asks {model} about a picture whose caption lies, and prints the answer with the guard's report (`modint`).
# Usage, while `{server}` runs: sh THIS_FILE [BASE_URL], by default
# {URL}
curl --silent --show-error --write-out '\\n' "${{1:-{URL}}}/v1/chat/completions" \\
  --header 'content-type: application/json' --data-binary @- <<'{_END}'
{json.dumps(request_for(item, model))}
{_END}
"""
