"""The lowest tier: a database's volume goes to the store of the history, compressed and encrypted, and comes back at its next wake.

Going, step by step (`ArchiveStep`): the intent is recorded, the database stopped, its volume stored, all of it read back and checked, the
catalog says that it is in the store, the volume is removed. Whoever wakes it before the last but one has it as ever, and what was stored
goes.

Coming back: the volume is fetched, and appears under its name when it is whole; the catalog says that it is on the pool, PostgreSQL is
started, what is in the store goes.

Whenever Torpor ends, a whole volume that lies on the pool is the database, whatever the catalog says: nothing but the last step of going
removes one, and only after the store was found to have all of it.

Concurrency: on the loop. Going and coming of one database take turns. What can't be removed from the store is tried again each minute.
Safe to cancel.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from weakref import WeakValueDictionary

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.archived import ArchivedRecords
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.lifecycle import ComputeState
from torpor.control.cards import CardKeeper, NoCards
from torpor.control.claims import Claims
from torpor.control.jobs import Jobs, Progress
from torpor.model.archived import Archived, ArchivedState
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import (
    Conflict,
    DatabaseInUse,
    HistoryCorrupt,
    HistoryError,
    HistoryMissing,
    StartTimeout,
    TorporError,
    Unavailable,
)
from torpor.model.jobs import JobView
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepReason, Tier, WakeReason
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import BaseFacts
from torpor.storage.volumes import Volumes

log = get_logger(__name__)

_TEND_EVERY_S = 60.0
_GIVING_UP_S = 5.0
_SEE_LOG = "the daemon's log says more"
_NUMBER = 1  # the only base of what an archived database leaves in the store


class ArchiveStep(StrEnum):
    """What has just been done, on the way there and back."""

    RECORDED = "recorded"
    STOPPED = "stopped"
    STORED = "stored"
    VERIFIED = "verified"
    COMMITTED = "committed"
    REMOVED = "removed"
    FETCHED = "fetched"
    BACK = "back"
    FORGOTTEN = "forgotten"


class Archiving:
    """All databases that are archived, and those on the way."""

    def __init__(
        self,
        archive: Archive | None,
        records: ArchivedRecords,
        fleet: Fleet,
        volumes: Volumes,
        jobs: Jobs,
        log_is_stored: Callable[[DatabaseId], Awaitable[bool]],
        claims: Claims,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        """`log_is_stored` says of a stopped database whether its history needs nothing of its volume any more."""
        self._archive = archive
        self._records = records
        self._fleet = fleet
        self._volumes = volumes
        self._jobs = jobs
        self._log_is_stored = log_is_stored
        self._claims = claims
        self._clock = clock
        self._tasks = tasks
        self.cards: CardKeeper = NoCards()
        self._turns: WeakValueDictionary[DatabaseId, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Archiving {'nowhere' if self._archive is None else self._archive.store.description}>"

    def holds(self, id: DatabaseId) -> bool:
        """Whether a database's bytes are in the store."""
        found = self._records.get(id)
        return found is not None and found.state is ArchivedState.ARCHIVED

    def stored_bytes(self, id: DatabaseId) -> int | None:
        """What an archived database takes in the store; None for others."""
        found = self._records.get(id)
        return found.stored_bytes if found is not None and found.state is ArchivedState.ARCHIVED else None

    def reconcile(self) -> None:
        """Once at start, when the fleet is known and nothing is woken yet: what lies on the pool is used, the others are in the store."""
        on_disk = self._volumes.ids()
        for archived in self._records.all():
            if archived.state is not ArchivedState.ARCHIVED:
                continue
            if archived.id in on_disk:
                self._records.set_back(archived.id)
            else:
                self._fleet.set_archived(archived.id, True, archived.at)

    def start(self) -> None:
        """Begin to work."""
        self._tasks.spawn_endless(self._tend, "tend what was archived")

    # -- there

    def archive(self, id: DatabaseId, by: str) -> JobView:
        """Archive a database, as a job. Raises Conflict without a store, or when it is archived or claimed, and TooManyJobs."""
        if (compute := self._fleet.get(id)) is None:
            raise Conflict("it is being removed")
        if self._archive is None:
            raise Conflict("this Torpor has no store", "the setting history_store says where: a directory, or s3://bucket/prefix")
        if compute.tier is Tier.ARCHIVED:
            raise Conflict(f"{compute.database.label} is archived already")

        async def work(progress: Progress) -> dict[str, str]:
            stored = await self._go(compute, progress)
            return {"size_bytes": str(stored.size_bytes), "stored_bytes": str(stored.stored_bytes)}

        return self._jobs.start("archive", compute.database, work, by, self._claims.take("archived", compute))

    async def _go(self, compute: Compute, progress: Progress) -> Archived:
        id = compute.database.id
        async with self._turn(id):
            if (left := self._records.get(id)) is not None:
                if left.state is ArchivedState.ARCHIVED:
                    raise Conflict(f"{compute.database.label} is archived already")
                await self._forget(id)  # it came back a moment ago
            await _check_unused(compute)
            assert self._archive is not None
            self._records.begin(id, self._archive.new_key(id), self._archive.store.description, self._clock.time())
            _reached(ArchiveStep.RECORDED, compute.database)
            try:
                await self._store(compute, progress)
            except BaseException:
                await asyncio.shield(self._give_up(id))
                raise
            # It is in the store, and nothing but the store has it: a failure from here on is put right by the next start.
            self._fleet.set_archived(id, True, self._clock.time())
            self.cards.touch(id)
            _reached(ArchiveStep.COMMITTED, compute.database)
            await _finish(self._tasks.spawn(self._volumes.remove(id), f"remove the volume of {compute.database.label}"))
            _reached(ArchiveStep.REMOVED, compute.database)
            archived = self._records.get(id)
            if archived is None:
                raise Conflict(f"{compute.database.label} was removed meanwhile")
            log.info("archived", database=compute.database.label, size_bytes=archived.size_bytes, stored_bytes=archived.stored_bytes)
            return archived

    async def _store(self, compute: Compute, progress: Progress) -> None:
        """Until the catalog says that it is in the store."""
        database = compute.database
        if compute.tier is not Tier.STOPPED or compute.is_moving:
            progress(0, None, "bytes", "stopping")
            await compute.sleep(Tier.STOPPED, SleepReason.API)
        if not await self._log_is_stored(database.id):
            raise Unavailable(f"the log of {database.label} isn't all in its history yet", "try again in a moment; see `torpor history`")
        moves = compute.moves

        def still() -> bool:
            return compute.moves == moves and compute.state is ComputeState.STOPPED and not compute.is_moving

        def check() -> None:
            if not still() or compute.database.state is not DatabaseState.READY:
                raise Conflict(f"{database.label} was woken, or removed, while it was being archived", "archive it when nobody uses it")

        def tell(note: str) -> Callable[[int, int], None]:
            def told(done: int, total: int) -> None:
                check()
                progress(done, total, "bytes", note)

            return told

        check()
        _reached(ArchiveStep.STOPPED, database)
        repository = self._repository(database.id)
        facts = BaseFacts(1, 0, 0, self._clock.time(), database.major)
        try:
            base = await repository.put_base(self._volumes.data(database.id), facts, progress=tell("storing"))
        except OSError as error:
            check()
            raise Unavailable(f"the volume of {database.label} can't be read: {error.strerror}") from error
        except Unavailable:
            check()  # a file that changed, since it was woken
            raise
        _reached(ArchiveStep.STORED, database)
        await repository.verify(base.number, tell("reading back"))
        _reached(ArchiveStep.VERIFIED, database)
        await self.cards.ensure(database.id)  # it has the key: what is in the store must be of use without this machine
        check()
        # From here to `set_archived` of the fleet nothing is awaited, so nobody can start it in between.
        self._records.set_archived(database.id, self._clock.time(), base.size_bytes, base.stored_bytes)

    async def _give_up(self, id: DatabaseId) -> None:
        with contextlib.suppress(TorporError, TimeoutError):  # then it is tried again
            async with asyncio.timeout(_GIVING_UP_S):
                await self._forget(id)

    # -- and back

    async def bring_back(self, database: Database, let_others: Callable[[], Awaitable[None]]) -> None:
        """Have its volume on the pool, if it is in the store. Called before a start; calls `let_others` first. All or nothing.

        Raises HistoryUnreachable, HistoryCorrupt and the like, PoolFull, and Unavailable when this Torpor has no store.
        """
        await let_others()
        async with self._turn(database.id):
            archived = self._records.get(database.id)
            if archived is None or archived.state is not ArchivedState.ARCHIVED:
                return
            if self._archive is None:
                log.error("what is archived can't be fetched", database=database.label, store=archived.store, cause="history_store is none")
                raise Unavailable(f"{database.label} is archived, and this Torpor has no store", _SEE_LOG)
            log.info("fetching what was archived", database=database.label, size_bytes=archived.size_bytes)
            await self._volumes.make(database.id, database.uid, lambda data: self._fetch(archived, database, data))
            _reached(ArchiveStep.FETCHED, database)
            self._records.set_back(database.id)
            self._fleet.set_archived(database.id, False, self._clock.time())
            self.cards.touch(database.id)
            _reached(ArchiveStep.BACK, database)
        self._tasks.spawn(self._forget_later(database.id), f"forget what was archived of {database.label}")

    async def _fetch(self, archived: Archived, database: Database, data: Path) -> None:
        try:
            await self._repository(archived.id).get_base(_NUMBER, data)
        except HistoryError as error:  # what it says is for the host's owner, not for whoever connects
            log.error("what is archived can't be fetched", database=database.label, store=archived.store, cause=str(error))
            damaged = isinstance(error, HistoryMissing | HistoryCorrupt)
            cause = "what is stored of it is damaged, or not there" if damaged else "its store can't be reached, or refuses"
            raise type(error)(f"{database.label} is archived, and {cause}", _SEE_LOG) from error

    async def _forget_later(self, id: DatabaseId) -> None:
        async with self._turn(id):
            archived = self._records.get(id)
            if archived is not None and archived.state is ArchivedState.BACK:
                await self._give_up(id)

    # -- what these have in common

    async def _tend(self) -> None:
        while True:
            for archived in self._records.all():
                turn = self._turn(archived.id)
                if archived.state is ArchivedState.ARCHIVED or turn.locked() or self._archive is None:
                    continue
                async with turn:
                    found = self._records.get(archived.id)
                    if found is not None and found.state is not ArchivedState.ARCHIVED:
                        await self._give_up(archived.id)
            await self._clock.sleep(_TEND_EVERY_S)

    async def _forget(self, id: DatabaseId) -> None:
        """Remove what is in the store of one that is on the pool."""
        if self._records.get(id) is not None:
            await self._repository(id).destroy()
        self._records.forget(id)
        self.cards.touch(id)
        if (compute := self._fleet.get(id)) is not None:
            _reached(ArchiveStep.FORGOTTEN, compute.database)

    def _repository(self, id: DatabaseId) -> Repository:
        archived = self._records.get(id)
        if archived is None or self._archive is None:
            raise Conflict("it was removed meanwhile")
        return self._archive.shelf(id, archived.wrapped_key)

    def _turn(self, id: DatabaseId) -> asyncio.Lock:
        if (turn := self._turns.get(id)) is None:
            turn = self._turns[id] = asyncio.Lock()
        return turn


async def have_volume(compute: Compute, why: str) -> None:
    """Have the volume of a database on the pool, for those who exchange it. Raises Unavailable errors."""
    while compute.archived:
        with contextlib.suppress(StartTimeout):  # it is still being fetched
            await compute.wake(WakeReason.MAINTENANCE, why)


async def _check_unused(compute: Compute) -> None:
    if connections := await compute.lasting_connections():
        raise DatabaseInUse(f"{compute.database.label} has {connections} open connections", "close them first: they don't survive this")
    if compute.database.state is not DatabaseState.READY:
        raise Conflict(f"{compute.database.label} is being removed")


async def _finish(task: "asyncio.Task[None]") -> None:
    """Until it has ended, whoever is cancelled meanwhile: there is no way back any more."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))


def _reached(step: ArchiveStep, database: Database) -> None:
    log.debug("archive", step=str(step), database=database.label)
