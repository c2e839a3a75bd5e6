"""A real Prometheus on the real engine: the same panels and rules, and vLLM's own metrics by their names."""

import asyncio
from pathlib import Path

import pytest

from modint_guard.demo.launch import RunningGateway
from tests.deploy.expressions import Row, faulty, missing_from
from tests.deploy.panels import HEALTHY, before_vllm
from tests.deploy.test_boards import VLLM

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1", "prometheus")]


@pytest.fixture(scope="module")
def seen(served: RunningGateway, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], str]:
    folder = Path(tmp_path_factory.mktemp("prometheus"))
    return asyncio.run(before_vllm(folder, served.process.pid))


def test_what_panels_and_rules_show_is_what_was_answered(seen: tuple[list[Row], str]) -> None:
    rows, _ = seen
    assert [(row.board, row.panel, row.status, row.expected, row.value) for row in faulty(rows)] == []
    compared = {row.panel for row in rows if row.equal}
    assert {"Flagged, of those judged", "Above the baseline", "Flips now (30 m)"} <= compared
    assert {"Settled, of those tried", "Probe tokens for each token of an answer"} <= compared
    assert set(HEALTHY) <= compared


def test_every_metric_of_panels_and_rules_is_on_the_live_pages_of_gateway_and_vllm(
    seen: tuple[list[Row], str],
) -> None:
    _, page = seen
    assert missing_from(page) == set()
    assert [name for name in VLLM if f"\n{name}{{" not in page] == []
