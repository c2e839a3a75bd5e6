"""Writes the generated files: tables of metrics, dashboards, the PrometheusRule (`make generated`)."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.dashboards.boards import BOARDS
from deploy.dashboards.catalogue import rewritten
from deploy.dashboards.grafana import dashboard


def generated(root: Path) -> Iterator[tuple[Path, str]]:
    """Every generated file below the repository's root, and the text that it should have."""
    page = root / "docs" / "metrics.md"
    yield page, rewritten(page.read_text("utf-8"))
    for board in BOARDS:
        yield root / "deploy" / "dashboards" / f"{board.uid}.json", dashboard(board)
    rules = root / "deploy" / "rules" / "modint.yml"
    yield root / "deploy/kustomize/overlays/ha/prometheusrule.json", prometheus_rule(rules.read_text("utf-8"))


def prometheus_rule(rules: str) -> str:
    """The rules as a manifest for the Prometheus operator, in JSON, which is valid YAML."""
    import yaml  # a dependency of development only

    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    document = {**head, "metadata": {"name": "modint-guard"}, "spec": yaml.safe_load(rules)}
    return json.dumps(document, indent=1) + "\n"


def main(root: Path) -> None:
    """Writes all of them below the repository's root."""
    for path, text in generated(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
