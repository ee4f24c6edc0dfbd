"""When drills are begun, on whom, and what is kept of them; days pass in no time. What one does, tests/integration/test_drills.py shows."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.fleet import House, make_database
from tests.support.virtual import run
from torpor.catalog.audit import AuditRecords
from torpor.catalog.drills import DrillRecords
from torpor.catalog.histories import HistoryRecords
from torpor.compute.checking import Damaged
from torpor.control.audit import TORPOR, Audit
from torpor.control.drills import AGAIN_S, Drills
from torpor.control.history import Histories
from torpor.control.jobs import Jobs, Progress
from torpor.control.restore import Restores
from torpor.model.database import Database, DatabaseState
from torpor.model.drills import DrillCause, DrillResult
from torpor.model.errors import Conflict, HistoryUnreachable, TooManyJobs, TorporError
from torpor.model.history import History
from torpor.model.jobs import JobState
from torpor.model.names import DatabaseId

HOUR_S = 3600.0


class OnlyHistories:
    """Histories of which nothing is asked but that they are there."""

    def history(self, id: DatabaseId) -> History:
        return History(id, b"")


class Ground:
    """Some databases with histories, and what becomes of each drill."""

    def __init__(self, root: Path, databases: int = 2, every_s: float | None = HOUR_S) -> None:
        self.house = house = House(root)
        self.clock = house.clock
        histories = HistoryRecords(house.catalog.connection)
        self.databases = [make_database(number) for number in range(1, databases + 1)]
        for database in self.databases:
            house.catalog.add_database(database)
            house.fleet.add(database)
            histories.add(database.id, b"key")
            histories.save([History(database.id, b"key", 1, None, None, 1.0, 1)])
        self.audit = Audit(AuditRecords(house.catalog.connection), self.clock, root / "audit", None)
        self.jobs = Jobs(self.audit, self.clock)
        self.records = DrillRecords(house.catalog.connection)
        self.begun: list[tuple[float, str]] = []
        self.outcome: Callable[[Database], TorporError | None] = lambda _database: None
        self.lasts_s = 60.0
        self.at_once = 0
        ground = self

        class Scripted(Drills):
            async def _try(self, database: Database, report: Any, progress: Progress) -> None:
                ground.begun.append((ground.clock.monotonic(), database.label))
                ground.at_once += 1
                try:
                    assert ground.at_once == 1, "one at a time"
                    await asyncio.sleep(ground.lasts_s)
                    if (error := ground.outcome(database)) is not None:
                        raise error
                finally:
                    ground.at_once -= 1

        self.drills = Scripted(
            self.records, cast(Restores, None), cast(Histories, OnlyHistories()), house.fleet, house.around, self.jobs, every_s,
            self.clock, house.tasks, random.Random(11),
        )  # fmt: skip

    async def close(self) -> None:
        await self.jobs.stop()
        await self.house.close()


def test_one_every_so_often_and_each_in_turn(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path, 3)
        ground.drills.start()
        await asyncio.sleep(24 * HOUR_S)
        assert 18 <= len(ground.begun) <= 30
        assert {name for _, name in ground.begun} == {"db1", "db2", "db3"}
        pauses = [later - earlier for (earlier, _), (later, _) in zip(ground.begun, ground.begun[1:], strict=False)]
        assert all(0.7 * HOUR_S <= pause <= 1.3 * HOUR_S + 120 for pause in pauses)
        assert ground.drills.counted == {DrillResult.PASSED: len(ground.begun)}
        assert ground.drills.all(None).verified == 3
        await ground.close()

    run(main())


def test_never(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path, every_s=None)
        ground.drills.start()
        await asyncio.sleep(1000 * HOUR_S)
        assert not ground.begun and ground.drills.all(None).every_s is None
        await ground.close()

    run(main())


def test_nobody_has_a_history(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path, 0)
        ground.drills.start()
        await asyncio.sleep(10 * HOUR_S)
        assert not ground.begun
        await ground.close()

    run(main())


def test_what_was_not_possible_is_tried_again_soon(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path, 1)
        ground.outcome = lambda _database: HistoryUnreachable("no answer")
        ground.drills.start()
        await asyncio.sleep(10 * HOUR_S)
        pauses = [later - earlier for (earlier, _), (later, _) in zip(ground.begun, ground.begun[1:], strict=False)]
        assert len(pauses) > 20 and all(0.7 * AGAIN_S <= pause <= 1.3 * AGAIN_S + 120 for pause in pauses)
        (drill, *_) = ground.drills.of(ground.databases[0].id, "db1").drills
        assert (drill.result, drill.cause) == (DrillResult.NOT_POSSIBLE, DrillCause.STORE)
        found = ground.drills.all(None)
        assert (found.verified, found.failing, found.unverified) == (0, 0, 1)
        assert ground.drills.last(ground.databases[0].id) is None and ground.drills.failing == 0
        ground.outcome = lambda _database: None
        await asyncio.sleep(2 * HOUR_S)
        assert ground.drills.all(None).verified == 1
        await ground.close()

    run(main())


def test_one_that_is_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path)
        one, other = (database.id for database in ground.databases)
        ground.outcome = lambda database: Damaged(DrillCause.AMCHECK, "crooked") if database.id == one else None
        first, second = ground.drills.drill(one, "host"), ground.drills.drill(other, "host")
        await asyncio.sleep(1)
        with pytest.raises(Conflict, match="under way"):
            ground.drills.drill(one, "host")
        failed, passed = await ground.jobs.wait(first.id), await ground.jobs.wait(second.id)
        assert failed.state is JobState.FAILED and failed.error is not None and failed.error.kind == "drill_failed"
        assert "crooked" in failed.error.message and failed.error.hint
        assert passed.state is JobState.DONE
        assert ground.drills.failing == 1
        (newest, _) = ground.drills.all(None).drills
        assert newest.database == "db2"
        again = ground.drills.drill(one, "host")
        ground.outcome = lambda _database: None
        assert (await ground.jobs.wait(again.id)).state is JobState.DONE and ground.drills.failing == 0
        await ground.close()

    run(main())


def test_no_workspace_has_all_the_turns(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path, 6)
        ids = [database.id for database in ground.databases]
        for id in ids[:3]:
            ground.drills.drill(id, "host")
        await asyncio.sleep(1)
        with pytest.raises(TooManyJobs, match="under way"):
            ground.drills.drill(ids[3], "host")
        own = ground.drills.drill(ids[4], TORPOR)
        await ground.jobs.wait(own.id)
        assert (await ground.jobs.wait(ground.drills.drill(ids[3], "host").id)).state is JobState.DONE
        await ground.close()

    run(main())


def test_another_torpor_knows_what_this_one_found(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path)
        ground.outcome = lambda _database: Damaged(DrillCause.CHECKSUMS, "rotten")
        await ground.jobs.wait(ground.drills.drill(ground.databases[0].id, "host").id)
        again = Drills(
            ground.records, cast(Restores, None), cast(Histories, OnlyHistories()), ground.house.fleet, ground.house.around, ground.jobs,
            None, ground.clock, ground.house.tasks,
        )  # fmt: skip
        assert again.failing == 1 and again.all(None).failing == 1
        again.forget(ground.databases[0].id)
        assert again.failing == 0
        await ground.close()

    run(main())


def test_removed_or_cut_off_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        ground = Ground(tmp_path)
        one, other = ground.databases
        job = ground.drills.drill(one.id, "host")
        await asyncio.sleep(1)
        ground.house.catalog.set_state(one.id, DatabaseState.DELETING)
        ground.house.fleet.remove(one.id)
        ended = await ground.jobs.wait(job.id)
        assert ended.error is not None and ended.error.kind == "conflict"
        with pytest.raises(Conflict, match="removed"):
            ground.drills.drill(one.id, "host")
        job = ground.drills.drill(other.id, "host")
        await asyncio.sleep(1)
        assert (await ground.jobs.cancel(job.id, None)).state is JobState.CANCELLED
        assert ground.drills.of(other.id, "db2").drills == () and not ground.drills.counted
        assert (await ground.jobs.wait(ground.drills.drill(other.id, "host").id)).state is JobState.DONE
        await ground.close()

    run(main())
