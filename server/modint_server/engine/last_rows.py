"""A part of our vLLM plugin: of a prompt's log-probabilities only those of its last tokens are computed.

With `prompt_logprobs` vLLM computes logits, their softmax and the most likely tokens for every token of a
prompt, and reads nothing of it from the prefix cache, so that none of them is missing. A view that scores an
answer reads those of the answer, at the prompt's end. A request names their number in `vllm_xargs`
(`LAST_ROWS`), a whole number from 1; vLLM then

- refuses any other value, with status 400 (`SamplingParams.verify`, in the process that speaks HTTP)
- may read from its prefix cache what lies before them (`KVCacheManager.get_computed_blocks`)
- computes these rows alone, and sends no others (`GPUModelRunner._get_prompt_logprobs_dict`): after the null
  for a prompt's first token, `prompt_logprobs` holds so many entries

Row i of a prompt of P tokens is computed from the hidden state at its token i and says how probable token
i + 1 was; the last N of them are the rows P - 1 - N to P - 2. So at most P - 1 - N tokens may be cached.
"""

from collections.abc import Callable, Mapping
from typing import Any

from modint_guard.probing.teacher_forcing import LAST_ROWS

Rows = dict[str, Any]  # a request's id -> the log-probabilities of its prompt (vLLM's LogprobsTensors)


def install(sampling_params: Any, cache_manager: Any, runner: Any, refusal: type[Exception]) -> None:
    """Patches vLLM's classes of these names. refusal: the error that vLLM answers with status 400."""
    sampling_params.verify = _checking(sampling_params.verify, refusal)
    cache_manager.get_computed_blocks = _of_what_lies_before(cache_manager.get_computed_blocks)
    runner._get_prompt_logprobs_dict = _of_the_last(runner._get_prompt_logprobs_dict)


def fault(extra: Mapping[str, Any] | None) -> str | None:
    """What is wrong with the number of rows in a request's `vllm_xargs`; None if nothing is."""
    rows = (extra or {}).get(LAST_ROWS, 1)
    if isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1:
        return None
    return f"vllm_xargs.{LAST_ROWS} is {str(rows)[:40]!r}: it must be a whole number from 1"


def first_row(params: Any, prompt_tokens: int) -> int | None:
    """The first row that a request wants of its prompt's; None if it wants all, or none at all.

    params: vLLM's SamplingParams, None of a pooling request.
    """
    if params is None or params.prompt_logprobs is None:
        return None
    rows = (params.extra_args or {}).get(LAST_ROWS)
    return None if rows is None else max(0, prompt_tokens - 1 - rows)


class _Beginning:
    """A request as the prefix cache may serve it: up to its first wanted row."""

    skip_reading_prefix_cache = False

    def __init__(self, request: Any, first: int) -> None:
        self._request = request
        self.num_tokens = first + 1  # vLLM never takes the last one from the cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def _checking(verify: Callable[..., None], refusal: type[Exception]) -> Callable[..., None]:
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if found := fault(self.extra_args):
            raise refusal(found)
        verify(self, *args, **kwargs)

    return checked


def _of_what_lies_before(get_computed_blocks: Callable[..., Any]) -> Callable[..., Any]:
    def got(self: Any, request: Any) -> Any:
        first = first_row(request.sampling_params, request.num_prompt_tokens)
        return get_computed_blocks(self, _Beginning(request, first) if first else request)

    return got


def _of_the_last(compute: Callable[..., Rows]) -> Callable[..., Rows]:
    def computed(self: Any, hidden_states: Any, scheduled: Mapping[str, int]) -> Rows:
        """hidden_states: (tokens of this step, hidden size). scheduled: how many of them each request has."""
        wanted = self.num_prompt_logprobs  # of the requests whose prompts are not yet complete
        ours = {key: count for key, count in wanted.items() if _first_row_of(self.requests[key]) is not None}
        if not ours:
            return compute(self, hidden_states, scheduled)
        self.num_prompt_logprobs = {key: count for key, count in wanted.items() if key not in ours}
        try:
            found = compute(self, hidden_states, scheduled)
        finally:
            self.num_prompt_logprobs |= ours
        done = {key: _score(self, key, hidden_states, scheduled[key]) for key in ours if key in scheduled}
        complete = {key: rows for key, rows in done.items() if rows is not None}
        for key in complete:
            del self.num_prompt_logprobs[key]
            self.requests[key].in_progress_prompt_logprobs_cpu = None
        if complete:
            self._sync_device()
        return {**found, **complete}

    return computed


def _first_row_of(request: Any) -> int | None:
    ids = request.prompt_token_ids
    return None if ids is None else first_row(request.sampling_params, len(ids))


def _score(runner: Any, key: str, hidden_states: Any, scheduled: int) -> Any | None:
    """Computes what this step has of a request's wanted rows; all of them once its prompt is complete."""
    import torch
    from vllm.v1.outputs import LogprobsTensors

    request, count = runner.requests[key], runner.num_prompt_logprobs[key]
    ids = request.prompt_token_ids
    first, last = _first_row_of(request), len(ids) - 1  # the row `last` is that of the first generated token
    assert first is not None
    if request.in_progress_prompt_logprobs_cpu is None:
        request.in_progress_prompt_logprobs_cpu = LogprobsTensors.empty_cpu(last - first, count + 1)
    rows = request.in_progress_prompt_logprobs_cpu
    start = request.num_computed_tokens
    begin, end = max(first, start), min(start + scheduled, last)
    if begin < end:
        offset = runner.query_start_loc.np[runner.input_batch.req_id_to_index[key]].item() - start
        logits = runner.model.compute_logits(hidden_states[offset + begin : offset + end])
        targets = torch.tensor(ids[begin + 1 : end + 1], device=logits.device)
        scores = runner.sampler.compute_logprobs(logits)
        listed = runner.sampler.gather_logprobs(scores, count, targets)
        for kept, new in zip(rows[:3], listed[:3], strict=True):
            kept[begin - first : end - first].copy_(new, non_blocking=True)
    return rows if start + scheduled > last else None
