"""Holds volumes to their size where the file system can't: measures those of awake computes, and stops what grows.

Three lines, so that nobody is cut off who can still help himself. At its size a database becomes read-only by default: reads and dumps
go on, and whoever says `SET transaction_read_only = off` can delete and vacuum. A tenth over it, all sessions of clients are ended, each
second again while it stays there. A quarter over it, which takes someone who doesn't want to be held, the database is stopped, and stays
so until its size is raised. Below the line again, everything is lifted by itself.

Where the kernel holds volumes itself (`storage/quotas.py`), the first line is the same, and beyond it PostgreSQL says at once that the
disk is full. The log may be larger then before the other two lines come, since it has room of its own.

A pool that is full makes all databases read-only by default in the same way (`control/pool.py` does the rest).

Files count as well as bytes: an inode for 4 kB at least, so that masses of tiny files come to a limit before the host has no inode left.

Concurrency: one task for the rounds, and one for each volume that is being looked at: a walk over millions of files, or a PostgreSQL that
doesn't answer, holds up no other volume. Volumes are walked only while the pool as a whole grows. How soon one is looked at again depends
on how far it could have got meanwhile. A sleeper costs nothing.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from torpor.base.clock import Clock
from torpor.base.files import read_untrusted
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.compute.service import READ_ONLY_MARK
from torpor.model.errors import DiskFull, TorporError
from torpor.model.names import DatabaseId
from torpor.model.size import MIB
from torpor.model.sleep import SleepReason, Tier
from torpor.storage.quotas import LOG_ROOM_BYTES, stopping_point
from torpor.storage.room import PoolLevel
from torpor.storage.volumes import INODE_BYTES, Volumes

log = get_logger(__name__)

_EVERY_S = 1.0
_FIRST_S = 3.0  # after a wake: many are short, and a walk takes some milliseconds
_RARELY_S = 15.0
_FASTEST_BYTES_PER_S = 200 * MIB  # how fast a volume is taken to grow
_POOL_GROWTH_BYTES = 1 * MIB
_AGAIN_BELOW = 0.95


class Fullness(IntEnum):
    """How full a volume is, by what is done about it."""

    ROOM = 0
    FULL = 1  # read-only by default
    OVER = 2  # sessions are ended
    WAY_OVER = 3  # stopped


@dataclass(slots=True)
class _Watched:
    woke_at: float
    look_at: float
    looked: bool = False
    is_being_looked_at: bool = False
    fullness: Fullness = Fullness.ROOM
    read_only: bool | None = None  # whether PostgreSQL was told; None until its own file was asked
    is_held: bool = False

    def wants_read_only(self, pool: PoolLevel) -> bool:
        """Whether writing has to end, for want of room in the volume or in the pool."""
        return bool(self.fullness) or pool is not PoolLevel.ROOM


def fullness(used_bytes: int, size_bytes: int, before: Fullness = Fullness.ROOM, is_held: bool = False) -> Fullness:
    """How full a volume is. Pure. Full ends only clearly below its size. `is_held`: by the kernel."""
    beyond = used_bytes - (LOG_ROOM_BYTES if is_held else 0)
    if beyond > stopping_point(size_bytes):
        return Fullness.WAY_OVER
    if beyond > size_bytes * 1.1 + 64 * MIB:
        return Fullness.OVER
    if used_bytes >= size_bytes or (before is not Fullness.ROOM and used_bytes > size_bytes * _AGAIN_BELOW):
        return Fullness.FULL
    return Fullness.ROOM


def look_again_in(used_bytes: int, size_bytes: int) -> float:
    """Seconds in which a volume can't have passed its size, between one and fifteen. Pure."""
    return min(max((size_bytes - used_bytes) / _FASTEST_BYTES_PER_S, _EVERY_S), _RARELY_S)


class DiskWatch:
    """Watches the volumes of all awake computes."""

    def __init__(
        self,
        awake: Callable[[], Iterable[Compute]],
        volumes: Volumes,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        self._awake = awake
        self._volumes = volumes
        self._clock = clock
        self._tasks = tasks
        self._watched: dict[Compute, _Watched] = {}
        self._pool_used = -1
        self._pool_was_full = False
        self._read_only: set[Compute] = set()

    def __repr__(self) -> str:
        return f"<DiskWatch {len(self._watched)} awake>"

    def start(self) -> None:
        """Begin to work."""
        self._tasks.spawn_endless(self._run, "watch disks")

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """One round: begins to look at those whose time has come, and waits for them for a second at most."""
        now, pool = self._clock.monotonic(), self._volumes.level
        self._pool_was_full |= pool is not PoolLevel.ROOM
        first_s = 0.0 if self._pool_was_full else _FIRST_S  # those that slept meanwhile may not, or may again
        watched = {}
        for compute in self._awake():
            known = self._watched.get(compute)
            watched[compute] = (
                known if known is not None and known.woke_at == compute.tier_since else _Watched(compute.tier_since, now + first_s)
            )
        self._watched = watched
        grown, begun = self._pool_has_grown(), []
        for compute, known in watched.items():
            told = known.read_only is None or known.read_only == known.wants_read_only(pool)
            if known.is_being_looked_at or (now < known.look_at and told):
                continue
            # Somebody else's deletes can hide growth from the pool's figure: the longest pause is kept whatever it says.
            if grown or known.fullness or not told or not known.looked or now >= known.look_at + _RARELY_S:
                known.is_being_looked_at = True
                begun.append(self._tasks.spawn(self._measure(compute, known), f"look at the disk of {compute.database.label}"))
        if begun:
            await asyncio.wait(begun, timeout=_EVERY_S)

    def _pool_has_grown(self) -> bool:
        stat = os.statvfs(self._volumes.root)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize + (stat.f_files - stat.f_ffree) * INODE_BYTES
        before = self._pool_used
        grown = before < 0 or used > before + _POOL_GROWTH_BYTES
        if grown or used < before:
            self._pool_used = used
        return grown

    async def _measure(self, compute: Compute, known: _Watched) -> None:
        try:
            await self._look_at(compute, known)
        finally:
            known.is_being_looked_at = False

    async def _look_at(self, compute: Compute, known: _Watched) -> None:
        used = await self._volumes.measure(compute.database.id)
        size = compute.size.disk_bytes
        known.looked = True
        before, known.fullness = known.fullness, fullness(used, size, known.fullness, known.is_held)
        known.is_held = await self._volumes.limit(compute.database.id, size, bool(known.fullness))
        known.look_at = self._clock.monotonic() + look_again_in(used, size)
        if compute.tier is not Tier.AWAKE:
            return
        try:
            await self._act(compute, known, used, size, before)
        except TorporError as error:  # it fell asleep, or ended: the next look sees
            log.warning("disk size could not be held", database=compute.database.label, cause=error.message)

    async def _act(self, compute: Compute, known: _Watched, used: int, size: int, before: Fullness) -> None:
        full = known.fullness
        if full is not before:
            log.warning("disk", database=compute.database.label, state=full.name.lower(), used_bytes=used, size_bytes=size)
        if full is Fullness.WAY_OVER:
            compute.refusal = DiskFull(
                f"database {compute.database.label} was stopped: its volume has grown to {used // MIB} MB, its size is {size // MIB} MB",
                f"give it more: `torpor size {compute.database.label} --disk …`",
            )
            if not compute.exports:  # they need it to run; clients are kept out
                await compute.stop(SleepReason.DISK_FULL)
                return
        if known.read_only is None:
            known.read_only = await asyncio.to_thread(self._is_marked, compute.database.id)
        wanted = known.wants_read_only(self._volumes.level)
        if known.read_only == wanted and full < Fullness.OVER:
            return
        if known.read_only != wanted:
            await self._set_read_only(compute, wanted)
            known.read_only = wanted
        if full >= Fullness.OVER:
            await (await compute.live().service()).end_clients()

    async def _set_read_only(self, compute: Compute, on: bool) -> None:
        await (await compute.live().service()).set_read_only(on)
        (self._read_only.add if on else self._read_only.discard)(compute)

    def read_only_sleepers(self) -> list[Compute]:
        """Those that were told to be read-only, and have fallen asleep since."""
        return [compute for compute in self._read_only if compute.tier is not Tier.AWAKE]

    async def lift(self, compute: Compute) -> None:
        """Let one write again, unless its own volume is full. Only within `awake`. Raises ComputeLost."""
        if fullness(await self._volumes.measure(compute.database.id), compute.size.disk_bytes) is Fullness.ROOM:
            await self._set_read_only(compute, False)

    def _is_marked(self, id: DatabaseId) -> bool:
        try:
            return READ_ONLY_MARK in read_untrusted(self._volumes.data(id) / "postgresql.auto.conf")
        except OSError:
            return False
