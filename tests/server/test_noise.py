"""The engine's noise: measured now and then, and taken into account afterwards."""

from modint_server.engine.noise import KEPT, NoiseFloor
from tests.server.conftest import chat, serving
from tests.server.fake_upstream import BASE, Answer, FakeUpstream, is_main

IMAGE = {"relevant": "image"}


def test_one_request_in_so_many_is_due_apart_for_every_model() -> None:
    floor = NoiseFloor(3)
    assert [floor.is_due("k", "a") for _ in range(6)] == [False, False, True, False, False, True]
    assert [floor.is_due("k", "b") for _ in range(3)] == [False, False, True]
    assert not any(NoiseFloor(0).is_due("k", "a") for _ in range(10))


def test_the_largest_of_the_last_measurements_counts() -> None:
    floor = NoiseFloor(1)
    assert floor.of("k", "a") == 0.0
    floor.measured("k", "a", 0.3)
    floor.measured("k", "a", 0.1)
    assert (floor.of("k", "a"), floor.of("k", "b")) == (0.3, 0.0)
    for _ in range(KEPT - 1):
        floor.measured("k", "a", 0.05)
    assert floor.of("k", "a") == 0.1


async def test_a_gateway_measures_noise_and_then_asks_more_of_a_flip(upstream: FakeUpstream) -> None:
    """The view leads by 0.3; the same request asked again moves by 0.2, so that 0.4 are needed."""
    steady = {"blue": 0.6, "red": 0.4}

    def script(body: dict[str, object]) -> Answer:
        if not is_main(body):
            return Answer("red", {"red": 0.65, "blue": 0.35})
        return Answer("blue", steady if body.get("max_tokens") == 4 else {"blue": 0.8, "red": 0.2})

    upstream.script = script
    async with serving(upstream.url, noop_every=2) as gateway:
        first = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        second = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        third = (await gateway.post(chat(modint=IMAGE))).json["modint"]
        shown = gateway.value("modint_noise_floor_ratio", model=BASE)
    flips = [report["probes"][0]["flip"] for report in (first, second, third)]
    assert [len(report["probes"]) for report in (first, second, third)] == [3, 4, 3]
    assert flips == [True, None, None]
    assert first["noise"] is third["noise"] is None
    assert round(second["noise"], 6) == 0.2 and shown is not None and round(shown, 6) == 0.2
