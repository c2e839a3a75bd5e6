"""The part of our vLLM plugin that scores the end of a prompt alone; with small fakes of vLLM's classes."""

import math
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from modint_guard.probing.teacher_forcing import LAST_ROWS
from modint_server.engine import last_rows

VOCABULARY, WIDTH, LISTED = 12, 4, 3
PROMPT = [int(each) for each in torch.randint(VOCABULARY, (11,), generator=torch.Generator().manual_seed(1))]


class Rows(NamedTuple):
    """As vLLM's LogprobsTensors: a row for each token, the prompt's own listed first."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    further: None = None

    @staticmethod
    def empty_cpu(rows: int, listed: int) -> "Rows":
        numbers = torch.full((rows, listed), -7)
        return Rows(numbers, torch.full((rows, listed), math.nan), torch.full((rows,), -7))


class Sampler:
    """As vLLM's."""

    @staticmethod
    def compute_logprobs(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)

    @staticmethod
    def gather_logprobs(scores: torch.Tensor, count: int, targets: torch.Tensor) -> Rows:
        top = scores.topk(count, -1)
        own = scores.gather(-1, targets[:, None])
        ids = torch.cat((targets[:, None], top.indices), 1)
        return Rows(ids, torch.cat((own, top.values), 1), (scores >= own).sum(-1))


class Runner:
    """As vLLM's model runner. Its hidden state at a position tells that position, so that a row that was
    computed from another one is seen. Its own method scores whole prompts, and here tells only their names.
    """

    def __init__(self, prompts: Mapping[str, Sequence[int]], rows: Mapping[str, int | None]) -> None:
        self.sampler, self.computed = Sampler(), 0
        self.weights = torch.randn(WIDTH, VOCABULARY, generator=torch.Generator().manual_seed(2))
        self.states = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(3))
        self.model = SimpleNamespace(compute_logits=self._logits)
        self.input_batch = SimpleNamespace(req_id_to_index={})
        self.query_start_loc = SimpleNamespace(np=None)
        self.num_prompt_logprobs = dict.fromkeys(prompts, LISTED)
        self.requests = {
            name: SimpleNamespace(
                prompt_token_ids=list(ids),
                num_computed_tokens=0,
                in_progress_prompt_logprobs_cpu=None,
                sampling_params=params(rows[name]),
            )
            for name, ids in prompts.items()
        }

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        self.computed += len(states)
        return states @ self.weights

    def _get_prompt_logprobs_dict(self, states: torch.Tensor, scheduled: Mapping[str, int]) -> dict[str, Any]:
        found = dict.fromkeys(self.num_prompt_logprobs, "whole")
        self.num_prompt_logprobs.clear()
        return found

    def _sync_device(self) -> None:
        pass

    def step(self, scheduled: Mapping[str, int]) -> dict[str, Any]:
        """Computes the next tokens of some requests in one batch."""
        self.input_batch.req_id_to_index = {name: index for index, name in enumerate(scheduled)}
        starts = torch.tensor([0, *scheduled.values()]).cumsum(0)
        self.query_start_loc.np = starts.numpy()
        places = [
            self.requests[name].num_computed_tokens + place
            for name, count in scheduled.items()
            for place in range(count)
        ]
        found = self._get_prompt_logprobs_dict(self.states[places], scheduled)
        for name, count in scheduled.items():
            self.requests[name].num_computed_tokens += count
        return found

    def expected(self, rows: int) -> Rows:
        """The last rows of PROMPT."""
        first = max(0, len(PROMPT) - 1 - rows)
        scores = (self.states[first : len(PROMPT) - 1] @ self.weights).log_softmax(-1)
        return Sampler.gather_logprobs(scores, LISTED, torch.tensor(PROMPT[first + 1 :]))


class Cache:
    """As vLLM's cache manager, where every block of every prompt is known."""

    block = 4

    def get_computed_blocks(self, request: Any) -> tuple[str, int]:
        if request.skip_reading_prefix_cache:
            return "none", 0
        return request.block_hashes, (request.num_tokens - 1) // self.block * self.block


class Refusal(Exception):  # noqa: N818 - as vLLM's, which is no ValueError either
    """What vLLM answers with status 400."""


class Params(SimpleNamespace):
    """As vLLM's SamplingParams."""

    def verify(self, limit: int) -> None:
        self.verified = limit


def params(rows: object, prompt_logprobs: int | None = LISTED) -> Params:
    extra = None if rows is None else {LAST_ROWS: rows}
    return Params(prompt_logprobs=prompt_logprobs, extra_args=extra)


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above with the plugin; `vllm` itself is not imported."""
    monkeypatch.setitem(sys.modules, "vllm.v1.outputs", SimpleNamespace(LogprobsTensors=Rows))
    for kind, name in (
        (Params, "verify"),
        (Cache, "get_computed_blocks"),
        (Runner, "_get_prompt_logprobs_dict"),
    ):
        monkeypatch.setattr(kind, name, getattr(kind, name))
    last_rows.install(Params, Cache, Runner, Refusal)


@pytest.mark.parametrize("rows", [1, 4, 10, 99])
@pytest.mark.parametrize("steps", [(11,), (4, 7), (3, 3, 3, 2), (10, 1), (6, 4, 1)])
def test_the_last_rows_are_those_of_the_whole_prompt_however_it_is_cut(
    rows: int, steps: tuple[int, ...]
) -> None:
    runner = Runner({"a": PROMPT}, {"a": rows})
    for size in steps[:-1]:
        assert runner.step({"a": size}) == {}
    found = runner.step({"a": steps[-1]})["a"]
    for one, other in zip(found[:3], runner.expected(rows)[:3], strict=True):
        assert torch.allclose(one, other)
    assert runner.computed == min(rows, len(PROMPT) - 1)
    assert runner.num_prompt_logprobs == {}
    assert runner.requests["a"].in_progress_prompt_logprobs_cpu is None


def test_requests_for_a_whole_prompt_and_for_its_end_meet_in_a_batch() -> None:
    runner = Runner({"a": [5] * 3, "b": PROMPT, "c": PROMPT}, {"a": None, "b": 4, "c": 2})
    found = runner.step({"a": 3, "b": 11, "c": 5})
    assert found.keys() == {"a", "b"} and found["a"] == "whole"
    assert torch.allclose(found["b"].logprobs, runner.expected(4).logprobs)
    assert runner.num_prompt_logprobs == {"c": LISTED}
    assert runner.step({"c": 6})["c"].ids.tolist() == runner.expected(2).ids.tolist()


def test_a_request_that_is_not_in_this_step_waits() -> None:
    runner = Runner({"a": PROMPT, "b": PROMPT}, {"a": 2, "b": 2})
    assert runner.step({"a": 11}).keys() == {"a"}
    assert runner.step({"b": 11}).keys() == {"b"}


def test_one_that_begins_again_from_the_cache_loses_no_row() -> None:
    """As after a preemption: what was computed of its rows is computed again."""
    runner = Runner({"a": PROMPT}, {"a": 4})
    runner.step({"a": 8})
    runner.requests["a"].num_computed_tokens = 4
    found = runner.step({"a": 7})["a"]
    assert torch.allclose(found.logprobs, runner.expected(4).logprobs)


@pytest.mark.parametrize("rows", range(1, 14))
@pytest.mark.parametrize("tokens", [2, 9, 12, 13])
def test_the_cache_serves_what_lies_before_the_rows_and_none_of_them(tokens: int, rows: int) -> None:
    request = SimpleNamespace(
        sampling_params=params(rows),
        num_prompt_tokens=tokens,
        num_tokens=tokens,
        skip_reading_prefix_cache=True,
        block_hashes="blocks",
    )
    first = max(0, tokens - 1 - rows)
    blocks, cached = Cache().get_computed_blocks(request)
    assert first - Cache.block < cached <= first
    assert blocks == ("blocks" if first else "none")


@pytest.mark.parametrize("wanted", [params(None), params(3, None), None])
@pytest.mark.parametrize("skips", [True, False])
def test_other_requests_are_cached_as_ever(wanted: Params | None, skips: bool) -> None:
    request = SimpleNamespace(
        sampling_params=wanted,
        num_prompt_tokens=9,
        num_tokens=9,
        skip_reading_prefix_cache=skips,
        block_hashes="blocks",
    )
    assert Cache().get_computed_blocks(request) == (("none", 0) if skips else ("blocks", 8))


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, [2], 2.5, "x" * 99])
def test_a_number_of_rows_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(Refusal, match=f"vllm_xargs.{LAST_ROWS} is .{{1,60}}: it must be a whole number"):
        params(value).verify(7)


@pytest.mark.parametrize("value", [None, 1, 5000])
def test_a_good_number_or_none_is_left_to_vllm(value: int | None) -> None:
    wanted = params(value)
    wanted.verify(7)
    assert wanted.verified == 7
