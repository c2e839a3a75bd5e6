"""A vLLM plugin that scales attention to picture tokens: experimental, and off by default.

vLLM calls `register` in each of its processes. If MODINT_IMAGE_ATTENTION is not 1, every decoder layer's key
at a picture's position is multiplied by that gain after rotary embedding. This multiplies the attention logit
q.k of every later token as well (compare AdaptVis, arXiv 2503.01773). The model runner tells the positions,
step by step. A replica has one gain, because the scaled keys lie in its prefix cache.

Refused when the engine starts: torch.compile and CUDA graphs, which would not run this code; pipeline stages,
as only the first of them knows the pictures; speculative decoding, whose draft model has keys of its own; and
a cache shared with other replicas. If a model's decoder does not use vLLM's `Attention`, the engine ends one
step after the first picture, rather than serve it unscaled.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modint_guard.errors import ConfigError
from modint_guard.types import MAX_IMAGE_ATTENTION

VARIABLE = "MODINT_IMAGE_ATTENTION"
GROUP, PLUGIN = "vllm.general_plugins", "modint_image_attention"  # as pyproject.toml registers it
_INSTALLED = "_modint_image_attention"  # an attribute that marks vLLM's class as patched


def register() -> None:
    """The plugin's entry point. Does nothing if the gain is 1. Raises ConfigError if it is no gain."""
    gain = gain_of(os.environ)
    if gain == 1.0:
        return
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    install(Attention, GPUModelRunner, gain)


def check_registered(gain: float, plugins: Iterable[str]) -> None:
    """Raises ConfigError if a gain is set and this plugin is not among those that vLLM would load."""
    if gain != 1.0 and PLUGIN not in plugins:
        raise ConfigError(
            f"{VARIABLE} is {gain:g}, and vLLM's plugin {PLUGIN} is not installed: install modint-guard again"
        )


def gain_of(environ: Mapping[str, str]) -> float:
    """The gain that the environment sets, 1 if none is set. Raises ConfigError if it is no gain."""
    text = environ.get(VARIABLE, "1")
    try:
        gain = float(text)
    except ValueError as exc:
        raise ConfigError(
            f"{VARIABLE} is {text[:40]!r}: it must be a number from 0 to {MAX_IMAGE_ATTENTION:g}; "
            "1 changes nothing"
        ) from exc
    if not 0.0 <= gain <= MAX_IMAGE_ATTENTION:
        raise ConfigError(
            f"{VARIABLE} is {text[:40]}: it must lie between 0 and {MAX_IMAGE_ATTENTION:g}; 1 changes nothing"
        )
    return gain


@dataclass
class Step:
    """The tokens of the step that the engine computes now."""

    pictures: Any = None  # (N,) bool, on the CPU: which tokens are a picture's; None outside a step
    layers: int = 0  # how many layers were scaled in this step


def install(attention: Any, runner: Any, gain: float) -> None:
    """Patches vLLM's attention layer and model runner, once."""
    if getattr(attention, _INSTALLED, False):
        return
    setattr(attention, _INSTALLED, True)
    step = Step()
    attention.forward = _scaling(attention.forward, step, gain)
    runner.__init__ = _refusing(runner.__init__)
    runner._gather_mm_embeddings = _noting(runner._gather_mm_embeddings, step)
    runner._dummy_run = _forgetting(runner._dummy_run, step)


def _scaling(forward: Callable[..., Any], step: Step, gain: float) -> Callable[..., Any]:
    def scaled_forward(self: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        if step.pictures is not None and key is not None and self.attn_type == "decoder":
            step.layers += 1
            key = scaled(key, step.pictures, gain)
        return forward(self, query, key, *args, **kwargs)

    return scaled_forward


def scaled(key: Any, pictures: Any, gain: float) -> Any:
    """Keys (N or more, ...), multiplied by `gain` at the pictures (N,) bool. RuntimeError for fewer keys."""
    if key.shape[0] < pictures.shape[0]:
        raise RuntimeError(
            f"{key.shape[0]} keys for {pictures.shape[0]} tokens: this vLLM splits a step; unset {VARIABLE}"
        )
    if not pictures.any():
        return key
    factor = key.new_ones(key.shape[0])
    factor[: pictures.shape[0]][pictures.to(key.device)] = gain
    return key * factor.view(-1, *[1] * (key.ndim - 1))


def _noting(gather: Callable[..., Any], step: Step) -> Callable[..., Any]:
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if step.pictures is not None and step.pictures.any() and not step.layers:
            raise RuntimeError(f"no layer of this model's decoder could be scaled: unset {VARIABLE}")
        gathered = gather(self, *args, **kwargs)
        step.pictures, step.layers = gathered[1].clone(), 0  # the runner uses its buffer again
        return gathered

    return noted


def _forgetting(dummy_run: Callable[..., Any], step: Step) -> Callable[..., Any]:
    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        step.pictures = None
        return dummy_run(self, *args, **kwargs)

    return forgetful


def _refusing(start: Callable[..., None]) -> Callable[..., None]:
    def refused(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check(vllm_config)
        start(self, vllm_config, *args, **kwargs)

    return refused


def check(config: Any) -> None:
    """Raises ConfigError for an engine in which keys would not be scaled, or would leave the replica."""
    is_present = {
        "--enforce-eager is missing": not config.model_config.enforce_eager,
        "there are pipeline stages": config.parallel_config.pipeline_parallel_size > 1,
        "it decodes speculatively": config.speculative_config is not None,
        "its cache is shared": config.kv_transfer_config is not None,
    }
    if faults := [fault for fault, present in is_present.items() if present]:
        raise ConfigError(f"{VARIABLE} cannot be used with this engine ({'; '.join(faults)}): unset it")
