"""Rules and alerts: promtool's own tests, metrics that exist, runbooks that an operator finds."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.boards import metrics_of
from deploy.dashboards.catalogue import families
from tests.deploy.expressions import rules
from tests.deploy.prometheus import RULES

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "deploy" / "rules" / "tests.yml"
Rule = dict[str, Any]
ALERTS = [rule for rule in rules() if "alert" in rule]
named = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
needs_promtool = pytest.mark.needs("prometheus")


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def promtool_reads(page: str) -> str:
    """What the metrics linter says of a page."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def series(metric: str) -> str:
    """The family of a series: without what a histogram adds."""
    return re.sub(r"_(bucket|count|sum)$", "", metric)


def known() -> set[str]:
    return {family.name for family in families()} | {rule["record"] for rule in rules() if "record" in rule}


def unknown(expr: str) -> set[str]:
    """The metrics of an expression that neither the gateway nor a rule makes."""
    return {name for name in metrics_of(expr) if name not in known() and series(name) not in known()}


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_it_should_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))


@named
def test_promtools_tests_hold_a_firing_case_with_a_silent_one_beside_it(alert: Rule) -> None:
    """One series that fires among others that do not is both cases in one."""
    cases = yaml.safe_load(TESTS.read_text("utf-8"))["tests"]
    tried = [
        (case, one)
        for case in cases
        for one in case.get("alert_rule_test", ())
        if one["alertname"] == alert["alert"]
    ]
    assert any(one["exp_alerts"] for _, one in tried)
    fired = next((case, one) for case, one in tried if one["exp_alerts"])
    quiet = any(not one["exp_alerts"] for _, one in tried)
    assert quiet or len(fired[0]["input_series"]) > len(fired[1]["exp_alerts"])


@named
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: Rule) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/runbooks/{alert['alert']}.md"
    assert (ROOT / alert["annotations"]["runbook"]).is_file()


def test_every_metric_of_a_rule_exists() -> None:
    assert {
        rule.get("alert", rule.get("record")): unknown(rule["expr"])
        for rule in rules()
        if unknown(rule["expr"])
    } == {}


def test_a_rule_for_a_renamed_metric_would_be_found() -> None:
    assert unknown("rate(modint_verdict_total[5m]) / modint_risk_ratio_sum") == {"modint_verdict_total"}


def test_no_rule_hides_missing_data() -> None:
    assert "vector(" not in RULES.read_text("utf-8")


def test_every_share_asks_for_enough_samples() -> None:
    shares = [
        rule
        for rule in rules()
        if re.match(r"modint:(flip|flagged|probe_failures):ratio", rule.get("record", ""))
    ]
    assert len(shares) == 3
    assert all(re.search(r">= (200|50)\)", rule["expr"]) for rule in shares)
