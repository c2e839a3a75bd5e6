"""Every panel, rule and alert against a real Prometheus that scrapes running gateways."""

import asyncio
import socket
from pathlib import Path

import pytest

from deploy.dashboards.boards import BOARDS
from tests.deploy import panels, scripted
from tests.deploy.expressions import Row, expressions, faulty, measured, missing_from, rules, told_queries
from tests.deploy.prometheus import RULES, Prometheus
from tests.deploy.test_rules import ALERTS, promtool_reads

RENAMED = ("Serving", "Requests a second", 'sum(rate(modint_requests_old_total{job=~".*"}[1h]))')
BROKEN = ("Serving", "Requests a second", "sum(rate(modint_requests_total[1h])")

needs_prometheus = pytest.mark.needs("prometheus")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], list[Row], str]:
    """The rows of what is committed, those of two expressions that are wrong, and the live page."""

    async def run(folder: Path) -> tuple[list[Row], list[Row], str]:
        async with scripted.watched(folder) as found:
            asked = [*expressions(), *told_queries()]
            wanted = panels.of_scripted(found)
            rows = await asyncio.to_thread(measured, found, wanted, asked)
            wrong = await asyncio.to_thread(measured, found, {}, [RENAMED, BROKEN])
            return rows, wrong, found.page

    return asyncio.run(run(Path(tmp_path_factory.mktemp("prometheus"))))


@pytest.fixture
def rows(seen: tuple[list[Row], list[Row], str]) -> list[Row]:
    return seen[0]


@needs_prometheus
def test_every_expression_succeeds_and_none_is_empty(rows: list[Row]) -> None:
    assert [(row.board, row.panel, row.status, row.series) for row in rows if row.status != "success"] == []
    assert [(row.board, row.panel, row.expr) for row in rows if not row.series] == []


@needs_prometheus
def test_what_is_shown_is_what_was_sent(rows: list[Row]) -> None:
    wrong = [(row.board, row.panel, row.expected, row.value) for row in rows if row.equal is False]
    assert wrong == []
    assert faulty(rows) == []


@needs_prometheus
def test_a_panel_of_every_row_and_every_alert_was_compared(rows: list[Row]) -> None:
    compared = {(row.board, row.panel) for row in rows if row.equal}
    for board in BOARDS:
        for row in board.rows:
            assert any((board.title, panel.title) in compared for panel in row.panels), row.title
    assert {("alerts", alert["alert"]) for alert in ALERTS} <= compared


@needs_prometheus
def test_a_panel_for_a_renamed_metric_and_a_broken_one_are_found(
    seen: tuple[list[Row], list[Row], str],
) -> None:
    renamed, broken = seen[1]
    assert (renamed.status, renamed.series) == ("success", 0)  # Prometheus itself says nothing of it
    assert broken.status.startswith("error: invalid parameter")
    assert faulty(seen[1]) == [renamed, broken]


@needs_prometheus
def test_every_metric_of_panels_and_rules_is_on_the_live_page(
    seen: tuple[list[Row], list[Row], str],
) -> None:
    assert missing_from(seen[2]) == set()
    without = seen[2].replace("modint_upstream_up", "modint_upstream_is_up")
    assert missing_from(without) == {"modint_upstream_up"}


@needs_prometheus
def test_promtools_linter_has_nothing_to_say_of_the_live_page(
    seen: tuple[list[Row], list[Row], str],
) -> None:
    ours = seen[2][: seen[2].index("# TYPE vllm:")]  # vLLM's names are its own affair
    assert promtool_reads(ours) == ""


def test_nothing_hides_missing_data() -> None:
    assert [expr for _, _, expr in expressions() if "vector(" in expr] == []
    assert "vector(" not in RULES.read_text("utf-8") and len(rules()) > len(ALERTS)


@needs_prometheus
def test_a_prometheus_whose_port_is_in_use_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        prometheus = Prometheus(tmp_path, taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="address already in use"):
            prometheus.start({})
