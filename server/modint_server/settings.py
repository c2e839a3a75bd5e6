"""Every setting of the gateway, read once into a frozen object; an invalid one stops the process."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from modint_guard.errors import ConfigError
from modint_guard.models.picturebook import CACHE_VARIABLE
from modint_guard.types import MAX_DEADLINE_S, MAX_IMAGE_ATTENTION

# The engine's routes that may be passed through: none of those that administer it (adapters, weights, sleep,
# profiles, caches, …) can be named in `pass_routes`.
PASSED_GET = ("/health", "/version")
PASSED_POST = (
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/score",
    "/v1/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/tokenize",
    "/detokenize",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
)
ENV_PREFIX = "MODINT_"


class Settings(BaseSettings):
    """What `create_app` needs. A field `name` is read from the variable `MODINT_NAME`; arguments win."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    # Where the engine is. With `upstream_uds` the host of the URL is only a name.
    upstream_url: str = "http://127.0.0.1:8000"
    upstream_uds: Path | None = None
    upstream_api_key: SecretStr | None = None
    upstream_api_key_file: Path | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=300.0, gt=0)  # the longest pause within an answer, not all of it
    capability_timeout_s: float = Field(default=120.0, gt=0)  # the first logprobs on a new machine take 30 s
    upstream_poll_s: float = Field(default=2.0, gt=0)  # between two looks at whether it is up
    upstream_poll_timeout_s: float = Field(default=10.0, gt=0)  # later than this, it hangs

    # Keys of clients. Without one, anybody who reaches the port may call.
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_keys_file: Path | None = None
    cache_by_key: Literal["auto", "off"] = "auto"  # a prefix cache for each key, if there are several
    metrics_need_key: bool = False  # also for the pages of metrics

    # Connections of clients, and the origins whose web pages may call.
    keep_alive_s: int = Field(default=620, gt=0)  # longer than a balancer keeps an idle connection to us
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)

    # The engine's further routes that clients may use.
    pass_routes: Annotated[tuple[str, ...], NoDecode] = (*PASSED_GET, *PASSED_POST)

    # Limits of a request.
    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    max_json_depth: int = Field(default=64, gt=0, le=250)  # orjson writes 254 levels
    max_messages: int = Field(default=1024, gt=0)
    max_images: int = Field(default=16, gt=0)
    max_image_bytes: int = Field(default=20 * 2**20, gt=0)
    max_image_pixels: int = Field(default=20_000_000, gt=0)
    max_request_pixels: int = Field(default=64_000_000, gt=0)
    max_json_values: int = Field(default=500_000, gt=0)
    image_timeout_s: float = Field(default=10.0, gt=0)
    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # from which pictures are fetched
    image_fetch_timeout_s: float = Field(default=5.0, gt=0)  # for all pictures of a request
    image_threads: int = Field(default=2, gt=0)
    chat_template_kwargs: Annotated[tuple[str, ...], NoDecode] = (
        "enable_thinking",
        "thinking",
        "thinking_budget",
        "reasoning_effort",
    )
    max_n: int = Field(default=16, gt=0)
    max_prompts: int = Field(default=128, gt=0)  # of a plain completion, each counted `n` times
    max_prompt_logprobs: int = Field(default=20, ge=0)

    # Limits of all requests together.
    max_in_flight: int = Field(default=256, gt=0)
    max_probes_in_flight: int = Field(default=64, gt=0)
    max_rungs_in_flight: int = Field(default=32, gt=0)
    max_share_per_key: float = Field(default=0.5, gt=0, le=1)  # of all of these, if there are several keys
    shed_probes_at: float = Field(
        default=0.75, gt=0, le=1
    )  # of max_in_flight, or of a key's share: more are not probed
    max_adapter_labels: int = Field(default=64, gt=0)

    # The self-test of adapters. "auto": "require" for an engine that `serve` starts, else "report".
    adapter_selftest: Literal["auto", "require", "report", "off"] = "auto"

    # The guard.
    guard: Literal["on", "off"] = "on"
    sample: float = Field(default=1.0, ge=0, le=1)  # of the requests with a picture, the share that is judged
    probe_deadline_s: float = Field(default=5.0, gt=0, le=MAX_DEADLINE_S)
    noop_every: int = Field(default=100, ge=0)  # one judged request in so many, for each model; 0: none
    alpha: float = Field(default=0.01, gt=0, lt=0.5)  # of harmless inputs, the share that may be flagged
    null_checkup: Literal["on", "off"] = "on"  # ask packaged items of each model after attaching
    null_every: int = Field(default=200, ge=0)  # into one judged request in so many something is planted
    null_file: Path | None = None  # where the nulls are kept across restarts
    relevance_rules_file: Path | None = None
    self_ask: Literal["off", "auto"] = "off"
    regenerate: Literal["off", "auto"] = "auto"
    # "auto": "on" for an engine that `serve` starts on a CPU; of others, only if they serve no adapter.
    teacher_forcing: Literal["off", "auto", "on"] = "auto"
    calibrations: Annotated[tuple[Path, ...], NoDecode] = ()

    # The action on a flagged answer, if neither a policy nor the request names one.
    action: Literal["annotate", "neutralise", "escalate", "debias", "rerank", "abstain", "ladder"] = (
        "annotate"
    )
    policies_file: Path | None = None
    mitigation_tokens_per_minute: int = Field(default=0, ge=0)  # for each key; 0: no limit
    # A gain, experimental; vLLM's plugin reads the same variable.
    image_attention: float = Field(default=1.0, ge=0, le=MAX_IMAGE_ATTENTION)

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("upstream_url")
    @classmethod
    def _an_http_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://127.0.0.1:8000")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "must hold no user, password, query or fragment: a key goes into upstream_api_key_file"
            )
        return url.rstrip("/").removesuffix("/v1")

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and (
                not parts.scheme or not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin
            ):
                raise ValueError("must be * or origins such as https://chat.example.org, without a path")
        return origins

    @field_validator("pass_routes")
    @classmethod
    def _known_routes(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path not in (*PASSED_GET, *PASSED_POST):
                raise ValueError(
                    f"{path[:60]} is not passed through: choose from {', '.join((*PASSED_GET, *PASSED_POST))}"
                )
        return paths

    @field_validator(
        "api_keys",
        "calibrations",
        "cors_origins",
        "pass_routes",
        "chat_template_kwargs",
        "image_hosts",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @model_validator(mode="after")
    def _one_source_for_a_key(self) -> Self:
        if self.upstream_api_key is not None and self.upstream_api_key_file is not None:
            raise ValueError("upstream_api_key and upstream_api_key_file are both given: keep one")
        return self


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment, with `overrides` on top; raises ConfigError with one sentence."""
    _refuse_unknown(sorted(os.environ))
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        raise ConfigError(_sentence(exc)) from exc


def secret(key: SecretStr | None, file: Path | None) -> str | None:
    """The key itself, from the setting or from its file, None without either.

    Raises ConfigError if the file cannot be read or does not hold exactly one key.
    """
    if file is None:
        return None if key is None else key.get_secret_value()
    lines = lines_of(file)
    if len(lines) != 1:
        raise ConfigError(f"{file} holds {len(lines)} lines: write exactly one key into it")
    return lines[0]


def lines_of(file: Path) -> tuple[str, ...]:
    """The lines of a file of keys, without comments. Raises ConfigError if it cannot be read."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{file} cannot be read ({type(exc).__name__}): name a readable file of keys"
        ) from exc
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


# What Kubernetes puts into every pod beside a Service called `modint` or `modint-…`.
_SERVICE_LINK = re.compile(
    r"MODINT_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes wrote a variable. Its `…_PORT` holds an address such as tcp://10.0.0.1:8080."""
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)


def _refuse_unknown(names: list[str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CACHE_VARIABLE}
    for name in names:
        if not name.startswith(ENV_PREFIX) or _is_service_link(name, os.environ[name]):
            continue
        if name.upper() not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{name} is no setting of the gateway"
                + (f": did you mean {near[0]}?" if near else ": unset it")
            )


def _sentence(exc: ValidationError) -> str:
    """The first fault in one sentence, without the value, which may be a key."""
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        return f"{name} is no setting of the gateway" + (f": did you mean {near[0]}?" if near else "")
    return f"{name}: {first['msg'].removeprefix('Value error, ')}"
