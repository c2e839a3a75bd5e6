"""Options of vLLM that a user adds behind `--`: how vLLM reads them, and those that `serve` has to refuse."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from modint_guard.errors import ConfigError

MIN_LOGPROBS = 20  # the alternatives of a token that probes read

_OPTION = re.compile(r"--|-[A-Za-z]")  # and not a negative number

# What to do instead of naming an option that `serve` sets itself.
_NAME_ADAPTERS = "name adapters with `--adapter` in front of `--`"
_INSTEAD = {
    "--model": "name the model with `--model` in front of `--`",
    "--limit-mm-per-prompt": "set MODINT_MAX_IMAGES instead",
    **dict.fromkeys(
        (
            "--enable-lora",
            "--lora-modules",
            "--max-loras",
            "--max-lora-rank",
            "--enable-tower-connector-lora",
        ),
        _NAME_ADAPTERS,
    ),
}

# Options that `serve` does not set, and why the guard does not work with them.
_PRIVATE = (
    "the engine listens on a private socket: give `--host` and `--port` of the gateway in front of `--`"
)
_NO_TLS = "the gateway speaks plain HTTP to its engine: put TLS in front of the gateway"
_NO_HTTP = "the gateway speaks HTTP to its engine: leave it out"
_NO_IMAGES = "the engine would not answer about images: leave it out"
_BREAKING = {
    "--help": "vLLM's options are listed by `python -m vllm.entrypoints.openai.api_server --help`",
    "--host": _PRIVATE,
    "--port": _PRIVATE,
    "--api-key": "the engine has a random key of its own: set MODINT_API_KEYS_FILE for the keys of clients",
    "--config": "a file could contradict what `serve` sets: write its options behind `--`",
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs"), _NO_TLS),
    **dict.fromkeys(("--headless", "--grpc", "--tokens-only"), _NO_HTTP),
    **dict.fromkeys(("--language-model-only", "--mm-encoder-only"), _NO_IMAGES),
    "--default-mm-loras": "the base would answer about images from an adapter: " + _NAME_ADAPTERS,
    "--return-tokens-as-token-ids": "probes compare tokens by their text: leave it out",
    "--logprobs-mode": "probes read raw log-probabilities: leave it out",
    "--max-logprobs": f"probes read {MIN_LOGPROBS} alternatives of a token: give at least {MIN_LOGPROBS}",
}


@dataclass(frozen=True)
class VllmOption:
    """One option: as it was written, by the name that vLLM knows, and the first word of its value."""

    written: str  # --no-enable_lora
    name: str  # --enable-lora
    value: str | None
    is_negated: bool

    def could_be(self, name: str) -> bool:
        """Whether vLLM may read it as the option `name`: argparse takes an unambiguous beginning as well."""
        return self.name == name or (self.name.startswith("--") and name.startswith(self.name))


def read_options(words: Sequence[str]) -> list[VllmOption]:
    """The options among words of a command line. Raises ConfigError if they do not begin with one."""
    if words and not _OPTION.match(words[0]):
        raise ConfigError(
            f"{words[0]!r} is no option of `serve`, and behind `--` stand options of vLLM: "
            "write `-- --max-model-len 4096`, say"
        )
    pairs = zip_longest(words, words[1:])
    return [_option(word, next_word) for word, next_word in pairs if _is_option(word)]


def check_options(words: Sequence[str], set_by_serve: Iterable[str]) -> None:
    """Raises ConfigError for an option that `serve` sets itself (`set_by_serve`) or that breaks the guard."""
    required = tuple(set_by_serve)
    for option in read_options(words):
        if option.written == "--":
            raise ConfigError("`--` stands twice: everything behind the first one goes to vLLM")
        for name in required:
            if option.could_be(name):
                instead = _INSTEAD.get(name, "leave it out")
                raise ConfigError(f"{option.written}: `serve` itself sets vLLM's {name}: {instead}")
        for name, reason in _BREAKING.items():
            if option.could_be(name) and not _is_harmless(option, name):
                raise ConfigError(f"{option.written} cannot stand behind `--`: {reason}")


def _is_option(word: str) -> bool:
    return _OPTION.match(word) is not None


def _option(word: str, next_word: str | None) -> VllmOption:
    """vLLM takes underscores for dashes, `--no-X` for a switch, `--X.key` for a part of X's JSON."""
    written, equals, value = word.partition("=")
    name = written.split(".")[0].replace("_", "-")
    positive = re.sub(r"^--no-", "--", name)
    following = None if next_word is None or _is_option(next_word) else next_word
    return VllmOption(
        written, "--help" if name == "-h" else positive, value if equals else following, positive != name
    )


def _is_harmless(option: VllmOption, name: str) -> bool:
    if name == "--logprobs-mode":
        return option.value == "raw_logprobs"
    if name == "--max-logprobs":  # -1: no limit; what is no number is vLLM's to refuse
        number = re.fullmatch(r"-?\d+", option.value or "")
        return number is None or int(number[0]) >= MIN_LOGPROBS or int(number[0]) == -1
    return option.is_negated
