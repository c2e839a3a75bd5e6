"""Flagged answers mended or withheld, whole and streamed, through the official client; rungs that fail."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from modint_server.request.budgets import TokenBudget
from modint_server.request.exchange import HeldWire
from modint_server.request.sse import Splitter, data_of
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, Answer, FakeUpstream, is_main, misled, steady

JSON = dict[str, Any]
MA = {"model": BASE, "adapter": "none"}
RELEASED = "action = 'ladder'\norder = ['neutralise']\nstream = 'release'\naccept_at = 0.5"
ABSTAINED = 'The picture alone gives "red", the text alone gives "blue".'


def ask(action: str | None = None, **fields: Any) -> JSON:
    return chat(modint={"relevant": "image", **({"action": action} if action else {})}, **fields)


def both(body: JSON) -> Answer:
    """The base believes the caption, the adapter the picture."""
    return steady(body) if body["model"] == ADAPTER else misled(body)


@asynccontextmanager
async def with_policy(
    upstream: FakeUpstream, folder: Path, text: str, **settings: Any
) -> AsyncIterator[Running]:
    path = folder / "policies.toml"
    path.write_text(f"[[policy]]\n{text}", "utf-8")
    async with serving(upstream.url, policies_file=path, **settings) as gateway:
        upstream.forget()
        yield gateway


@pytest.fixture
async def running_gateway(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Running]:
    """As everywhere, but for an `accept_at` that no measurement changes."""
    async with with_policy(upstream, tmp_path, "accept_at = 0.5") as gateway:
        yield gateway


def chunks(stream: bytes) -> list[JSON]:
    data = [data_of(event) for event in Splitter().feed(stream)]
    return [json.loads(part) for part in data if part is not None and part != b"[DONE]"]


def text_of(frames: list[JSON]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in frames if c["choices"])


def rungs(report: JSON) -> list[tuple[str, str]]:
    return [(row["rung"], row["outcome"]) for row in report["mitigation"]["rungs"]]


# -- whole answers ---------------------------------------------------------------------------------


async def test_the_official_client_gets_the_mended_answer_and_reads_what_it_was(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    completion = await running_gateway.openai.chat.completions.create(
        **chat(logprobs=True), extra_body={"modint": {"relevant": "image", "action": "neutralise"}}
    )
    assert completion.choices[0].message.content == "red"
    assert completion.choices[0].logprobs is None
    report = (completion.model_extra or {})["modint"]
    assert (report["action"], rungs(report)) == ("neutralise", [("neutralise", "mended")])
    told = report["mitigation"]
    assert (told["original"], told["answer"], told["correction"]) == ("blue", "red", False)
    assert len(upstream.calls) == 4
    assert running_gateway.value("modint_policy_actions_total", **MA, action="neutralise") == 1
    counted = {"rung": "neutralise", "outcome": "mended"}
    assert running_gateway.value("modint_mitigation_rungs_total", **MA, **counted) == 1
    assert running_gateway.value("modint_mitigation_duration_seconds_count", **MA) == 1


async def test_headers_say_what_was_done_and_what_it_cost(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = both
    said = await running_gateway.post(ask("escalate"))
    assert said.json["choices"][0]["message"]["content"] == "red"
    assert said.headers["x-modint-verdict"] == "flagged"
    assert said.headers["x-modint-action"] == "escalate"
    assert said.headers["x-modint-rungs"] == "escalate=mended"
    assert said.headers["x-modint-mitigation-tokens"] == str(2 * 42)
    assert [body["model"] for body in upstream.calls].count(ADAPTER) == 2
    assert running_gateway.value("modint_mitigation_tokens_total", **MA) == 2 * 42
    assert "x-modint-action" not in (await running_gateway.post(ask())).headers


async def test_the_setting_is_the_default_and_a_request_wins_over_it(upstream: FakeUpstream) -> None:
    upstream.script = both
    async with serving(upstream.url, action="escalate") as gateway:
        assert (await gateway.post(ask())).json["modint"]["action"] == "escalate"
        said = await gateway.post(ask("annotate"))
        assert (said.json["modint"]["action"], said.json["modint"]["mitigation"]) == ("annotate", None)


async def test_a_policy_of_the_file_is_for_the_models_it_names(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with with_policy(upstream, tmp_path, f"action = 'abstain'\nmodel = '{ADAPTER}'") as gateway:
        assert (await gateway.post(ask())).json["modint"]["action"] == "annotate"
        assert (await gateway.post(ask(model=ADAPTER))).json["modint"]["action"] == "abstain"


async def test_abstaining_is_an_answer_with_a_reason_to_finish(running_gateway: Running) -> None:
    completion = await running_gateway.openai.chat.completions.create(
        **chat(), extra_body={"modint": {"relevant": "image", "action": "abstain"}}
    )
    assert completion.choices[0].finish_reason == "content_filter"
    assert (completion.choices[0].message.content or "").endswith(ABSTAINED)


@pytest.mark.parametrize("stream", [False, True])
async def test_abstaining_may_be_an_envelope_that_no_client_repeats(
    upstream: FakeUpstream, tmp_path: Path, stream: bool
) -> None:
    async with with_policy(upstream, tmp_path, "action = 'abstain'\nabstain_as = 'error'") as gateway:
        client = gateway.openai.with_options(max_retries=2)
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.chat.completions.create(
                **chat(), stream=stream, extra_body={"modint": {"relevant": "image"}}
            )
        said = await gateway.post(ask(stream=stream))
        assert gateway.value("modint_policy_actions_total", **MA, action="abstain") == 2
    assert refused.value.code == "modality_interference"
    assert said.error["message"].endswith(ABSTAINED)
    assert (said.status, said.headers["x-should-retry"]) == (422, "false")
    assert said.headers["x-modint-action"] == said.json["modint"]["action"] == "abstain"
    assert len(upstream.calls) == 8


async def test_a_verdict_alone_has_nothing_to_mend(running_gateway: Running) -> None:
    said = await running_gateway.post({**ask("ladder"), "answer": "blue"}, "/v1/guard/check")
    assert (said.status, said.error["param"]) == (400, "modint.action")
    said = await running_gateway.post({**ask("annotate"), "answer": "blue"}, "/v1/guard/check")
    assert said.json["modint"]["verdict"] == "flagged"


async def test_a_verdict_alone_has_every_cell_under_any_policy(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, action="ladder") as gateway:
        upstream.forget()
        said = await gateway.post({**ask(), "answer": "blue"}, "/v1/guard/check")
        assert len(said.json["modint"]["probes"]) == 3
        upstream.script = steady
        said = await gateway.post({**ask(), "answer": "red"}, "/v1/guard/check")
        assert len(said.json["modint"]["probes"]) == 3
        assert len((await gateway.post(ask())).json["modint"]["probes"]) == 1


async def test_a_picture_alone_costs_one_call_where_a_policy_mends(upstream: FakeUpstream) -> None:
    body = ask()
    del body["messages"][0]["content"][1]  # the caption
    async with serving(upstream.url, action="ladder") as gateway:
        upstream.forget()
        said = [await gateway.post({**body, "stream": stream}) for stream in (False, True)]
    assert (said[0].json["modint"]["verdict"], said[0].json["modint"]["reason"]) == ("skipped", "no_context")
    assert chunks(said[1].body)[-1]["modint"]["reason"] == "no_context"
    assert len(upstream.calls) == 2


# -- streams ---------------------------------------------------------------------------------------


async def test_a_held_stream_shows_the_official_client_the_mended_answer_alone(
    running_gateway: Running,
) -> None:
    stream = await running_gateway.openai.chat.completions.create(
        **chat(stream_options={"include_usage": True}),
        stream=True,
        extra_body={"modint": {"relevant": "image", "action": "neutralise"}},
    )
    seen = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in seen if c.choices) == "red"
    assert seen[0].choices[0].delta.role == "assistant"
    marked = [chunk for chunk in seen if "modint" in (chunk.model_extra or {})]
    assert [chunk.choices[0].finish_reason for chunk in marked] == ["stop"]
    told = (marked[0].model_extra or {})["modint"]["mitigation"]
    assert (told["original"], told["answer"], told["correction"]) == ("blue", "red", False)
    assert seen[-1].usage is not None


async def test_a_held_streams_headers_bear_the_verdict(running_gateway: Running) -> None:
    said = await running_gateway.post(ask("neutralise", stream=True))
    assert said.headers["x-modint-verdict"] == "flagged"
    assert said.headers["x-modint-action"] == "neutralise"
    assert said.headers["content-type"].startswith("text/event-stream")
    assert said.body.endswith(b"data: [DONE]\n\n")


async def test_a_held_stream_that_passes_comes_as_it_was(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = steady
    said = await running_gateway.post(ask("ladder", stream=True))
    ours, theirs = chunks(said.body), chunks(upstream.sent)
    assert [c["choices"][0]["delta"] for c in ours] == [c["choices"][0]["delta"] for c in theirs]
    assert (ours[-1]["modint"]["verdict"], ours[-1]["modint"]["mitigation"]) == ("pass", None)
    assert said.headers["x-modint-verdict"] == "pass"


async def test_nothing_of_a_held_stream_leaves_before_it_is_judged(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="500")
    said = await running_gateway.post(ask("ladder", stream=True))
    assert chunks(said.body)[-1]["modint"]["verdict"] == "unscored"
    assert text_of(chunks(said.body)) == "blue"
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="die")
    said = await running_gateway.post(ask("ladder", stream=True))
    assert said.status == 502
    assert said.error["code"] == "upstream_protocol"


async def test_a_released_stream_shows_the_text_at_once_and_corrects_it_in_the_finish(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with with_policy(upstream, tmp_path, RELEASED) as gateway:
        stream = await gateway.openai.chat.completions.create(
            **chat(), stream=True, extra_body={"modint": {"relevant": "image"}}
        )
        seen = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in seen) == "blue"
    assert seen[-1].choices[0].finish_reason == "stop"
    report = (seen[-1].model_extra or {})["modint"]
    told = report["mitigation"]
    assert (report["action"], told["answer"], told["correction"]) == ("neutralise", "red", True)
    assert "modint" not in (seen[0].model_extra or {})


async def test_text_of_a_released_stream_arrives_before_the_engine_has_finished(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream_waits: Callable[[JSON], Answer] = lambda body: Answer(  # noqa: E731
        "blue", {"blue": 0.9}, fault="wait" if is_main(body) else None
    )
    async with with_policy(upstream, tmp_path, "action = 'ladder'\nstream = 'release'") as gateway:
        upstream.script = upstream_waits
        async with gateway.http.post(gateway.url + "/v1/chat/completions", json=ask(stream=True)) as response:
            seen = b""
            while b'"bl"' not in seen:
                seen += await response.content.readany()
            upstream.gate.set()
            await response.read()


@pytest.mark.parametrize("abstain_as", ["content_filter", "error"])
async def test_a_released_stream_can_only_say_that_its_text_was_filtered(
    upstream: FakeUpstream, tmp_path: Path, abstain_as: str
) -> None:
    text = f"action = 'abstain'\nstream = 'release'\nabstain_as = '{abstain_as}'"
    async with with_policy(upstream, tmp_path, text) as gateway:
        said = await gateway.post(ask(stream=True))
    finish = chunks(said.body)[-1]
    assert (said.status, finish["choices"][0]["finish_reason"]) == (200, "content_filter")
    assert finish["modint"]["mitigation"]["correction"]
    assert text_of(chunks(said.body)) == "blue"


class Collected:
    """A wire that keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.headers: dict[str, str] | None = None

    async def start(self, headers: dict[str, str] | None = None) -> None:
        self.headers = headers

    async def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def end(self, last: bytes) -> None:
        self.sent.append(last)


async def test_a_stream_too_long_to_be_held_goes_out_as_it_comes() -> None:
    wire = Collected()
    held = HeldWire(wire, limit=5)  # type: ignore[arg-type]
    await held.start()
    await held.write(b"abc")
    assert wire.sent == [] and held.held
    await held.write(b"def")
    assert wire.sent == [b"abcdef"] and not held.held
    await held.write(b"g")
    await held.end(b"h")
    assert wire.sent == [b"abcdef", b"g", b"h"]


async def test_a_stream_that_never_finishes_is_released_at_its_end() -> None:
    wire = Collected()
    held = HeldWire(wire)  # type: ignore[arg-type]
    await held.write(b"abc")
    await held.end(b"[DONE]")
    assert (wire.sent, wire.headers) == ([b"abc", b"[DONE]"], None)


# -- faults and budgets ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "outcome"), [("hang", "timeout"), ("500", "failed"), ("html 200", "failed")]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_adapter_that_fails_leaves_the_original_answer_and_says_so(
    upstream: FakeUpstream, tmp_path: Path, fault: str, outcome: str, stream: bool
) -> None:
    upstream.script = lambda body: Answer("", fault=fault) if body["model"] == ADAPTER else misled(body)
    deadline_s = 0.2 if fault == "hang" else 10.0
    async with with_policy(upstream, tmp_path, f"action = 'escalate'\ndeadline_s = {deadline_s}") as gateway:
        said = await gateway.post(ask(stream=stream))
        counted = {"rung": "escalate", "outcome": outcome}
        assert gateway.value("modint_mitigation_rungs_total", **MA, **counted) == 1
        assert gateway.value("modint_policy_actions_total", **MA, action="annotate") == 1
    report = chunks(said.body)[-1]["modint"] if stream else said.json["modint"]
    served = text_of(chunks(said.body)) if stream else said.json["choices"][0]["message"]["content"]
    assert (served, report["action"], rungs(report)) == ("blue", "annotate", [("escalate", outcome)])
    assert (report["mitigation"]["answer"], report["mitigation"]["original"]) == (None, "blue")


async def test_an_adapter_that_is_not_served_is_missing_and_is_not_asked_for(
    upstream: FakeUpstream,
) -> None:
    upstream.model_list.pop()
    async with serving(upstream.url) as gateway:
        upstream.forget()
        said = await gateway.post(ask("escalate"))
    assert rungs(said.json["modint"]) == [("escalate", "missing")]
    assert said.json["choices"][0]["message"]["content"] == "blue"
    assert len(upstream.calls) == 4


async def test_an_adapter_that_failed_its_self_test_is_not_escalated_to(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, adapter_selftest="report") as gateway:  # both answer alike
        while ADAPTER not in gateway.gateway.attachment.selftest.adapters:
            await gateway.get("/readyz")
        assert not gateway.gateway.attachment.usable(ADAPTER)
        assert rungs((await gateway.post(ask("escalate"))).json["modint"]) == [("escalate", "missing")]


async def test_mending_the_adapters_own_answer_does_not_ask_it_again(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    said = await running_gateway.post(ask("escalate", model=ADAPTER))
    assert rungs(said.json["modint"]) == [("escalate", "unfit")]
    assert len(upstream.calls) == 4


async def test_a_budget_is_each_keys_own(upstream: FakeUpstream) -> None:
    upstream.script = both
    keys: JSON = {"api_keys": "one,two", "mitigation_tokens_per_minute": 4 * 42, "action": "escalate"}
    async with serving(upstream.url, **keys) as gateway:
        said = [await gateway.post(ask(), authorization=f"Bearer {key}") for key in ("one", "one", "two")]
    assert [rungs(each.json["modint"]) for each in said] == [
        [("escalate", "mended")],
        [("escalate", "budget")],
        [("escalate", "mended")],
    ]
    assert [each.json["choices"][0]["message"]["content"] for each in said] == ["red", "blue", "red"]


def in_words(body: JSON) -> Answer:
    """`both`, in three words of which the first tells."""
    said = both(body)
    return Answer(f"{said.text} it is", tops=(said.top, {" it": 1.0}, {" is": 1.0}))


@pytest.mark.parametrize(("max_tokens", "outcome"), [(4 * 43 - 1, "budget"), (4 * 43, "mended")])
async def test_a_streams_answer_counts_by_its_positions_where_its_usage_is_not_asked_for(
    upstream: FakeUpstream, tmp_path: Path, max_tokens: int, outcome: str
) -> None:
    upstream.script = in_words
    # An answer and three views, as dear as the dearest: 40 tokens of a prompt, 3 of the answer.
    async with with_policy(upstream, tmp_path, f"action = 'escalate'\nmax_tokens = {max_tokens}") as gateway:
        said = await gateway.post(ask(stream=True))
    report = chunks(said.body)[-1]["modint"]
    assert (report["verdict"], report["method"]) == ("flagged", "first_token")
    assert rungs(report) == [("escalate", outcome)]


async def test_a_rung_that_is_late_uses_up_its_keys_budget(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.script = lambda body: Answer("", fault="hang") if body["model"] == ADAPTER else misled(body)
    limit: JSON = {"mitigation_tokens_per_minute": 4 * 42}
    async with with_policy(upstream, tmp_path, "action = 'escalate'\ndeadline_s = 0.2", **limit) as gateway:
        said = [await gateway.post(ask()) for _ in range(2)]
        assert gateway.value("modint_mitigation_tokens_total", **MA) == 4 * 42
    assert [rungs(each.json["modint"]) for each in said] == [
        [("escalate", "timeout")],
        [("escalate", "budget")],
    ]


def test_a_spent_budget_fills_again_within_a_minute() -> None:
    now = 0.0
    budget = TokenBudget(60, clock=lambda: now)
    assert (budget.take("a", 50), budget.take("a", 50), budget.take("b", 50)) == (50, 10, 50)
    budget.give_back("a", 20)
    now = 10.0
    assert budget.take("a", 100) == 30
    now = 1000.0
    assert budget.take("a", 100) == 60


def test_without_a_limit_all_that_is_wanted_is_granted() -> None:
    budget = TokenBudget(0)
    assert [budget.take("a", 10**6) for _ in range(3)] == [10**6] * 3
    budget.give_back("a", 5)
