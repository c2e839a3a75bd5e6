"""A shell script that asks the demo's server with curl about a picture whose caption lies."""

import json
from pathlib import Path

from modint_guard.data.item import Item
from modint_guard.evaluation.runner import request_for
from modint_guard.models import BASE

URL = "http://127.0.0.1:8080"  # where `make serve` listens
_END = "END_OF_REQUEST"


def write_script(path: Path, item: Item) -> None:
    """Write an executable script that sends `item` to the base model and prints the whole answer."""
    path.write_text(script(item), "utf-8")
    path.chmod(0o755)


def script(item: Item) -> str:
    """The script's text. The request goes in through a here-document: a shell changes nothing in it."""
    return f"""#!/bin/sh
# Asks {BASE} about a picture whose caption lies, and prints the answer with the guard's report (`modint`).
# Usage, while `make serve` runs: sh THIS_FILE [BASE_URL], by default
# {URL}
curl --silent --show-error --write-out '\\n' "${{1:-{URL}}}/v1/chat/completions" \\
  --header 'content-type: application/json' --data-binary @- <<'{_END}'
{json.dumps(request_for(item, BASE))}
{_END}
"""
