"""The records of the `modint` object: what a report says about one answer, and how it is written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from modint_guard.types import (
    ANNOTATE,
    FIRST_TOKEN,
    JSON,
    Cause,
    ProbeOutcome,
    Relevant,
    RelevantSource,
    RungOutcome,
    State,
    Statistic,
)

SCHEMA_VERSION = "2"
SpanKind = Literal["word", "claim", "leaf"]


@dataclass(frozen=True, slots=True)
class NullSummary:
    """The null that an answer was judged by.

    source: whose requests it is from. n: how many scores of about the answer's length. power: the share of
    planted lies that is flagged; None if it is not known.
    """

    source: str
    n: int
    power: float | None

    def to_json(self) -> JSON:
        """The `null` of the `modint` object."""
        return {"source": self.source, "n": self.n, "power": self.power}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on an answer.

    cause: set for FLAGGED only. risk: in [0, 1]; None if it is not known. reason: from UNSCORED_REASONS or
    SKIPPED_REASONS, set for these states only. calibrated: whether the risk has the guarantee of a null or
    of a calibration. neglect: how little what is needed influenced the answer, in nats
    (`verdict.neglect_of`); None if it is not known. null: what the risk was measured against; None for no
    null.
    """

    state: State
    cause: Cause | None = None
    risk: float | None = None
    reason: str | None = None
    calibrated: bool = False
    neglect: float | None = None
    null: NullSummary | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One row of the report's `probes`: a view compared with the served answer."""

    name: str
    outcome: ProbeOutcome
    divergence: float | None = None  # Jensen-Shannon, base 2
    exact: bool = False  # over all options; otherwise a lower bound from top-k lists
    coverage: float | None = None  # how much of both distributions their top-k lists hold, in [0, 1]
    flip: bool | None = None  # None: undecided, or not known
    delta_logprob: float | None = None  # log p(y) of the answer minus that under the view, nats
    answer: str | None = None
    tokens: int = 0
    cached_tokens: int = 0
    ms: float = 0.0

    def to_json(self) -> JSON:
        """The row as it stands in the `modint` object."""
        return {
            "name": self.name,
            "outcome": self.outcome.value,
            "divergence": self.divergence,
            "exact": self.exact,
            "coverage": self.coverage,
            "flip": self.flip,
            "delta_logprob": self.delta_logprob,
            "answer": self.answer,
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "ms": round(self.ms, 3),
        }


@dataclass(frozen=True, slots=True)
class RungResult:
    """One row of the mitigation's `rungs`: what a rung came to, its answer if it has one, and its cost."""

    rung: str
    outcome: RungOutcome
    answer: str | None = None
    tokens: int = 0  # of all its calls, prompts included
    cached_tokens: int = 0
    ms: float = 0.0

    def to_json(self) -> JSON:
        """The row as it stands in the `modint` object."""
        return {
            "rung": self.rung,
            "outcome": self.outcome.value,
            "answer": self.answer,
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "ms": round(self.ms, 3),
        }


@dataclass(frozen=True, slots=True)
class Mitigation:
    """What was tried about a flagged answer.

    asked: the action that the request or the policy asked for. action: what was done. answer: served in place
    of `original`; None if the original stands. finish_reason: of the new answer. correction: whether the
    original text had already been sent.
    """

    asked: str
    action: str
    original: str = field(repr=False)
    answer: str | None = field(default=None, repr=False)
    finish_reason: str | None = None
    rungs: tuple[RungResult, ...] = ()
    correction: bool = False

    @property
    def tokens(self) -> int:
        """The tokens of all rungs together, prompts included."""
        return sum(rung.tokens for rung in self.rungs)

    @property
    def ms(self) -> float:
        """The time of all rungs together, in milliseconds."""
        return sum(rung.ms for rung in self.rungs)

    def to_json(self) -> JSON:
        """The `mitigation` of the `modint` object."""
        return {
            "asked": self.asked,
            "original": self.original,
            "answer": self.answer,
            "correction": self.correction,
            "rungs": [rung.to_json() for rung in self.rungs],
            "tokens": self.tokens,
            "ms": round(self.ms, 3),
        }


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """A part of an answer, and what each modality gave to it.

    kind: "word", "claim" (a clause, a sentence, a line) or "leaf" (a value of a JSON document); spans of one
    kind do not overlap. start, end: the characters [start, end) of the answer's content. text: what stands
    there. path: the JSON pointer of the leaf that it is or is in. cause: what turned it; None for most parts,
    and for all of an answer that is not flagged. influence_text, influence_image: the sums of the influences
    of its tokens, nats; None if not known.
    """

    kind: SpanKind
    start: int
    end: int
    text: str = field(repr=False)
    path: str | None
    cause: Cause | None
    influence_text: float | None
    influence_image: float | None

    def to_json(self) -> JSON:
        """The span as it stands in the `modint` object."""
        return {
            "kind": self.kind,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "path": self.path,
            "cause": self.cause.value if self.cause else None,
            "influence": {"text": self.influence_text, "image": self.influence_image},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the `modint` object. Influences, synergy and noise are those of `Score`."""

    verdict: Verdict
    relevant: Relevant = Relevant.UNKNOWN
    relevant_source: RelevantSource = "none"
    relevant_probability: float | None = None  # by the classifier
    examined: tuple[str, ...] = ()
    statistic: Statistic | None = None  # None if it could not be taken
    influence_text: float | None = None
    influence_image: float | None = None
    synergy: float | None = None
    influence_images: tuple[float | None, ...] = ()
    relative_entropy: float | None = None
    noise: float | None = None
    image_only: str | None = None
    text_only: str | None = None
    spans: tuple[AnswerSpan, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    notes: tuple[str, ...] = ()
    method: str = FIRST_TOKEN
    action: str = ANNOTATE  # what was done, one of TAKEN_ACTIONS
    mitigation: Mitigation | None = None
    reasoning: bool = False
    choice: int = 0  # which of the answers to one request
    explanation: str = ""  # one sentence on the verdict
    schema: str = SCHEMA_VERSION

    def to_json(self) -> JSON:
        """The `modint` object (docs/schema/modint-2.schema.json)."""
        return {
            "schema": self.schema,
            "verdict": self.verdict.state.value,
            "cause": self.verdict.cause.value if self.verdict.cause else None,
            "score": self.statistic.value if self.statistic else None,
            "risk": self.verdict.risk,
            "calibrated": self.verdict.calibrated,
            "null": self.verdict.null.to_json() if self.verdict.null else None,
            "neglect": self.verdict.neglect,
            "reason": self.verdict.reason,
            "explanation": self.explanation,
            "relevant": self.relevant.value,
            "relevant_source": self.relevant_source,
            "relevant_probability": self.relevant_probability,
            "examined": list(self.examined),
            "influence": {
                "text": self.influence_text,
                "image": self.influence_image,
                "synergy": self.synergy,
                "images": list(self.influence_images),
            },
            "relative_entropy": self.relative_entropy,
            "noise": self.noise,
            "answers": {"image_only": self.image_only, "text_only": self.text_only},
            "spans": [span.to_json() for span in self.spans],
            "probes": [probe.to_json() for probe in self.probes],
            "method": self.method,
            "reasoning": self.reasoning,
            "choice": self.choice,
            "notes": list(self.notes),
            "action": self.action,
            "mitigation": self.mitigation.to_json() if self.mitigation else None,
        }


def first_concern(reports: Sequence[Report]) -> Report:
    """The report that speaks for several answers to one request: the first that is flagged, else the first
    that is unscored, else the first.
    """
    by_state = {report.verdict.state: report for report in reversed(reports)}
    return by_state.get(State.FLAGGED) or by_state.get(State.UNSCORED) or reports[0]


def with_reports(document: JSON, reports: Sequence[Report]) -> JSON:
    """A copy of a completion with the report at its top level; of several answers to one request with that of
    the first concern there, and each of them in its own choice.
    """
    if len(reports) > 1:
        choices = [
            {**choice, "modint": report.to_json()}
            for choice, report in zip(document.get("choices") or (), reports, strict=False)
        ]
        document = {**document, "choices": choices}
    return {**document, "modint": first_concern(reports).to_json()}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A completion with the `modint` object in it, and the same as a typed report."""

    completion: JSON
    report: Report
