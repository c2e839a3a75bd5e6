"""What the gateway says about itself: models, readiness, metrics, the log line."""

import asyncio
import json
import logging
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.dashboards.catalogue import LABELS
from modint_server.adapters.folders import read, record_modules, revision
from modint_server.engine.attachment import REFRESH_S
from modint_server.logs import CORE, LOGGER, JsonLines, configure_logs
from modint_server.metrics import Card, Metrics, Served
from tests.server.adapter_folders import LANGUAGE, adapter, pair
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, JSON, Answer, FakeUpstream, is_main, misled

IMAGE = {"relevant": "image"}


async def series(gateway: Running) -> set[tuple[str, str]]:
    text = (await gateway.get("/metrics")).body.decode()
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_models_are_the_base_and_its_adapters_without_the_engines_paths(
    running_gateway: Running,
) -> None:
    response = await running_gateway.get("/v1/models")
    assert [(card["id"], card["parent"]) for card in response.json["data"]] == [(BASE, None), (ADAPTER, BASE)]
    assert b"secret" not in response.body
    listed = [model.id async for model in running_gateway.openai.models.list()]
    assert listed == [BASE, ADAPTER]
    assert (await running_gateway.openai.models.retrieve(ADAPTER)).id == ADAPTER
    assert (await running_gateway.get("/v1/models/other")).error["code"] == "model_not_found"


async def test_an_adapter_loaded_later_is_found_when_asked_for(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, upstream_poll_s=60) as gateway:
        upstream.model_list.append({"id": "new-lora", "object": "model", "parent": BASE})
        assert (await gateway.post(chat(model="new-lora"))).status == 200


async def test_readiness_says_what_the_engine_can_do(running_gateway: Running) -> None:
    response = await running_gateway.get("/readyz")
    assert response.status == 200
    can = {"models": [BASE, ADAPTER], "lora": [ADAPTER], "logprobs": True, "images": True}
    assert response.json["capabilities"] == {
        **can,
        "top_logprobs": 20,
        "teacher_forcing": False,
        "last_rows": False,
        "priority": False,
    }


@pytest.mark.parametrize(
    ("maximum", "taken", "calls"), [(25, 20, 2), (12, 10, 3), (5, 5, 4), (4, 2, 5), (1, 0, 5)]
)
async def test_the_engine_is_asked_how_many_logprobs_it_takes(
    upstream: FakeUpstream, maximum: int, taken: int, calls: int
) -> None:
    upstream.max_logprobs = maximum
    async with serving(upstream.url) as gateway:
        response = await gateway.get("/readyz")
    assert (response.json["capabilities"]["top_logprobs"], response.json["capabilities"]["images"]) == (
        taken,
        True,
    )
    assert len([body for body in upstream.calls if not {"prompt_logprobs", "priority"} & {*body}]) == calls
    assert len(response.json["notes"]) == (taken < 20)


async def test_an_engine_that_cannot_see_or_tell_probabilities_is_ready_with_notes(
    upstream: FakeUpstream,
) -> None:
    upstream.logprobs = False
    blind = Answer("", fault="400")
    upstream.script = lambda body: (
        blind if isinstance(body["messages"][0]["content"], list) else Answer("yes")
    )
    async with serving(upstream.url) as gateway:
        response = await gateway.get("/readyz")
    assert response.status == 200
    assert (response.json["capabilities"]["logprobs"], response.json["capabilities"]["images"]) == (
        False,
        False,
    )
    assert len(response.json["notes"]) == 2


async def test_an_engine_that_refuses_to_chat_is_not_said_to_lack_what_was_not_tried(
    upstream: FakeUpstream,
) -> None:
    upstream.script = lambda body: Answer("", fault="400")
    async with serving(upstream.url) as gateway:
        (note,) = (await gateway.get("/readyz")).json["notes"]
    assert note.startswith("the engine refuses to chat: give it a chat template")


async def test_an_engine_that_asks_for_patience_is_not_taken_for_one_without_probabilities(
    upstream: FakeUpstream,
) -> None:
    upstream.script = lambda body: Answer("", fault="429")
    async with serving(upstream.url, ready=False) as gateway:
        await gateway.gateway.attachment.look()
        assert (await gateway.get("/readyz")).status == 503
        upstream.script = lambda body: Answer("yes", {"yes": 0.9})
        await gateway.gateway.attachment.look()
        response = await gateway.get("/readyz")
    assert (response.status, response.json["capabilities"]["top_logprobs"]) == (200, 20)


async def test_counters_rise_before_the_client_has_its_answer(running_gateway: Running) -> None:
    base = {"model": BASE, "adapter": "none"}
    for stream in (False, True):
        await running_gateway.post(chat(stream=stream, modint=IMAGE))
    value = running_gateway.value
    assert value("modint_requests_total", **base, route="chat", outcome="ok") == 2
    assert value("modint_verdicts_total", **base, relevant="image", verdict="flagged", cause="text") == 2
    assert value("modint_risk_ratio_count", **base, relevant="image") == 0  # nothing was measured
    flips = {**base, "relevant": "image", "probe": "no_context", "outcome": "flipped"}
    assert value("modint_probe_results_total", **flips) == 2
    assert value("modint_probe_divergence_ratio_count", **base, probe="prior") == 2
    assert value("modint_probe_tokens_total", **base) == 2 * 3 * 42
    assert value("modint_images_total", **base, direction="input") == 2
    assert value("modint_tokens_total", **base, direction="input") == 40
    assert value("modint_time_to_first_token_seconds_count", **base) == 1
    assert value("modint_upstream_up", upstream="engine") == 1
    assert value("modint_policy_actions_total", **base, action="annotate") == 2


async def test_what_probes_cost_is_counted_where_the_answer_turns_out_to_be_skipped(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: replace(misled(body), text="" if is_main(body) else "red")
    response = await running_gateway.post(chat(modint=IMAGE))
    assert response.json["modint"]["reason"] == "empty_answer"
    base = {"model": BASE, "adapter": "none"}
    assert running_gateway.value("modint_probe_tokens_total", **base) == 3 * 42
    undecided = {**base, "relevant": "image", "probe": "prior", "outcome": "undecided"}
    assert running_gateway.value("modint_probe_results_total", **undecided) == 1


async def test_every_child_of_a_closed_set_exists_before_its_first_event(running_gateway: Running) -> None:
    before = await series(running_gateway)
    for body in (
        chat(modint=IMAGE),
        chat(modint={"probes": ["noop"]}),
        chat(n=2),
        chat(stream=True),
        chat(model=ADAPTER),
        chat(model="junk"),
        {},
    ):
        await running_gateway.post(body)
    assert await series(running_gateway) == before


def junk(number: int) -> JSON:
    """A request with a made-up name in one of the six fields from which a label could be made."""
    name = f"junk-{number}"
    fields = ({"relevant": name}, {"probes": [name]}, {"action": name}, {"mode": name}, {name: name})
    kind = number % 6
    return chat(modint=IMAGE | fields[kind]) if kind < len(fields) else chat(model=name)


async def test_a_flood_of_a_thousand_junk_names_keeps_the_series_as_they_were(upstream: FakeUpstream) -> None:
    """The engine is asked for its models once a second at most, however many unknown names come."""
    async with serving(upstream.url, upstream_poll_s=600) as gateway:
        upstream.forget()
        before, page = await series(gateway), (await gateway.get("/metrics")).body
        began = time.monotonic()
        for first in range(0, 1200, 60):
            numbers = range(first, first + 60)
            responses = await asyncio.gather(*(gateway.post(junk(number)) for number in numbers))
            assert {response.status for response in responses} == {400, 404}
            await asyncio.gather(*(gateway.get(f"/v1/junk-{number}") for number in numbers))
            await asyncio.gather(*(gateway.get(f"/v1/models/junk-{number}") for number in numbers))
        asked = upstream.paths.count("/v1/models")
        assert asked <= (time.monotonic() - began) / REFRESH_S + 1
        after = (await gateway.get("/metrics")).body
        assert await series(gateway) == before
        assert len(after.splitlines()) == len(page.splitlines())
        assert b"junk" not in after
        unknown = 1200 // 6 + 1200  # a sixth of the bodies, and every request for a card
        assert gateway.value("modint_metric_label_overflow_total", label="model") == unknown


async def test_a_flood_of_a_thousand_adapters_shares_one_label(upstream: FakeUpstream) -> None:
    upstream.model_list += [{"id": f"junk-{number}", "parent": BASE} for number in range(1000)]
    async with serving(upstream.url, max_adapter_labels=2) as gateway:
        before = await series(gateway)
        responses = await asyncio.gather(
            *(gateway.post(chat(model=f"junk-{number}")) for number in range(0, 1000, 50))
        )
        assert {response.status for response in responses} == {200}
        assert await series(gateway) == before
        adapters = {json.loads(labels).get("adapter") for _, labels in before} - {None}
    assert adapters == {"none", ADAPTER, "junk-0", "other"}


async def test_calls_that_wait_for_a_slot_are_seen(upstream: FakeUpstream) -> None:
    """One slot, three probes: two wait while the first is answered, and none afterwards."""
    async with serving(upstream.url, max_probes_in_flight=1) as gateway:
        upstream.script = lambda body: replace(misled(body), delay_s=0.0 if is_main(body) else 0.3)
        asking = asyncio.create_task(gateway.post(chat(modint=IMAGE)))
        while gateway.value("modint_queue_depth", model=BASE) != 2:
            assert not asking.done()
            await asyncio.sleep(0.01)
        assert (await asking).status == 200
        assert gateway.value("modint_queue_depth", model=BASE) == 0


async def test_adapters_beyond_the_bound_share_a_label(upstream: FakeUpstream) -> None:
    upstream.model_list += [{"id": f"lora-{number}", "parent": BASE} for number in range(5)]
    async with serving(upstream.url, max_adapter_labels=2) as gateway:
        await gateway.post(chat(model="lora-4"))
        other = {"model": BASE, "adapter": "other", "route": "chat", "outcome": "ok"}
        assert gateway.value("modint_requests_total", **other) == 1
        assert gateway.value("modint_metric_label_overflow_total", label="adapter") == 4


async def test_failures_of_the_engine_are_counted_by_kind(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("", fault="500")
    await running_gateway.post(chat(), x_modint_mode="off")
    assert running_gateway.value("modint_upstream_errors_total", upstream="engine", kind="server_error") == 1


async def test_one_log_line_a_request_and_nothing_of_its_content(
    running_gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "modint_server"):
        await running_gateway.post(chat(modint=IMAGE), x_request_id="r-1", authorization="Bearer hush")
    lines = [JsonLines().format(record) for record in caplog.records if record.getMessage() == "request"]
    assert len(lines) == 1
    line: dict[str, Any] = json.loads(lines[0])
    assert (line["request_id"], line["verdict"], line["cause"], line["status"]) == (
        "r-1",
        "flagged",
        "text",
        200,
    )
    assert not any(word in lines[0] for word in ("hush", "caption", "base64", "blue"))


def test_what_the_guard_could_not_do_is_a_line_like_the_gateways_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {logger: (logger.handlers, logger.level, logger.propagate) for logger in (LOGGER, CORE)}
    try:
        configure_logs("info")
        CORE.getChild("probing").warning("probe %s failed", "prior")
    finally:
        for logger, (handlers, level, propagate) in before.items():
            logger.handlers, logger.level, logger.propagate = handlers, level, propagate
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"]) == ("warning", "probe prior failed")


async def test_the_engines_own_metrics_are_passed_on_whole(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    response = await running_gateway.get("/engine/metrics")
    assert (response.status, response.body) == (200, upstream.page)
    assert response.headers["content-type"].startswith("text/plain; version=")


async def test_the_metrics_of_an_engine_that_is_down_are_an_envelope() -> None:
    async with serving("http://127.0.0.1:9", ready=False) as gateway:
        response = await gateway.get("/engine/metrics")
        assert (response.status, response.error["code"]) == (502, "upstream_unreachable")
        assert (await gateway.get("/livez")).status == 200


async def test_every_family_of_the_catalogue_is_on_the_page_with_its_labels(running_gateway: Running) -> None:
    text = (await running_gateway.get("/metrics")).body.decode()
    shown = {
        (sample.name.removesuffix("_bucket"), frozenset(sample.labels) - {"le"})
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    untested = {
        "modint_adapter_selftest_ok",
        "modint_adapter_selftest_divergence_ratio",
        "modint_null_power_ratio",
    }
    untested |= {"modint_base_beside_adapters_ok"}  # the self-test is off here
    by_folder = {"modint_adapter_modules", "modint_adapter_baseline_flip_ratio"}  # and no folder is known
    for family in running_gateway.gateway.metrics.catalogue:
        if family.name not in untested | by_folder:
            assert (family.name, frozenset(family.labels)) in shown


def test_every_value_of_a_label_is_on_the_page() -> None:
    page = Metrics(CollectorRegistry(), settings={"guard": "on", "adapter_selftest": "off"})
    page.know([Served("base"), Served("base", "lora")])
    values = {
        (name, value)
        for family in page.registry.collect()
        for sample in family.samples
        for name, value in sample.labels.items()
    }
    for label, named in LABELS.items():
        if label != "status" and not isinstance(named, str):
            assert {(label.split()[0], str(value)) for value in named} <= values


@pytest.mark.needs("prometheus")
def test_promtools_linter_has_nothing_to_say() -> None:
    metrics = Metrics(
        CollectorRegistry(),
        cards={"lora": Card(16, "abc", 0.05, {"renamed": 35})},
        settings={"guard": "on", "adapter_selftest": "require"},
    )
    metrics.know([Served("base"), Served("base", "lora")])
    metrics.examined(Served("base", "lora"), True, 0.2)
    metrics.mixed("base", True)
    page = generate_latest(metrics.registry)
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_what_is_known_of_an_adapters_folder_is_labelled(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / ADAPTER, pair(LANGUAGE))
    run = {"recipe": {"name": "my-recipe"}, "baseline": {"flip_ratio": 0.125}}
    (folder / "run.json").write_text(json.dumps(run), "utf-8")
    record_modules(folder, {"renamed": 1})
    async with serving(upstream.url, adapters=[read(ADAPTER, folder)]) as gateway:
        ma = {"model": BASE, "adapter": ADAPTER}
        known = {"rank": "2", "revision": revision(folder), "recipe": "my-recipe"}
        assert gateway.value("modint_adapter_info", **ma, **known) == 1
        assert gateway.value("modint_adapter_baseline_flip_ratio", **ma) == 0.125
        assert gateway.value("modint_adapter_modules", **ma, status="renamed") == 1
        assert gateway.value("modint_adapter_modules", **ma, status="unmatched") == 0


async def test_how_much_of_the_probability_was_listed_is_counted(running_gateway: Running) -> None:
    await running_gateway.post(chat(modint=IMAGE))  # "blue" 0.95, "red" 0.04
    assert running_gateway.value("modint_logprob_coverage_ratio_count", model=BASE) == 1
    assert running_gateway.value("modint_logprob_coverage_ratio_sum", model=BASE) == pytest.approx(0.99)


async def test_the_settings_that_change_what_is_counted_are_a_label(running_gateway: Running) -> None:
    assert running_gateway.value("modint_config_info", guard="on", adapter_selftest="off") == 1
