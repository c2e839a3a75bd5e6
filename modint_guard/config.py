"""All numbers the guard may be tuned with, read once into frozen objects; nothing else holds a constant.

The thresholds are an UNCALIBRATED default, and a report that uses them says `"calibrated": false`. A
calibration file (`calibration`) holds others, fitted for one model, adapter and probe set.
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
    """How the guard probes. `view_tokens` is 2 because some models begin an answer with a token of mere
    space. With `self_ask` "auto" the model is asked which modality it needs where no rule says so.
    """

    deadline_s: float = 5.0  # counted from the last token of the answer
    max_deadline_s: float = MAX_DEADLINE_S  # a lower one cuts what requests ask for
    top_logprobs: int = 20
    view_tokens: int = 2
    max_probes: int = 8
    regenerate: bool = False  # where the upstream gives no log-probabilities, compare whole short answers
    teacher_forcing: bool = False  # longer answers are scored whole; needs an engine with prompt_logprobs
    forced_logprobs: int = 5  # alternatives at each position of an answer that is scored
    max_forced_tokens: int = 512  # a longer answer is judged at its first word
    relevance_rules: tuple[RelevanceRule, ...] = ()
    self_ask: Literal["off", "auto"] = "off"
    self_ask_confident: float = 0.8  # of its yes or no; below, the relevance stays unknown
    image_attention: float = 1.0  # what the engine scales its attention to pictures by, as it is told
    policies: tuple[Policy, ...] = ()  # what is done about a flagged answer: the first that fits decides
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
