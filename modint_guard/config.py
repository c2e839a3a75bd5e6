"""All numbers the guard may be tuned with, read once into frozen objects; nothing else holds a constant.

The thresholds are an UNCALIBRATED default, and a report that uses them says `"calibrated": false`. A
calibration file (`calibration`) holds others, fitted for one model, adapter and probe set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from modint_guard.errors import ConfigError
from modint_guard.mitigation import Policy
from modint_guard.relevance_rules import RelevanceRule

MAX_DEADLINE_S = 60.0  # what a request may ask for at most
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # of a GIF only the first frame is read


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The constants of a verdict.

    risk = sigmoid(bias + weight_js * JS + weight_margin * margin + weight_entropy * H + weight_pmi * PMI).
    JS is the base-2 divergence between the served answer and the answer with the *irrelevant* modality taken
    out, margin = p(top answer) - p(y) under that same view, in [-1, 1], PMI = log p(y) served minus that
    under the view, nats a token, and H the entropy of the served answer at its first position, bits.
    An answer is flagged `text` or `image` when the view flips and risk >= flag_at; with `by_risk_alone`, as a
    calibration sets it, by the risk alone. The first three, flag_at and confident were fitted by
    `modint-guard results thresholds` on TinyWorld's validation split (docs/results/thresholds.md); the others
    are set by hand.
    """

    bias: float = -3.727
    weight_js: float = 4.465
    weight_margin: float = 3.834
    weight_entropy: float = 0.0
    weight_pmi: float = 0.0
    flag_at: float = 0.2
    by_risk_alone: bool = False
    clear_below: float = 0.0  # a lower risk after the first view passes the answer; 0: no early stop
    flip_margin: float = 0.05  # a smaller lead over y is within the engine's noise: undecided
    confident: float = 0.9999  # a unimodal answer is certain from here on (prior and conflict rules)
    min_option_mass: float = 0.5  # the options are compared alone only where they hold this much probability
    min_probability: float = 1e-6  # log p(y) is clipped here before the influences are computed

    def __post_init__(self) -> None:
        for name in ("flag_at", "flip_margin", "confident", "min_option_mass", "clear_below"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"thresholds.{name} is {value}: it must lie between 0 and 1.")
        if self.clear_below > self.flag_at:
            raise ConfigError(
                f"thresholds.clear_below is {self.clear_below}: it must not exceed flag_at, {self.flag_at}."
            )
        if not 0.0 < self.min_probability < 1.0:
            raise ConfigError(
                f"thresholds.min_probability is {self.min_probability}: it must lie above 0 and below 1."
            )


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image of a request may be at most; pixels are checked from the header, before decoding."""

    max_bytes: int = 20 * 1024 * 1024  # of one image, decoded from base64
    max_pixels: int = 20_000_000  # of one image
    max_images: int = 16  # in one request

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"image limit {name} is {getattr(self, name)}: it must be at least 1.")


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
