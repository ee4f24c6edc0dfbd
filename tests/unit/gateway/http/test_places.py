"""Places for requests: one after the other in order, and none is lost, whoever leaves when."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from torpor.gateway.http.failures import Failure
from torpor.gateway.http.places import Places


async def test_who_comes_first_is_let_in_first() -> None:
    places = Places(per_address=10, per_database=1, waiting=5)
    order: list[int] = []

    async def request(number: int) -> None:
        async with places.place("a", "shop"):
            order.append(number)
            await asyncio.sleep(0)

    async with places.place("b", "shop"):
        tasks = [asyncio.create_task(request(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        async with places.place("a", "other"):  # another database isn't held up
            pass
        assert order == []
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert repr(places) == "<Places 0 taken, 0 waiting>"


async def test_one_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    places = Places(per_address=10, per_database=1, waiting=5)
    entered = asyncio.Event()

    async def request() -> None:
        async with places.place("a", "shop"):
            entered.set()

    async with AsyncExitStack() as held:
        await held.enter_async_context(places.place("a", "shop"))
        first, second = asyncio.create_task(request()), asyncio.create_task(request())
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert entered.is_set()
    assert places.taken == 0


async def test_limits_say_which_they_are() -> None:
    places = Places(per_address=2, per_database=1, waiting=1)
    async with places.place("a", "shop"):
        waiting = asyncio.create_task(_enter(places, "b"))
        await asyncio.sleep(0)
        with pytest.raises(Failure, match="wait for this database"):
            await _enter(places, "c")
    await waiting
    async with places.place("a", "one"), places.place("a", "two"):
        with pytest.raises(Failure, match="from a") as refused:
            await _enter(places, "a")
    assert (refused.value.status, refused.value.sqlstate, refused.value.retry_after_s) == (429, "53300", 1)
    assert places.taken == 0


async def _enter(places: Places, address: str) -> None:
    async with places.place(address, "shop"):
        pass
