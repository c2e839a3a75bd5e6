"""Writes what is committed but made from code: the tables of metrics, the dashboards (`make generated`)."""

import sys
from collections.abc import Iterator
from pathlib import Path

from modint_server.boards import BOARDS, dashboard
from modint_server.catalogue import rewritten


def made(root: Path) -> Iterator[tuple[Path, str]]:
    """Every generated file below the repository's root, with the text it ought to have."""
    page = root / "docs" / "metrics.md"
    yield page, rewritten(page.read_text("utf-8"))
    for board in BOARDS:
        yield root / "deploy" / "dashboards" / f"{board.uid}.json", dashboard(board)


def main(root: Path) -> None:
    for path, text in made(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
