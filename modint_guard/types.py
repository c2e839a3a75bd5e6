"""The frozen records that pass between the stages, and the closed sets of names they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

MAX_DEADLINE_S = 60.0  # what a request may ask for at most

JSON = dict[str, Any]
Complete = Callable[[JSON], Awaitable[JSON]]  # OpenAI chat body -> chat completion; raises EndpointError

MAX_IMAGE_ATTENTION = 10.0  # the most that an engine may scale its attention to pictures by

Piece = tuple[int, int]  # characters [start, end) of a text

SCHEMA_VERSION = "1"
FIRST_TOKEN = "first_token"  # views are compared at the first content position
TEACHER_FORCED = "teacher_forced"  # views score the whole answer that was given
REGENERATED = "regenerated"  # views are generated whole, flips told by their words

# The cells of the 2x2 (context or not, image or not); P0 repeats the request unchanged.
NOOP = "noop"
NO_CONTEXT = "no_context"
NEUTRAL_IMAGE = "neutral_image"
PRIOR = "prior"
BENIGN = "benign"
PERMUTED_OPTIONS = "permuted_options"
QUESTION_FIRST = "question_first"
CONTROLS = (
    BENIGN,
    PERMUTED_OPTIONS,
    QUESTION_FIRST,
)  # harmless changes: an answer that flips under one is unstable
SELF_ASKED = "self_ask"  # not a view: the request with one more question, which modality it needs
CELLS = (NO_CONTEXT, NEUTRAL_IMAGE, PRIOR)

# What is done about a flagged answer. A rung is one attempt at a better one, or none; `ladder` tries several.
ANNOTATE = "annotate"
NEUTRALISE = "neutralise"
ESCALATE = "escalate"
DEBIAS = "debias"
RERANK = "rerank"
ABSTAIN = "abstain"
LADDER = "ladder"
RUNGS = (NEUTRALISE, ESCALATE, DEBIAS, RERANK, ABSTAIN)
TAKEN_ACTIONS = (ANNOTATE, *RUNGS)  # what a report's `action` can be
ACTIONS = (*TAKEN_ACTIONS, LADDER)  # what a request or a policy can ask for

UNSCORED_REASONS = ("timeout", "upstream_error", "budget", "no_logprobs", "incomplete")
SKIPPED_REASONS = (
    "opted_out",
    "sampled_out",
    "no_image",
    "no_context",
    "tool_calls",
    "structured_output",
    "multiple_choices",
    "reasoning",
    "refusal",
    "audio",
    "video",
    "unsupported_part",
    "empty_answer",
)

RelevantSource = Literal["request", "header", "route", "rules", "self_ask", "none"]


class Relevant(StrEnum):
    """Which modality ought to decide the answer."""

    IMAGE = "image"
    TEXT = "text"
    BOTH = "both"
    UNKNOWN = "unknown"


class State(StrEnum):
    """What became of the examination; never PASS for "not examined"."""

    PASS = "pass"
    FLAGGED = "flagged"
    UNSCORED = "unscored"
    SKIPPED = "skipped"


class Cause(StrEnum):
    """What drove a flagged answer."""

    TEXT = "text"
    IMAGE = "image"
    PRIOR = "prior"
    CONFLICT = "conflict"


class ProbeOutcome(StrEnum):
    """What one probe found."""

    CONSISTENT = "consistent"
    FLIPPED = "flipped"
    UNDECIDED = "undecided"
    ERROR = "error"
    TIMEOUT = "timeout"


class RungOutcome(StrEnum):
    """What one rung came to. The first three settle the answer, all others leave it as it was."""

    MENDED = "mended"  # another answer, sure enough to be served
    CONFIRMED = "confirmed"  # the same answer, found without what was suspected
    ABSTAINED = "abstained"  # no answer
    UNCHANGED = "unchanged"  # the contrast prefers the answer that was flagged
    UNSURE = "unsure"  # another answer, but not sure enough
    FLAGGED = "flagged"  # another answer, flagged as well
    UNFIT = "unfit"  # this kind of answer or request is not for this rung
    MISSING = "missing"  # the adapter is not served
    FAILED = "failed"
    TIMEOUT = "timeout"
    BUDGET = "budget"  # the tokens allowed would not suffice


@dataclass(frozen=True, slots=True)
class ModintOptions:
    """The `modint` field of a request merged with its headers; None means "the server's default"."""

    mode: Literal["on", "off"] = "on"
    relevant: Relevant | None = None  # None: auto
    relevant_source: Literal["request", "header"] | None = None
    context: str | None = None
    question: str | None = None
    probes: tuple[str, ...] | None = None
    deadline_s: float | None = None
    action: str | None = None  # one of ACTIONS


@dataclass(frozen=True, slots=True)
class ImagePart:
    """Where an image stands in the body, and its size in pixels (width, height)."""

    message: int
    part: int
    url: str = field(repr=False)
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of one text: the message's index, and the content part's, None for a plain
    string.
    """

    message: int
    part: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Option:
    """One answer option: its label as written ("A"; in a list without labels the text itself) and its text
    ("red"). `span` says where the text stands, None where the options do not form a block.
    """

    label: str
    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat body split into images, context and question, with what is needed to rebuild it.

    `body` is the client's own object without its `modint` field and is never changed; `turn` is the index of
    the last user message, which holds the question. `question_spans` say where the question stands,
    `context_spans` where the context does, in any message, in order.
    """

    body: JSON = field(repr=False)
    turn: int
    images: tuple[ImagePart, ...]
    context: str | None
    question: str
    options: tuple[Option, ...]
    context_spans: tuple[Span, ...]
    question_spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A perturbed chat body, ready to be sent, under its probe's name."""

    name: str
    body: JSON = field(repr=False)


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer: its text, its natural log-probability, those of its alternatives with itself
    among them, and its id where the upstream tells it.
    """

    token: str
    logprob: float
    top: Mapping[str, float]
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call answered, read at the first content position (first token that is not whitespace).

    `token` is the token generated there, `top` the natural log-probabilities of its alternatives (None when
    the upstream gave none). `positions` are all generated tokens that have alternatives; `forced` is how this
    view scores the tokens of the answer given to the request. `whole`: this view was asked for a whole answer
    besides (`doubt`), which is its text. `skip` is a SKIPPED reason when such an answer cannot be judged.
    """

    text: str
    finish_reason: str | None
    token: str | None
    top: Mapping[str, float] | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ms: float = 0.0
    skip: str | None = None
    positions: tuple[Position, ...] = ()
    forced: tuple[Position, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A view that gave no reply: `outcome` is ERROR or TIMEOUT, `reason` one of UNSCORED_REASONS."""

    outcome: ProbeOutcome
    reason: str
    ms: float = 0.0


Replies = Mapping[str, Reply | Failure]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One row of the report's `probes`."""

    name: str
    outcome: ProbeOutcome
    divergence: float | None = None  # JS, base 2, against the served answer
    exact: bool = False  # over all options, not a top-k lower bound
    coverage: float | None = None  # the share of both distributions that their lists hold
    flip: bool | None = None  # None: undecided or not known
    delta_logprob: float | None = None  # log p(y) of the answer minus that of the view, nats
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
class CellScore:
    """One view against the served answer y, at the first content position."""

    divergence: float  # JS(M, view), base 2
    exact: bool
    coverage: float  # the share of both distributions that their lists hold, in [0, 1]
    flip: bool | None
    margin: float  # p(view's top) - p(y) under the view, in [-1, 1]; negative when y itself is the top
    confidence: float  # p of the view's top answer
    p_answer: float  # p(y) under the view
    reproduces: bool  # y is the view's top answer
    delta_logprob: float
    entropy: float  # bits, the tail counted as one symbol
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """All features of one answer: the cells that could be scored and what follows from them."""

    cells: Mapping[str, CellScore]
    missing: Mapping[str, str]  # cell -> UNSCORED reason
    influence_text: float | None = None  # Shapley value of the context, nats of log p(y)
    influence_image: float | None = None
    synergy: float | None = None  # what both do together beyond what each does alone, nats
    relative_entropy: float | None = None  # (H(text only) - H(image only)) / their sum, in [-1, 1]
    noise: float | None = None  # the largest change of a probability when the same input was asked again
    unstable: tuple[str, ...] = ()  # the controls under which the answer flipped
    method: str = FIRST_TOKEN
    entropy: float = 0.0  # of the answer itself at its first content position, bits
    partial: bool = False  # only the first word of a longer answer was compared
    image_only: str | None = None
    text_only: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision; `reason` is set for UNSCORED and SKIPPED only, `cause` for FLAGGED only."""

    state: State
    cause: Cause | None = None
    risk: float | None = None
    reason: str | None = None
    calibrated: bool = False


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
    """What was tried about a flagged answer. `answer` is to be served in place of `original`, None where the
    original stands; `correction` says that the original text was already sent.
    """

    asked: str
    action: str
    original: str = field(repr=False)
    answer: str | None = field(default=None, repr=False)
    finish_reason: str | None = None  # of the new answer
    rungs: tuple[RungResult, ...] = ()
    correction: bool = False

    @property
    def tokens(self) -> int:
        """That all rungs cost together."""
        return sum(rung.tokens for rung in self.rungs)

    @property
    def ms(self) -> float:
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
class Report:
    """Everything the `modint` object says."""

    verdict: Verdict
    relevant: Relevant = Relevant.UNKNOWN
    relevant_source: RelevantSource = "none"
    examined: tuple[str, ...] = ()
    influence_text: float | None = None
    influence_image: float | None = None
    synergy: float | None = None
    relative_entropy: float | None = None
    noise: float | None = None
    image_only: str | None = None
    text_only: str | None = None
    probes: tuple[ProbeResult, ...] = ()
    notes: tuple[str, ...] = ()
    method: str = FIRST_TOKEN
    action: str = ANNOTATE  # what was done: one of DONE
    mitigation: Mitigation | None = None
    schema: str = SCHEMA_VERSION

    def to_json(self) -> JSON:
        """The `modint` object (docs/schema/modint-1.schema.json)."""
        return {
            "schema": self.schema,
            "verdict": self.verdict.state.value,
            "cause": self.verdict.cause.value if self.verdict.cause else None,
            "risk": self.verdict.risk,
            "calibrated": self.verdict.calibrated,
            "reason": self.verdict.reason,
            "relevant": self.relevant.value,
            "relevant_source": self.relevant_source,
            "examined": list(self.examined),
            "influence": {
                "text": self.influence_text,
                "image": self.influence_image,
                "synergy": self.synergy,
            },
            "relative_entropy": self.relative_entropy,
            "noise": self.noise,
            "answers": {"image_only": self.image_only, "text_only": self.text_only},
            "probes": [probe.to_json() for probe in self.probes],
            "method": self.method,
            "notes": list(self.notes),
            "action": self.action,
            "mitigation": self.mitigation.to_json() if self.mitigation else None,
        }


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What the client itself asked for about its tokens, so that the rest can be taken out again."""

    logprobs: bool = False
    top_logprobs: int = 0
    token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which views are sent when, and how their replies are compared with the answer.

    stages: the views' names. Those of the first stage are sent with the request, those of each later one only
    while the earlier ones leave the verdict open. method: FIRST_TOKEN, TEACHER_FORCED (an answer of several
    tokens is scored as a whole under every cell) or REGENERATED (the engine gives no log-probabilities, so
    that every view is generated as a whole). early_stop: no cell is asked that could not change the answer
    that is served, because a policy corrects flagged answers. top_logprobs: the number of alternatives that
    request and views ask for, 0 if the engine gives none. max_forced_tokens and forced_logprobs: the longest
    answer that is scored as a whole, and the alternatives asked for at each of its positions. deadline_s:
    counted from the complete answer.
    """

    views: tuple[View, ...] = ()
    stages: tuple[tuple[str, ...], ...] = ()
    method: str = FIRST_TOKEN
    early_stop: bool = False
    top_logprobs: int = 0
    max_forced_tokens: int = 512
    forced_logprobs: int = 5
    deadline_s: float = 5.0

    @property
    def may_be_saved(self) -> frozenset[str]:
        """The names of the views that are sent only if earlier ones leave the verdict open."""
        return frozenset(name for stage in self.stages[1:] for name in stage)

    def stage(self, names: tuple[str, ...]) -> tuple[View, ...]:
        """The views of one stage."""
        return tuple(view for view in self.views if view.name in names)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done with one request; `skip` names the SKIPPED reason if nothing will be probed.

    body: the client's own without its `modint` field. noise: the engine's noise as known beforehand, a
    probability in [0, 1]; a flip needs a lead above twice of it.
    """

    body: JSON = field(repr=False)
    options: ModintOptions
    asked: TokenOptions
    chat: Chat
    relevant: Relevant
    relevant_source: RelevantSource
    schedule: Schedule
    noise: float = 0.0
    skip: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        """All views, in the order in which a report names them."""
        return self.schedule.views


@dataclass(frozen=True, slots=True)
class Inspection:
    """A completion that carries its `modint` object, and the same as a typed report."""

    completion: JSON
    report: Report
