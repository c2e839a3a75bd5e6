"""Which models a diagnosis asks, and how each is reached: served by an endpoint, or loaded here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from modint_guard.endpoint import TOP_LOGPROBS, Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.extensions import LocalModel
from modint_guard.models import is_adapter, is_model, located
from modint_guard.types import Complete

GATEWAY = "http://127.0.0.1:8080"  # what is asked if no URL is named
LOCAL_TOP_LOGPROBS = (1000,)  # a model loaded here lists as many as it is asked for
BASE = "base"  # as a second model: the first without its adapter
OFF = {"x-modint-mode": "off"}  # for an endpoint that is a gateway of ours


@dataclass(frozen=True)
class Target:
    """A model that is asked, with an adapter or without; `url` is None if it is loaded here."""

    model: str
    adapter: str | None = None
    url: str | None = None

    @property
    def name(self) -> str:
        """What an endpoint serves it under, and what the tables call it."""
        return self.adapter or self.model

    @property
    def top_logprobs(self) -> tuple[int, ...]:
        """How many log-probabilities it may be asked for: the first that it gives are taken."""
        return LOCAL_TOP_LOGPROBS if self.url is None else TOP_LOGPROBS


Reach = Callable[[Target], AbstractAsyncContextManager[Complete]]


def targets_of(first: Target, against: str | None = None, against_url: str | None = None) -> list[Target]:
    """The first model and, if `against` names one, a second beside it, at the same endpoint unless
    `against_url` names another.

    Raises ConfigError if the second is no model, or the first again.
    """
    if against is None:
        return [first]
    second = _second(first, against, against_url)
    if _same(first, second):
        raise ConfigError(
            f"--against {against} compares {first.name} with itself: name another model, adapter or endpoint"
        )
    return [first, second]


def _second(first: Target, against: str, against_url: str | None) -> Target:
    url = against_url or first.url
    if against == BASE and (first.adapter or url is None):
        return Target(first.model, None, url)
    if url is not None or is_model(against):
        return Target(against, None, url)
    if is_adapter(against):
        return Target(first.model, against)
    raise ConfigError(
        f"--against {against} names no second model: neither a model or adapter, bundled or a folder, nor"
        f" `{BASE}`"
    )


def _same(first: Target, second: Target) -> bool:
    if first.url is None:
        return located(first.name).resolve() == located(second.name).resolve()
    return (first.name, first.url) == (second.name, second.url)


def names_of(targets: Sequence[Target]) -> list[str]:
    """The models' names."""
    return [target.name for target in targets]


def have_one_name(targets: Sequence[Target]) -> bool:
    """Whether two endpoints serve their models under the same name."""
    return len(set(names_of(targets))) < len(targets)


def labels_of(targets: Sequence[Target]) -> list[str]:
    """The models' names, with a number behind them if they have one name."""
    names = names_of(targets)
    return [f"{n} ({i})" for i, n in enumerate(names, 1)] if have_one_name(targets) else names


def endpoint_reach(key: str | None) -> Reach:
    """Models that an endpoint serves; a guard in front of them is turned off."""

    @asynccontextmanager
    async def reach(target: Target) -> AsyncIterator[Complete]:
        async with Endpoint(target.url or GATEWAY, key, headers=OFF) as endpoint:
            yield endpoint.complete

    return reach


def local_reach(local_model: LocalModel, image_attention: float) -> Reach:
    """Models that are loaded here, with their attention to pictures scaled."""

    @asynccontextmanager
    async def reach(target: Target) -> AsyncIterator[Complete]:
        with local_model(target.model, target.adapter, image_attention=image_attention) as complete:
            yield complete

    return reach


def without_user(url: str) -> str:
    """The address without the name and password in it: reports are passed on."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
