"""Every metric of the gateway. Labels have closed sets of values, and each child exists from the start."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modint_guard.chat.reply import usage_of
from modint_guard.examination import STEPS as EXAMINATION_STEPS
from modint_guard.judging.null import CHECKUP, TRAFFIC, Null
from modint_guard.probing.views import VIEWS
from modint_guard.report import Mitigation, Report
from modint_guard.types import (
    RUNGS,
    SELF_ASKED,
    SKIPPED_REASONS,
    TAKEN_ACTIONS,
    UNCONSTRAINED,
    UNREASONED,
    Cause,
    ProbeOutcome,
    Relevant,
    RungOutcome,
    State,
)

NONE = "none"  # the adapter of a base; the cause of a verdict that has none
UNKNOWN = "unknown"  # the model of a request that names none that is served
OTHER = "other"  # the adapters beyond the largest number of label values
ROUTES = ("chat", "completions", "guard_check", "responses", "messages", "passed")
OUTCOMES = ("ok", "client_error", "upstream_error", "interrupted", "cancelled", "rejected", "internal_error")
REJECTIONS = ("in_flight", "key_share", "rate_limit", "draining")
STEPS = (*EXAMINATION_STEPS, "measuring", "annotating", "counting", "logging", "watching")
UPSTREAM_ERRORS = ("unreachable", "timeout", "client_error", "server_error", "protocol")
ACTIONS = TAKEN_ACTIONS
PROBES = (*VIEWS, SELF_ASKED, UNREASONED, UNCONSTRAINED)  # the probes that a request of the gateway can have

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_OVERHEAD_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Served:
    """The label values of one served model; a base has adapter="none"."""

    model: str
    adapter: str = NONE


NOBODY = Served(UNKNOWN)


@dataclass(frozen=True)
class Family:
    """A metric as the table in docs/metrics.md shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Card:
    """What an adapter's folder says about it; None for what it does not say."""

    rank: int | None = None
    revision: str | None = None  # the first 12 hexadecimal digits of its weights' SHA-256
    baseline_flip_ratio: float | None = None  # in [0, 1], from its run record: see docs/metrics.md
    modules: Mapping[str, int] | None = None  # numbers of modules by status, from the doctor's record
    recipe: str | None = None  # the name of its training recipe, from its run record


NO_CARD = Card()
ADAPTER_STATUSES = ("matched", "renamed", "ignored", "unmatched", "unchecked")


class Metrics:
    """All metrics, on the registry that is passed in; `know` makes the children of each served model.

    upstream: the engine's label value. cards: by adapter. settings: the labels of modint_config_info.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        upstream: str = "engine",
        cards: Mapping[str, Card] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry
        self.catalogue: list[Family] = []
        self._upstream = upstream
        self._cards = cards or {}
        ma = ("model", "adapter")

        def named(name: str, kind: str, text: str, labels: Iterable[str]) -> tuple[str, str, tuple[str, ...]]:
            self.catalogue.append(Family(f"modint_{name}", kind, tuple(labels), text))
            return f"modint_{name}", text, tuple(labels)

        def counter(name: str, text: str, labels: Iterable[str]) -> Counter:
            return Counter(*named(name, "counter", text, labels), registry=registry)

        def histogram(name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(*named(name, "histogram", text, labels), registry=registry, buckets=buckets)

        def gauge(name: str, text: str, labels: Iterable[str]) -> Gauge:
            return Gauge(*named(name, "gauge", text, labels), registry=registry)

        self.requests = counter("requests_total", "Requests answered, by outcome.", (*ma, "route", "outcome"))
        self.duration = histogram("request_duration_seconds", "First byte in to last byte out.", ma, _SECONDS)
        self.first_token = histogram(
            "time_to_first_token_seconds", "To the first text of a stream.", ma, _SECONDS
        )
        self.overhead = histogram(
            "gateway_overhead_seconds",
            "Time not spent waiting for the main answer.",
            ("route",),
            _OVERHEAD_SECONDS,
        )
        self.tokens = counter(
            "tokens_total", "Tokens of main answers, as the engine reports.", (*ma, "direction")
        )
        self.images = counter("images_total", "Images in requests.", (*ma, "direction"))
        self.in_flight = gauge("requests_in_flight", "Requests being answered.", ("model",))
        self.queue = gauge("queue_depth", "Probes and rungs that wait for a slot.", ("model",))
        self.rejections = counter("admission_rejections_total", "Requests turned away.", ("reason",))
        self.step_failures = counter(
            "step_failures_total", "Steps beside the answer that failed and cost no answer.", ("step",)
        )
        self.upstream_up = gauge("upstream_up", "1 while the engine answers.", ("upstream",))
        self.upstream_errors = counter(
            "upstream_errors_total", "Failed calls of the engine.", ("upstream", "kind")
        )
        self.verdicts = counter("verdicts_total", "Verdicts.", (*ma, "relevant", "verdict", "cause"))
        self.risk = histogram("risk_ratio", "Risk of judged answers.", (*ma, "relevant"), _RATIOS)
        self.unusual = counter(
            "unusual_answers_total", "Judged answers with a risk of at least 1 - alpha.", (*ma, "relevant")
        )
        self.probe_results = counter(
            "probe_results_total", "Probes by outcome.", (*ma, "relevant", "probe", "outcome")
        )
        self.divergence = histogram(
            "probe_divergence_ratio", "Jensen-Shannon, base 2, answer against probe.", (*ma, "probe"), _RATIOS
        )
        self.noise = gauge(
            "noise_floor_ratio",
            "Largest change of a probability when the same request was asked again, last seen.",
            ("model",),
        )
        self.probe_seconds = histogram(
            "probe_duration_seconds", "One probe's call.", (*ma, "probe"), _SECONDS
        )
        self.coverage = histogram(
            "logprob_coverage_ratio",
            "Probability that the listed tokens hold at the answer's first content position.",
            ("model",),
            _RATIOS,
        )
        self.probe_tokens = counter("probe_tokens_total", "Tokens that probes cost.", ma)
        self.probe_cached = counter("probe_cached_tokens_total", "Of these, found in the prefix cache.", ma)
        self.probe_skipped = counter("probe_skipped_total", "Requests not probed.", ("model", "reason"))
        self.sample = gauge("sample_ratio", "Share of the requests with a picture that is to be judged.", ())
        self.actions = counter("policy_actions_total", "What was done about a verdict.", (*ma, "action"))
        self.rungs = counter(
            "mitigation_rungs_total", "Attempts at a better answer.", (*ma, "rung", "outcome")
        )
        self.mitigation_seconds = histogram(
            "mitigation_duration_seconds", "All attempts at one flagged answer.", ma, _SECONDS
        )
        self.mitigation_tokens = counter(
            "mitigation_tokens_total", "Tokens that these attempts cost, prompts included.", ma
        )
        self.adapter_divergence = gauge(
            "adapter_selftest_divergence_ratio",
            "Self-test: largest Jensen-Shannon, base 2, of adapter against base.",
            ma,
        )
        self.adapter_ok = gauge("adapter_selftest_ok", "1 if the adapter changes the engine's answers.", ma)
        self.mixed_ok = gauge(
            "base_beside_adapters_ok",
            "1 if base answers beside adapter traffic are the base's.",
            ("model",),
        )
        self.adapter_info = gauge(
            "adapter_info",
            "1, labelled with rank, fingerprint and recipe, as far as known.",
            (*ma, "rank", "revision", "recipe"),
        )
        self.adapter_modules = gauge(
            "adapter_modules", "Modules of an adapter by what the doctor recorded.", (*ma, "status")
        )
        self.adapter_baseline = gauge(
            "adapter_baseline_flip_ratio", "Share of flips on the adapter's card, if it has one.", ma
        )
        self.null_scores = gauge(
            "null_scores", "Scores of harmless inputs that answers are judged by.", (*ma, "source")
        )
        self.null_alpha = gauge("null_alpha_ratio", "Share of harmless inputs that may be flagged.", ())
        self.alpha = 0.0
        self.null_power = gauge(
            "null_power_ratio",
            "Share of planted lies that is flagged, of those that changed the answer; absent below 20.",
            ma,
        )
        self.overflow = counter("metric_label_overflow_total", "Values kept out of a label.", ("label",))
        self.build = gauge("build_info", "1, labelled with the version.", ("version",))
        self.config = gauge(
            "config_info", "1, labelled with the settings that change what is counted.", tuple(settings or ())
        )
        (self.config.labels(**settings) if settings else self.config).set(1)
        self._children_of_closed_sets()

    def know(self, served: Iterable[Served]) -> None:
        """Makes every child of these models, so that a first event is a rise from 0 and not from nothing."""
        for model in served:
            self._children_of(model)

    def rejected(self, reason: str) -> None:
        """Counts a request that was turned away; `reason` is one of REJECTIONS."""
        self.rejections.labels(reason).inc()

    def step_failed(self, step: str) -> None:
        """Counts a step that failed beside the answer; `step` is one of STEPS."""
        self.step_failures.labels(step).inc()

    def upstream_failed(self, kind: str) -> None:
        """Counts a failed call of the engine; `kind` is one of UPSTREAM_ERRORS."""
        self.upstream_errors.labels(self._upstream, kind).inc()

    def upstream_is(self, up: bool) -> None:
        """Sets whether the engine answers."""
        self.upstream_up.labels(self._upstream).set(float(up))

    def used(self, served: Served, usage: object) -> None:
        """Counts the tokens of an OpenAI `usage` object; anything else counts nothing."""
        if usage is None:
            return
        tokens = usage_of({"usage": usage})
        for direction, number in (("input", tokens.prompt_tokens), ("output", tokens.completion_tokens)):
            self.tokens.labels(served.model, served.adapter, direction).inc(number)

    def examined(self, served: Served, ok: bool, divergence: float | None) -> None:
        """Sets the self-test's result for one adapter; before its first test it has no children here."""
        self.adapter_ok.labels(served.model, served.adapter).set(float(ok))
        if divergence is not None:
            self.adapter_divergence.labels(served.model, served.adapter).set(divergence)

    def gone(self, served: Iterable[Served]) -> None:
        """Removes the gauges of adapters that are no longer served; their counters stay."""
        for adapter in served:
            for family in (self.adapter_ok, self.adapter_divergence, self.adapter_baseline, self.null_power):
                with contextlib.suppress(KeyError):  # never tested, or without a baseline
                    family.remove(adapter.model, adapter.adapter)
            for family in (self.adapter_info, self.adapter_modules):
                family.remove_by_labels({"model": adapter.model, "adapter": adapter.adapter})

    def null(self, served: Served, null: Null) -> None:
        """Sets how many scores a model's null has, and its power if that is known."""
        ma, origins = (served.model, served.adapter), null.origins
        self.null_scores.labels(*ma, CHECKUP).set(origins[CHECKUP])
        self.null_scores.labels(*ma, TRAFFIC).set(origins.total() - origins[CHECKUP])
        if null.power is not None:
            self.null_power.labels(*ma).set(null.power)

    def mixed(self, model: str, ok: bool) -> None:
        """Sets whether base answers beside adapter traffic are the base's."""
        self.mixed_ok.labels(model).set(float(ok))

    def judged(self, served: Served, report: Report) -> None:
        """Counts a verdict and its probes."""
        verdict, ma = report.verdict, (served.model, served.adapter)
        cause = verdict.cause.value if verdict.cause else NONE
        self.verdicts.labels(*ma, report.relevant.value, verdict.state.value, cause).inc()
        self.actions.labels(*ma, report.action if report.action in ACTIONS else OTHER).inc()
        if verdict.risk is not None:
            self.risk.labels(*ma, report.relevant.value).observe(verdict.risk)
            if verdict.risk >= 1.0 - self.alpha:
                self.unusual.labels(*ma, report.relevant.value).inc()
        if verdict.state is State.SKIPPED:
            self.probe_skipped.labels(served.model, verdict.reason or UNKNOWN).inc()
        if report.noise is not None:
            self.noise.labels(served.model).set(report.noise)
        for probe in report.probes:
            self.probe_results.labels(*ma, report.relevant.value, probe.name, probe.outcome.value).inc()
            self.probe_seconds.labels(*ma, probe.name).observe(probe.ms / 1000)
            self.probe_tokens.labels(*ma).inc(probe.tokens)
            self.probe_cached.labels(*ma).inc(probe.cached_tokens)
            if probe.divergence is not None:
                self.divergence.labels(*ma, probe.name).observe(probe.divergence)

    def mitigated(self, served: Served, tried: Mitigation) -> None:
        """Counts the attempts at a better answer in place of one."""
        ma = (served.model, served.adapter)
        self.mitigation_seconds.labels(*ma).observe(tried.ms / 1000)
        self.mitigation_tokens.labels(*ma).inc(tried.tokens)
        for rung in tried.rungs:
            self.rungs.labels(*ma, rung.rung, rung.outcome.value).inc()

    def _children_of_closed_sets(self) -> None:
        for reason in REJECTIONS:
            self.rejections.labels(reason)
        for step in STEPS:
            self.step_failures.labels(step)
        for kind in UPSTREAM_ERRORS:
            self.upstream_errors.labels(self._upstream, kind)
        for route in ROUTES:
            self.overhead.labels(route)
        for label in ("model", "adapter"):
            self.overflow.labels(label)
        for route, outcome in product(ROUTES, OUTCOMES):
            self.requests.labels(UNKNOWN, NONE, route, outcome)
        self.duration.labels(UNKNOWN, NONE)
        self.queue.labels(UNKNOWN)
        self.upstream_is(False)
        self.build.labels(_version()).set(1)

    def _children_of(self, served: Served) -> None:
        ma = (served.model, served.adapter)
        for by_model in (self.in_flight, self.queue, self.noise, self.coverage):
            by_model.labels(served.model)
        if served.adapter not in (NONE, OTHER):
            self._introduce(ma, self._cards.get(served.adapter, NO_CARD))
        for family in (self.duration, self.first_token, self.probe_tokens, self.probe_cached):
            family.labels(*ma)
        for source in (CHECKUP, TRAFFIC):
            self.null_scores.labels(*ma, source)
        self.mitigation_seconds.labels(*ma)
        self.mitigation_tokens.labels(*ma)
        for rung, result in product(RUNGS, RungOutcome):
            self.rungs.labels(*ma, rung, result.value)
        for direction in ("input", "output"):
            self.tokens.labels(*ma, direction)
        self.images.labels(*ma, "input")
        for action in ACTIONS:
            self.actions.labels(*ma, action)
        for route, outcome in product(ROUTES, OUTCOMES):
            self.requests.labels(*ma, route, outcome)
        for reason in SKIPPED_REASONS:
            self.probe_skipped.labels(served.model, reason)
        for relevant in Relevant:
            self._judgements_of(ma, relevant.value)
        for probe in PROBES:
            self.divergence.labels(*ma, probe)
            self.probe_seconds.labels(*ma, probe)

    def _introduce(self, ma: tuple[str, str], card: Card) -> None:
        """The gauges of an adapter that its card fills."""
        rank = UNKNOWN if card.rank is None else str(card.rank)
        self.adapter_info.labels(*ma, rank, card.revision or UNKNOWN, card.recipe or UNKNOWN).set(1)
        if card.baseline_flip_ratio is not None:
            self.adapter_baseline.labels(*ma).set(card.baseline_flip_ratio)
        for status in ADAPTER_STATUSES if card.modules is not None else ():
            self.adapter_modules.labels(*ma, status).set((card.modules or {}).get(status, 0))

    def set_alpha(self, alpha: float) -> None:
        """From now on a risk of at least 1 - alpha counts as unusual."""
        self.alpha = alpha
        self.null_alpha.set(alpha)

    def _judgements_of(self, ma: tuple[str, str], relevant: str) -> None:
        self.risk.labels(*ma, relevant)
        self.unusual.labels(*ma, relevant)
        for state in (State.PASS, State.UNSCORED, State.SKIPPED):
            self.verdicts.labels(*ma, relevant, state.value, NONE)
        for cause in Cause:
            self.verdicts.labels(*ma, relevant, State.FLAGGED.value, cause.value)
        for probe, outcome in product(PROBES, ProbeOutcome):
            self.probe_results.labels(*ma, relevant, probe, outcome.value)


def _version() -> str:
    try:
        return version("modint-guard")
    except PackageNotFoundError:
        return "0+unknown"
