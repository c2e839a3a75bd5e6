"""The repository's pages as tests read them: their text, sections, code and links."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README, INDEX, CHANGELOG = ROOT / "README.md", DOCS / "README.md", ROOT / "CHANGELOG.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("runbooks/*.md")))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text("utf-8")


def section(page: Path, title: str) -> str:
    """The lines under one heading, down to the next of the same or a higher level."""
    heading = re.search(rf"^(#+) {re.escape(title)}$", text(page), re.MULTILINE)
    assert heading, f"{page.name} has no section {title!r}"
    below = text(page)[heading.end() :]
    following = re.search(rf"^#{{1,{len(heading[1])}}} ", below, re.MULTILINE)
    return below[: following.start()] if following else below


def spans(page: Path) -> list[str]:
    """What is between backticks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text(page)))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return [(match[1], match[2]) for match in FENCE.finditer(text(page))]


def code(page: Path) -> str:
    """Everything set as code: fenced, indented or between backticks."""
    fenced = [content for _, content in blocks(page)]
    indented = [line for line in FENCE.sub("", text(page)).splitlines() if line.startswith("    ")]
    return "\n".join([*fenced, *indented, *spans(page)])


def prose(page: Path) -> str:
    """A page with every run of blanks as one."""
    return " ".join(text(page).split())


def words_of(page: Path) -> str:
    """A page without what is set as code and without the targets of links."""
    plain = re.sub(r"`[^`\n]+`", "", FENCE.sub("", text(page)))
    plain = "\n".join(line for line in plain.splitlines() if not line.startswith("    "))
    return re.sub(r"\]\([^)]*\)", "]", plain)


def links(page: Path) -> list[str]:
    """The targets of links, those of pictures included."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(page)))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def linked_pages(page: Path) -> Iterator[Path]:
    """The pages that a page links to."""
    for link in links(page):
        path = link.partition("#")[0]
        if path.endswith(".md") and "://" not in path:
            yield (page.parent / path).resolve()


def table_rows(where: str) -> list[list[str]]:
    """The cells of the tables' rows, heads and rules left out."""
    lines = [line for line in where.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")] for line in lines]
    rules = [index for index, row in enumerate(rows) if set(row[0]) <= {"-", " "} and row[0]]
    return [row for index, row in enumerate(rows) if index not in rules and index + 1 not in rules]


def tracked() -> list[Path]:
    """The files that git holds."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
