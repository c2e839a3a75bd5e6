"""`modint-guard watch`: what grew between two pages, by model and adapter; and what it refuses."""

import asyncio
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.demo.launch import free_port
from modint_guard.errors import ConfigError, EndpointUnreachable
from modint_server.watch import Page, lines, read
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, FakeUpstream, steady

POINT = EntryPoint("watch", "modint_server.watch:watch", GROUP)


def page(**values: float) -> Page:
    """A page of one model: requests, flagged, passed, flipped, consistent, and 10 requests in buckets."""
    ma = {"model": "m", "adapter": "a"}
    verdicts = {**ma, "relevant": "image", "cause": "none"}
    probes = {**ma, "relevant": "image", "probe": "no_context"}
    samples = [
        ("modint_requests_total", {**ma, "route": "chat", "outcome": "ok"}, values.get("ok", 0)),
        (
            "modint_requests_total",
            {**ma, "route": "chat", "outcome": "upstream_error"},
            values.get("failed", 0),
        ),
        ("modint_verdicts_total", {**verdicts, "verdict": "flagged"}, values.get("flagged", 0)),
        ("modint_verdicts_total", {**verdicts, "verdict": "pass"}, values.get("passed", 0)),
        ("modint_verdicts_total", {**verdicts, "verdict": "skipped"}, values.get("skipped", 0)),
        ("modint_probe_results_total", {**probes, "outcome": "flipped"}, values.get("flipped", 0)),
        ("modint_probe_results_total", {**probes, "outcome": "consistent"}, values.get("consistent", 0)),
        ("modint_probe_results_total", {**probes, "outcome": "error"}, values.get("errors", 0)),
        ("modint_request_duration_seconds_bucket", {**ma, "le": "0.5"}, values.get("fast", 0)),
        ("modint_request_duration_seconds_bucket", {**ma, "le": "1.0"}, values.get("all", 0)),
        ("modint_request_duration_seconds_bucket", {**ma, "le": "+Inf"}, values.get("all", 0)),
    ]
    return {(name, frozenset(labels.items())): value for name, labels, value in samples}


def test_a_line_is_what_grew_between_two_pages() -> None:
    before = page(ok=10, flagged=10, passed=10, flipped=5, all=10, fast=10)
    now = page(
        ok=16, failed=2, flagged=11, passed=13, skipped=9, flipped=6, consistent=4, errors=7, all=20, fast=14
    )
    (line,) = lines(before, now)
    assert (line.requests, line.failed, line.judged) == (8, 2, 4)
    assert (line.flagged, line.flips, line.median_s) == (0.25, 0.2, 1.0)  # 4 of 10 fast: the median is slower


def test_no_share_is_made_of_nothing() -> None:
    (line,) = lines({}, page(ok=1))
    assert (line.flagged, line.flips, line.median_s) == (None, None, None)


def test_a_model_that_answered_nothing_has_no_line() -> None:
    assert lines(page(ok=3), page(ok=3)) == []


async def test_a_running_gateway_is_read(running_gateway: Running) -> None:
    for model in (BASE, BASE, ADAPTER):
        await running_gateway.post(chat(model=model, modint={"relevant": "image"}))
    page = await asyncio.to_thread(read, running_gateway.url)
    by_adapter = {line.adapter: line for line in lines({}, page)}
    assert {name: (line.requests, line.flagged, line.flips) for name, line in by_adapter.items()} == {
        "none": (2, 1.0, 1.0),
        ADAPTER: (1, 1.0, 1.0),
    }


async def test_one_look_is_printed_and_ends(
    upstream: FakeUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.script = steady
    async with serving(upstream.url) as gateway:
        await gateway.post(chat(modint={"relevant": "image"}))
        with pytest.raises(SystemExit) as left:
            await asyncio.to_thread(main, ["watch", "--url", f"{gateway.url}/v1", "--once"], [POINT])
    out = capsys.readouterr().out
    assert left.value.code in (0, None)
    assert "engine up" in out and "0%" in out


def test_a_gateway_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["watch", "--url", f"http://127.0.0.1:{free_port()}"], [POINT])
    assert left.value.code == 2
    assert "start one, or name its address" in capsys.readouterr().err


def test_what_is_no_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["watch", "--url", "localhost:8080"], [POINT])
    assert left.value.code == 2 and "is no address" in capsys.readouterr().err


async def test_another_servers_metrics_are_refused(running_gateway: Running) -> None:
    with pytest.raises(ConfigError, match="is no modint-guard"):
        await asyncio.to_thread(read, f"{running_gateway.url}/engine")  # vLLM's own page
    with pytest.raises(EndpointUnreachable):
        await asyncio.to_thread(read, f"{running_gateway.url}/nowhere")


def test_the_pages_parser_is_not_fooled_by_text(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("<html>hello</html>", "utf-8")
    with pytest.raises((ConfigError, EndpointUnreachable)):
        read(tmp_path.as_uri())
