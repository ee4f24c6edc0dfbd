"""Keeps the pool from running out of room: PostgreSQL crashes when it can't write its log, and a crash needs room to recover from.

Three lines (`storage/room.py`). Below the first, nothing is made any more (create, branch and restore say so), and every database is
read-only by default: reads and dumps go on, and so do deletes for who says `SET transaction_read_only = off`. Below the second,
transactions that have written and go on are ended, again at every look. Below the third, what runs is killed, and nothing is started:
what was committed is in the log, which each finds at its next start. When there is room again all of it is lifted, also for those that
have fallen asleep meanwhile.

Concurrency: one task, which looks as often as the pool could fill up. A look is one system call while there is room.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.control.disk import DiskWatch
from torpor.model.errors import TorporError
from torpor.model.sleep import SleepReason, WakeReason
from torpor.storage.room import PoolLevel, Room
from torpor.storage.volumes import Volumes

log = get_logger(__name__)

_ACTS_S = 1.0  # so long a look waits for those that it told something
_END_WRITERS = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
    "WHERE backend_xid IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()"
)


class PoolWatch:
    """Watches the room of the pool for all computes."""

    def __init__(self, awake: Callable[[], Iterable[Compute]], volumes: Volumes, disks: DiskWatch, clock: Clock, tasks: TaskOwner) -> None:
        self._awake = awake
        self._volumes = volumes
        self._disks = disks
        self._clock = clock
        self._tasks = tasks
        self._busy: set[Compute] = set()

    def __repr__(self) -> str:
        return f"<PoolWatch {self._volumes.level.name.lower()}>"

    def start(self) -> None:
        """Begin to work."""
        self._tasks.spawn_endless(self._run, "watch the pool")

    async def _run(self) -> None:
        while True:
            room = await self.look()
            await self._clock.sleep(room.look_again_s)

    async def look(self) -> Room:
        """One look, and what follows from it."""
        before = self._volumes.level
        room = self._volumes.room()
        level = self._volumes.level
        if level is not before:
            log.warning("pool", state=level.name.lower(), free_bytes=room.free_bytes, kept_bytes=room.kept_bytes)
            await self._disks.look()
            if level is PoolLevel.ROOM:
                self._tasks.spawn(self._lift_sleepers(), "lift what the full pool had forbidden")
        if level in (PoolLevel.SHORT, PoolLevel.OUT):
            act = self._end_writers if level is PoolLevel.SHORT else self._kill
            acts = [self._tasks.spawn(self._tell(compute, act), "make room") for compute in self._awake() if compute not in self._busy]
            if acts:
                await asyncio.wait(acts, timeout=_ACTS_S)
        return room

    async def _tell(self, compute: Compute, act: Callable[[Compute], Awaitable[None]]) -> None:
        self._busy.add(compute)
        try:
            await act(compute)
        except TorporError as error:  # it fell asleep, or ended
            log.warning("a database could not be kept from writing", database=compute.database.label, cause=error.message)
        finally:
            self._busy.discard(compute)

    async def _end_writers(self, compute: Compute) -> None:
        await (await compute.live().service()).query(_END_WRITERS)

    async def _kill(self, compute: Compute) -> None:
        log.warning("stopped, as the pool is full", database=compute.database.label)
        await compute.kill(SleepReason.DISK_FULL)

    async def _lift_sleepers(self) -> None:
        for compute in self._disks.read_only_sleepers():
            if self._volumes.level is not PoolLevel.ROOM:
                return
            try:
                async with compute.awake(WakeReason.MAINTENANCE, "the pool has room again"):
                    await self._disks.lift(compute)
            except TorporError as error:
                log.warning("a database is still read-only", database=compute.database.label, cause=error.message)
