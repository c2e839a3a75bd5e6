"""Runbooks that can be followed: queries run (test_panels); routes, settings and commands exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from modint_server.adapters.commands import adapters
from tests.deploy.expressions import RUNBOOKS, told_queries
from tests.deploy.manifests import routes, settings
from tests.deploy.test_rules import ALERTS, ROOT, unknown

PAGES = sorted(RUNBOOKS.glob("*.md"))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
NIGHT = "docs/observability.md#at-night"


def section(page: Path, title: str) -> str:
    text = page.read_text("utf-8")
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_alert_has_a_page_and_no_page_is_left_over() -> None:
    assert {page.stem for page in PAGES} == {alert["alert"] for alert in ALERTS}


@pages
def test_a_page_says_where_to_look_what_to_do_and_when_it_helped(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.startswith(f"# {page.stem}\n")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == ["Look", "Do", "When it is wrong"]
    assert f"(../{NIGHT.removeprefix('docs/')})" in text
    steps = re.findall(r"^\d\. ", section(page, "Look"), re.MULTILINE)
    assert len(steps) >= 3
    assert len(re.findall(r"^- ", section(page, "Do"), re.MULTILINE)) >= 3
    assert "\n- It helped when " in section(page, "Do")


@pages
def test_a_page_asks_prometheus_something_and_runs_something(page: Path) -> None:
    assert [one for one in told_queries() if one[1] == page.stem]
    look = section(page, "Look")
    assert re.search(r"curl -s|modint-guard |kubectl |journalctl ", look)


@pages
def test_a_page_asks_the_gateway_for_routes_it_has(page: Path) -> None:
    asked = set(re.findall(r"\$GATEWAY(/[\w/]*)", page.read_text("utf-8")))
    assert asked <= routes()


@pages
def test_a_page_names_settings_and_metrics_that_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    assert set(re.findall(r"\bMODINT_[A-Z_]+\b", text)) <= settings()
    names = set(re.findall(r"\bmodint[_:](?!guard|server)[a-z0-9_:]+[a-z0-9]", text))
    assert {name for name in names if unknown(name) and name != "modint:slow"} == set()


def test_the_doctors_options_that_pages_name_exist() -> None:
    """`modint-guard adapters COMMAND … --option`."""
    commands = getattr(get_command(adapters), "commands", {})
    for page in [*PAGES, ROOT / "docs" / "adapters.md"]:
        for name, rest in re.findall(r"modint-guard adapters (\w+)(?!\|)([^`\n#]*)", page.read_text("utf-8")):
            known = {word for one in commands[name].params for word in one.opts}
            assert set(re.findall(r"--[a-z-]+", rest)) <= known, (page.name, name, rest)
