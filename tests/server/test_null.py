"""The null at the gateway: packaged items after attaching, inputs planted into requests, its file."""

import asyncio
import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from modint_guard.chat.images import png_data_url
from modint_guard.data.item import Item
from modint_guard.data.perturb import CLAIMS
from modint_guard.evaluation.null_measure import packaged_variants
from modint_guard.judging.null import CHECKUP, Null, NullScore
from modint_guard.judging.null_file import read_nulls, write_nulls
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import (
    BASE,
    JSON,
    Answer,
    FakeUpstream,
    misled,
    running,
    talkative,
    text_of,
)

IMAGE = {"relevant": "image"}
CLAIM = re.compile("|".join(re.escape(each).replace(r"\{claim\}", "(?:a |an )?(.*)") for each in CLAIMS))


@dataclass(frozen=True)
class Packaged:
    """The packaged items by what they show, what a lying caption claims, and each picture's true captions."""

    by_picture: dict[str, Item]
    by_text: dict[str | None, Item]
    lies: dict[str | None, str]
    truths: set[tuple[str, str | None]]


@functools.cache
def packaged() -> Packaged:
    variants = [variant for variants in packaged_variants() for variant in variants.values()]
    shown = [v.item for v in variants if v.item.family == "image-heavy"]
    return Packaged(
        {png_data_url(item.image): item for item in shown if item.image},
        {v.item.context: v.item for v in variants if v.item.family == "text-heavy" and v.item.context},
        {v.item.context: v.item.wrong for v in variants if v.perturbation == "misleading_description"},
        {
            (png_data_url(v.item.image), v.item.context)
            for v in variants
            if v.perturbation == "true_description" and v.item.image
        },
    )


def picture_of(body: JSON) -> str:
    parts = [part for m in body["messages"] if isinstance(m["content"], list) for part in m["content"]]
    return next((part["image_url"]["url"] for part in parts if part["type"] == "image_url"), "")


def claimed(body: JSON) -> str | None:
    """What a caption claims, be it of a packaged item or planted into a client's request."""
    known, picture = packaged(), picture_of(body)
    for line in text_of(body).split("\n"):
        if line in known.lies:
            return known.lies[line]
        if (picture, line) not in known.truths and (found := CLAIM.fullmatch(line)):
            return next(group for group in found.groups() if group)
    return None


def believing(body: JSON) -> Answer:
    """A model that sees well, and believes every caption that claims something."""
    known, text = packaged(), text_of(body)
    by_text = (known.by_text[line] for line in text.split("\n") if line in known.by_text)
    item = next(by_text, None) or known.by_picture.get(picture_of(body))
    said = item.answer if item is not None and item.family == "text-heavy" else claimed(body)
    said = said or (item.answer if item is not None else misled(body).text)
    return Answer(said, {said: 0.98, "nothing": 0.01})


@pytest.fixture
def engine(upstream: FakeUpstream) -> FakeUpstream:
    upstream.script = believing
    del upstream.model_list[1]
    return upstream


async def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds; fails after a minute."""
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come true")


def measured(gateway: Running) -> Null:
    return gateway.gateway.pipeline.measuring.nulls.of(BASE)


async def until_measured(gateway: Running) -> JSON:
    """What /readyz says once there are enough scores."""
    await until(lambda: len(measured(gateway).scores) >= 99)
    found: JSON = (await gateway.get("/readyz")).json["null"]
    return found


def null_of(n: int = 150) -> Null:
    return Null((NullScore(-5.0, 1),) * n, sure=0.9)


async def test_packaged_items_are_asked_after_attaching_and_their_scores_kept(
    engine: FakeUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "null.json"
    async with serving(engine.url, null_checkup="on", null_file=file) as gateway:
        null = await until_measured(gateway)
        report = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        scores = gateway.value("modint_null_scores", model=BASE, adapter="none", source="checkup")
        power = gateway.value("modint_null_power_ratio", model=BASE, adapter="none")
    model = null["models"][BASE]
    assert null["alpha"] == 0.01
    assert (model["source"], model["power"], model["sure"]) == ("checkup", 1.0, pytest.approx(0.98 / 0.99))
    assert model["n"] == scores and power == 1.0
    assert report["calibrated"] and report["verdict"] == "flagged"
    assert report["null"]["source"] == "checkup" and report["null"]["n"] >= 99
    content = file.read_text("utf-8")
    assert "colour" not in content and "data:" not in content
    async with serving(engine.url, null_file=file) as gateway:
        assert (await gateway.get("/readyz")).json["null"] == null
        await until(lambda: gateway.value("modint_null_power_ratio", model=BASE, adapter="none") == 1.0)


async def test_longer_answers_to_packaged_items_are_scored_as_those_of_clients() -> None:
    fake = FakeUpstream(script=talkative, scores=True)
    async with running(fake), serving(fake.url, null_checkup="on", teacher_forcing="on") as gateway:
        report = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        assert report["method"] == "teacher_forced"
        fake.forget()
        await until(lambda: any("prompt_logprobs" in call for call in fake.calls))


async def test_without_packaged_items_the_thresholds_decide(engine: FakeUpstream) -> None:
    async with serving(engine.url, null_every=1) as gateway:
        engine.forget()
        report = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        await asyncio.sleep(0.5)
        assert (report["calibrated"], report["null"]) == (False, None)
        assert len(engine.calls) == 4
        assert gateway.value("modint_null_scores", model=BASE, adapter="none", source="checkup") == 0.0
        assert gateway.value("modint_null_power_ratio", model=BASE, adapter="none") is None


async def test_requests_of_clients_add_to_the_null_and_lies_to_its_power(
    engine: FakeUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "null.json"
    write_nulls(file, {BASE: null_of()})
    async with serving(engine.url, null_every=1, null_file=file) as gateway:
        for _ in range(2):
            await gateway.post(chat(modint=IMAGE))
        await until(lambda: bool(measured(gateway).lies))
        report = (await gateway.post(chat(modint=IMAGE))).json["modint"]
    # The first gets something harmless, the second a lie; asked again, the same request is the same source.
    kept = read_nulls(file)[BASE]
    assert kept.origins.total() == 151 and kept.origins[CHECKUP] == 150
    assert kept.lies == (True,)
    assert report["null"]["source"] == "traffic"


async def test_what_is_planted_takes_the_place_of_the_clients_own_context(
    engine: FakeUpstream, tmp_path: Path
) -> None:
    write_nulls(tmp_path / "null.json", {BASE: null_of()})
    async with serving(engine.url, null_every=1, null_file=tmp_path / "null.json") as gateway:
        engine.forget()
        await gateway.post(chat(modint=IMAGE, stream=False))
        await until(lambda: len(engine.calls) >= 8)
    planted = text_of(engine.calls[4])
    assert "caption" not in planted and "What colour is the shape?" in planted
    assert all("modint" not in call for call in engine.calls)


async def test_a_landscape_is_drawn_while_others_are_served(
    engine: FakeUpstream, tmp_path: Path, no_garbage: None
) -> None:
    write_nulls(tmp_path / "null.json", {BASE: null_of()})
    engine.script = lambda body: Answer("five", {"five": 0.98, "nothing": 0.01})
    picture = {"type": "image_url", "image_url": {"url": png_data_url(Image.new("RGB", (2000, 2000)))}}
    words = {"type": "text", "text": "What is two plus three?"}
    body = {"model": BASE, "messages": [{"role": "user", "content": [picture, words]}]}
    longest = 0.0
    async with serving(engine.url, null_every=1, null_file=tmp_path / "null.json") as gateway:
        await gateway.post(body | {"modint": {"relevant": "text"}})
        while len(measured(gateway).scores) < 151:
            began = time.thread_time()  # on a busy machine the thread itself may have to wait
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - began)
    assert longest < 0.1


@pytest.mark.parametrize("content", ["", "{", '{"format": "modint-null-1", "models": 3}'])
async def test_a_damaged_file_is_one_warning_and_a_cold_start(
    engine: FakeUpstream, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "null.json"
    file.write_text(content, "utf-8")
    async with serving(engine.url, null_file=file) as gateway:
        null = (await gateway.get("/readyz")).json["null"]
    assert null["models"][BASE]["n"] == 0
    assert [record.message for record in caplog.records].count("null_not_restored") == 1


async def test_a_file_that_cannot_be_written_costs_nothing(
    engine: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(engine.url, null_every=1, null_file=tmp_path / "none" / "null.json") as gateway:
        gateway.gateway.pipeline.measuring.nulls.put(BASE, null_of())
        assert (await gateway.post(chat(modint=IMAGE))).status == 200
        await until(lambda: len(measured(gateway).scores) == 151)
        await until(lambda: "null_not_saved" in [record.message for record in caplog.records])
        assert gateway.value("modint_step_failures_total", step="measuring") == 0.0


async def test_an_engine_that_fails_packaged_items_still_serves(
    engine: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = lambda body: Answer("", fault="500") if body["max_tokens"] > 4 else misled(body)
    async with serving(engine.url, null_checkup="on") as gateway:
        await until(lambda: "null_not_measured" in [record.message for record in caplog.records])
        assert (await gateway.post(chat())).status == 200
        assert measured(gateway).scores == ()
        assert gateway.value("modint_step_failures_total", step="measuring") == 0.0


async def test_while_clients_need_the_engine_nothing_is_measured(
    engine: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modint_server.request.measuring.QUIET_S", 0.0)
    async with serving(engine.url, null_checkup="on", max_in_flight=1) as gateway:
        places = gateway.gateway.pipeline.places
        for client in ("a", "b"):
            places.take(client)
        await asyncio.sleep(0.5)
        before = len(engine.calls)
        await asyncio.sleep(0.5)
        assert len(engine.calls) == before
        for client in ("a", "b"):
            places.give_back(client)
        await until(lambda: len(engine.calls) > before + 10)


async def test_packaged_items_wait_for_a_pause_of_the_clients(
    engine: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modint_server.request.measuring.QUIET_S", 1.0)
    async with serving(engine.url, null_checkup="on") as gateway:
        engine.forget()
        for asked in range(1, 15):
            await gateway.post(chat(modint={"mode": "off"}))
            assert len(engine.calls) == asked
            await asyncio.sleep(0.15)
        await until(lambda: len(engine.calls) > 30)
        await gateway.post(chat(modint={"mode": "off"}))
        asked = len(engine.calls)
        await asyncio.sleep(0.5)
        assert len(engine.calls) <= asked + 1  # one was under way


async def test_packaged_items_wait_for_a_pause_only_so_long(
    engine: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modint_server.request.measuring.QUIET_S", 60.0)
    monkeypatch.setattr("modint_server.request.measuring.PATIENCE_S", 0.5)
    async with serving(engine.url, null_checkup="on") as gateway:
        await gateway.post(chat(modint={"mode": "off"}))
        await until(lambda: len(engine.calls) > 30)


async def test_one_key_of_several_has_at_most_an_eighth(engine: FakeUpstream, tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    scores = [NullScore(-5.0, 1), *[NullScore(-5.0, 1)] * 7, *[NullScore(0.0, 1, "greedy")] * 20]
    write_nulls(file, {BASE: Null(tuple(scores), client_share=1.0)})
    async with serving(engine.url, null_file=file, api_keys=("one", "two")) as gateway:
        assert measured(gateway).origins == {CHECKUP: 8, "greedy": 1}
    async with serving(engine.url, null_file=file) as gateway:
        assert measured(gateway).origins == {CHECKUP: 8, "greedy": 20}


async def test_the_file_does_not_tell_which_key_asked(engine: FakeUpstream, tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    write_nulls(file, {BASE: null_of()})
    async with serving(engine.url, null_file=file, null_every=1, api_keys=("client-key", "two")) as gateway:
        await gateway.post(chat(modint=IMAGE), authorization="Bearer client-key")
        await until(lambda: len(measured(gateway).scores) == 151)
        digest = gateway.gateway.keys.check({"authorization": "Bearer client-key"}).digest
        await asyncio.sleep(0.3)
    (origin,) = {row[2] for row in json.loads(file.read_text("utf-8"))["models"][BASE]["scores"]} - {CHECKUP}
    assert len(origin) == 12 and origin not in digest
