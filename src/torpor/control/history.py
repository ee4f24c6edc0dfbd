"""The past of databases: when bases are taken, what is kept, what can be restored. Shipping their log is `control.shipping`'s.

A base is a whole copy of a running database's files. The first one is taken as soon as a database has nothing to do for a moment, or has
been awake for a minute; another one after a day of use, after a gigabyte of log, and when a run of log was broken. Old ones go, with the
log that only they need, when nothing of the window is restored from them any more.

Concurrency: two bases at a time, each a task; whatever the store does, no database waits for it. A sleeper costs nothing: what expires
is found by an index of the catalog, once a minute.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torpor.base.clock import Clock
from torpor.base.jumps import Jumps
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.histories import HistoryRecords
from torpor.compute.compute import Compute
from torpor.compute.snapshot import snapshot
from torpor.control.cards import CardKeeper, NoCards
from torpor.control.jobs import Jobs, Progress
from torpor.control.shipping import Shipper, Track
from torpor.model.drills import DrillView
from torpor.model.errors import Conflict, InvalidRequest, TorporError, Unavailable
from torpor.model.history import History, line_of
from torpor.model.history_views import BaseList, BaseView, HistoryView, RetentionView, ShippingView, WindowView
from torpor.model.jobs import JobView
from torpor.model.lsn import format_lsn
from torpor.model.names import DatabaseId
from torpor.model.sleep import Tier, WakeReason
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import Base, BaseFacts, Retention, Span, spans
from torpor.storage.volumes import Volumes

log = get_logger(__name__)

DAY_S = 86_400.0
LONGEST_KEEP_S = 10 * 365 * DAY_S
MOST_BASES = 1000
_FIRST_AWAKE_S = 60.0
_IDLE_S = 2.0
_BASE_EVERY_S = DAY_S
_BASE_EVERY_BYTES = 1 << 30
_LITTLE_BYTES = 64 << 10  # a checkpoint and what PostgreSQL writes by itself
_BASES_AT_ONCE = 2
_AGAIN_S = 60.0
_AGAIN_MOST_S = 3600.0
_TEND_EVERY_S = 60.0
_TENDED_AT_ONCE = 20
_EXPIRE_AGAIN_S = 3600.0
_STRAGGLERS_S = 600.0  # after so long nothing is on its way to the store any more for a database that was removed
_SETTLE_S = 3.0


@dataclass(slots=True)
class _Attempt:
    """Bases of one database that were to be taken unasked and weren't."""

    failures: int
    again_at: float


def is_base_due(history: History, awake_s: float, idle_s: float, freeze_after_s: float | None, now: float) -> bool:
    """Whether a base is to be taken now. Pure."""
    if history.shipped is None:
        return False
    if history.base_at is None and history.run > 1:
        return True
    quiet = idle_s >= min(_IDLE_S, (freeze_after_s if freeze_after_s is not None else _IDLE_S) / 2) or awake_s >= _FIRST_AWAKE_S
    if history.base_at is None or history.base_lsn is None:
        return quiet
    written = history.shipped.lsn - history.base_lsn
    if written >= _BASE_EVERY_BYTES:
        return True
    return quiet and written > _LITTLE_BYTES and abs(now - history.base_at) >= _BASE_EVERY_S  # clocks jump back, too


def expires_at(kept: list[Base], retention: Retention) -> float | None:
    """When the oldest of these bases isn't needed any more; None while nobody knows. Pure."""
    return kept[1].facts.ended_at + retention.window_s if len(kept) > 1 else None


class Histories:
    """The past of all databases of one Torpor."""

    def __init__(
        self,
        archive: Archive,
        records: HistoryRecords,
        awake: Callable[[], Iterable[Compute]],
        find: Callable[[DatabaseId], Compute | None],
        fell_asleep: Callable[[DatabaseId], bool],
        volumes: Volumes,
        jobs: Jobs,
        retention: Retention,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        """`fell_asleep` says of a sleeper that it was asked before it slept: one that crashed may have written more."""
        self._archive = archive
        self._records = records
        self._find = find
        self._fell_asleep = fell_asleep
        self._volumes = volumes
        self._jobs = jobs
        self._retention = retention
        self._clock = clock
        self._tasks = tasks
        self.shipper = Shipper(records, self.repository, self._begin, awake, find, volumes.root, clock, tasks)
        self.shipper.on_look = self._look
        self.cards: CardKeeper = NoCards()
        self._bases = asyncio.Semaphore(_BASES_AT_ONCE)
        self._taking: dict[DatabaseId, asyncio.Lock] = {}
        self._attempts: dict[DatabaseId, _Attempt] = {}
        self._doomed = asyncio.Event()  # something is to be removed at once
        self._jumps = Jumps(clock.time)
        self.last_drill: Callable[[DatabaseId], DrillView | None] = lambda _id: None
        """Says what the last restore drill has said of a database."""

    def __repr__(self) -> str:
        return f"<Histories in {self._archive.store.description}>"

    def start(self) -> None:
        """Begin to work."""
        self.shipper.start()
        self._tasks.spawn_endless(self._tend, "tend histories")

    def repository(self, history: History) -> Repository:
        """What is kept of a database. Raises KeyFileUnusable."""
        return self._archive.repository(history.id, history.wrapped_key)

    def history(self, id: DatabaseId) -> History:
        """The history of a database as it stands now. Raises Conflict when none has begun."""
        track = self.shipper.known(id)
        found = track.history if track is not None else self._records.get(id)
        if found is None:
            raise Conflict("it has no history yet", "it begins when the database is used: `torpor backup` takes a first base now")
        compute = self._find(id)
        asleep = compute is not None and compute.tier is not Tier.AWAKE and not compute.is_moving and self._fell_asleep(id)
        if asleep and found.shipped is not None and found.end_lsn is None:  # it has written nothing since, so nothing is missing until now
            return replace(found, shipped=replace(found.shipped, at=max(found.shipped.at, self._clock.time())))
        return found

    def doom(self, id: DatabaseId) -> None:
        """Have all that the store holds of a database that isn't here removed, and begin with it. Idempotent."""
        self._records.doom(id, self._clock.time())
        self._doomed.set()

    def doomed(self) -> set[DatabaseId]:
        """Those of which nothing may stay in the store."""
        return {id for id, _ in self._records.doomed()}

    def forget(self, id: DatabaseId) -> None:
        """The database is gone; so is its key, and what is in the store goes when it can. Idempotent."""
        self.shipper.forget(id)
        self._doomed.set()
        self._taking.pop(id, None)
        self._attempts.pop(id, None)

    async def before_sleep(self, id: DatabaseId) -> None:
        """Before a database is put to sleep as somebody asked for it: its first base. Keeps it awake for some seconds at most."""
        if (compute := self._find(id)) is None or compute.tier is not Tier.AWAKE:
            return
        with contextlib.suppress(TorporError, OSError, TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                track = self.shipper.track(compute)
                if track.history.base_at is None:
                    await self.take_base(compute)

    async def settle(self, id: DatabaseId) -> None:
        """After it fell asleep: until its log is in the store, for some seconds at most."""
        await self.shipper.settle(id, _SETTLE_S)

    async def catch_up(self, compute: Compute) -> None:
        """Before something is restored: have all in the store that was committed until now, as far as the store allows."""
        with contextlib.suppress(TorporError, OSError, TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                if compute.tier is Tier.AWAKE:
                    await self.shipper.ship(self.shipper.track(compute))
                else:
                    await self.shipper.settle(compute.database.id, _SETTLE_S)

    def break_run(self, id: DatabaseId, why: str) -> None:
        """A database was given another volume: what it writes from now on doesn't go on from what was shipped. Idempotent."""
        if (compute := self._find(id)) is not None and self._records.get(id) is not None:
            self._attempts.pop(id, None)  # a new base is wanted at once
            track = self.shipper.track(compute)
            self.shipper.note(track, shipped=None, end_lsn=None, base_at=None, base_lsn=None, trouble=why)
            self.shipper.flush()

    # -- what users ask for

    def back_up(self, id: DatabaseId, by: str) -> JobView:
        """Take a base now, as a job; wakes the database. Raises TooManyJobs."""
        if (compute := self._find(id)) is None:
            raise Conflict("it is being removed")

        async def work(progress: Progress) -> dict[str, str]:
            base = await self.take_base(compute, progress, patience=True)
            return {"base": str(base.number), "at": str(base.facts.ended_at)}

        return self._jobs.start("backup", compute.database, work, by)

    async def bases(self, id: DatabaseId) -> BaseList:
        """The bases of a database, oldest first."""
        found = self._records.get(id)
        if found is None:
            return BaseList(())
        return BaseList(tuple(map(_base_view, await self.repository(found).bases())))

    async def view(self, id: DatabaseId) -> HistoryView:
        """What can be restored, and what it costs. Asks the store."""
        found = self._records.get(id)
        if found is None:
            return HistoryView(
                self._archive.store.description, (), 0, 0, 0, self.shipping(id) or ShippingView(None, 0), self._retention_view(None)
            )
        repository = self.repository(found)
        bases, pieces, stored = await repository.bases(), await repository.wal_pieces(), await repository.stored()
        history = self.history(id)
        return HistoryView(
            store=self._archive.store.description,
            windows=windows(spans(bases, pieces), history),
            bases=len(bases),
            base_bytes=stored.base_bytes,
            log_bytes=stored.log_bytes,
            shipping=self.shipping(id) or ShippingView(None, 0),
            retention=self._retention_view(history),
        )

    def shipping(self, id: DatabaseId) -> ShippingView | None:
        """How far the history is, from memory and the catalog; None when none has begun."""
        track = self.shipper.known(id)
        history = track.history if track is not None else self._records.get(id)
        if history is None:
            return None
        return ShippingView(
            history.shipped.at if history.shipped is not None and history.base_at is not None else None,
            track.behind_bytes if track is not None else 0,
            track.trouble if track is not None and track.failures else "",
            history.trouble,
            self.last_drill(id),
        )

    def own_retention(self, id: DatabaseId) -> tuple[float | None, int | None]:
        """What the database sets itself: seconds, bases."""
        found = self._records.get(id)
        return (found.keep_s, found.keep_bases) if found is not None else (None, None)

    def set_retention(self, id: DatabaseId, keep_s: float | None, keep_bases: int | None) -> RetentionView:
        """Replace a database's own retention; None is the daemon's. What isn't to be kept any more goes within minutes."""
        if keep_s is not None and not 0 <= keep_s <= LONGEST_KEEP_S:
            raise InvalidRequest("a history is kept for 0 to 3650 days")
        if keep_bases is not None and not 1 <= keep_bases <= MOST_BASES:
            raise InvalidRequest(f"between 1 and {MOST_BASES} bases are kept")
        history = self._records.get(id) or self._begin(id)
        self._records.set_retention(id, keep_s, keep_bases)
        self._records.set_expiry(id, self._clock.time())
        if (track := self.shipper.known(id)) is not None:
            track.history = self._with_retention(track.history, keep_s, keep_bases)
        self.cards.touch(id)
        return self._retention_view(self._with_retention(history, keep_s, keep_bases))

    # -- bases

    async def take_base(self, compute: Compute, progress: Progress | None = None, patience: bool = False) -> Base:
        """Take a base of a database, which is woken for it and held awake until its files are copied; what isn't to be kept goes.

        All or nothing. Raises what the store, the pool and the compute raise.
        """
        id = compute.database.id
        lock = self._taking.setdefault(id, asyncio.Lock())
        if lock.locked() and not patience:
            raise Conflict("a base is being taken", "wait for it")
        async with lock, self._bases:
            tell = progress or _silent
            async with self._volumes.scratch(f"base-{id}") as scratch:
                track, history, facts = await self._copy(compute, scratch, tell)
                await self.cards.ensure(id, check=True)  # or nobody could open it if this machine were lost
                base = await self.repository(history).put_base(
                    scratch / "data",
                    facts,
                    leave_out=lambda path: path == "pg_wal" or path.startswith("pg_wal/"),
                    progress=lambda done, total: tell(done, total, "bytes", "storing"),
                )
            # Whatever the compute does meanwhile, its log goes on to be shipped: a base is good for nothing without its own.
            if track.history.run == history.run:
                self.shipper.note(track, base_at=facts.ended_at, base_lsn=facts.stop_lsn)
                self.shipper.flush()
            if compute.tier is Tier.AWAKE:
                await self.shipper.ship(track)
            await self._shorten(id)
            log.info("base taken", database=compute.database.label, number=base.number, stored_bytes=base.stored_bytes)
            return base

    async def _copy(self, compute: Compute, scratch: Path, tell: Progress) -> tuple[Track, History, BaseFacts]:
        async with compute.awake(WakeReason.MAINTENANCE, "a base is taken"):
            track = self.shipper.track(compute)
            await self.shipper.ship(track)  # begins the run if none has begun, and says whether this one goes on
            tell(0, None, "bytes", "copying")
            taken = await snapshot(compute, self._volumes, scratch / "data", 0, base=True)
        if taken.log is None:
            raise Unavailable("it fell asleep while a base was taken", "try again")
        history = track.history
        if history.shipped is None or taken.log.timeline != history.shipped.timeline:
            raise Unavailable("it was promoted while a base was taken", "try again")
        line = line_of(history.run, taken.log.timeline)
        return track, history, BaseFacts(line, taken.log.start, taken.log.stop, self._clock.time(), compute.database.major)

    def _look(self, track: Track) -> None:
        """Of every database that is awake, twice a second: take a base if one is due."""
        compute, now = track.compute, self._clock.monotonic()
        idle_s = now - (compute.last_activity if compute.last_activity is not None else now)
        if not is_base_due(track.history, now - track.awake_since, idle_s, compute.policy.freeze_after_s, self._clock.time()):
            return
        id = compute.database.id
        attempt = self._attempts.get(id)
        if (attempt is not None and now < attempt.again_at) or ((lock := self._taking.get(id)) is not None and lock.locked()):
            return
        failures = attempt.failures if attempt is not None else 0
        self._attempts[id] = _Attempt(failures + 1, now + min(_AGAIN_MOST_S, _AGAIN_S * 2**failures))
        self._tasks.spawn(self._take_unasked(compute), f"base of {compute.database.label}")

    async def _take_unasked(self, compute: Compute) -> None:
        try:
            await self.take_base(compute)
            self._attempts[compute.database.id] = _Attempt(0, self._clock.monotonic() + _AGAIN_S)
        except (TorporError, OSError) as error:
            log.warning("no base could be taken", database=compute.database.label, cause=str(error))

    # -- keeping and removing

    async def _tend(self) -> None:
        while True:
            for id, at in self._records.doomed():
                try:
                    await self._archive.destroy(id)
                    if abs(self._clock.time() - at) > _STRAGGLERS_S:
                        self._records.forget_doomed(id)
                except TorporError as error:
                    log.warning("what a removed database left in the store stays as yet", database=id, cause=error.message)
                    break  # the store fails: the next minute is soon enough
            for id in () if self._has_jumped() else self._records.to_expire(self._clock.time(), _TENDED_AT_ONCE):
                await self._shorten(id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TEND_EVERY_S):  # `wait_for` of Python 3.11 swallows being cancelled in this very moment
                    await self._doomed.wait()
            self._doomed.clear()

    async def _shorten(self, id: DatabaseId) -> None:
        """Have what isn't to be kept removed, now or as soon as the store allows."""
        try:
            await self._expire(id)
        except TorporError as error:
            self._records.set_expiry(id, self._clock.time() + _EXPIRE_AGAIN_S)
            log.warning("a history could not be shortened", database=id, cause=error.message)

    def _has_jumped(self) -> bool:
        """Whether the clock was set during the last day."""
        if jumped_s := self._jumps.look():
            log.warning("the clock has jumped: no history is shortened for a day", by_s=round(jumped_s))
        return self._jumps.within(DAY_S)

    async def _expire(self, id: DatabaseId) -> None:
        history = self._records.get(id)
        if history is None:
            return
        if self._has_jumped():  # what seems old may be of today
            self._records.set_expiry(id, 0.0)  # it is looked at when that is over, whatever the clock says then
            return
        retention, repository = self._retention_of(history), self.repository(history)
        await repository.expire(retention, self._clock.time())
        self._records.set_expiry(id, expires_at(await repository.bases(), retention))

    def _retention_of(self, history: History | None) -> Retention:
        usual = self._retention
        if history is None:
            return usual
        return Retention(
            history.keep_s if history.keep_s is not None else usual.window_s,
            history.keep_bases if history.keep_bases is not None else usual.most_bases,
        )

    def _retention_view(self, history: History | None) -> RetentionView:
        applied = self._retention_of(history)
        own = tuple(name for name in ("keep_s", "keep_bases") if history is not None and getattr(history, name) is not None)
        return RetentionView(applied.window_s, applied.most_bases, own)

    @staticmethod
    def _with_retention(history: History, keep_s: float | None, keep_bases: int | None) -> History:
        return replace(history, keep_s=keep_s, keep_bases=keep_bases)

    def _begin(self, id: DatabaseId) -> History:
        key = self._archive.new_key(id)
        self._records.add(id, key)
        self.cards.touch(id)
        return History(id, key)


def windows(found: Iterable[Span], history: History) -> tuple[WindowView, ...]:
    """What can be restored, the spans of one line put together, oldest first. Pure."""
    lines: dict[int, list[Span]] = {}
    for span in found:
        lines.setdefault(span.timeline, []).append(span)
    views = []
    for line, on_line in lines.items():
        until = max(span.to_at for span in on_line)
        if history.shipped is not None and line == line_of(history.run, history.shipped.timeline):
            until = max(until, history.shipped.at)  # nothing was written since, and that is known
        first = min(on_line, key=lambda span: span.from_lsn)
        views.append(WindowView(first.from_at, until, format_lsn(first.from_lsn), format_lsn(max(span.to_lsn for span in on_line))))
    return tuple(views)


def _base_view(base: Base) -> BaseView:
    return BaseView(base.number, base.facts.ended_at, format_lsn(base.facts.stop_lsn), base.size_bytes, base.stored_bytes)


def _silent(done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
    pass
