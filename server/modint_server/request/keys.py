"""Which clients may call, and what each may ask for: the keys of the environment and those of a file.

A file holds one key on each line, or `[[key]]` tables with names, models and limits; SIGHUP reads it again.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from modint_guard.chat.rule_files import check_keys, read_rule_file
from modint_guard.errors import ConfigError, RequestError
from modint_server.settings import Settings, lines_of

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("name", "key", "sha256", "models", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True)
class Client:
    """Who asks. digest: of the key, in hexadecimal, never logged; "" where no key is asked for. name: "" for
    a key that has none. models: None for all. A limit of 0 is none.
    """

    digest: str = ""
    name: str = ""
    models: frozenset[str] | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def may_ask(self, model: str) -> bool:
        """Whether the key may be used for a model."""
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Raises RequestError 403 for a model that the key may not be used for."""
        if not self.may_ask(model):
            raise RequestError(
                f"this key may not ask this model: it may ask {', '.join(sorted(self.models or ()))}",
                param="model",
                code="model_not_allowed",
                status=403,
                type="permission_error",
            )


ANYBODY = Client()


class Keys:
    """The clients by their keys. Only digests are kept, and every one is compared, in constant time.

    Raises ConfigError for a file that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients = _clients(settings)

    @property
    def are_asked_for(self) -> bool:
        """Whether a client has to show a key."""
        return bool(self._clients)

    @property
    def are_several(self) -> bool:
        """Whether there is more than one client."""
        return len(self._clients) > 1

    def reload(self) -> int:
        """Reads the file again, and returns the number of keys. For a file that cannot be used it raises
        ConfigError, and keeps those it had.
        """
        self._clients = _clients(self._settings)
        return len(self._clients)

    def check(self, headers: Mapping[str, str]) -> Client:
        """Who asks. Raises RequestError 401 for no key or an unknown one."""
        if not self._clients:
            return ANYBODY
        anthropic = headers.get("x-api-key")  # so do Anthropic's clients send it
        shown_key = headers.get("authorization") or (f"Bearer {anthropic}" if anthropic else "")
        scheme, _, key = shown_key.partition(" ")
        shown = digest_of(key.strip())
        found = [client for client in self._clients if hmac.compare_digest(shown, client.digest)]
        if scheme.lower() != "bearer" or not found:
            raise RequestError(
                "no valid API key: send `Authorization: Bearer KEY`",
                code="invalid_api_key",
                status=401,
                type="authentication_error",
            )
        return found[0]


def digest_of(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal: what `sha256` in a file of keys holds."""
    return sha256(key.encode()).hexdigest()


def _clients(settings: Settings) -> tuple[Client, ...]:
    file = settings.api_keys_file
    named = [Client(digest_of(key.get_secret_value())) for key in settings.api_keys]
    if file is not None:
        lines = lines_of(file)
        is_toml = any(line.startswith("[") or " " in line for line in lines)
        named += _of_tables(file) if is_toml else [Client(digest_of(key)) for key in lines]
        if not named:
            raise ConfigError(f"{file} holds no key: write one per line, or drop api_keys_file")
    return tuple({client.digest: client for client in named}.values())


def _of_tables(file: Path) -> list[Client]:
    clients = read_rule_file(file, "key", _client)
    for what in ("name", "digest"):
        values = [getattr(client, what) for client in clients]
        if len(set(values)) < len(values):
            at = next(i for i, value in enumerate(values) if value in values[:i]) + 1
            twice = "its name is another key's too" if what == "name" else "it is the same key as another"
            raise ConfigError(f"{file}, key {at}: {twice}: give each key once, by a name of its own.")
    return list(clients)


def _client(table: Mapping[str, Any]) -> Client:
    """One table. Raises ConfigError that holds no key."""
    check_keys(table, _FIELDS)
    name, key, digest = (table.get(field) for field in ("name", "key", "sha256"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("name must have 1 to 64 letters, digits, dots, dashes or underscores.")
    if (key is None) == (digest is None):
        raise ConfigError("give either key or sha256, its digest in hexadecimal.")
    if key is not None and (not isinstance(key, str) or not key.strip()):
        raise ConfigError("key must be a string that is not empty.")
    if digest is not None and (not isinstance(digest, str) or not _DIGEST.fullmatch(digest)):
        raise ConfigError("sha256 must have 64 hexadecimal digits in lower case.")
    models = table.get("models")
    if models is not None and not (
        isinstance(models, list) and models and all(isinstance(model, str) for model in models)
    ):
        raise ConfigError("models must be a list of served names.")
    limits = [table.get(field, 0) for field in _FIELDS[4:]]
    for field, limit in zip(_FIELDS[4:], limits, strict=True):
        if isinstance(limit, bool) or not isinstance(limit, int) or (limit < 1 and field in table):
            raise ConfigError(f"{field} must be a whole number from 1: leave it out for no limit.")
    return Client(
        digest=str(digest) if key is None else digest_of(key.strip()),
        name=name,
        models=None if models is None else frozenset(models),
        requests_per_minute=limits[0],
        tokens_per_minute=limits[1],
    )
