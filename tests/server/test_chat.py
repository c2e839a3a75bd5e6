"""A guarded chat, whole and streamed, through the official client and as bytes."""

import json
from typing import Any

import pytest

from modint_guard.probing.teacher_forcing import LAST_ROWS
from modint_server.request.sse import Splitter, data_of
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, JSON, Answer, FakeUpstream, is_main, misled, steady

IMAGE = {"relevant": "image"}


def chunks(stream: bytes) -> list[dict[str, Any]]:
    data = [data_of(event) for event in Splitter().feed(stream)]
    return [json.loads(part) for part in data if part is not None and part != b"[DONE]"]


async def test_an_answer_that_followed_the_caption_is_flagged_as_driven_by_text(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    said = await running_gateway.post(chat(modint=IMAGE))
    assert said.status == 200
    report = said.json["modint"]
    assert (report["verdict"], report["cause"], report["relevant"]) == ("flagged", "text", "image")
    assert {probe["name"] for probe in report["probes"]} == {"no_context", "neutral_image", "prior"}
    assert said.json["choices"][0]["message"]["content"] == "blue"
    assert said.headers["x-modint-verdict"] == "flagged"
    assert "x-modint-risk" not in said.headers and report["risk"] is None  # nothing was measured on the model
    assert said.headers["x-modint-schema"] == "2"
    assert "x-modint-detail" not in said.headers
    assert len(upstream.calls) == 4


async def test_an_answer_that_the_picture_decided_passes(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = steady
    said = await running_gateway.post(chat(modint=IMAGE))
    assert said.json["modint"]["verdict"] == "pass"
    assert said.json["modint"]["cause"] is None


async def test_detail_stands_in_a_header_only_for_a_client_that_debugs(running_gateway: Running) -> None:
    said = await running_gateway.post(chat(modint=IMAGE), x_modint_debug="true")
    assert json.loads(said.headers["x-modint-detail"])["verdict"] == "flagged"


async def test_the_official_client_reads_the_verdict_of_a_whole_answer(running_gateway: Running) -> None:
    body = chat()
    completion = await running_gateway.openai.chat.completions.create(**body, extra_body={"modint": IMAGE})
    assert completion.choices[0].message.content == "blue"
    assert completion.choices[0].logprobs is None
    assert (completion.model_extra or {})["modint"]["verdict"] == "flagged"


async def test_the_official_client_reads_the_verdict_on_the_finishing_chunk(running_gateway: Running) -> None:
    stream = await running_gateway.openai.chat.completions.create(
        **chat(stream_options={"include_usage": True}), stream=True, extra_body={"modint": IMAGE}
    )
    seen = [chunk async for chunk in stream]
    marked = [chunk for chunk in seen if "modint" in (chunk.model_extra or {})]
    assert [chunk.choices[0].finish_reason for chunk in marked] == ["stop"]
    assert (marked[0].model_extra or {})["modint"]["cause"] == "text"
    assert seen[-1].usage is not None
    assert "".join(c.choices[0].delta.content or "" for c in seen if c.choices) == "blue"


async def test_content_deltas_of_a_stream_stay_as_they_came(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    said = await running_gateway.post(chat(stream=True, modint=IMAGE))
    theirs, ours = chunks(upstream.sent), chunks(said.body)
    assert [c["choices"][0]["delta"] for c in ours] == [c["choices"][0]["delta"] for c in theirs]
    assert any(c["choices"][0]["logprobs"] for c in theirs)
    assert not any(c["choices"][0]["logprobs"] for c in ours)
    assert said.body.endswith(b"data: [DONE]\n\n")


async def test_text_in_the_finishing_chunk_goes_first_and_alone(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.finish_with_text = True
    said = await running_gateway.post(chat(stream=True, modint=IMAGE))
    *_, text, finish = (chunk for chunk in chunks(said.body))
    assert text["choices"][0]["delta"] == {"content": " indeed"}
    assert text["choices"][0]["finish_reason"] is None
    assert "modint" not in text
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["modint"]["verdict"] == "flagged"


async def test_logprobs_that_the_client_asked_for_stay_and_no_more(running_gateway: Running) -> None:
    said = await running_gateway.post(chat(logprobs=True, top_logprobs=1))
    entry = said.json["choices"][0]["logprobs"]["content"][0]
    assert [item["token"] for item in entry["top_logprobs"]] == ["blue"]


async def test_our_field_never_reaches_the_engine_and_unknown_fields_do(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    said = await running_gateway.post(chat(modint=IMAGE, seed=5, something_new={"a": 1}))
    main = next(body for body in upstream.calls if is_main(body))
    assert all("modint" not in body for body in upstream.calls)
    assert (main["seed"], main["something_new"]) == (5, {"a": 1})
    assert said.json["future_field"] == {"kept": True}


async def test_fields_that_the_engine_would_trust_are_taken_out(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    bad = {
        "cache_salt": "x",
        "priority": -5,
        "kv_transfer_params": {},
        "vllm_xargs": {LAST_ROWS: 3},
        "chat_template": "{{ 1 }}",
        "chat_template_kwargs": {},
        "mm_processor_kwargs": {},
        "media_io_kwargs": {},
        "logits_processors": [],
    }
    for mode in ("on", "off"):
        body = chat(**bad, modint={"mode": mode})
        body["messages"][0]["content"][0]["uuid"] = "someone-else"
        assert (await running_gateway.post(body)).status == 200
    assert not any(set(bad) & set(call) for call in upstream.calls)
    assert b"someone-else" not in b"".join(upstream.raw)


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_options_of_the_template_that_may_be_set_reach_every_call(
    running_gateway: Running, upstream: FakeUpstream, mode: str
) -> None:
    options = {"enable_thinking": False, "reasoning_effort": "low", "thinking": {"a": 1}, "documents": []}
    body = chat(chat_template_kwargs=options, modint={"mode": mode})
    assert (await running_gateway.post(body)).status == 200
    kept = {"enable_thinking": False, "reasoning_effort": "low"}
    assert [call["chat_template_kwargs"] for call in upstream.calls] == [kept] * len(upstream.calls)


async def test_the_settings_say_which_options_of_the_template_may_be_set(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, chat_template_kwargs=("style",)) as gateway:
        upstream.forget()
        await gateway.post(chat(chat_template_kwargs={"enable_thinking": False}))
        await gateway.post(chat(chat_template_kwargs={"style": "short"}, modint={"mode": "off"}))
    first, *_, last = upstream.calls
    assert "chat_template_kwargs" not in first
    assert last["chat_template_kwargs"] == {"style": "short"}


@pytest.mark.parametrize(
    ("given", "read"),
    [({"n": "2"}, {"n": 2}), ({"n": 2.0}, {"n": 2}), ({"stream": "no"}, {"stream": False})],
)
async def test_fields_may_have_the_forms_that_the_engine_takes(
    running_gateway: Running, upstream: FakeUpstream, given: JSON, read: JSON
) -> None:
    answer = await running_gateway.post(chat(modint={"mode": "off"}, **given))
    assert answer.status == 200
    assert len(answer.json["choices"]) == read.get("n", 1)
    assert {name: upstream.calls[0][name] for name in read} == read


@pytest.mark.parametrize("stream", ["yes", "True", 1])
async def test_a_stream_may_be_asked_for_in_the_forms_that_the_engine_takes(
    running_gateway: Running, stream: object
) -> None:
    answer = await running_gateway.post(chat(stream=stream, modint={"relevant": "image"}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b'"verdict":"flagged"' in answer.body.replace(b" ", b"")


@pytest.mark.parametrize("model", [{}, {"model": None}])
async def test_a_request_without_a_model_asks_the_one_base(
    running_gateway: Running, upstream: FakeUpstream, model: dict[str, Any]
) -> None:
    body = {key: value for key, value in chat().items() if key != "model"} | model
    assert (await running_gateway.post(body)).status == 200
    assert {call["model"] for call in upstream.calls} == {BASE}
    answer = await running_gateway.post({"prompt": "2+3=", **model}, "/v1/completions")
    assert answer.status == 200
    assert json.loads(upstream.raw[-1]) == {"prompt": "2+3=", "model": BASE}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("mode", ["on", "off"])
async def test_a_body_of_windows_writers_is_read(
    running_gateway: Running, upstream: FakeUpstream, encoding: str, mode: str
) -> None:
    raw = json.dumps(chat(user="é")).encode(encoding)
    assert (await running_gateway.post(raw, x_modint_mode=mode)).status == 200
    assert upstream.calls[0]["user"] == "é"
    assert upstream.raw[0].startswith(b"{")


async def test_of_the_clients_headers_only_id_and_trace_go_upstream(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, upstream_api_key="engine-key") as gateway:
        upstream.forget()
        await gateway.post(chat(), authorization="Bearer client-key", x_vllm_priority="1", cookie="a=b")
    assert {head["authorization"] for head in upstream.heads} == {"Bearer engine-key"}
    sent = {"host", "authorization", "accept", "accept-encoding", "user-agent", "content-length"}
    ours = {"content-type", "x-request-id"}
    assert all(set(head) <= sent | ours for head in upstream.heads)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(("stream", "mode"), [(False, "on"), (True, "on"), (False, "off"), (True, "off")])
async def test_the_engine_is_told_the_requests_id_and_its_trace(
    running_gateway: Running, upstream: FakeUpstream, stream: bool, mode: str
) -> None:
    trace = {"traceparent": TRACE, "tracestate": "vendor=1", "x_request_id": "req-1"}
    answer = await running_gateway.post(chat(stream=stream), x_modint_mode=mode, **trace)
    assert answer.headers["x-request-id"] == "req-1"
    heads = [head for head in upstream.heads if "x-request-id" in head]  # the others look at the models
    assert {(head["traceparent"], head["tracestate"]) for head in heads} == {(TRACE, "vendor=1")}
    probes = {f"req-1-probe-{number}" for number in (1, 2, 3)} if mode == "on" else set()
    assert {head["x-request-id"] for head in heads} == {"req-1"} | probes


@pytest.mark.parametrize("parent", ["", "00-abc-01", TRACE.upper(), TRACE + "-x"])
async def test_a_damaged_trace_is_not_passed_on(
    running_gateway: Running, upstream: FakeUpstream, parent: str
) -> None:
    await running_gateway.post(chat(), traceparent=parent, tracestate="vendor=1")
    assert not any({"traceparent", "tracestate"} & set(head) for head in upstream.heads)


@pytest.mark.parametrize("stream", [False, True])
async def test_bytes_are_kept_both_ways_with_the_guard_off(
    running_gateway: Running, upstream: FakeUpstream, stream: bool
) -> None:
    body = json.dumps(chat(stream=stream), indent=3).encode()
    said = await running_gateway.post(body, x_modint_mode="off")
    assert upstream.raw == [body]
    assert said.headers["x-modint-verdict"] == "skipped"
    assert said.headers["x-modint-reason"] == "opted_out"
    if stream:
        assert said.body == upstream.sent
    else:
        assert b'"choices": [' in said.body
        assert b"modint" not in said.body


async def test_a_server_whose_guard_is_off_probes_only_on_request(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, guard="off") as gateway:
        plain = await gateway.post(chat())
        asked = await gateway.post(chat(modint={"mode": "on"}))
    assert "modint" not in plain.json
    assert "x-modint-verdict" not in plain.headers
    assert asked.json["modint"]["probes"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tool_calls"),
        ({"n": 9}, "multiple_choices"),
        ({"response_format": {"type": "json_object"}}, "structured_output"),
    ],
)
async def test_what_cannot_be_judged_is_answered_and_skipped_with_its_reason(
    running_gateway: Running, upstream: FakeUpstream, fields: dict[str, Any], reason: str
) -> None:
    said = await running_gateway.post(chat(**fields))
    assert said.status == 200
    assert (said.headers["x-modint-verdict"], said.headers["x-modint-reason"]) == ("skipped", reason)
    assert "modint" not in said.json
    assert len(upstream.calls) == 1
    told = await running_gateway.post(chat(**fields, modint={}))
    assert told.json["modint"]["reason"] == reason


async def test_text_alone_is_answered_and_skipped(running_gateway: Running, upstream: FakeUpstream) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "What is two plus three?"}]}
    said = await running_gateway.post(body)
    assert said.headers["x-modint-reason"] == "no_image"
    assert len(upstream.calls) == 1


async def test_an_adapter_is_probed_under_its_own_name(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    await running_gateway.post(chat(model=ADAPTER, modint=IMAGE))
    assert {body["model"] for body in upstream.calls} == {ADAPTER}
    flagged = running_gateway.value(
        "modint_verdicts_total",
        model=BASE,
        adapter=ADAPTER,
        relevant="image",
        verdict="flagged",
        cause="text",
    )
    assert flagged == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_late_probe_leaves_the_answer_whole_and_unscored(upstream: FakeUpstream, stream: bool) -> None:
    async with serving(upstream.url) as gateway:
        upstream.script = lambda body: (
            misled(body) if is_main(body) else Answer("red", {"red": 1.0}, fault="hang")
        )
        said = await gateway.post(chat(stream=stream, modint={"deadline_s": 0.1}))
        document = chunks(said.body)[-1] if stream else said.json
        assert (document["modint"]["verdict"], document["modint"]["reason"]) == ("unscored", "timeout")
        assert document["modint"]["risk"] is None
        text = (
            "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(said.body))
            if stream
            else None
        )
        assert (text or said.json["choices"][0]["message"]["content"]) == "blue"
    assert upstream.open == 0
    assert upstream.aborts == 3


async def test_failing_probes_leave_the_answer_whole_and_unscored(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="500")
    said = await running_gateway.post(chat())
    assert said.status == 200
    assert (said.json["modint"]["verdict"], said.json["modint"]["reason"]) == ("unscored", "upstream_error")
    assert said.json["choices"][0]["message"]["content"] == "blue"


async def test_an_engine_without_logprobs_leaves_answers_unscored(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.logprobs = False
    said = await running_gateway.post(chat())
    assert (said.json["modint"]["verdict"], said.json["modint"]["reason"]) == ("unscored", "no_logprobs")


async def test_an_engine_that_takes_five_logprobs_is_asked_for_five(upstream: FakeUpstream) -> None:
    upstream.max_logprobs = 5
    async with serving(upstream.url) as gateway:
        upstream.forget()
        said = await gateway.post(chat(modint=IMAGE))
        check = await gateway.post(chat(answer="blue", modint=IMAGE), "/v1/guard/check")
    assert (said.json["modint"]["cause"], check.json["modint"]["cause"]) == ("text", "text")
    assert {call["top_logprobs"] for call in upstream.calls} == {5}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_takes_no_logprobs_is_not_asked_for_them(
    upstream: FakeUpstream, stream: bool
) -> None:
    upstream.max_logprobs = 0
    async with serving(upstream.url, regenerate="off") as gateway:
        upstream.forget()
        said = await gateway.post(chat(stream=stream))
        check = await gateway.post(chat(answer="blue"), "/v1/guard/check")
    assert said.status == 200
    report = (chunks(said.body)[-1] if stream else said.json)["modint"]
    assert (report["verdict"], report["reason"], report["probes"]) == ("unscored", "no_logprobs", [])
    assert check.json["modint"]["reason"] == "no_logprobs"
    assert upstream.calls == [chat(stream=stream)]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_logprobs_short_answers_are_generated_again(
    upstream: FakeUpstream, stream: bool
) -> None:
    upstream.max_logprobs = 0
    async with serving(upstream.url) as gateway:
        upstream.forget()
        said = await gateway.post(chat(stream=stream, modint=IMAGE))
    (report,) = (c["modint"] for c in (chunks(said.body) if stream else [said.json]) if "modint" in c)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "regenerated")
    assert report["risk"] is None
    assert len(upstream.calls) == 5 and not any("logprobs" in body for body in upstream.calls)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_refuses_what_we_added_gets_the_clients_own_request(
    running_gateway: Running, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.max_logprobs = 0  # since the gateway asked
    said = await running_gateway.post(chat(stream=stream))
    assert said.status == 200
    document = chunks(said.body)[-1] if stream else said.json
    assert (document["modint"]["verdict"], document["modint"]["reason"]) == ("unscored", "upstream_error")
    assert b"bl" in said.body
    assert upstream.calls[-1] == chat(stream=stream)
    base = {"model": BASE, "adapter": "none"}
    assert running_gateway.value("modint_requests_total", **base, route="chat", outcome="ok") == 1


@pytest.mark.parametrize(("fault", "status", "mains"), [("400", 400, 2), ("401", 502, 1), ("500", 500, 2)])
async def test_a_refusal_that_has_another_cause_reaches_the_client(
    running_gateway: Running, upstream: FakeUpstream, fault: str, status: int, mains: int
) -> None:
    upstream.script = lambda body: Answer("", fault=fault)
    assert (await running_gateway.post(chat())).status == status
    assert sum(is_main(call) for call in upstream.calls) == mains


async def test_two_answers_given_elsewhere_to_one_question_get_two_verdicts(running_gateway: Running) -> None:
    verdicts = {}
    for answer in ("Blue.", "red, I think", "mauve"):
        said = await running_gateway.post(chat(answer=answer, modint=IMAGE), "/v1/guard/check")
        report = said.json["modint"]
        verdicts[answer] = (report["verdict"], report["cause"], report["reason"])
        assert said.headers["x-modint-verdict"] == report["verdict"]
    assert verdicts == {
        "Blue.": ("flagged", "text", None),
        "red, I think": ("pass", None, None),
        "mauve": ("unscored", None, "incomplete"),
    }


async def test_a_check_asks_the_model_as_briefly_as_its_views(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    await running_gateway.post(chat(answer="blue", min_tokens=3, temperature=1), "/v1/guard/check")
    assert [call["max_tokens"] for call in upstream.calls] == [2] * 4
    assert not any("answer" in call or "min_tokens" in call or call["temperature"] for call in upstream.calls)


async def test_an_answer_given_elsewhere_is_judged_without_being_asked_for(running_gateway: Running) -> None:
    said = await running_gateway.post(chat(answer="blue", modint=IMAGE), "/v1/guard/check")
    assert said.status == 200
    assert set(said.json) == {"modint"}
    assert said.json["modint"]["cause"] == "text"
    assert (await running_gateway.post(chat(), "/v1/guard/check")).error["param"] == "answer"


async def test_completions_are_forwarded_as_they_are(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    body = b'{"model" : "tinyworld-base", "prompt":"2+3="}'
    said = await running_gateway.post(body, "/v1/completions")
    assert said.body == b'{"id":"cmpl-1", "choices":[{"text":"five","index":0}]}'
    assert upstream.raw == [body]
