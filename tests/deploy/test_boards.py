"""Dashboards: what is committed is what the code makes, and every panel can be read without the code."""

import json
import re
from pathlib import Path

import pytest

from modint_server.boards import BOARDS, VARIABLES, Board, Panel, dashboard, metrics_of, plain
from modint_server.generated import made, main
from tests.deploy.test_rules import ROOT, unknown

VLLM = {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"}
panels = pytest.mark.parametrize(
    "panel", [panel for board in BOARDS for panel in board.panels], ids=lambda panel: str(panel.title)
)
boards = pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.uid))


def test_making_everything_anew_changes_nothing() -> None:
    assert [str(path) for path, text in made(ROOT) if path.read_text("utf-8") != text] == []


def test_making_writes_the_files(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "deploy" / "rules").mkdir(parents=True)
    for name in ("docs/metrics.md", "deploy/rules/modint.yml"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    main(tmp_path)
    assert {path.name for path in (tmp_path / "deploy" / "dashboards").iterdir()} == {
        f"{board.uid}.json" for board in BOARDS
    }


def test_no_dashboard_is_left_over() -> None:
    names = {path.stem for path in (ROOT / "deploy" / "dashboards").glob("*.json")}
    assert names == {board.uid for board in BOARDS}


@panels
def test_every_metric_of_a_panel_exists_and_is_named_in_its_description(panel: Panel) -> None:
    assert unknown(panel.expr) - VLLM == set()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics_of(panel.expr)}
    assert [name for name in families if name not in panel.says and not name.startswith("modint:")] == []


def test_a_panel_for_a_renamed_metric_would_be_found() -> None:
    assert unknown('sum(rate(modint_verdict_total{job="x"}[5m]))') == {"modint_verdict_total"}


@panels
def test_a_panel_has_a_unit_a_legend_a_text_for_no_data_and_hides_nothing(panel: Panel) -> None:
    assert panel.unit and panel.legend and panel.says.endswith(".") and panel.empty
    assert "vector(" not in panel.expr


@panels
def test_a_panels_runbook_exists(panel: Panel) -> None:
    assert panel.runbook is None or (ROOT / "docs" / "runbooks" / f"{panel.runbook}.md").is_file()


@boards
def test_beside_every_share_stands_the_number_of_its_samples(board: Board) -> None:
    for row in board.rows:
        shares = [panel for panel in row.panels if "/ (" in panel.expr or "ratio30m" in panel.expr]
        samples = [panel for panel in board.panels if "amples" in panel.says or "how many" in panel.says]
        assert not shares or samples, row.title


@boards
def test_a_board_has_the_variables_and_no_two_panels_overlap(board: Board) -> None:
    document = json.loads(dashboard(board))
    assert [one["name"] for one in document["templating"]["list"]] == ["datasource", *VARIABLES]
    cells = [
        (x, y)
        for panel in document["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    numbers = [panel["id"] for panel in document["panels"]]
    assert len(numbers) == len(set(numbers))


def test_a_plain_expression_holds_no_variable() -> None:
    assert (
        plain('rate(x{job=~"$job", model=~"$model"}[$__range])', "1h")
        == 'rate(x{job=~".*", model=~".*"}[1h])'
    )
    assert [panel.title for board in BOARDS for panel in board.panels if "$" in plain(panel.expr)] == []
