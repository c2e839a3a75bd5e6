"""The Grafana dashboards, as code: deploy/dashboards/*.json are made from here by `make generated`.

Every panel names the metrics it stands on, every share stands beside the number of samples it was made of,
and each expression is run against a real Prometheus in the tests. Variables: datasource, job, model, adapter,
relevant, probe.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

JSON = dict[str, Any]
WIDTH, HEIGHT = 24, 8  # Grafana's columns; a panel's rows
HERE = 'job=~"$job", model=~"$model"'
ADAPTER = f'{HERE}, adapter=~"$adapter"'
RELEVANT = f'{ADAPTER}, relevant=~"$relevant"'
PROBE = f'{ADAPTER}, probe=~"$probe"'
PROBES_OF = f'{RELEVANT}, probe=~"$probe"'
WHO = "job, model, adapter"
RUNBOOKS = "docs/runbooks"


@dataclass(frozen=True)
class Panel:
    """One expression with what a reader needs beside it."""

    title: str
    expr: str
    legend: str
    unit: str
    says: str
    kind: str = "timeseries"
    empty: str = "no data yet"
    runbook: str | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def _increase(metric: str, *more: str, where: str = ADAPTER) -> str:
    return f"increase({metric}{{{', '.join([where, *more])}}}[$__range])"


def _sum(by: str, expr: str) -> str:
    return f"sum by ({by}) ({expr})"


def _quantile(share: float, metric: str, by: str, where: str = ADAPTER) -> str:
    buckets = _sum(f"{by}, le", f"rate({metric}_bucket{{{where}}}[$__rate_interval])")
    return f"histogram_quantile({share}, {buckets})"


def _share(part: str, whole: str, by: str = WHO) -> str:
    return f"{_sum(by, part)} / ({_sum(by, whole)} > 0)"


def _only(expr: str, adapters: str) -> str:
    """The expression for some adapters, whatever the variable says."""
    return expr.replace('adapter=~"$adapter"', adapters)


_MA = "{{model}} {{adapter}}"
_FLAGGED = _increase("modint_verdicts_total", 'verdict="flagged"', where=RELEVANT)
_JUDGED = _increase("modint_verdicts_total", 'verdict=~"pass|flagged"', where=RELEVANT)
_RESULTS = _increase("modint_probe_results_total", where=PROBES_OF)
_FLIPPED = _increase("modint_probe_results_total", 'outcome="flipped"', where=PROBES_OF)
_DECIDED = _increase("modint_probe_results_total", 'outcome=~"consistent|flipped|undecided"', where=PROBES_OF)

INTERFERENCE = Board(
    "modint-interference",
    "Modality interference",
    (
        Row(
            "Flagged answers",
            (
                Panel(
                    "Flagged, of those judged",
                    _share(_FLAGGED, _JUDGED),
                    _MA,
                    "percentunit",
                    "modint_verdicts_total: flagged, of pass and flagged, over the time shown.",
                    empty="nothing was judged in the time shown",
                ),
                Panel(
                    "Judged answers",
                    _sum(WHO, _JUDGED),
                    _MA,
                    "short",
                    "modint_verdicts_total: how many the share beside was made of. Below 200 it says little.",
                ),
                Panel(
                    "Flagged, by cause",
                    _sum("cause", _FLAGGED),
                    "{{cause}}",
                    "short",
                    "modint_verdicts_total: what drove the flagged answers.",
                ),
            ),
        ),
        Row(
            "Against the baseline",
            (
                Panel(
                    "Flips now (30 m)",
                    f"modint:flip:ratio30m{{{ADAPTER}}}",
                    _MA,
                    "percentunit",
                    "modint_probe_results_total through modint:flip:ratio30m: answers that flipped when the "
                    "part that ought not to matter was taken away.",
                    empty="fewer than 200 answers were examined in 30 minutes",
                    runbook="InterferenceAboveBaseline",
                ),
                Panel(
                    "Baseline of the adapter",
                    f"modint_adapter_baseline_flip_ratio{{{ADAPTER}}}",
                    _MA,
                    "percentunit",
                    "modint_adapter_baseline_flip_ratio: the same share on the adapter's card.",
                    empty="no adapter served here has a baseline in its run.json",
                ),
                Panel(
                    "Examined answers (30 m)",
                    f"modint:flips_examined:increase30m{{{ADAPTER}}}",
                    _MA,
                    "short",
                    "modint_probe_results_total through modint:flips_examined:increase30m: the samples.",
                ),
            ),
        ),
        Row(
            "Base against adapters",
            (
                Panel(
                    "Flagged: the base",
                    _share(_only(_FLAGGED, 'adapter="none"'), _only(_JUDGED, 'adapter="none"')),
                    "{{model}}",
                    "percentunit",
                    'modint_verdicts_total of adapter="none".',
                    empty="no base answer was judged in the time shown",
                ),
                Panel(
                    "Flagged: adapters",
                    _share(_only(_FLAGGED, 'adapter!="none"'), _only(_JUDGED, 'adapter!="none"')),
                    _MA,
                    "percentunit",
                    'modint_verdicts_total of adapter!="none".',
                    empty="no adapter's answer was judged in the time shown",
                ),
            ),
        ),
        Row(
            "Probes",
            (
                Panel(
                    "Flips, by probe",
                    _share(_FLIPPED, _DECIDED, "probe"),
                    "{{probe}}",
                    "percentunit",
                    "modint_probe_results_total: flipped, of those that came back.",
                    empty="no probe ran in the time shown",
                ),
                Panel(
                    "Probes, by outcome",
                    _sum("outcome", _RESULTS),
                    "{{outcome}}",
                    "short",
                    "modint_probe_results_total: the samples of the share beside, and what failed.",
                    runbook="ProbeErrorRatioHigh",
                ),
                Panel(
                    "How far answers move",
                    _sum("le", _increase("modint_probe_divergence_ratio_bucket", where=PROBE)),
                    "{{le}}",
                    "short",
                    "modint_probe_divergence_ratio: Jensen-Shannon, base 2, answer against probe.",
                    kind="heatmap",
                ),
            ),
        ),
        Row(
            "Risk",
            (
                Panel(
                    "Mean risk",
                    _share(
                        _increase("modint_risk_ratio_sum", where=RELEVANT),
                        _increase("modint_risk_ratio_count", where=RELEVANT),
                    ),
                    _MA,
                    "percentunit",
                    "modint_risk_ratio: sum over count.",
                    empty="no answer had a risk in the time shown",
                ),
                Panel(
                    "Answers with a risk",
                    _sum(WHO, _increase("modint_risk_ratio_count", where=RELEVANT)),
                    _MA,
                    "short",
                    "modint_risk_ratio: the samples of the mean.",
                ),
                Panel(
                    "Listed probability",
                    _share(
                        _increase("modint_logprob_coverage_ratio_sum", where=HERE),
                        _increase("modint_logprob_coverage_ratio_count", where=HERE),
                        "job, model",
                    ),
                    "{{model}}",
                    "percentunit",
                    "modint_logprob_coverage_ratio: the probability that the engine's listed tokens hold. "
                    "Low: divergences are known less well.",
                ),
            ),
        ),
    ),
)

_OK = _increase("modint_requests_total")
_FAULTS = 'outcome=~"upstream_error|interrupted|internal_error|rejected"'
_FAILED = _increase("modint_requests_total", _FAULTS)
SERVING = Board(
    "modint-serving",
    "Serving",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Requests a second",
                    _sum(
                        "model, adapter, outcome",
                        f"rate(modint_requests_total{{{ADAPTER}}}[$__rate_interval])",
                    ),
                    "{{model}} {{adapter}} {{outcome}}",
                    "reqps",
                    "modint_requests_total.",
                ),
                Panel(
                    "Failed, of all",
                    _share(_FAILED, _OK),
                    _MA,
                    "percentunit",
                    "modint_requests_total: outcomes that are the engine's or the gateway's fault, of all.",
                    empty="no request in the time shown",
                ),
                Panel(
                    "Requests",
                    _sum(WHO, _OK),
                    _MA,
                    "short",
                    "modint_requests_total: the samples of the share.",
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Slowest in twenty",
                    _quantile(0.95, "modint_request_duration_seconds", "model, adapter"),
                    _MA,
                    "s",
                    "modint_request_duration_seconds, 95th percentile.",
                    runbook="LatencyBurn",
                ),
                Panel(
                    "To the first token, median",
                    _quantile(0.5, "modint_time_to_first_token_seconds", "model, adapter"),
                    _MA,
                    "s",
                    "modint_time_to_first_token_seconds: streams only.",
                    empty="no stream in the time shown",
                ),
                Panel(
                    "Added by the gateway, slowest in twenty",
                    _quantile(0.95, "modint_gateway_overhead_seconds", "route", 'job=~"$job"'),
                    "{{route}}",
                    "s",
                    "modint_gateway_overhead_seconds, 95th percentile.",
                    runbook="ProbeOverheadHigh",
                ),
                Panel(
                    "Requests timed",
                    _sum(WHO, _increase("modint_request_duration_seconds_count")),
                    _MA,
                    "short",
                    "modint_request_duration_seconds: the samples of the percentiles.",
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "In flight",
                    f"sum by (job, model) (modint_requests_in_flight{{{HERE}}})",
                    "{{model}}",
                    "short",
                    "modint_requests_in_flight.",
                ),
                Panel(
                    "Turned away",
                    _sum("reason", _increase("modint_admission_rejections_total", where='job=~"$job"')),
                    "{{reason}}",
                    "short",
                    "modint_admission_rejections_total.",
                ),
                Panel(
                    "Tokens",
                    _sum("model, adapter, direction", _increase("modint_tokens_total")),
                    "{{model}} {{adapter}} {{direction}}",
                    "short",
                    "modint_tokens_total: streams only where the client asks for usage.",
                ),
                Panel(
                    "Pictures",
                    _sum(WHO, _increase("modint_images_total")),
                    _MA,
                    "short",
                    "modint_images_total.",
                ),
            ),
        ),
        Row(
            "What probes cost",
            (
                Panel(
                    "Probe tokens for each token of an answer",
                    _share(_increase("modint_probe_tokens_total"), _increase("modint_tokens_total")),
                    _MA,
                    "none",
                    "modint_probe_tokens_total over modint_tokens_total.",
                    empty="no answer's tokens were counted",
                ),
                Panel(
                    "Of these, from the prefix cache",
                    _share(
                        _increase("modint_probe_cached_tokens_total"), _increase("modint_probe_tokens_total")
                    ),
                    _MA,
                    "percentunit",
                    "modint_probe_cached_tokens_total over modint_probe_tokens_total.",
                ),
                Panel(
                    "Probe tokens",
                    _sum(WHO, _increase("modint_probe_tokens_total")),
                    _MA,
                    "short",
                    "modint_probe_tokens_total: the samples of both.",
                ),
                Panel(
                    "A probe's call, slowest in twenty",
                    _quantile(0.95, "modint_probe_duration_seconds", "probe", PROBE),
                    "{{probe}}",
                    "s",
                    "modint_probe_duration_seconds, 95th percentile.",
                ),
                Panel(
                    "Not judged, by reason",
                    f"sum by (reason) (increase(modint_probe_skipped_total{{{HERE}}}[$__range]))",
                    "{{reason}}",
                    "short",
                    "modint_probe_skipped_total.",
                    runbook="ProbesStalled",
                ),
            ),
        ),
        Row(
            "The engine",
            (
                Panel(
                    "Up",
                    'min by (job, instance) (modint_upstream_up{job=~"$job"})',
                    "{{instance}}",
                    "bool_yes_no",
                    "modint_upstream_up.",
                    kind="stat",
                    runbook="EngineUnreachable",
                ),
                Panel(
                    "Failed calls",
                    'sum by (kind) (increase(modint_upstream_errors_total{job=~"$job"}[$__range]))',
                    "{{kind}}",
                    "short",
                    "modint_upstream_errors_total.",
                ),
                Panel(
                    "vLLM: running",
                    "sum by (model_name) (vllm:num_requests_running)",
                    "{{model_name}}",
                    "short",
                    "vllm:num_requests_running, from /engine/metrics.",
                    empty="the job of /engine/metrics is not scraped",
                ),
                Panel(
                    "vLLM: waiting",
                    "sum by (model_name) (vllm:num_requests_waiting)",
                    "{{model_name}}",
                    "short",
                    "vllm:num_requests_waiting.",
                ),
                Panel(
                    "vLLM: cache in use",
                    "max by (model_name) (vllm:kv_cache_usage_perc)",
                    "{{model_name}}",
                    "percentunit",
                    "vllm:kv_cache_usage_perc.",
                ),
            ),
        ),
    ),
)

ADAPTERS = Board(
    "modint-adapters",
    "Adapters",
    (
        Row(
            "Self-test",
            (
                Panel(
                    "Passed",
                    f"min by ({WHO}) (modint_adapter_selftest_ok{{{ADAPTER}}})",
                    _MA,
                    "bool_yes_no",
                    "modint_adapter_selftest_ok: 1 where the adapter changes the engine's answers.",
                    kind="stat",
                    empty="no adapter was tested",
                    runbook="AdapterNoEffect",
                ),
                Panel(
                    "Effect",
                    f"min by ({WHO}) (modint_adapter_selftest_divergence_ratio{{{ADAPTER}}})",
                    _MA,
                    "percentunit",
                    "modint_adapter_selftest_divergence_ratio: largest Jensen-Shannon, adapter against base.",
                    kind="stat",
                    empty="no adapter was tested",
                ),
                Panel(
                    "The base beside adapters",
                    f"min by (job, model) (modint_base_beside_adapters_ok{{{HERE}}})",
                    "{{model}}",
                    "bool_yes_no",
                    "modint_base_beside_adapters_ok: 1 where base answers stay the base's.",
                    kind="stat",
                    empty="no adapter was there to mix with",
                    runbook="BaseAnswersFromAdapter",
                ),
            ),
        ),
        Row(
            "What is served",
            (
                Panel(
                    "Adapters",
                    f"max by ({WHO}, rank, revision) (modint_adapter_info{{{ADAPTER}}})",
                    "{{model}} {{adapter}} rank {{rank}} {{revision}}",
                    "short",
                    "modint_adapter_info: rank and fingerprint where the gateway knows the folder.",
                    kind="table",
                    empty="no adapter is served",
                ),
                Panel(
                    "Modules, by what the doctor recorded",
                    f"max by ({WHO}, status) (modint_adapter_modules{{{ADAPTER}}})",
                    "{{adapter}} {{status}}",
                    "short",
                    "modint_adapter_modules.",
                    kind="table",
                    empty="no folder holds a doctor.json: modint-guard adapters doctor NAME --record",
                ),
            ),
        ),
        Row(
            "Use",
            (
                Panel(
                    "Answers, by adapter",
                    _sum(WHO, _increase("modint_requests_total", 'outcome="ok"')),
                    _MA,
                    "short",
                    "modint_requests_total.",
                ),
                Panel(
                    "Kept out of a label",
                    'sum by (label) (increase(modint_metric_label_overflow_total{job=~"$job"}[$__range]))',
                    "{{label}}",
                    "short",
                    "modint_metric_label_overflow_total.",
                    runbook="LabelOverflow",
                ),
                Panel(
                    "Gateways",
                    'count by (version) (modint_build_info{job=~"$job"})',
                    "{{version}}",
                    "short",
                    "modint_build_info.",
                ),
            ),
        ),
    ),
)

BOARDS = (INTERFERENCE, SERVING, ADAPTERS)
VARIABLES = {
    "job": "label_values(modint_build_info, job)",
    "model": 'label_values(modint_requests_total{job=~"$job"}, model)',
    "adapter": 'label_values(modint_requests_total{job=~"$job", model=~"$model"}, adapter)',
    "relevant": "label_values(modint_verdicts_total, relevant)",
    "probe": "label_values(modint_probe_results_total, probe)",
}


def metrics_of(expr: str) -> set[str]:
    """The metrics and recorded series that an expression names."""
    return set(re.findall(r"\b(?:modint|vllm)[_:][a-zA-Z0-9_:]+", expr))


def plain(expr: str, span: str = "30m") -> str:
    """The expression with every variable at "all" and every window at `span`: what Prometheus can run."""
    expr = re.sub(r"\$__(?:rate_interval|range)", span, expr)
    return re.sub(r'"\$\w+"', '".*"', expr)


def dashboard(board: Board) -> str:
    """The board as Grafana's JSON model."""
    document = {
        "uid": board.uid,
        "title": f"modint-guard: {board.title}",
        "tags": ["modint-guard"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), *(_variable(*one) for one in VARIABLES.items())]},
        "panels": list(_placed(board)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


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
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _placed(board: Board) -> list[JSON]:
    """Rows below each other, their panels side by side."""
    placed: list[JSON] = []
    y = 0
    for row in board.rows:
        placed.append(
            {
                "type": "row",
                "id": len(placed) + 1,
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
            }
        )
        width = WIDTH // len(row.panels)
        for place, panel in enumerate(row.panels):
            at = {"h": HEIGHT, "w": width, "x": place * width, "y": y + 1}
            placed.append(_panel(panel, len(placed) + 1, at))
        y += HEIGHT + 1
    return placed


def _panel(panel: Panel, number: int, at: JSON) -> JSON:
    now = panel.kind in ("stat", "table")
    target = {
        "refId": "A",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "expr": panel.expr,
        "legendFormat": panel.legend,
        "instant": now,
        "range": not now,
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
    }
    link = {"title": "Runbook", "url": f"{RUNBOOKS}/{panel.runbook}.md", "targetBlank": True}
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.says,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": at,
        "links": [link] if panel.runbook else [],
        "fieldConfig": {"defaults": {"unit": panel.unit, "noValue": panel.empty, "min": 0}, "overrides": []},
        "options": {},
        "targets": [target],
    }
