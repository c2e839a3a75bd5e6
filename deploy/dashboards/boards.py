"""The Grafana dashboards as code: the expression of each panel and its text. `grafana` writes their JSON.

Every panel's text names its metrics. Every share, mean and percentile names the panel of its row that shows
the number of its samples. The tests run each expression against a real Prometheus.
Variables: datasource, job, model, adapter, relevant, probe.
"""

import re
from dataclasses import dataclass
from typing import Literal

HERE = 'job=~"$job", model=~"$model"'
ADAPTER = f'{HERE}, adapter=~"$adapter"'
RELEVANT = f'{ADAPTER}, relevant=~"$relevant"'
PROBE = f'{ADAPTER}, probe=~"$probe"'
PROBES_OF = f'{RELEVANT}, probe=~"$probe"'
ENGINE = 'model_name=~"$model"'
WHO = "job, model, adapter"

Kind = Literal["timeseries", "stat", "table", "heatmap"]


@dataclass(frozen=True)
class Panel:
    """One expression, and what a reader needs to understand it."""

    title: str
    expr: str
    legend: str
    unit: str
    says: str
    kind: Kind = "timeseries"
    empty: str = "no data yet"
    samples: str | None = None  # the title of the panel in the same row that counts its samples
    runbook: str | None = None  # a page of docs/runbooks
    signed: bool = False  # whether values may be below 0


@dataclass(frozen=True)
class PanelRow:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard, as rows from top to bottom."""

    uid: str
    title: str
    rows: tuple[PanelRow, ...]

    @property
    def panels(self) -> list[Panel]:
        """Every panel, row by row."""
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
    """The expression for the adapters that a matcher names, instead of those that the variable selects."""
    return expr.replace('adapter=~"$adapter"', adapters)


_MA = "{{model}} {{adapter}}"
_FLAGGED = _increase("modint_verdicts_total", 'verdict="flagged"', where=RELEVANT)
_JUDGED = _increase("modint_verdicts_total", 'verdict=~"pass|flagged"', where=RELEVANT)
_RESULTS = _increase("modint_probe_results_total", where=PROBES_OF)
_FLIPPED = _increase("modint_probe_results_total", 'outcome="flipped"', where=PROBES_OF)
_DECIDED = _increase("modint_probe_results_total", 'outcome=~"consistent|flipped|undecided"', where=PROBES_OF)
_ABOVE = (
    f"modint:flip:ratio30m{{{ADAPTER}}} - on (job, model, adapter) "
    f"max by ({WHO}) (modint_adapter_baseline_flip_ratio{{{ADAPTER}}})"
)
_TRIED = _increase("modint_mitigation_duration_seconds_count")
_SETTLED = _increase("modint_mitigation_rungs_total", 'outcome=~"mended|confirmed|abstained"')

INTERFERENCE = Board(
    "modint-interference",
    "Modality interference",
    (
        PanelRow(
            "Flagged answers",
            (
                Panel(
                    "Flagged, of those judged",
                    _share(_FLAGGED, _JUDGED),
                    _MA,
                    "percentunit",
                    "modint_verdicts_total: flagged, of pass and flagged. Noise, unless 200 were judged.",
                    empty="nothing was judged in the time shown",
                    samples="Judged answers",
                ),
                Panel(
                    "Judged answers",
                    _sum(WHO, _JUDGED),
                    _MA,
                    "short",
                    "modint_verdicts_total: pass and flagged.",
                    empty="nothing was judged in the time shown",
                ),
                Panel(
                    "Flagged, by cause",
                    _sum("cause", _FLAGGED),
                    "{{cause}}",
                    "short",
                    "modint_verdicts_total: what drove the flagged answers.",
                    empty="nothing was judged in the time shown",
                ),
            ),
        ),
        PanelRow(
            "What a flag is worth",
            (
                Panel(
                    "Planted lies found",
                    f"min by ({WHO}) (modint_null_power_ratio{{{ADAPTER}}})",
                    _MA,
                    "percentunit",
                    "modint_null_power_ratio: of lies that the gateway planted and that changed the answer.",
                    empty="fewer than 20 planted lies changed an answer",
                    runbook="GuardBlind",
                ),
                Panel(
                    "Harmless inputs measured",
                    f"min by ({WHO}, source) (modint_null_scores{{{ADAPTER}}})",
                    "{{model}} {{adapter}} {{source}}",
                    "short",
                    "modint_null_scores: what answers are judged by; below 99 the thresholds decide.",
                ),
                Panel(
                    "Share that may be flagged",
                    f"max by (job) (modint_null_alpha_ratio{{{HERE}}})",
                    "{{job}}",
                    "percentunit",
                    "modint_null_alpha_ratio: of harmless inputs.",
                ),
            ),
        ),
        PanelRow(
            "Against the baseline",
            (
                Panel(
                    "Flips now (30 m)",
                    f"modint:flip:ratio30m{{{ADAPTER}}}",
                    _MA,
                    "percentunit",
                    "modint_probe_results_total through modint:flip:ratio30m: answers that flipped when "
                    "the part that ought not to matter was taken away.",
                    empty="fewer than 200 answers were examined in 30 minutes",
                    samples="Examined answers (30 m)",
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
                    "Above the baseline",
                    _ABOVE,
                    _MA,
                    "percentunit",
                    "modint:flip:ratio30m less modint_adapter_baseline_flip_ratio. From ten points on it "
                    "alerts.",
                    empty="no adapter with a baseline had 200 answers examined in 30 minutes",
                    samples="Examined answers (30 m)",
                    runbook="InterferenceAboveBaseline",
                    signed=True,
                ),
                Panel(
                    "Examined answers (30 m)",
                    f"modint:flips_examined:increase30m{{{ADAPTER}}}",
                    _MA,
                    "short",
                    "modint_probe_results_total through modint:flips_examined:increase30m: how many came "
                    "back.",
                ),
            ),
        ),
        PanelRow(
            "Base against adapters",
            (
                Panel(
                    "Flagged: the base",
                    _share(_only(_FLAGGED, 'adapter="none"'), _only(_JUDGED, 'adapter="none"')),
                    "{{model}}",
                    "percentunit",
                    'modint_verdicts_total of adapter="none".',
                    empty="no base answer was judged in the time shown",
                    samples="Judged: the base",
                ),
                Panel(
                    "Judged: the base",
                    _sum(WHO, _only(_JUDGED, 'adapter="none"')),
                    "{{model}}",
                    "short",
                    'modint_verdicts_total of adapter="none": pass and flagged.',
                    empty="no base is served",
                ),
                Panel(
                    "Flagged: adapters",
                    _share(_only(_FLAGGED, 'adapter!="none"'), _only(_JUDGED, 'adapter!="none"')),
                    _MA,
                    "percentunit",
                    'modint_verdicts_total of adapter!="none".',
                    empty="no adapter's answer was judged in the time shown",
                    samples="Judged: adapters",
                ),
                Panel(
                    "Judged: adapters",
                    _sum(WHO, _only(_JUDGED, 'adapter!="none"')),
                    _MA,
                    "short",
                    'modint_verdicts_total of adapter!="none": pass and flagged.',
                    empty="no adapter is served",
                ),
            ),
        ),
        PanelRow(
            "Probes",
            (
                Panel(
                    "Flips, by probe",
                    _share(_FLIPPED, _DECIDED, "probe"),
                    "{{probe}}",
                    "percentunit",
                    "modint_probe_results_total: flipped, of those that came back.",
                    empty="no probe ran in the time shown",
                    samples="Probes that came back",
                ),
                Panel(
                    "Probes that came back",
                    _sum("probe", _DECIDED),
                    "{{probe}}",
                    "short",
                    "modint_probe_results_total: consistent, flipped and undecided.",
                    empty="no probe ran in the time shown",
                ),
                Panel(
                    "Probes, by outcome",
                    _sum("outcome", _RESULTS),
                    "{{outcome}}",
                    "short",
                    "modint_probe_results_total: all, with those that failed or were late.",
                    runbook="ProbeErrorRatioHigh",
                ),
                Panel(
                    "How far answers move",
                    _sum(
                        "le", f"increase(modint_probe_divergence_ratio_bucket{{{PROBE}}}[$__rate_interval])"
                    ),
                    "{{le}}",
                    "short",
                    "modint_probe_divergence_ratio: Jensen-Shannon, base 2, answer against probe.",
                    kind="heatmap",
                    empty="no probe ran in the time shown",
                ),
            ),
        ),
        PanelRow(
            "Risk",
            (
                Panel(
                    "Risk of 1 − α or more",
                    _share(
                        _increase("modint_unusual_answers_total", where=RELEVANT),
                        _increase("modint_risk_ratio_count", where=RELEVANT),
                    ),
                    _MA,
                    "percentunit",
                    "modint_unusual_answers_total over modint_risk_ratio's count; of harmless ones α.",
                    empty="no answer had a risk in the time shown",
                    samples="Answers with a risk",
                ),
                Panel(
                    "Answers with a risk",
                    _sum(WHO, _increase("modint_risk_ratio_count", where=RELEVANT)),
                    _MA,
                    "short",
                    "modint_risk_ratio: its count.",
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
                    empty="no answer with log-probabilities in the time shown",
                    samples="Answers with log-probabilities",
                ),
                Panel(
                    "Answers with log-probabilities",
                    _sum("job, model", _increase("modint_logprob_coverage_ratio_count", where=HERE)),
                    "{{model}}",
                    "short",
                    "modint_logprob_coverage_ratio: its count.",
                ),
                Panel(
                    "The engine's own noise",
                    f"max by (job, model) (modint_noise_floor_ratio{{{HERE}}})",
                    "{{model}}",
                    "percentunit",
                    "modint_noise_floor_ratio: how much a probability moved when the same was asked "
                    "again, last seen. Flips within it do not count.",
                ),
            ),
        ),
        PanelRow(
            "What was done about flagged answers",
            (
                Panel(
                    "Answers, by action",
                    _sum("action", _increase("modint_policy_actions_total")),
                    "{{action}}",
                    "short",
                    "modint_policy_actions_total: of every verdict; annotate leaves the answer as it is.",
                ),
                Panel(
                    "Attempts, by rung and outcome",
                    f"{_sum('rung, outcome', _increase('modint_mitigation_rungs_total'))} > 0",
                    "{{rung}} {{outcome}}",
                    "short",
                    "modint_mitigation_rungs_total: docs/mitigation.md says what each outcome means.",
                    empty="no policy tried to mend an answer in the time shown",
                ),
                Panel(
                    "Settled, of those tried",
                    _share(_SETTLED, _TRIED),
                    _MA,
                    "percentunit",
                    "modint_mitigation_rungs_total with outcome mended, confirmed or abstained, of the "
                    "count of modint_mitigation_duration_seconds.",
                    empty="no policy tried to mend an answer in the time shown",
                    samples="Flagged answers tried",
                ),
                Panel(
                    "Flagged answers tried",
                    _sum(WHO, _TRIED),
                    _MA,
                    "short",
                    "modint_mitigation_duration_seconds: its count.",
                ),
                Panel(
                    "Tokens for each answer tried",
                    _share(_increase("modint_mitigation_tokens_total"), _TRIED),
                    _MA,
                    "short",
                    "modint_mitigation_tokens_total over the count of modint_mitigation_duration_seconds. "
                    "A policy's max_tokens bounds it.",
                    empty="no policy tried to mend an answer in the time shown",
                    samples="Flagged answers tried",
                ),
                Panel(
                    "Mending, slowest in twenty",
                    _quantile(0.95, "modint_mitigation_duration_seconds", "model, adapter"),
                    _MA,
                    "s",
                    "modint_mitigation_duration_seconds, 95th percentile. A policy's deadline_s bounds it.",
                    empty="no policy tried to mend an answer in the time shown",
                    samples="Flagged answers tried",
                ),
                Panel(
                    "Left out for want of tokens",
                    _sum(WHO, _increase("modint_mitigation_rungs_total", 'outcome="budget"')),
                    _MA,
                    "short",
                    "modint_mitigation_rungs_total with outcome budget: a policy's max_tokens, or a key's "
                    "MODINT_MITIGATION_TOKENS_PER_MINUTE, is spent.",
                ),
            ),
        ),
    ),
)

_REQUESTS = _increase("modint_requests_total")
_FAULTS = 'outcome=~"upstream_error|interrupted|internal_error|rejected"'
_FAILED = _increase("modint_requests_total", _FAULTS)
_NO_ENGINE_PAGE = "the job of /engine/metrics is not scraped"
_PREFIX_HITS = _increase("vllm:prefix_cache_hits_total", where=ENGINE)
_PREFIX_QUERIES = _increase("vllm:prefix_cache_queries_total", where=ENGINE)
SERVING = Board(
    "modint-serving",
    "Serving",
    (
        PanelRow(
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
                    empty="no gateway is scraped",
                ),
                Panel(
                    "Failed, of all",
                    _share(_FAILED, _REQUESTS),
                    _MA,
                    "percentunit",
                    "modint_requests_total: outcomes that are the engine's or the gateway's fault, of all.",
                    empty="no request in the time shown",
                    samples="Requests",
                ),
                Panel(
                    "Requests",
                    _sum(WHO, _REQUESTS),
                    _MA,
                    "short",
                    "modint_requests_total: all, whatever became of them.",
                ),
            ),
        ),
        PanelRow(
            "Time",
            (
                Panel(
                    "Slowest in twenty",
                    _quantile(0.95, "modint_request_duration_seconds", "model, adapter"),
                    _MA,
                    "s",
                    "modint_request_duration_seconds, 95th percentile.",
                    empty="no request in the time shown",
                    samples="Requests timed",
                    runbook="LatencyBurn",
                ),
                Panel(
                    "To the first token, median",
                    _quantile(0.5, "modint_time_to_first_token_seconds", "model, adapter"),
                    _MA,
                    "s",
                    "modint_time_to_first_token_seconds: streams only.",
                    empty="no stream in the time shown",
                    samples="Streams timed",
                ),
                Panel(
                    "Added by the gateway, slowest in twenty",
                    _quantile(0.95, "modint_gateway_overhead_seconds", "route", 'job=~"$job"'),
                    "{{route}}",
                    "s",
                    "modint_gateway_overhead_seconds, 95th percentile: probes that were waited for, and "
                    "our own work.",
                    empty="no request in the time shown",
                    samples="Requests, by route",
                    runbook="ProbeOverheadHigh",
                ),
                Panel(
                    "Requests timed",
                    _sum(WHO, _increase("modint_request_duration_seconds_count")),
                    _MA,
                    "short",
                    "modint_request_duration_seconds: its count.",
                ),
                Panel(
                    "Streams timed",
                    _sum(WHO, _increase("modint_time_to_first_token_seconds_count")),
                    _MA,
                    "short",
                    "modint_time_to_first_token_seconds: its count.",
                ),
                Panel(
                    "Requests, by route",
                    _sum("route", _increase("modint_gateway_overhead_seconds_count", where='job=~"$job"')),
                    "{{route}}",
                    "short",
                    "modint_gateway_overhead_seconds: its count.",
                ),
            ),
        ),
        PanelRow(
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
                    "Waiting for a probe's slot",
                    f"sum by (job, model) (modint_queue_depth{{{HERE}}})",
                    "{{model}}",
                    "short",
                    "modint_queue_depth: calls of probes and rungs beyond MODINT_MAX_PROBES_IN_FLIGHT.",
                    runbook="ProbeErrorRatioHigh",
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
        PanelRow(
            "What probes cost",
            (
                Panel(
                    "Probe tokens for each token of an answer",
                    _share(_increase("modint_probe_tokens_total"), _increase("modint_tokens_total")),
                    _MA,
                    "none",
                    "modint_probe_tokens_total over modint_tokens_total.",
                    empty="no answer's tokens were counted",
                    samples="Tokens of answers",
                ),
                Panel(
                    "Tokens of answers",
                    _sum(WHO, _increase("modint_tokens_total")),
                    _MA,
                    "short",
                    "modint_tokens_total: prompts and answers.",
                ),
                Panel(
                    "Of these, from the prefix cache",
                    _share(
                        _increase("modint_probe_cached_tokens_total"), _increase("modint_probe_tokens_total")
                    ),
                    _MA,
                    "percentunit",
                    "modint_probe_cached_tokens_total over modint_probe_tokens_total.",
                    empty="no probe ran in the time shown",
                    samples="Probe tokens",
                ),
                Panel(
                    "Probe tokens",
                    _sum(WHO, _increase("modint_probe_tokens_total")),
                    _MA,
                    "short",
                    "modint_probe_tokens_total: prompts and answers of probes.",
                ),
                Panel(
                    "A probe's call, slowest in twenty",
                    _quantile(0.95, "modint_probe_duration_seconds", "probe", PROBE),
                    "{{probe}}",
                    "s",
                    "modint_probe_duration_seconds, 95th percentile.",
                    empty="no probe ran in the time shown",
                    samples="Probes timed",
                ),
                Panel(
                    "Probes timed",
                    _sum("probe", _increase("modint_probe_duration_seconds_count", where=PROBE)),
                    "{{probe}}",
                    "short",
                    "modint_probe_duration_seconds: its count.",
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
        PanelRow(
            "The engine",
            (
                Panel(
                    "Up",
                    'min by (job, instance) (modint_upstream_up{job=~"$job"})',
                    "{{instance}}",
                    "bool_yes_no",
                    "modint_upstream_up: 1 while the engine answers the gateway.",
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
                    f"sum by (model_name) (vllm:num_requests_running{{{ENGINE}}})",
                    "{{model_name}}",
                    "short",
                    "vllm:num_requests_running, from /engine/metrics.",
                    empty=_NO_ENGINE_PAGE,
                ),
                Panel(
                    "vLLM: waiting",
                    f"sum by (model_name) (vllm:num_requests_waiting{{{ENGINE}}})",
                    "{{model_name}}",
                    "short",
                    "vllm:num_requests_waiting, from /engine/metrics.",
                    empty=_NO_ENGINE_PAGE,
                ),
                Panel(
                    "vLLM: cache in use",
                    f"max by (model_name) (vllm:kv_cache_usage_perc{{{ENGINE}}})",
                    "{{model_name}}",
                    "percentunit",
                    "vllm:kv_cache_usage_perc, from /engine/metrics: a state, of no samples.",
                    empty=_NO_ENGINE_PAGE,
                ),
                Panel(
                    "vLLM: found in the prefix cache",
                    _share(_PREFIX_HITS, _PREFIX_QUERIES, "model_name"),
                    "{{model_name}}",
                    "percentunit",
                    "vllm:prefix_cache_hits_total over vllm:prefix_cache_queries_total, in tokens; "
                    "answers and probes.",
                    empty=_NO_ENGINE_PAGE,
                    samples="vLLM: looked up in the prefix cache",
                ),
                Panel(
                    "vLLM: looked up in the prefix cache",
                    _sum("model_name", _PREFIX_QUERIES),
                    "{{model_name}}",
                    "short",
                    "vllm:prefix_cache_queries_total: tokens.",
                    empty=_NO_ENGINE_PAGE,
                ),
            ),
        ),
    ),
)

ADAPTERS = Board(
    "modint-adapters",
    "Adapters and training",
    (
        PanelRow(
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
        PanelRow(
            "What is served",
            (
                Panel(
                    "Adapters",
                    f"max by ({WHO}, rank, revision, recipe) (modint_adapter_info{{{ADAPTER}}})",
                    "{{model}} {{adapter}} rank {{rank}} {{revision}} {{recipe}}",
                    "short",
                    "modint_adapter_info: rank, fingerprint and recipe where the gateway knows the folder.",
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
        PanelRow(
            "What training promised",
            (
                Panel(
                    "Flips on the card",
                    f"max by ({WHO}) (modint_adapter_baseline_flip_ratio{{{ADAPTER}}})",
                    _MA,
                    "percentunit",
                    "modint_adapter_baseline_flip_ratio: measured at the end of training, kept in "
                    "run.json. Losses and test figures of a run are in its folder: log.jsonl, curves.png, "
                    "run.json.",
                    kind="stat",
                    empty="no adapter served here has a baseline in its run.json",
                ),
                Panel(
                    "Flips since (30 m)",
                    f"max by ({WHO}) (modint:flip:ratio30m{{{ADAPTER}}})",
                    _MA,
                    "percentunit",
                    "modint:flip:ratio30m: the same share of live answers.",
                    kind="stat",
                    empty="fewer than 200 answers were examined in 30 minutes",
                    samples="Answers examined since (30 m)",
                    runbook="InterferenceAboveBaseline",
                ),
                Panel(
                    "Answers examined since (30 m)",
                    f"max by ({WHO}) (modint:flips_examined:increase30m{{{ADAPTER}}})",
                    _MA,
                    "short",
                    "modint:flips_examined:increase30m: how many came back.",
                    kind="stat",
                ),
            ),
        ),
        PanelRow(
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
                    "Steps that failed beside the answer",
                    'sum by (step) (increase(modint_step_failures_total{job=~"$job"}[$__range]))',
                    "{{step}}",
                    "short",
                    "modint_step_failures_total.",
                    runbook="StepsFailing",
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
