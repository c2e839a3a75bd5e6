"""The published shape of the `modint` object: a typed reader of it and its JSON Schema.

`docs/schema/modint-2.schema.json` is the output of `python -m modint_guard.schema`; its version is the
object's `schema`. Readers ignore keys that they do not know, so that a small addition does not break them.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modint_guard.errors import EndpointError
from modint_guard.types import ACTIONS, RUNGS, SKIPPED_REASONS, TAKEN_ACTIONS, UNSCORED_REASONS, RungOutcome

SCHEMA_ID = "urn:modint-guard:schema:modint-2"


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, json_schema_serialization_defaults_required=True
    )


class Influence(_Record):
    """Shapley values of the two modalities on log p(answer), in nats; null where not computed."""

    text: float | None
    image: float | None
    synergy: float | None = Field(
        default=None, description="what both do together beyond what each does alone, nats"
    )
    images: tuple[float | None, ...] = Field(
        default=(), description="of each of several pictures: what log p(answer) loses without it alone, nats"
    )


class SpanInfluence(_Record):
    """What each modality gave to a part of the answer: sums over its tokens, nats; null if not computed."""

    text: float | None
    image: float | None


class SpanObject(_Record):
    """A part of the answer and what gave it. Parts of one kind do not overlap."""

    kind: Literal["word", "claim", "leaf"] = Field(
        description="a claim is a clause, a sentence or a line; a leaf is a value of a JSON document"
    )
    start: int = Field(ge=0, description="its first character in the answer's content")
    end: int = Field(ge=0, description="the character behind its last one")
    text: str
    path: str | None = Field(description="JSON pointer of the leaf that it is or is in")
    cause: Literal["text", "image", "prior", "conflict", "neglect"] | None = Field(
        description="what turned it, in a flagged answer"
    )
    influence: SpanInfluence


class NullObject(_Record):
    """The null of the model: inputs that ought to change nothing."""

    source: Literal["checkup", "traffic"] = Field(description="packaged items, or clients' requests too")
    n: int = Field(ge=0, description="scores of about the answer's length")
    power: float | None = Field(
        ge=0.0, le=1.0, description="share of planted lies that is flagged; null below 20 of them"
    )


class Answers(_Record):
    """What image alone and text alone answer; of a long answer the first word."""

    image_only: str | None
    text_only: str | None


class ProbeObject(_Record):
    """One probe: how far the answer moved from the served one when the request was changed."""

    name: str
    outcome: Literal["consistent", "flipped", "undecided", "error", "timeout"]
    divergence: float | None = Field(ge=0.0, le=1.0, description="Jensen-Shannon divergence, base 2")
    exact: bool = Field(description="over all options; otherwise a lower bound from the top-k")
    coverage: float | None = Field(
        default=None, ge=0.0, le=1.0, description="share of both distributions that their top-k lists hold"
    )
    flip: bool | None = Field(description="null: undecided, or not known")
    delta_logprob: float | None = Field(description="log p(answer) served minus under this probe, nats")
    answer: str | None
    tokens: int = Field(ge=0)
    cached_tokens: int = Field(ge=0)
    ms: float = Field(ge=0.0)


class RungObject(_Record):
    """One attempt at a better answer."""

    rung: str = Field(json_schema_extra={"enum": [*RUNGS]})
    outcome: str = Field(json_schema_extra={"enum": [*RungOutcome]})
    answer: str | None = Field(description="what it would answer, if anything")
    tokens: int = Field(ge=0)
    cached_tokens: int = Field(ge=0)
    ms: float = Field(ge=0.0)


class MitigationObject(_Record):
    """What was tried about a flagged answer, and what it cost."""

    asked: str = Field(description="by the request or the policy", json_schema_extra={"enum": [*ACTIONS]})
    original: str = Field(description="the answer that was flagged")
    answer: str | None = Field(description="what is served in its place; null: the original stands")
    correction: bool = Field(description="the original text was already sent: `answer` corrects it")
    rungs: tuple[RungObject, ...]
    tokens: int = Field(ge=0, description="of all rungs, prompts included")
    ms: float = Field(ge=0.0)


class ModintObject(_Record):
    """The verdict on one answer, as it stands under `modint` in a completion or in the chunk that finishes a
    stream.
    """

    schema_version: str = Field(alias="schema")
    verdict: Literal["pass", "flagged", "unscored", "skipped"]
    cause: Literal["text", "image", "prior", "conflict", "neglect"] | None = Field(
        description="set when flagged"
    )
    score: float | None = Field(
        description="how far what ought not to matter turned the answer, nats; above 0 only if it changed"
    )
    risk: float | None = Field(
        ge=0.0, le=1.0, description="null when unscored, or where no modality is known to be irrelevant"
    )
    calibrated: bool = Field(description="whether the risk has the guarantee of a null or of a calibration")
    null: NullObject | None = Field(
        description="what the risk was measured against; null where a calibration or the fixed rule decided"
    )
    neglect: float | None = Field(
        default=None,
        description="how little what is needed influenced the answer: minus its influence on log-odds, nats",
    )
    reason: str | None = Field(
        description="set when unscored or skipped",
        json_schema_extra={"enum": [*UNSCORED_REASONS, *SKIPPED_REASONS, None]},
    )
    explanation: str = Field(default="", description="the verdict as one sentence for a person")
    relevant: Literal["image", "text", "both", "unknown"] = Field(
        description="which modality ought to decide"
    )
    relevant_source: Literal["request", "header", "route", "rules", "classifier", "self_ask", "none"]
    relevant_probability: float | None = Field(
        default=None, ge=0.0, le=1.0, description="that `relevant` is right; set where the classifier said so"
    )
    examined: tuple[Literal["text", "image"], ...]
    influence: Influence
    relative_entropy: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="of the two unimodal answers; positive where the image alone is surer",
    )
    noise: float | None = Field(
        default=None, ge=0.0, le=1.0, description="largest change of a probability between request and noop"
    )
    answers: Answers
    spans: tuple[SpanObject, ...] = Field(
        default=(),
        description="what gave which part of the answer: at most 100 of its parts, flagged ones first",
    )
    probes: tuple[ProbeObject, ...]
    method: Literal["first_token", "teacher_forced", "regenerated"]
    reasoning: bool = Field(
        default=False, description="the model reasoned first; what follows its reasoning was judged"
    )
    choice: int = Field(default=0, ge=0, description="which of the answers to the request it is about")
    notes: tuple[str, ...]
    action: str = Field(description="what was done about it", json_schema_extra={"enum": [*TAKEN_ACTIONS]})
    mitigation: MitigationObject | None = Field(
        default=None, description="null where nothing but a note was asked for, or nothing was flagged"
    )


def verdict(completion: Any) -> ModintObject | None:
    """The `modint` object of a completion or stream chunk, typed; None if it has none.

    completion: an object of the `openai` package or a dict. Raises EndpointError for an object of another
    schema than this version reads.
    """
    modint = _modint_of(completion)
    if modint is None:
        return None
    try:
        return ModintObject.model_validate(modint)
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])
        raise EndpointError(
            f"The `modint` object is not of schema 2 (at `{where}`): use the server's version."
        ) from exc


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the object."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **ModintObject.model_json_schema(by_alias=True, mode="serialization"),
    }


def _modint_of(completion: Any) -> Any:
    if isinstance(completion, dict):
        return completion.get("modint")
    modint = getattr(completion, "modint", None)
    return modint if modint is not None else (getattr(completion, "model_extra", None) or {}).get("modint")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
