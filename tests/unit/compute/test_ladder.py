"""Down the ladder: at the right time, in the right order, with bounded memory."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support import virtual
from tests.support.fleet import PLENTY, SHORT, House
from torpor.compute.ladder import choose_relief
from torpor.model.errors import ComputeLost
from torpor.model.sleep import SleepOverrides, SleepPolicy, SleepReason, Tier

IDLE, PRESSURE = SleepReason.IDLE, SleepReason.PRESSURE
POLICY = SleepPolicy(5.0, 30.0, 3600.0)


def on_a_house(
    tmp_path: Path, test: Callable[[House], Coroutine[Any, Any, None]], policy: SleepPolicy = POLICY, can_reclaim: bool = True
) -> None:
    async def main() -> None:
        house = House(tmp_path, policy=policy, can_reclaim=can_reclaim)
        try:
            house.ladder.start()
            await asyncio.sleep(0)
            await test(house)
        finally:
            await house.close()

    with capture_logs():
        virtual.run(main())


def test_frozen_then_paged_then_stopped(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.freeze()
        await asyncio.sleep(29)
        assert house.steps == []
        await asyncio.sleep(2)
        assert house.steps == [("db1", Tier.PAGED, IDLE)]
        await asyncio.sleep(3600 - 32)
        assert len(house.steps) == 1
        await asyncio.sleep(2)
        assert house.steps[1:] == [("db1", Tier.STOPPED, IDLE)], "counted from the freeze"

    on_a_house(tmp_path, test)


def test_each_at_its_own_time(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        house.add_sleeper(1, SleepOverrides(page_after_s=40.0)).freeze()
        house.add_sleeper(2, SleepOverrides(page_after_s=10.0)).freeze()
        house.add_sleeper(3, SleepOverrides(page_after_s="never", stop_after_s="never")).freeze()
        house.add_sleeper(4).freeze()
        await asyncio.sleep(60)
        assert [name for name, _, _ in house.steps] == ["db2", "db4", "db1"]
        assert len(house.ladder._heap) <= 3

    on_a_house(tmp_path, test)


def test_a_wake_takes_it_off(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.freeze()
        await asyncio.sleep(20)
        sleeper.rouse()
        await asyncio.sleep(20)
        assert house.steps == []
        sleeper.freeze()
        await asyncio.sleep(29)
        assert house.steps == [], "the idle time begins anew"
        await asyncio.sleep(2)
        assert len(house.steps) == 1

    on_a_house(tmp_path, test)


def test_a_wake_in_the_middle_of_a_step_wins(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.before_step = sleeper.rouse
        sleeper.freeze()
        await asyncio.sleep(40)
        assert house.steps == []
        assert sleeper.tier is Tier.AWAKE

    on_a_house(tmp_path, test)


@pytest.mark.parametrize(("after_s", "expected"), [(12.0, 1), (600.0, 0)])
def test_new_idle_times_take_effect_at_once(tmp_path: Path, after_s: float, expected: int) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.freeze()
        await asyncio.sleep(10)
        house.fleet.update(replace(sleeper.database, overrides=SleepOverrides(page_after_s=after_s)))
        await asyncio.sleep(3)
        assert len(house.steps) == expected
        await asyncio.sleep(30)
        assert len(house.steps) == expected, "not at its old time either"
        await asyncio.sleep(600)
        assert len(house.steps) == 1

    on_a_house(tmp_path, test)


def test_connections_are_never_cut(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.open_connections = 1
        sleeper.freeze()
        await asyncio.sleep(10_000)
        assert house.steps == [("db1", Tier.PAGED, IDLE)]
        house.memory = SHORT
        await asyncio.sleep(100)
        assert len(house.steps) == 1

    on_a_house(tmp_path, test)


def test_a_connection_that_came_while_the_step_was_due(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleeper = house.add_sleeper(1)
        sleeper.freeze()
        await asyncio.sleep(3599.9)
        sleeper.open_connections = 1
        await asyncio.sleep(10)
        assert [tier for _, tier, _ in house.steps] == [Tier.PAGED]

    on_a_house(tmp_path, test)


def test_a_host_that_cant_page_only_stops(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        house.add_sleeper(1).freeze()
        await asyncio.sleep(3605)
        assert house.steps == [("db1", Tier.STOPPED, IDLE)]

    on_a_house(tmp_path, test, can_reclaim=False)


def test_a_step_that_fails_stops_nobody_elses(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        def fail() -> None:
            raise ComputeLost("gone")

        for n in range(5):
            sleeper = house.add_sleeper(n)
            if n < 4:
                sleeper.before_step = fail
            sleeper.freeze()
        await asyncio.sleep(31)
        assert house.steps == [("db4", Tier.PAGED, IDLE)]

    on_a_house(tmp_path, test)


def test_under_pressure_the_longest_asleep_go_first(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        for n in range(20):
            house.add_sleeper(n).freeze()
            await asyncio.sleep(0.01)
        house.memory = SHORT
        await asyncio.sleep(1)
        assert house.steps == [(f"db{n}", Tier.PAGED, PRESSURE) for n in range(8)]
        house.memory = PLENTY
        await asyncio.sleep(3)
        assert len(house.steps) == 8
        house.memory = SHORT
        await asyncio.sleep(2)
        assert [name for name, _, _ in house.steps] == [f"db{n}" for n in range(20)]
        await asyncio.sleep(1)
        assert house.steps[20:] == [(f"db{n}", Tier.STOPPED, PRESSURE) for n in range(8)], "stopped only when all are paged"

    on_a_house(tmp_path, test, SleepPolicy(5.0, None, None))


def test_under_pressure_those_with_connections_hide_nobody(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        for n in range(30):
            sleeper = house.add_sleeper(n)
            sleeper.open_connections = 1 if n < 20 else 0
            sleeper.freeze()
        house.memory = SHORT
        await asyncio.sleep(3)
        assert [name for name, _, _ in house.steps] == [f"db{n}" for n in range(20, 30)]

    on_a_house(tmp_path, test, SleepPolicy(5.0, None, None), can_reclaim=False)


def test_the_heap_stays_bounded_whatever_sleepers_do(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        sleepers = [house.add_sleeper(n) for n in range(3)]
        for _ in range(3_400):
            for sleeper in sleepers:
                sleeper.freeze()
            await asyncio.sleep(0.6)  # long enough to be paged
            for sleeper in sleepers:
                assert sleeper.tier is Tier.PAGED
                sleeper.rouse()
            await asyncio.sleep(0.1)
            assert len(house.ladder._heap) <= 100
        assert len(house.steps) == 3 * 3_400

    on_a_house(tmp_path, test, SleepPolicy(0.1, 0.5, 365 * 86400.0))


def test_removed_databases_are_forgotten(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        for n in range(1_000):
            sleeper = house.add_sleeper(n)
            sleeper.freeze()
            sleeper.rouse()
            house.fleet.remove(sleeper.database.id)
        assert len(house.ladder._heap) <= 100
        assert len(house.ladder._queued) <= 100
        assert "queued" in repr(house.ladder)

    on_a_house(tmp_path, test)


def test_choosing_nothing() -> None:
    assert choose_relief([], []) == []
