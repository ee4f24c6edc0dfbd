"""The warm pool with computes that only pretend."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from tests.support import virtual
from tests.support.fleet import House
from torpor.compute.compute import Compute
from torpor.compute.warmpool import WarmPool
from torpor.model.errors import ComputeStartFailed, PoolFull


class Maker:
    """Makes computes, or fails as it is told."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.made = 0
        self.calls: list[float] = []
        self.at_once = 0
        self.busy = False
        self.failure: Exception | None = None

    async def make(self, major: int) -> Compute:
        assert not self.busy, "in somebody's way"
        assert major == 18
        self.calls.append(self.house.clock.monotonic())
        self.at_once += 1
        assert self.at_once == 1, "one at a time"
        await asyncio.sleep(0.1)
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        self.made += 1
        return self.house.add_sleeper(self.made)


def on_a_pool(tmp_path: Path, size: int, test: Callable[[WarmPool, Maker], Coroutine[Any, Any, None]]) -> list[dict[str, Any]]:
    async def main() -> None:
        house = House(tmp_path)
        maker = Maker(house)
        pool = WarmPool(size, 18, maker.make, lambda: maker.busy, house.clock, house.tasks)
        try:
            pool.start()
            await test(pool, maker)
        finally:
            await house.close()

    with capture_logs() as logs:
        virtual.run(main())
    return [dict(line) for line in logs]


def test_it_fills_and_refills(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        assert pool.take(18) is None
        await asyncio.sleep(5)
        assert (len(pool), maker.made, repr(pool)) == (3, 3, "<WarmPool 3/3 of PostgreSQL 18>")
        taken = [pool.take(18) for _ in range(5)]
        assert None not in taken[:3]
        assert len(set(taken[:3])) == 3, "nobody gets another's"
        assert taken[3:] == [None, None]
        await asyncio.sleep(5)
        assert (len(pool), maker.made) == (3, 6)
        assert pool.take(18) not in taken

    on_a_pool(tmp_path, 3, test)


def test_the_oldest_goes_first_and_other_majors_get_nothing(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        await asyncio.sleep(5)
        assert pool.take(17) is None
        first = pool.take(18)
        assert first is not None
        assert first.database.label == "db1"
        assert (pool.major, pool.size) == (18, 2)

    on_a_pool(tmp_path, 2, test)


def test_what_an_earlier_torpor_made_counts(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        pool.put(maker.house.add_sleeper(77))
        await asyncio.sleep(5)
        assert (len(pool), maker.made) == (2, 1)

    on_a_pool(tmp_path, 2, test)


def test_it_steps_back_while_somebody_waits(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        maker.busy = True
        await asyncio.sleep(60)
        assert maker.calls == []
        maker.busy = False
        await asyncio.sleep(0.4)
        assert maker.made == 1

    on_a_pool(tmp_path, 1, test)


def test_a_full_pool_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        maker.failure = PoolFull("the storage pool is full")
        await asyncio.sleep(100)
        assert 3 <= len(maker.calls) <= 4, "every 30 seconds"
        maker.failure = None
        await asyncio.sleep(31)
        assert len(pool) == 2

    logs = on_a_pool(tmp_path, 2, test)
    assert {(line["event"], line["log_level"]) for line in logs} == {("the warm pool can't be filled", "warning")}


def test_other_failures_are_errors_and_end_nothing(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        maker.failure = ComputeStartFailed("no")
        await asyncio.sleep(1)
        maker.failure = None
        await asyncio.sleep(31)
        assert len(pool) == 1

    logs = on_a_pool(tmp_path, 1, test)
    assert [(line["event"], line["log_level"]) for line in logs] == [("the warm pool can't be filled", "error")]


def test_a_pool_of_none_makes_none(tmp_path: Path) -> None:
    async def test(pool: WarmPool, maker: Maker) -> None:
        await asyncio.sleep(60)
        assert pool.take(18) is None
        await asyncio.sleep(60)
        assert maker.calls == []

    on_a_pool(tmp_path, 0, test)
