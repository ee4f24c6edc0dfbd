"""Logins that take turns, on virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support import virtual
from torpor.compute.turnstile import Turnstile


def play(scene: Callable[[Turnstile, Callable[[], "asyncio.Task[float]"]], Awaitable[None]]) -> None:
    """With a turnstile, and what sends a login into it: its task gives how many seconds after the beginning it was let through."""

    async def main() -> None:
        clock = virtual.VirtualClock()
        turnstile, begun = Turnstile(clock), clock.monotonic()

        async def login() -> float:
            await turnstile.turn()
            return round(clock.monotonic() - begun, 3)

        await scene(turnstile, lambda: asyncio.create_task(login()))

    virtual.run(main())


def test_nobody_waits_usually() -> None:
    async def scene(turnstile: Turnstile, send: Callable[[], "asyncio.Task[float]"]) -> None:
        assert await asyncio.gather(*(send() for _ in range(5))) == [0.0] * 5
        assert turnstile.waiting == 0

    play(scene)


def test_one_after_another_in_order() -> None:
    async def scene(turnstile: Turnstile, send: Callable[[], "asyncio.Task[float]"]) -> None:
        turnstile.interval_s = 0.5
        assert await asyncio.gather(*(send() for _ in range(4))) == [0.0, 0.5, 1.0, 1.5]
        await asyncio.sleep(10)
        assert list(await asyncio.gather(send(), send())) == [11.5, 12.0]  # a pause saves up nothing

    play(scene)


def test_all_that_wait_go_when_it_opens() -> None:
    async def scene(turnstile: Turnstile, send: Callable[[], "asyncio.Task[float]"]) -> None:
        turnstile.interval_s = 2.0
        logins = [send() for _ in range(4)]
        await asyncio.sleep(1)
        assert turnstile.waiting == 3
        turnstile.interval_s = 0.0
        assert await asyncio.gather(*logins) == [0.0, 2.0, 2.0, 2.0]

    play(scene)


def test_who_leaves_the_queue_takes_no_turn() -> None:
    async def scene(turnstile: Turnstile, send: Callable[[], "asyncio.Task[float]"]) -> None:
        turnstile.interval_s = 1.0
        logins = [send() for _ in range(4)]
        await asyncio.sleep(0.5)
        logins[1].cancel()  # the one whose turn is next
        logins[2].cancel()
        assert await logins[3] == 1.0
        assert turnstile.waiting == 0

    play(scene)
