"""When databases that have a time to live are removed; hours pass in no time."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fleet import House, make_database
from tests.support.virtual import VirtualClock, run
from torpor.compute.compute import Compute
from torpor.control.expiry import Expiry
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import Unavailable


class Nursery:
    """Some databases, and what was removed when."""

    def __init__(self, root: Path) -> None:
        self.house = House(root)
        self.clock = self.house.clock
        self.removed: list[tuple[str, float]] = []
        self.troubles = 0
        self.began = self.clock.monotonic()
        self.expiry = Expiry(self.house.fleet, self.clock, self.house.tasks, self.remove)

    async def remove(self, compute: Compute) -> None:
        if self.troubles:
            self.troubles -= 1
            raise Unavailable("not now")
        self.removed.append((compute.database.label, round(self.clock.monotonic() - self.began)))
        self.house.fleet.remove(compute.database.id)

    def add(self, n: int, in_s: float | None) -> Database:
        expires_at = None if in_s is None else self.clock.time() + in_s
        compute = self.house.fleet.add(replace(make_database(n), expires_at=expires_at))
        self.expiry.watch(compute.database)
        return compute.database


def test_each_at_its_time(tmp_path: Path) -> None:
    async def main() -> None:
        nursery = Nursery(tmp_path)
        nursery.add(1, 3600)
        nursery.expiry.start()
        nursery.add(2, 60)
        nursery.add(3, None)
        nursery.add(4, -5)
        await asyncio.sleep(100)
        nursery.add(5, 50)
        await asyncio.sleep(7200)
        assert nursery.removed == [("db4", 0), ("db2", 60), ("db5", 150), ("db1", 3600)]
        assert len(nursery.house.fleet) == 1
        await nursery.house.close()

    run(main())


def test_what_was_given_another_time(tmp_path: Path) -> None:
    async def main() -> None:
        nursery = Nursery(tmp_path)
        nursery.expiry.start()
        longer, gone, forever = (nursery.add(n, 60) for n in (1, 2, 3))
        again = nursery.house.fleet.update(replace(longer, expires_at=nursery.clock.time() + 600)).database
        nursery.expiry.watch(again)
        nursery.house.fleet.remove(gone.id)
        nursery.expiry.watch(nursery.house.fleet.update(replace(forever, expires_at=None)).database)
        going = nursery.add(4, 60)
        nursery.house.fleet.update(replace(going, state=DatabaseState.DELETING))
        await asyncio.sleep(7200)
        assert nursery.removed == [("db1", 600)]
        await nursery.house.close()

    run(main())


def test_what_can_not_be_removed_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        nursery = Nursery(tmp_path)
        nursery.troubles = 2
        nursery.add(1, 10)
        nursery.expiry.start()
        await asyncio.sleep(1000)
        assert nursery.removed == [("db1", 130)]
        await nursery.house.close()

    run(main())


def test_a_wall_clock_that_jumps_removes_nothing_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        nursery = Nursery(tmp_path)
        nursery.add(1, 3600)
        nursery.expiry.start()
        await asyncio.sleep(10)
        monkeypatch.setattr(VirtualClock, "time", lambda _: 9e9)
        nursery.add(2, None)
        await asyncio.sleep(1000)
        assert nursery.removed == []
        await asyncio.sleep(3000)
        assert nursery.removed == [("db1", 3600)]
        await nursery.house.close()

    run(main())
