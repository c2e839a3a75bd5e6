"""deploy/compose.yaml as Docker Compose itself reads it: refused while a variable is missing, else accepted.

`python -m tests.deploy.compose PROGRAM`, with a `docker-compose` of version 2; it needs no engine for that.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.deploy.manifests import DEPLOY

FILE = DEPLOY / "compose.yaml"


def needed() -> dict[str, str]:
    """Variable -> what is said while it is not set."""
    return dict(re.findall(r"\$\{(\w+):\?([^}]+)\}", FILE.read_text("utf-8")))


def problems(program: Path) -> Iterator[str]:
    """What Compose takes and ought not to, or the other way round."""
    whole = dict.fromkeys(needed(), str(FILE))  # any file that exists will do
    code, said = read(program, whole)
    if code:
        yield f"with every variable set it is refused: {said}"
    for name, sentence in needed().items():
        code, said = read(program, {key: value for key, value in whole.items() if key != name})
        if not code:
            yield f"it is accepted without {name}"
        elif f"{name} is missing a value: {sentence}" not in said:
            yield f"without {name} it does not say so: {said}"


def read(program: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and complaint of `docker-compose config` with these variables and none of our own."""
    others = {name: value for name, value in os.environ.items() if name not in needed()}
    command = [str(program), "--file", str(FILE), "config", "--quiet"]
    done = subprocess.run(command, env={**others, **variables}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def main(program: Path) -> int:
    found = list(problems(program))
    print("\n".join(found) if found else f"compose: accepted; refused without {', '.join(needed())}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
