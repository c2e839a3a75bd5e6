"""All settings of the guard, read once into frozen objects.

What is flagged is measured on each model: by its null (`judging.null`), or by a calibration made with labels
(`judging.calibration`). Without either a fixed rule decides, and the report says `"calibrated": false`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from modint_guard.chat.images import ImageLimits
from modint_guard.chat.relevance_rules import RelevanceRule
from modint_guard.errors import ConfigError
from modint_guard.judging.risk import Thresholds
from modint_guard.mitigation.policy import Policy
from modint_guard.types import MAX_DEADLINE_S


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """How the guard probes, judges and corrects. Raises ConfigError for a value out of range.

    view_tokens is 2 because some models begin an answer with a token of white space. With `self_ask` "auto",
    the model itself is asked which modality its answer needs if no rule says so.
    """

    deadline_s: float = 5.0  # counted from the last token of the answer
    max_deadline_s: float = MAX_DEADLINE_S  # the longest that a request may ask for
    top_logprobs: int = 20
    view_tokens: int = 2
    max_probes: int = 8
    regenerate: bool = False  # compare whole short answers if the engine gives no log-probabilities
    teacher_forcing: bool = False  # score longer answers as a whole; needs an engine with prompt_logprobs
    forced_logprobs: int = 5  # alternatives at each position of an answer that is scored as a whole
    max_forced_tokens: int = 512  # longer answers are judged at their first word
    relevance_rules: tuple[RelevanceRule, ...] = ()
    self_ask: Literal["off", "auto"] = "off"
    self_ask_confident: float = 0.8  # the least share of its "yes" or "no"; below it, relevance is unknown
    image_attention: float = (
        1.0  # the factor by which the engine scales its attention to pictures; for a note
    )
    policies: tuple[Policy, ...] = ()  # what is done about a flagged answer; the first that matches decides
    alpha: float = 0.01  # the share of harmless inputs that may be flagged, if the model has a null
    thresholds: Thresholds = field(default_factory=Thresholds)
    image_limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        if not 0.0 < self.max_deadline_s <= MAX_DEADLINE_S:
            raise ConfigError(
                f"max_deadline_s is {self.max_deadline_s}: it must be above 0 and at most {MAX_DEADLINE_S:g}."
            )
        if not 0.0 < self.deadline_s <= self.max_deadline_s:
            raise ConfigError(
                f"deadline_s is {self.deadline_s}: it must be above 0 and at most {self.max_deadline_s:g}."
            )
        if not 0.0 < self.alpha < 0.5:
            raise ConfigError(f"alpha is {self.alpha}: it must lie above 0 and below 0.5.")
        if not 2 <= self.top_logprobs <= 128:
            raise ConfigError(f"top_logprobs is {self.top_logprobs}: it must lie between 2 and 128.")
        if self.view_tokens < 1:
            raise ConfigError(f"view_tokens is {self.view_tokens}: it must be at least 1.")
        if not 0.5 < self.self_ask_confident <= 1.0:
            raise ConfigError(
                f"self_ask_confident is {self.self_ask_confident}: it must be above 0.5 and at most 1."
            )
        if not 1 <= self.forced_logprobs <= 20:
            raise ConfigError(f"forced_logprobs is {self.forced_logprobs}: it must lie between 1 and 20.")
        if self.max_forced_tokens < 2:
            raise ConfigError(f"max_forced_tokens is {self.max_forced_tokens}: it must be at least 2.")
        if self.max_probes < 3:
            raise ConfigError(
                f"max_probes is {self.max_probes}: the three cells of a verdict need at least 3."
            )
