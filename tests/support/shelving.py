"""Archives a database, or brings it back, and is killed (SIGKILL) at the step that it is told: `python -m tests.support.shelving`.

Reads lines of `<data directory> <archive|bring_back> <step>`, does each in a process of its own, and answers with how that ended (-9).
There is no PostgreSQL: catalog, volumes, store and jobs are real, the compute is a stopped one.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.buckets import FaultyBucket
from tests.support.fleet import House, make_database
from torpor.base.clock import SystemClock
from torpor.catalog.archived import ArchivedRecords
from torpor.catalog.audit import AuditRecords
from torpor.compute.compute import Compute
from torpor.control import archiving
from torpor.control.archiving import Archiving
from torpor.control.audit import Audit
from torpor.control.claims import Claims
from torpor.control.jobs import Jobs
from torpor.model.database import Database
from torpor.model.jobs import JobView
from torpor.model.names import DatabaseId
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.directory import DirectoryBucket
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

DATABASE = make_database(1)


class Shelves:
    """A house that archives, as it stands on a data directory, with one database."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.house = House(root, SystemClock())
        self.records = ArchivedRecords(self.house.catalog.connection)
        if DATABASE.id not in {database.id for database in self.house.catalog.databases()}:
            self.house.catalog.add_database(DATABASE)
        self.compute: Compute = self.house.fleet.add(DATABASE)
        self.bucket = FaultyBucket(DirectoryBucket(root / "history", executor))
        self.jobs = Jobs(Audit(AuditRecords(self.house.catalog.connection), self.house.clock, root / "audit", None), self.house.clock)
        self.log_is_stored = True
        archive = Archive(Store(self.bucket, sleep=_at_once), MasterKey(bytes(32)), executor)
        house = self.house
        self.archiving = Archiving(
            archive, self.records, house.fleet, house.volumes, self.jobs, self._log_is_stored, Claims(), house.clock, house.tasks
        )
        self.archiving.reconcile()

    async def _log_is_stored(self, _id: DatabaseId) -> bool:
        return self.log_is_stored

    async def archive(self) -> JobView:
        """Until the job has ended."""
        return await self.jobs.wait(self.archiving.archive(DATABASE.id, "test").id)

    async def bring_back(self) -> None:
        """As a start does it, and until nothing is in the store any more."""
        await self.archiving.bring_back(DATABASE, _nothing)
        await self.settled()

    async def settled(self) -> None:
        """Until nothing is left to be removed."""
        while self.records.all():  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.001)

    @property
    def data(self) -> Path:
        """PGDATA."""
        return self.house.volumes.data(DATABASE.id)


async def _at_once(_pause_s: float) -> None:
    pass


async def _nothing() -> None:
    pass


@asynccontextmanager
async def shelves(root: Path) -> AsyncIterator[Shelves]:
    """What a Torpor finds there."""
    with ThreadPoolExecutor(4) as executor:
        found = Shelves(root, executor)
        try:
            yield found
        finally:
            await found.jobs.stop()
            await found.house.close()


async def _run(root: Path, action: str, step: str) -> None:
    def reached(step_done: archiving.ArchiveStep, database: Database) -> None:
        if step_done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    archiving._reached = reached  # type: ignore[assignment]  # names of parameters
    async with shelves(root) as found:
        await (found.archive() if action == "archive" else found.bring_back())


def main() -> None:
    """Until its input ends."""
    for line in sys.stdin:
        root, action, step = line.split()
        if (child := os.fork()) == 0:
            asyncio.run(_run(Path(root), action, step))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
