"""Every panel, rule and alert against a real Prometheus that scrapes running gateways."""

import asyncio
import socket
from pathlib import Path

import pytest

from modint_server.boards import BOARDS
from tests.deploy.panels import Prometheus, Row, run
from tests.deploy.test_rules import ALERTS


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return asyncio.run(run(Path(tmp_path_factory.mktemp("prometheus"))))


def test_every_expression_succeeds_and_none_is_empty(rows: list[Row]) -> None:
    assert [(row.board, row.panel, row.status, row.series) for row in rows if row.status != "success"] == []
    assert [(row.board, row.panel) for row in rows if not row.series] == []


def test_what_is_shown_is_what_was_sent(rows: list[Row]) -> None:
    wrong = [(row.board, row.panel, row.expected, row.value) for row in rows if row.equal is False]
    assert wrong == []


def test_a_panel_of_every_row_and_every_alert_was_compared(rows: list[Row]) -> None:
    compared = {(row.board, row.panel) for row in rows if row.equal}
    for board in BOARDS:
        for row in board.rows:
            assert any((board.title, panel.title) in compared for panel in row.panels), row.title
    assert {("alerts", alert["alert"]) for alert in ALERTS} <= compared


def test_a_prometheus_whose_port_is_in_use_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        prometheus = Prometheus(tmp_path, taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="address already in use"):
            prometheus.start({})
