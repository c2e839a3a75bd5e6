"""What the engine can do: the models that it lists, and what small requests show of them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modint_guard.chat.unread import entry
from modint_guard.endpoint import TOP_LOGPROBS
from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.probing.teacher_forcing import forced_body
from modint_guard.types import JSON
from modint_server.engine.questions import YES, about_a_picture
from modint_server.engine.upstream import Upstream

PROBE_PRIORITY = 1  # of clients' requests it is 0: those of a lower number are served first
SILENT = "the engine refuses to chat: give it a chat template (`--chat-template FILE`) if its model has none"
_ALL, _LAST_ALONE = "all", "last"  # tokens of a prompt that were scored
_UNINFORMATIVE = (401, 403, 408, 429)  # refusals that say nothing about what the engine can do


@dataclass(frozen=True)
class Model:
    """One entry of the engine's model list; `parent` is an adapter's base, None for a base itself."""

    id: str
    parent: str | None
    created: int
    max_model_len: int | None

    def to_json(self) -> JSON:
        card = {"id": self.id, "object": "model", "created": self.created, "owned_by": "modint-guard"}
        extra: JSON = {"parent": self.parent}
        if self.max_model_len is not None:
            extra["max_model_len"] = self.max_model_len
        return {**card, **extra}


@dataclass(frozen=True)
class Capabilities:
    """What the engine showed that it can do; `problems` has a sentence for each thing that it cannot."""

    models: tuple[Model, ...]
    top_logprobs: int  # the most alternatives of a token that it lists; 0 if it gives no log-probabilities
    images: bool
    teacher_forcing: bool = False  # whether it scores an answer that is given to it
    last_rows: bool = False  # whether it can be asked to score the end of a prompt alone: our plugin is in it
    priority: bool = False  # whether it takes priorities; vLLM's default scheduler takes and ignores them
    problems: tuple[str, ...] = ()

    @property
    def logprobs(self) -> bool:
        return self.top_logprobs > 0

    @property
    def lora(self) -> tuple[str, ...]:
        return tuple(model.id for model in self.models if model.parent is not None)

    def to_json(self) -> JSON:
        return {
            "models": [model.id for model in self.models],
            "lora": list(self.lora),
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "images": self.images,
            "teacher_forcing": self.teacher_forcing,
            "last_rows": self.last_rows,
            "priority": self.priority,
        }


def models_of(listed: list[JSON]) -> tuple[Model, ...]:
    """The entries of the engine's model list, without its paths; a parent that is not listed is none."""
    ids = {entry["id"] for entry in listed}
    return tuple(_model(entry, ids) for entry in listed)


def _model(entry: JSON, ids: set[str]) -> Model:
    parent: Any = entry.get("parent")
    known = isinstance(parent, str) and parent in ids and parent != entry["id"]
    created, length = entry.get("created"), entry.get("max_model_len")
    return Model(
        id=entry["id"],
        parent=parent if known else None,
        created=created if isinstance(created, int) else 0,
        max_model_len=length if isinstance(length, int) else None,
    )


async def check_capabilities(
    upstream: Upstream, *, forcing_beside_adapters: bool = False, timeout_s: float = 120.0
) -> Capabilities:
    """Finds out by small requests what the engine can do: log-probabilities, images, scores, priorities.

    forcing_beside_adapters: whether an engine that serves adapters may be asked to score an answer.
    timeout_s: for each request. Raises EndpointError if the engine cannot be reached or lists no base model.
    """
    models = models_of(await upstream.models())
    base = next((model.id for model in models if model.parent is None), None)
    if base is None:
        raise EndpointError("the engine lists no base model: start it with one")
    top = await _most_logprobs(upstream, base, timeout_s)
    images = await _tried(upstream, base, about_a_picture(YES), top, timeout_s) is not None
    chats = bool(top) or images or await _tried(upstream, base, YES, 0, timeout_s) is not None
    problems = tuple(_problems(top, images)) if chats else (SILENT,)
    # vLLM's CPU engine ends at prompt log-probabilities beside adapters (a shape error in its LoRA
    # arithmetic), unless our plugin runs in it: without that, longer answers are judged at their first word.
    may_force = forcing_beside_adapters or all(model.parent is None for model in models)
    scored = await _scored(upstream, base, timeout_s) if top and may_force else None
    priority = await _takes_priorities(upstream, base, timeout_s)
    return Capabilities(models, top, images, scored is not None, scored == _LAST_ALONE, priority, problems)


async def _takes_priorities(upstream: Upstream, model: str, timeout_s: float) -> bool:
    """Whether the engine takes a priority; one that breaks on it does not. Nothing else depends on it."""
    try:
        return await _tried(upstream, model, YES, 0, timeout_s, priority=PROBE_PRIORITY) is not None
    except EndpointError:
        return False


async def _scored(upstream: Upstream, model: str, timeout_s: float) -> str | None:
    """Of which tokens the engine gives log-probabilities if it is asked for those of a prompt's last one:
    _LAST_ALONE with our plugin, else _ALL; None if it gives none. If it refuses such a field, it is asked
    without.
    """
    body: JSON = {"model": model, "messages": [{"role": "user", "content": YES}], "temperature": 0}
    for last in (1, None):
        completion = await _answered(upstream, forced_body(body, "yes", 1, last), timeout_s)
        if completion is not None:
            return _which_were_scored(completion)
    return None


def _which_were_scored(completion: JSON) -> str | None:
    try:
        listed = completion["prompt_logprobs"]
        if "logprob" not in next(iter(entry(listed[-1]).values())):
            return None
        is_alone = len(listed) == 2 < len(completion.get("prompt_token_ids") or ())  # the first is null
    except (AttributeError, IndexError, KeyError, TypeError, StopIteration):
        return None
    return _LAST_ALONE if is_alone else _ALL


async def _most_logprobs(upstream: Upstream, model: str, timeout_s: float) -> int:
    """The largest of TOP_LOGPROBS that the engine takes; 0 if it refuses them all or leaves them out."""
    for top in TOP_LOGPROBS:
        if (completion := await _tried(upstream, model, YES, top, timeout_s)) is not None:
            return top if _has_logprobs(completion) else 0
    return 0


def _problems(top: int, images: bool) -> Iterator[str]:
    """A sentence for each thing that an engine which chats cannot do."""
    if sentence := _shortage(top):
        yield sentence
    if not images:
        yield "the engine refuses images: there is nothing to guard in text alone"


def _shortage(top: int) -> str | None:
    """A sentence about log-probabilities that are missing or few; None if there are enough."""
    most = TOP_LOGPROBS[0]
    if not top:
        return "the engine gives no logprobs: short answers are generated again, longer ones stay unscored"
    return (
        f"the engine takes top_logprobs {top}, not {most}: divergences are known less well"
        if top < most
        else None
    )


async def _tried(
    upstream: Upstream, model: str, content: object, top: int, timeout_s: float, **more: Any
) -> JSON | None:
    """A completion of one token; None if the engine refuses such a request. Raises EndpointError."""
    body: JSON = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        **more,
    }
    if top:
        body |= {"logprobs": True, "top_logprobs": top}
    return await _answered(upstream, body, timeout_s)


async def _answered(upstream: Upstream, body: JSON, timeout_s: float) -> JSON | None:
    """The completion; None if the engine refuses the request itself. Raises EndpointError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await upstream.complete(body)
    except TimeoutError as exc:
        raise EndpointTimeout(f"the engine did not answer one token within {timeout_s:g} s") from exc
    except EndpointError as exc:
        if exc.status is not None and 400 <= exc.status < 500 and exc.status not in _UNINFORMATIVE:
            return None
        raise


def _has_logprobs(completion: JSON) -> bool:
    try:
        return bool(entry(completion["choices"][0]["logprobs"]["content"][0])["top_logprobs"])
    except (KeyError, IndexError, TypeError):
        return False
