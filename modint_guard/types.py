"""The frozen records that pass between the stages of a request, and the closed sets of names they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

MAX_DEADLINE_S = 60.0  # the longest deadline that a request may ask for

JSON = dict[str, Any]
Complete = Callable[[JSON], Awaitable[JSON]]  # OpenAI chat body -> chat completion; raises EndpointError

MAX_IMAGE_ATTENTION = 10.0  # the largest factor by which an engine may scale its attention to pictures

Piece = tuple[int, int]  # the characters [start, end) of a text

FIRST_TOKEN = "first_token"  # views and answer are compared at the first content position
TEACHER_FORCED = "teacher_forced"  # views score every token of the answer that was given
REGENERATED = "regenerated"  # views generate whole answers, and the texts are compared

# Views by name: `noop` repeats the request; the cells are the rest of the 2x2 (context or not, image or not).
NOOP = "noop"
NO_CONTEXT = "no_context"
NEUTRAL_IMAGE = "neutral_image"
PRIOR = "prior"
BENIGN = "benign"
PERMUTED_OPTIONS = "permuted_options"
QUESTION_FIRST = "question_first"
CELLS = (NO_CONTEXT, NEUTRAL_IMAGE, PRIOR)
LEFT_OUT = tuple(f"without_image_{number}" for number in range(1, 5))  # one picture of several is neutral
CONTROLS = (BENIGN, PERMUTED_OPTIONS, QUESTION_FIRST)  # harmless: an answer that flips under one is unstable
UNREASONED = "unreasoned"  # not a view: the request itself, answered without reasoning
UNCONSTRAINED = "unconstrained"  # not a view: the request itself, its answer not forced into a form
SELF_ASKED = "self_ask"  # not a view: the request with one more question, whether it needs the picture

# What is done about a flagged answer. A rung is one way to another answer, or to none; `ladder` tries
# several.
ANNOTATE = "annotate"
NEUTRALISE = "neutralise"
ESCALATE = "escalate"
DEBIAS = "debias"
RERANK = "rerank"
ABSTAIN = "abstain"
LADDER = "ladder"
RUNGS = (NEUTRALISE, ESCALATE, DEBIAS, RERANK, ABSTAIN)
TAKEN_ACTIONS = (ANNOTATE, *RUNGS)  # the actions that a report can state
ACTIONS = (*TAKEN_ACTIONS, LADDER)  # the actions that a request or a policy can ask for

UNSCORED_REASONS = ("timeout", "upstream_error", "no_logprobs", "incomplete")
SKIPPED_REASONS = (
    "opted_out",
    "sampled_out",
    "overload",
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

RelevantSource = Literal["request", "header", "route", "rules", "classifier", "self_ask", "none"]
NAMED_SOURCES: tuple[RelevantSource, ...] = ("request", "header", "route")  # all others guess


class Relevant(StrEnum):
    """Which modality ought to decide the answer."""

    IMAGE = "image"
    TEXT = "text"
    BOTH = "both"
    UNKNOWN = "unknown"


class State(StrEnum):
    """The outcome of an examination. An answer that was not examined is never PASS."""

    PASS = "pass"
    FLAGGED = "flagged"
    UNSCORED = "unscored"
    SKIPPED = "skipped"


class Cause(StrEnum):
    """What decided a flagged answer in place of the relevant modality; NEGLECT: that one had no influence."""

    TEXT = "text"
    IMAGE = "image"
    PRIOR = "prior"
    CONFLICT = "conflict"
    NEGLECT = "neglect"


class ProbeOutcome(StrEnum):
    """What one probe showed."""

    CONSISTENT = "consistent"
    FLIPPED = "flipped"
    UNDECIDED = "undecided"
    ERROR = "error"
    TIMEOUT = "timeout"


class RungOutcome(StrEnum):
    """What one rung came to. The first three settle the answer; all others leave it as it was."""

    MENDED = "mended"  # another answer, confident enough to be served: the answer is corrected
    CONFIRMED = "confirmed"  # the same answer, without the modality that was suspected
    ABSTAINED = "abstained"  # no answer
    UNCHANGED = "unchanged"  # the contrast prefers the flagged answer
    UNSURE = "unsure"  # another answer, but not confident enough
    FLAGGED = "flagged"  # another answer, which was flagged too
    UNFIT = "unfit"  # the rung does not apply to this kind of answer or request
    MISSING = "missing"  # the adapter is not served
    FAILED = "failed"
    TIMEOUT = "timeout"
    BUDGET = "budget"  # the tokens left would not have sufficed


@dataclass(frozen=True, slots=True)
class ModintOptions:
    """The `modint` field of a request merged with its headers. None means the default of the server.

    context, question: texts of the messages that are one or the other. probes: further probes by name.
    deadline_s: seconds after the answer. action: one of ACTIONS.
    """

    mode: Literal["on", "off"] = "on"
    relevant: Relevant | None = None  # None: not named
    relevant_source: Literal["request", "header"] | None = None
    context: str | None = None
    question: str | None = None
    probes: tuple[str, ...] | None = None
    deadline_s: float | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of the body: the indices of its message and part, its URL, its size in pixels (w, h)."""

    message: int
    part: int
    url: str = field(repr=False)
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of one text of the body.

    message: the index of the message. part: the index of its content part, None for a plain string.
    """

    message: int
    part: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Option:
    """One answer option.

    label: as it is written ("A"), or the text itself if there are no labels. text: "red". span: the place of
    the text, None if the options do not form a block.
    """

    label: str
    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat body, split into images, context and question, with what is needed to rebuild it.

    body: the client's own, without its `modint` field; never changed. turn: the index of the user message
    that holds the question; -1 without one. context: None if there is none. context_spans,
    question_spans: their places in the messages, in order.
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
    """A perturbed chat body, ready to be sent, with the name of its probe."""

    name: str
    body: JSON = field(repr=False)


class Leaf(NamedTuple):
    """A value of a JSON document that is no object and no array.

    start, end: its characters [start, end), those of a string without its quotation marks. path: its JSON
    pointer. at: the character at which it begins in the text that the client gets, if that is another text.
    """

    start: int
    end: int
    path: str
    at: int | None = None


class Call(NamedTuple):
    """A tool call of an answer: the function's name, and its arguments as the engine wrote them (JSON)."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer.

    logprob: natural. top: the natural log-probabilities of the alternatives at this position, the token
    itself included. id, raw: the token's id and its bytes, if the engine reports them.
    """

    token: str
    logprob: float
    top: Mapping[str, float]
    id: int | None = None
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of one call, read at the first content position: the first token that is more than white
    space.

    token, top: the token there, and the natural log-probabilities of its alternatives; None if the engine
    gave none. ms: the duration of the call in milliseconds. skip: the reason from SKIPPED_REASONS if such an
    answer cannot be judged. positions: all generated tokens that have alternatives. forced: the tokens of the
    answer that was given, as this view scores them. whole: whether the view also generated a whole answer
    (`probing.regenerate`), which is then its text. reasoning: whether the model reasoned first; text, token
    and positions are those of the answer behind it. empty_thought: how a reply without reasoning begins then;
    None if its marks have no such form. start: the character at which `text` begins in the text of the reply
    that the client gets. calls: its tool calls. leaves: what counts of the text, if that is known
    (`chat.tool_calls`).
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
    reasoning: bool = False
    empty_thought: str | None = None
    start: int = 0
    calls: tuple[Call, ...] = ()
    leaves: tuple[Leaf, ...] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A view without a reply: `outcome` is ERROR or TIMEOUT, `reason` one of UNSCORED_REASONS."""

    outcome: ProbeOutcome
    reason: str
    ms: float = 0.0


Replies = Mapping[str, Reply | Failure]


class Influence(NamedTuple):
    """How much each modality contributed to an answer, or to one of its tokens, in nats.

    All are None if a cell is missing. synergy: what both contribute together beyond what each contributes
    alone; None without a context.
    """

    text: float | None
    image: float | None
    synergy: float | None


class Statistic(NamedTuple):
    """The number that a flag rests on (`judging.statistic`).

    value: nats. length: how many tokens were compared.
    """

    value: float
    length: int


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token y_t of the answer under a view. Its log-odds are those against the best other token, nats."""

    lost: float  # log p(y_t), request minus view, nats
    shift: float  # log-odds of y_t, request minus view
    odds: float  # log-odds of y_t under the view
    other: float  # p(the best other token) under the view, times that of what y's word begins with
    preferred: bool  # whether the request itself prefers y_t by more than the noise floor


@dataclass(frozen=True, slots=True)
class CellScore:
    """One view compared with the served answer y, at the first content position or over the whole answer."""

    divergence: float  # Jensen-Shannon, base 2, in [0, 1]
    exact: bool  # over all options; otherwise a lower bound from top-k lists
    coverage: float  # how much of both distributions their top-k lists hold, in [0, 1]
    flip: bool | None  # None: undecided
    margin: float  # p(best other answer) - p(y), view against request if another leads there too, in [-1, 1]
    confidence: float  # the probability of the view's top answer
    p_answer: float  # p(y) under the view
    reproduces: bool  # whether y is the view's top answer
    delta_logprob: float  # log p(y) of the answer minus that under the view, nats
    entropy: float  # of the view, bits, the tail counted as one symbol
    answer: str  # the view's own
    preferred: bool = True  # whether the request itself prefers y: what it does not, no view can change
    shift: float = 0.0  # log-odds of y against the best other answer, request minus view, nats
    at: int = 0  # the position of the answer that all of this was read at
    tokens: tuple[TokenScore, ...] = ()  # of each token that was compared: of all, or of the first one


@dataclass(frozen=True, slots=True)
class Score:
    """All features of one answer: the cells that could be scored, and what follows from them."""

    cells: Mapping[str, CellScore]
    missing: Mapping[str, str]  # cell -> reason from UNSCORED_REASONS
    influence_text: float | None = None  # Shapley value of the context, nats of log p(y)
    influence_image: float | None = None
    synergy: float | None = None  # what both contribute together beyond what each does alone, nats
    influence_images: tuple[float | None, ...] = ()  # of each of several pictures: what leaving it out takes
    tokens: tuple[Influence, ...] = ()  # the same of each token that was compared; the above are their means
    relative_entropy: float | None = None  # (H(text only) - H(image only)) / their sum, in [-1, 1]
    noise: float | None = None  # the largest change of a probability when the same input was asked again
    unstable: tuple[str, ...] = ()  # the controls under which the answer flipped
    method: str = FIRST_TOKEN
    entropy: float = 0.0  # of the answer itself, at its first content position, bits
    partial: bool = False  # only the first word of a longer answer was compared
    image_only: str | None = None  # the answer of the image alone
    text_only: str | None = None  # the answer of the text alone


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What the client itself asked for about the tokens of its answer. The rest is taken out again."""

    logprobs: bool = False
    top_logprobs: int = 0
    token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which views are sent when, and how their replies are compared with the answer.

    stages: the views' names. Those of the first stage are sent with the request, those of each later stage
    only if the earlier ones leave the verdict open. method: FIRST_TOKEN, TEACHER_FORCED (an answer of several
    tokens is scored as a whole under every cell) or REGENERATED (the engine gives no log-probabilities, so
    every view generates a whole answer). early_stop: whether cells that cannot change the served answer are
    left out, because a policy corrects flagged answers. corrects: whether a policy does, which takes what a
    view says by itself. waits: whether the cells of the first stage wait for the answer, because a longer one
    is expected, which they are asked to score and nothing else. top_logprobs: the number of alternatives that
    request and views ask for; 0 if the engine gives none. max_forced_tokens: the longest answer that is
    scored as a whole. forced_logprobs: the number of alternatives asked for at each of its positions.
    last_rows: whether the engine can be asked to score the end of a prompt alone. deadline_s: seconds from
    the complete answer. constrained: whether the request forces the form of its answer; the cells are then in
    no stage, but asked for its scores (`probing.like_views`).
    """

    views: tuple[View, ...] = ()
    stages: tuple[tuple[str, ...], ...] = ()
    method: str = FIRST_TOKEN
    early_stop: bool = False
    corrects: bool = False
    waits: bool = False
    top_logprobs: int = 0
    max_forced_tokens: int = 512
    forced_logprobs: int = 5
    last_rows: bool = False
    deadline_s: float = 5.0
    constrained: bool = False

    @property
    def may_be_saved(self) -> frozenset[str]:
        """The names of the views that are sent only if earlier ones leave the verdict open."""
        return frozenset(name for stage in self.stages[1:] for name in stage)

    def stage(self, names: tuple[str, ...]) -> tuple[View, ...]:
        """The views of one stage."""
        return tuple(view for view in self.views if view.name in names)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done with one request.

    body: the client's own, without its `modint` field. noise: the engine's noise as far as it is known
    beforehand, the change of a probability, in [0, 1]; a flip needs a lead above twice the noise. skip: the
    reason from SKIPPED_REASONS if nothing will be probed. choices: how many answers the request asks for.
    likely: if it is unknown what ought to decide, the probability that each modality alone ought to.
    supposed: what the answer is judged by then, UNKNOWN if nothing is likely enough.
    """

    body: JSON = field(repr=False)
    options: ModintOptions
    token_options: TokenOptions
    chat: Chat
    relevant: Relevant
    relevant_source: RelevantSource
    schedule: Schedule
    relevant_probability: float | None = None  # by the classifier
    likely: Mapping[Relevant, float] = field(default_factory=dict)
    supposed: Relevant = Relevant.UNKNOWN
    noise: float = 0.0
    skip: str | None = None
    notes: tuple[str, ...] = ()
    choices: int = 1

    @property
    def judged_as(self) -> Relevant:
        """The modality by which the answer is judged: what ought to decide, or what is supposed to."""
        return self.supposed if self.relevant is Relevant.UNKNOWN else self.relevant

    @property
    def views(self) -> tuple[View, ...]:
        """All views, in the order in which a report names them."""
        return self.schedule.views
