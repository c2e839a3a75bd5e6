"""Dashboards: what is committed is what the code makes, and every panel can be read without the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.__main__ import generated, main
from deploy.dashboards.boards import BOARDS, VARIABLES, Board, Panel, PanelRow, metrics_of, plain
from deploy.dashboards.grafana import RUNBOOKS, dashboard
from tests.deploy.test_rules import ROOT, unknown

DASHBOARDS = ROOT / "deploy" / "dashboards"
# Of the engine's own page; tests/e2e looks for them on a real one.
VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
}
UNITS = {"percentunit", "short", "none", "s", "reqps", "bool_yes_no"}  # of Grafana's, those that we use
panels = pytest.mark.parametrize(
    "panel",
    [panel for board in BOARDS for panel in board.panels],
    ids=lambda panel: re.sub(r"\W+", "-", panel.title),
)
boards = pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.uid))


def needs_samples(panel: Panel) -> bool:
    """Whether what is shown was made of a number of samples: a share, a mean, a percentile."""
    return any(mark in panel.expr for mark in (" / (", "histogram_quantile", ":ratio"))


def counted(row: PanelRow) -> list[tuple[Panel, Panel]]:
    """(panel, panel of its samples) of a row; KeyError where one has none."""
    beside = {panel.title: panel for panel in row.panels}
    return [(panel, beside[panel.samples or ""]) for panel in row.panels if needs_samples(panel)]


def asked(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, expression) of a dashboard as Grafana reads it."""
    return [
        (panel["title"], target["expr"])
        for panel in document["panels"]
        for target in panel.get("targets", ())
    ]


def renamed(document: dict[str, Any]) -> dict[str, set[str]]:
    """Title -> metrics that nobody makes, for each panel that asks for one."""
    found = {title: unknown(expr) - VLLM for title, expr in asked(document)}
    return {title: names for title, names in found.items() if names}


def test_making_everything_anew_changes_nothing() -> None:
    assert [str(path) for path, text in generated(ROOT) if path.read_text("utf-8") != text] == []


def test_making_writes_the_files(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "deploy" / "rules").mkdir(parents=True)
    for name in ("docs/metrics.md", "deploy/rules/modint.yml"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    main(tmp_path)
    assert {path.name for path in (tmp_path / "deploy" / "dashboards").iterdir()} == {
        f"{board.uid}.json" for board in BOARDS
    }


def test_the_three_boards_are_there_and_none_is_left_over() -> None:
    assert {path.stem for path in DASHBOARDS.glob("*.json")} == {board.uid for board in BOARDS}
    assert [board.title for board in BOARDS] == [
        "Modality interference",
        "Serving",
        "Adapters and training",
    ]


@boards
def test_a_committed_dashboard_asks_for_no_metric_that_does_not_exist(board: Board) -> None:
    document = json.loads((DASHBOARDS / f"{board.uid}.json").read_text("utf-8"))
    assert len(asked(document)) == len(board.panels)
    assert renamed(document) == {}


@boards
def test_a_dashboard_for_a_renamed_metric_is_found(board: Board) -> None:
    text = (DASHBOARDS / f"{board.uid}.json").read_text("utf-8")
    old = re.sub(r"modint_(requests|verdicts)_total", r"modint_\1_old_total", text)
    found = renamed(json.loads(old))
    assert found and {name.replace("_old", "") for names in found.values() for name in names} <= {
        "modint_requests_total",
        "modint_verdicts_total",
    }


@boards
def test_grafanas_own_models_know_everything_that_a_dashboard_says(board: Board) -> None:
    """The models are generated from the schemas of the Grafana that compose.yaml names."""
    register_default_plugins()
    ours = json.loads(dashboard(board))
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    assert lost(ours, theirs) == []


def lost(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """The paths in `ours` that reading it by Grafana's models dropped or changed."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [path for key in ours for path in lost(ours[key], theirs.get(key), f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [path for place, pair in pairs for path in lost(*pair, f"{where}[{place}]")]
    return [] if ours == theirs else [where]


def test_a_field_that_grafana_does_not_know_would_be_found() -> None:
    register_default_plugins()
    ours = {**json.loads(dashboard(BOARDS[0])), "no_such_field": 1}
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    assert lost(ours, theirs) == [".no_such_field"]


@panels
def test_every_metric_of_a_panel_exists_and_is_named_in_its_description(panel: Panel) -> None:
    assert unknown(panel.expr) - VLLM == set()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics_of(panel.expr)}
    assert [name for name in families if name not in panel.says] == []


@panels
def test_a_panel_has_a_unit_a_legend_a_text_for_no_data_and_hides_nothing(panel: Panel) -> None:
    assert panel.unit in UNITS
    assert panel.legend and panel.says.endswith(".") and panel.empty
    assert "vector(" not in panel.expr


@panels
def test_a_panel_of_shares_says_why_it_may_be_empty(panel: Panel) -> None:
    assert not needs_samples(panel) or panel.empty != "no data yet"


@panels
def test_a_panels_runbook_exists(panel: Panel) -> None:
    assert panel.runbook is None or (ROOT / "docs" / "runbooks" / f"{panel.runbook}.md").is_file()


def test_runbooks_are_where_composes_grafana_looks_for_them() -> None:
    mounts = (ROOT / "deploy" / "compose.yaml").read_text("utf-8")
    assert f"- ../docs/runbooks:/usr/share/grafana{RUNBOOKS}:ro" in mounts


@boards
def test_beside_every_share_mean_and_percentile_stands_the_number_of_its_samples(board: Board) -> None:
    pairs = [pair for row in board.rows for pair in counted(row)]
    assert pairs
    for panel, samples in pairs:
        assert not needs_samples(samples), panel.title
        assert samples.unit == "short", panel.title


@boards
def test_the_samples_are_those_that_the_share_divides_by(board: Board) -> None:
    """The denominator's selector, word for word; a percentile's buckets against their own count."""
    for row in board.rows:
        for panel, samples in counted(row):
            whole = re.search(r"/ \((sum by .*) > 0\)$", panel.expr)
            if whole:
                assert re.sub(r"sum by \([^)]*\) ", "", whole[1]) in samples.expr, panel.title
            elif "histogram_quantile" in panel.expr:
                (metric,) = metrics_of(panel.expr)
                assert metric.removesuffix("_bucket") + "_count" in samples.expr, panel.title
            else:
                assert "modint:flips_examined:increase30m" in samples.expr, panel.title


@boards
def test_a_board_has_the_variables_and_no_two_panels_overlap(board: Board) -> None:
    document = json.loads(dashboard(board))
    names = [one["name"] for one in document["templating"]["list"]]
    assert names == ["datasource", *VARIABLES, "runbooks"]
    assert {"job", "model", "adapter", "relevant", "probe"} == set(VARIABLES)
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
