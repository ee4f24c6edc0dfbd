"""Work that nobody waits for: slow, held up under pressure, given up rather than in the way. Hours pass in no time."""

import asyncio
from collections.abc import Callable

import pytest

from tests.support.virtual import VirtualClock, run
from torpor.base.pressure import Pressure
from torpor.control.considerate import Considerate, is_pressed
from torpor.model.errors import PoolFull, Unavailable

CALM, PRESSED = Pressure(), Pressure(memory=50.0)


class Held:
    """Processes that are held up."""

    def __init__(self) -> None:
        self.frozen = False
        self.freezes = 0

    async def freeze(self) -> None:
        self.frozen = True
        self.freezes += 1

    def thaw(self) -> None:
        self.frozen = False


class TooLong(Unavailable):
    pass


class TooBusy(Unavailable):
    pass


def considerate(pressure: Callable[[], Pressure], refusal: Callable[[], Unavailable | None] = lambda: None) -> Considerate:
    async def refuse() -> Unavailable | None:
        return refusal()

    return Considerate(pressure, refuse, VirtualClock(), 1000.0, 3600.0, 600.0, TooLong("too long"), TooBusy("too busy"))


def test_what_presses() -> None:
    assert not is_pressed(Pressure(5, 5)) and is_pressed(PRESSED) and is_pressed(Pressure(disk=80))


def test_so_many_bytes_a_second() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with considerate(lambda: CALM) as manners:
            for _ in range(10):
                await manners.pace(5000)
        assert 45 <= loop.time() - began <= 46

    run(main())


def test_held_up_while_the_host_is_short_of_something() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        tree, seen = Held(), list[bool]()
        async with considerate(lambda: PRESSED if 10 <= loop.time() - began < 100 else CALM) as manners:
            async with manners.held(tree):  # type: ignore[arg-type]  # what is asked of a tree
                for _ in range(4):
                    await asyncio.sleep(40)
                    seen.append(tree.frozen)
                assert seen == [True, True, False, False]
            await asyncio.sleep(20)
        assert not tree.frozen and 80 <= manners.waited_s <= 100

    run(main())


def test_nobody_begins_while_it_is_pressed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with considerate(lambda: PRESSED if loop.time() - began < 100 else CALM) as manners:
            await asyncio.sleep(5)
            await manners.pace(1)
            assert 100 <= loop.time() - began <= 102

    run(main())


@pytest.mark.parametrize(("pressure", "error", "after_s"), [(CALM, TooLong, 3600), (PRESSED, TooBusy, 600)])
def test_given_up_in_the_end(pressure: Pressure, error: type[Exception], after_s: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began, tree = loop.time(), Held()
        with pytest.raises(error):
            async with considerate(lambda: pressure) as manners, manners.held(tree):  # type: ignore[arg-type]  # what is asked of a tree
                await asyncio.sleep(0 if pressure is CALM else 5)
                await asyncio.Event().wait()
        assert after_s <= loop.time() - began <= after_s + 3
        assert not tree.frozen

    run(main())


def test_given_up_at_once_when_it_is_in_the_way() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(PoolFull):
            async with considerate(lambda: CALM, lambda: PoolFull("full") if loop.time() - began > 30 else None):
                await asyncio.Event().wait()
        assert loop.time() - began < 33

    run(main())


def test_what_the_work_itself_raises() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="mine"):
            async with considerate(lambda: CALM):
                raise ValueError("mine")
        with pytest.raises(TimeoutError):
            async with considerate(lambda: CALM):
                raise TimeoutError

        async def work() -> None:
            async with considerate(lambda: CALM):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(5)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)

    run(main())
