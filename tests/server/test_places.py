"""Places that keys share: a bound for each, and turns among those who wait."""

import asyncio

from modint_server.request.places import Places


async def waiting(places: Places, *keys: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(places.wait(key)) for key in keys]
    await asyncio.sleep(0)
    return tasks


async def done(tasks: list[asyncio.Task[None]]) -> list[bool]:
    await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_one_key_never_holds_more_than_its_share() -> None:
    places = Places(4, per_key=lambda: 3)
    tasks = await waiting(places, "a", "a", "a", "a", "b")
    assert await done(tasks) == [True, True, True, False, True]
    places.give_back("a")
    assert await done(tasks) == [True] * 5
    assert places.held == 4 and places.is_full()


async def test_keys_that_wait_are_served_in_turn() -> None:
    places, order = Places(1, per_key=lambda: 1), []

    async def work(key: str) -> None:
        await places.wait(key)
        order.append(key)
        await asyncio.sleep(0)
        places.give_back(key)

    await asyncio.gather(*(work(key) for key in "aaaabbc"))
    assert order == ["a", "a", "b", "c", "a", "b", "a"]
    assert places.held == 0


async def test_who_leaves_gives_up_turn_and_place() -> None:
    places = Places(1, per_key=lambda: 1)
    first, second, third = await waiting(places, "a", "b", "c")
    second.cancel()
    places.give_back("a")
    assert await done([first, third]) == [True, True]
    places.give_back("c")
    (served,) = await waiting(places, "d")
    assert served.done() and places.held == 1


async def test_who_leaves_in_the_moment_of_being_served_gives_the_place_back() -> None:
    places = Places(1, per_key=lambda: 1)
    places.take("a")
    (waiter,) = await waiting(places, "b")
    places.give_back("a")
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert places.held == 0 and places.may_take("b")


async def test_a_key_without_a_place_left_may_take_none() -> None:
    places = Places(2, per_key=lambda: 1)
    places.take("a")
    assert not places.may_take("a") and places.may_take("b") and not places.is_full()
