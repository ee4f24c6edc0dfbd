"""Tasks that are owned: they end with their owner, and their failures are seen."""

import asyncio
import itertools

import pytest
from structlog.testing import capture_logs

from tests.support import virtual
from torpor.base.clock import Clock, SystemClock
from torpor.base.tasks import TaskOwner


async def test_stop_cancels_and_waits_for_the_end() -> None:
    owner = TaskOwner("test")
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # tidying up takes a turn of the loop
            ended.append("work")

    task = owner.spawn(work(), "work")
    await asyncio.sleep(0)
    await owner.stop()
    assert ended == ["work"]
    assert task.cancelled()
    assert task.get_name() == "test:work"


def test_stop_first_waits_for_those_that_end_by_themselves() -> None:
    async def main() -> tuple[bool, bool, float]:
        owner = TaskOwner("test")
        brief = owner.spawn(asyncio.sleep(3), "brief")
        long = owner.spawn(asyncio.sleep(1000), "long")
        began = asyncio.get_running_loop().time()
        await owner.stop(grace_s=5)
        return brief.cancelled(), long.cancelled(), asyncio.get_running_loop().time() - began

    brief_cancelled, long_cancelled, elapsed_s = virtual.run(main())
    assert (brief_cancelled, long_cancelled) == (False, True)
    assert elapsed_s == pytest.approx(5)


def test_the_grace_ends_with_the_last_task() -> None:
    async def main() -> float:
        owner = TaskOwner("test")
        owner.spawn(asyncio.sleep(2), "brief")
        began = asyncio.get_running_loop().time()
        await owner.stop(grace_s=60)
        await owner.stop(grace_s=60)
        return asyncio.get_running_loop().time() - began

    assert virtual.run(main()) == pytest.approx(2)


async def test_nothing_is_spawned_after_stop() -> None:
    owner = TaskOwner("test")
    await owner.stop()
    with pytest.raises(RuntimeError, match="test is stopping"):
        owner.spawn(asyncio.sleep(0), "late")  # a coroutine that is never awaited would be a warning, and so an error
    assert "stopping" in repr(owner)


async def test_a_task_may_stop_its_own_owner() -> None:
    owner = TaskOwner("test")

    async def quit() -> str:
        await owner.stop()
        return "done"

    assert await owner.spawn(quit(), "quit") == "done"


async def test_a_failure_that_nobody_awaits_is_logged_once() -> None:
    owner = TaskOwner("test")

    async def fail() -> None:
        raise ValueError("boom")

    with capture_logs() as logs:
        task = owner.spawn(fail(), "fail")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert [(line["event"], line["task"], line["error"]) for line in logs] == [("task failed", "test:fail", "ValueError('boom')")]
    assert "tasks=0" in repr(owner)
    await owner.stop()


async def test_being_cancelled_is_no_failure() -> None:
    owner = TaskOwner("test")
    with capture_logs() as logs:
        owner.spawn(asyncio.sleep(1000), "sleep")
        await owner.stop()
        await asyncio.sleep(0)
    assert logs == []


def test_an_endless_task_comes_back_after_a_pause_that_doubles() -> None:
    async def main() -> list[float]:
        owner = TaskOwner("test")
        times: list[float] = []

        async def fail() -> None:
            times.append(asyncio.get_running_loop().time())
            raise OSError("no")

        owner.spawn_endless(fail, "fail")
        await asyncio.sleep(120)
        await owner.stop()
        return [round(after - before, 1) for before, after in itertools.pairwise(times)]

    with capture_logs() as logs:
        pauses = virtual.run(main())
    assert pauses[:10] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert {(line["event"], line["task"]) for line in logs} == {("endless task failed", "test:fail")}


def test_an_endless_task_that_recovers_starts_its_pauses_anew() -> None:
    async def main() -> list[float]:
        owner = TaskOwner("test")
        times: list[float] = []

        async def flaky() -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) in (1, 2, 4):
                raise OSError("no")
            await asyncio.sleep(0 if len(times) == 3 else 1000)

        owner.spawn_endless(flaky, "flaky")
        await asyncio.sleep(10)
        await owner.stop()
        return [round(after - before, 1) for before, after in itertools.pairwise(times)]

    with capture_logs():
        assert virtual.run(main()) == [0.1, 0.2, 0.0, 0.1]


async def test_the_system_clock() -> None:
    clock: Clock = SystemClock()
    before, wall = clock.monotonic(), clock.time()
    await clock.sleep(0.01)
    assert clock.monotonic() - before >= 0.01
    assert clock.time() >= wall > 1_600_000_000
