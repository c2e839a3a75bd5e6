"""Writes a board as JSON for the version of Grafana that deploy/compose.yaml names."""

import json
from math import ceil
from typing import Any

from deploy.dashboards.boards import VARIABLES, Board, Kind, Panel, PanelRow

JSON = dict[str, Any]
WIDTH, HEIGHT = 24, 8  # Grafana's columns; a panel's rows
SIDE_BY_SIDE = 4  # panels of a line, at most
RUNBOOKS = "/public/runbooks"  # where compose.yaml puts docs/runbooks; a variable of each dashboard
SOURCE: JSON = {"type": "prometheus", "uid": "${datasource}"}
REDUCED: JSON = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
OPTIONS: dict[Kind, JSON] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": REDUCED,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "value_and_name",
    },
    "table": {"showHeader": True},
    "heatmap": {"calculate": False, "cellGap": 1, "yAxis": {"unit": "percentunit"}},
}


def dashboard(board: Board) -> str:
    """The JSON of a board, as its file in deploy/dashboards holds it."""
    document = {
        "uid": board.uid,
        "title": f"modint-guard: {board.title}",
        "description": "Counts, shares and means of a point in time look back over as much time as is shown.",
        "tags": ["modint-guard"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_other_boards()],
        "templating": {
            "list": [_datasource(), *(_variable(*entry) for entry in VARIABLES.items()), _runbooks()]
        },
        "panels": _placed(board),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _other_boards() -> JSON:
    return {
        "title": "modint-guard",
        "type": "dashboards",
        "tags": ["modint-guard"],
        "icon": "external link",
        "tooltip": "",
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _datasource() -> JSON:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
    }


def _variable(name: str, query: str) -> JSON:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _runbooks() -> JSON:
    """The variable with the address of the runbooks."""
    chosen = {"text": RUNBOOKS, "value": RUNBOOKS, "selected": True}
    return {
        "name": "runbooks",
        "label": "Runbooks at",
        "type": "textbox",
        "query": RUNBOOKS,
        "current": chosen,
        "options": [chosen],
    }


def _placed(board: Board) -> list[JSON]:
    """Rows below each other; the panels of a row side by side, in lines of about the same length."""
    placed: list[JSON] = []
    y = 0
    for row in board.rows:
        placed.append(_heading(row, len(placed) + 1, y))
        lines = ceil(len(row.panels) / SIDE_BY_SIDE)
        per_line = ceil(len(row.panels) / lines)
        width = WIDTH // per_line
        for number, panel in enumerate(row.panels):
            line, column = divmod(number, per_line)
            at = {"h": HEIGHT, "w": width, "x": column * width, "y": y + 1 + line * HEIGHT}
            placed.append(_panel(panel, len(placed) + 1, at))
        y += lines * HEIGHT + 1
    return placed


def _heading(row: PanelRow, number: int, y: int) -> JSON:
    at = {"h": 1, "w": WIDTH, "x": 0, "y": y}
    return {
        "type": "row",
        "id": number,
        "title": row.title,
        "collapsed": False,
        "panels": [],
        "gridPos": at,
    }


def _panel(panel: Panel, number: int, at: JSON) -> JSON:
    is_instant = panel.kind in ("stat", "table")
    target = {
        "refId": "A",
        "datasource": SOURCE,
        "expr": panel.expr,
        "legendFormat": panel.legend,
        "instant": is_instant,
        "range": not is_instant,
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
    }
    link = {"title": "Runbook", "url": f"${{runbooks}}/{panel.runbook}.md", "targetBlank": True}
    samples = f" Samples: {panel.samples}." if panel.samples else ""
    defaults: JSON = {"unit": panel.unit, "noValue": panel.empty, **({} if panel.signed else {"min": 0})}
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.says + samples,
        "datasource": SOURCE,
        "gridPos": at,
        "links": [link] if panel.runbook else [],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [target],
    }
