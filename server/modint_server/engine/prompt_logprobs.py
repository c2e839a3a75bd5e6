"""A vLLM plugin with which the CPU engine scores given answers: beside adapters, and not what precedes them.

vLLM's CPU engine ends at prompt log-probabilities as soon as adapters are loaded: to the logits of a prompt
it adds the adapters' part of the output layer by the rows of the sampled tokens, which are of another
number. If no adapter has such a part, nothing is to be added, and this plugin adds nothing. How it leaves out
what precedes an answer is told in `last_rows`. `serve` sets the variable for its engines on a CPU whose
adapters have no such part; in all others `register` does nothing.
"""

import os
from collections.abc import Callable
from typing import Any

from modint_server.engine import last_rows

VARIABLE = "MODINT_PROMPT_LOGPROBS"
_INSTALLED = "_modint_prompt_logprobs"  # an attribute that marks vLLM's class as patched


def register() -> None:
    """The plugin's entry point, called by vLLM in each of its processes."""
    if os.environ.get(VARIABLE) != "1":
        return
    from vllm.exceptions import VLLMValidationError
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not getattr(PunicaWrapperCPU, _INSTALLED, False):
        setattr(PunicaWrapperCPU, _INSTALLED, True)
        install(PunicaWrapperCPU)
        last_rows.install(SamplingParams, KVCacheManager, GPUModelRunner, VLLMValidationError)


def install(wrapper: Any) -> None:
    """Patches vLLM's LoRA arithmetic."""
    wrapper.add_lora_logits = _for_sampled_tokens(wrapper.add_lora_logits)


def _for_sampled_tokens(add: Callable[..., None]) -> Callable[..., None]:
    def added(self: Any, y: Any, *args: Any, **kwargs: Any) -> None:
        """y: (rows, vocabulary), the logits of a prompt's tokens or of one token for each request."""
        if y.shape[0] == self.sampler_indices.shape[0]:
            add(self, y, *args, **kwargs)

    return added
