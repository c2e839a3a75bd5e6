"""A vLLM plugin with which the CPU engine scores given answers beside adapters.

vLLM's CPU engine ends at prompt log-probabilities as soon as adapters are loaded: to the logits of a prompt
it adds the adapters' part of the output layer by the rows of the sampled tokens, which are of another
number. If no adapter has such a part, nothing is to be added, and this plugin adds nothing. `serve` sets the
variable for these engines alone; in all others `register` does nothing.
"""

import os
from collections.abc import Callable
from typing import Any

VARIABLE = "MODINT_PROMPT_LOGPROBS"
_INSTALLED = "_modint_prompt_logprobs"  # an attribute that marks vLLM's class as patched


def register() -> None:
    """The plugin's entry point, called by vLLM in each of its processes."""
    if os.environ.get(VARIABLE) != "1":
        return
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    install(PunicaWrapperCPU)


def install(wrapper: Any) -> None:
    """Patches vLLM's LoRA arithmetic, once."""
    if getattr(wrapper, _INSTALLED, False):
        return
    setattr(wrapper, _INSTALLED, True)
    wrapper.add_lora_logits = _for_sampled_tokens(wrapper.add_lora_logits)


def _for_sampled_tokens(add: Callable[..., None]) -> Callable[..., None]:
    def added(self: Any, y: Any, *args: Any, **kwargs: Any) -> None:
        """y: (rows, vocabulary), the logits of a prompt's tokens or of one token for each request."""
        if y.shape[0] == self.sampler_indices.shape[0]:
            add(self, y, *args, **kwargs)

    return added
