"""Exports that Torpor makes itself: they work whenever PostgreSQL can be started, whatever keeps the owner's own programs out.

While a database is exported that was stopped since its volume is far beyond its size, no client gets in, and it isn't stopped again
before the export has ended (`control/disk.py`).

Concurrency: an Export belongs to one reader. Bounded: AT_ONCE of them, IN_DATABASE of one database.
"""

import shutil
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from torpor.compute.compute import Compute
from torpor.compute.dumping import Dump, meeting_places
from torpor.compute.surroundings import Surroundings
from torpor.model.errors import DiskFull, TooManyJobs
from torpor.model.exports import ExportOptions
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepReason, WakeReason

AT_ONCE = 8
IN_DATABASE = 2


class Exporter:
    """Makes exports of the computes of one Torpor."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        shutil.rmtree(meeting_places(around), ignore_errors=True)  # what a Torpor left that was killed
        self._running: Counter[DatabaseId] = Counter()

    def __repr__(self) -> str:
        return f"<Exporter running={self._running.total()}>"

    async def open(self, compute: Compute, options: ExportOptions) -> "Export":
        """Begin one: its first bytes are there when this returns. Raises TooManyJobs, DumpFailed, and what a wake raises."""
        id = compute.database.id
        if self._running.total() >= AT_ONCE or self._running[id] >= IN_DATABASE:
            raise TooManyJobs(f"{self._running.total()} exports are under way, {self._running[id]} of this database", "wait for one")
        async with AsyncExitStack() as opened:
            opened.push_async_callback(_put_back, compute)
            self._running[id] += 1
            compute.exports += 1
            opened.callback(self._ended, compute)
            await opened.enter_async_context(compute.awake(WakeReason.MAINTENANCE, "export"))
            dump = await Dump.open(compute, self._around, compute.database.label, options.arguments())
            opened.callback(dump.close)
            parts = dump.parts()
            first = await anext(parts, b"")
            return Export(first, parts, opened.pop_all(), self._around)

    def _ended(self, compute: Compute) -> None:
        compute.exports -= 1
        self._running[compute.database.id] -= 1
        if not self._running[compute.database.id]:
            del self._running[compute.database.id]


async def _put_back(compute: Compute) -> None:
    """What was started for an export only is stopped after it."""
    if not compute.exports and isinstance(compute.refusal, DiskFull):
        await compute.stop(SleepReason.DISK_FULL)


class Export:
    """A dump that goes on, and the compute that is kept awake for it."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], opened: AsyncExitStack, around: Surroundings) -> None:
        self._first = first
        self._rest = rest
        self._opened: AsyncExitStack | None = opened
        self._around = around

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """All of it. Raises DumpFailed when it comes to an end that isn't that of the dump."""
        async with aclosing(self._rest):
            yield self._first
            async for part in self._rest:
                yield part

    def close(self) -> None:
        """End it, wherever it is. Idempotent."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._around.tasks.spawn(opened.aclose(), "end of an export")
