"""Ships the write-ahead log of awake databases into their histories, some seconds behind at most, and all of it once they sleep.

Every two seconds an awake database is asked how far its log is flushed; what is new is read from its volume and stored. As it falls
asleep it is asked once more, right before: what isn't in the store then is noted in the catalog and shipped from the sleeping volume, where
it stays as long as it takes. So no store, however slow, keeps a database awake, or a client waiting. A slot keeps the log in the volume
until it is shipped, up to PostgreSQL's `max_slot_wal_keep_size`; what is lost beyond that ends the run, and the next one begins with a
new base.

Only flushed log is shipped, so what is in the store is what PostgreSQL will have after any crash. Where that doesn't hold all the same
(a disk that lies, a volume that was put back, a tenant's tricks), the last page that was shipped isn't in the log any more: a new run.

Concurrency: one task looks at all that are awake, twice a second; each round of one database is a task of its own, a few at a time, one per
database. A sleeper costs nothing unless it is behind.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.histories import HistoryRecords
from torpor.compute.compute import Compute
from torpor.compute.logposition import LogPosition, advance_log, keep_log, log_position
from torpor.compute.service import ServiceSession
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import TorporError
from torpor.model.history import History, Shipped, line_of
from torpor.model.lsn import PAGE_BYTES, format_lsn, pieces
from torpor.model.names import DatabaseId
from torpor.model.sleep import Tier
from torpor.storage.walfiles import LogGone, read_log

log = get_logger(__name__)

_LOOK_S = 0.5
_SOON_S = 0.02
_EVERY_S = 2.0
_LONGEST_PAUSE_S = 10.0
_ROUND_S = 60.0  # that one round may take; then it is tried again, from where it got to
_AT_ONCE = 8
_PIECE_BYTES = 4 << 20  # of which one object is made
_PIECES_AT_ONCE = 4
_FIRST_LOOK_S = 0.5  # after a wake: most of them write nothing


class LogSink(Protocol):
    """Where the log of one database goes."""

    async def put_wal(self, timeline: int, start_lsn: int, data: bytes) -> int:
        """Store a piece; durable when it returns."""
        ...


class Track:
    """What is known of one database that is awake, or behind."""

    def __init__(self, compute: Compute, history: History, now: float) -> None:
        self.compute = compute
        self.history = history
        self.flushed: int | None = None  # where its log ended when it was asked last
        self.awake_since = now
        self.woke_at = compute.tier_since
        self.due = now + _FIRST_LOOK_S
        self.failures = 0
        self.trouble = ""
        self.busy = asyncio.Lock()
        self.is_under_way = False
        self.is_checked = False
        self.is_dirty = False

    def __repr__(self) -> str:
        return f"<Track {self.compute.database.label} behind={self.behind_bytes}>"

    @property
    def behind_bytes(self) -> int:
        """How much of the log isn't in the store, as far as is known."""
        end = self.history.end_lsn if self.history.end_lsn is not None else self.flushed
        return max(0, end - self.history.shipped.lsn) if end is not None and self.history.shipped is not None else 0


class Shipper:
    """Ships the log of all databases."""

    def __init__(
        self,
        records: HistoryRecords,
        sink: Callable[[History], LogSink],
        begin: Callable[[DatabaseId], History],
        awake: Callable[[], Iterable[Compute]],
        find: Callable[[DatabaseId], Compute | None],
        volumes: Path,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        self._records = records
        self._sink = sink
        self._begin = begin
        self._awake = awake
        self._find = find
        self._volumes = volumes
        self._clock = clock
        self._tasks = tasks
        self._tracks: dict[DatabaseId, Track] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._changed = asyncio.Event()
        self.on_look: Callable[[Track], None] = lambda _track: None
        """Is shown every awake database twice a second: takes bases when they are due."""

    def __repr__(self) -> str:
        return f"<Shipper {len(self._tracks)} tracked>"

    def start(self) -> None:
        """Begin to work, with what an earlier Torpor left behind."""
        for id in self._records.behind():
            if (compute := self._find(id)) is not None:
                self.track(compute)
        self._tasks.spawn_endless(self._run, "ship logs")

    def track(self, compute: Compute) -> Track:
        """What is known of a database. One that has no history yet gets one, with a key of its own."""
        id = compute.database.id
        track = self._tracks.get(id)
        if track is None or track.compute is not compute:
            history = self._records.get(id) or self._begin(id)
            track = self._tracks[id] = Track(compute, history, self._clock.monotonic())
        return track

    def known(self, id: DatabaseId) -> Track | None:
        """What is known of a database that is awake or behind."""
        return self._tracks.get(id)

    def forget(self, id: DatabaseId) -> None:
        """Drop what is known: the database is being removed. Idempotent."""
        self._tracks.pop(id, None)

    def note(self, track: Track, **changes: object) -> None:
        """Change what the catalog keeps, with the next round or `flush`."""
        track.history = replace(track.history, **changes)  # type: ignore[arg-type]  # fields of History
        track.is_dirty = True

    async def falling_asleep(self, database: Database, service: ServiceSession) -> None:
        """The last question before a freeze or a stop: from here on all is known that has to be shipped. Raises ComputeLost."""
        if database.state is not DatabaseState.READY or (compute := self._find(database.id)) is None:
            return
        track = self.track(compute)
        if track.history.shipped is None:
            return
        track.flushed = (await log_position(service)).flushed
        if track.flushed > track.history.shipped.lsn:
            self.note(track, end_lsn=track.flushed)
            track.due = self._clock.monotonic()
            with contextlib.suppress(TorporError):  # a full disk keeps nobody awake
                self.flush()  # a Torpor that is killed now leaves a sleeper of which the next one knows that it is behind
            self._changed.set()
        else:
            self.note(track, shipped=replace(track.history.shipped, at=self._clock.time()))

    async def settle(self, id: DatabaseId, patience_s: float) -> bool:
        """Until all of a sleeper's log is in the store, but not longer than `patience_s`. Whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while (track := self._tracks.get(id)) is not None and track.history.end_lsn is not None:
                    if not track.is_under_way and track.compute.tier is not Tier.AWAKE:
                        await self._round(track)
                        if track.failures:
                            return False
                    await self._clock.sleep(_SOON_S)
                return True
        return False

    async def finish(self, patience_s: float) -> None:
        """At the end of Torpor, when every compute has stopped: ship what is left, and note how far it got."""
        behind = [track for track in self._tracks.values() if track.history.end_lsn is not None and track.compute.tier is not Tier.AWAKE]
        if behind:
            rounds = [asyncio.ensure_future(self.settle(track.compute.database.id, patience_s)) for track in behind]
            await asyncio.gather(*rounds, return_exceptions=True)
        self.flush()

    def flush(self) -> None:
        """Write down what has changed, in one transaction."""
        dirty = [track for track in self._tracks.values() if track.is_dirty]
        if dirty:
            self._records.save(track.history for track in dirty)
            for track in dirty:
                track.is_dirty = False

    async def ship(self, track: Track) -> None:
        """Ship now all that an awake database has flushed. Raises what the store and the compute raise."""
        async with track.busy:
            await self._ship_awake(track, await track.compute.live().service())

    async def begin_run(self, track: Track, trouble: str) -> None:
        """Begin a run with what is written from now on; the slot keeps it. The first base of it is still to be taken."""
        service = await track.compute.live().service()
        position = await keep_log(service)
        # Where the file begins that is written now: what the slot keeps may be what is gone, and a base begins with its own checkpoint.
        begins = position.flushed - position.flushed % position.segment_bytes
        if trouble:
            log.warning("history begins anew", database=track.compute.database.label, cause=trouble)
        shipped = Shipped(position.timeline, position.segment_bytes, begins, self._clock.time(), b"")
        self.note(
            track,
            run=track.history.run + 1,
            shipped=shipped,
            end_lsn=None,
            base_at=None,
            base_lsn=None,
            trouble=trouble or track.history.trouble,
        )
        track.is_checked = True
        self.flush()

    # -- inside

    async def _run(self) -> None:
        saved = self._clock.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):  # `wait_for` of Python 3.11 swallows being cancelled in this very moment
                    await self._changed.wait()
                await self._clock.sleep(_SOON_S)  # it is about to be asleep
            self._changed.clear()
            self._look()
            if self._clock.monotonic() - saved >= _EVERY_S:
                saved = self._clock.monotonic()
                with contextlib.suppress(TorporError):  # a full disk: what is shipped once more does no harm
                    self.flush()

    def _look(self) -> None:
        now = self._clock.monotonic()
        for compute in list(self._awake()):
            if compute.database.state is DatabaseState.READY:
                self.track(compute)
        for id, track in list(self._tracks.items()):
            awake = track.compute.tier is Tier.AWAKE
            if awake:
                if track.woke_at != track.compute.tier_since:  # it slept, or PostgreSQL was started again
                    track.woke_at, track.awake_since, track.is_checked = track.compute.tier_since, now, False
                self.on_look(track)
            elif track.history.end_lsn is None and not track.is_under_way:
                if not track.is_dirty:
                    del self._tracks[id]
                continue
            if now >= track.due and not track.is_under_way:
                track.is_under_way = True
                self._tasks.spawn(self._round(track), f"ship {track.compute.database.label}")

    async def _round(self, track: Track) -> None:
        track.is_under_way = True
        began = self._clock.monotonic()
        try:
            async with self._slots, asyncio.timeout(_ROUND_S), track.busy:
                await self._ship_round(track)
            if track.failures:
                log.info("the log is shipped again", database=track.compute.database.label)
            track.failures, track.trouble = 0, ""
            track.due = began + _EVERY_S
        except (TorporError, OSError, TimeoutError) as error:
            track.failures += 1
            track.trouble = str(error) or f"the store took longer than {_ROUND_S:.0f} s"
            track.due = self._clock.monotonic() + min(_LONGEST_PAUSE_S, _EVERY_S * 2 ** min(track.failures, 8) / 2)
            if track.compute.tier is Tier.AWAKE or track.history.end_lsn is not None:  # else it fell asleep while it was asked
                log.warning("the log isn't shipped", database=track.compute.database.label, cause=track.trouble, attempt=track.failures)
        finally:
            track.is_under_way = False

    async def _ship_round(self, track: Track) -> None:
        if track.compute.tier is Tier.AWAKE:
            await self._ship_awake(track, await track.compute.live().service())
        elif track.history.end_lsn is not None:
            await self._ship_asleep(track)

    async def _ship_asleep(self, track: Track) -> None:
        end = track.history.end_lsn
        assert end is not None
        try:
            await self._ship_up_to(track, end, self._clock.time())
        except LogGone as error:  # nothing can be done about it until it is awake
            log.warning("the log of a sleeper is gone", database=track.compute.database.label, cause=error.message)
        if track.history.end_lsn == end:
            self.note(track, end_lsn=None)
            self.flush()

    async def _ship_awake(self, track: Track, service: ServiceSession) -> None:
        asked_at = self._clock.time()
        position = await log_position(service)
        if not position.is_kept:  # it wasn't asked for yet, or somebody dropped it, or too much was written while none was shipped
            position = await keep_log(service)
        track.flushed = position.flushed
        if track.history.shipped is None:
            await self.begin_run(track, "")
        elif (why := await self._break(track, position)) is not None:
            await self.begin_run(track, why)
        try:
            await self._ship_up_to(track, position.flushed, asked_at)
        except LogGone as error:
            await self.begin_run(track, f"more log was written than was kept until it could be shipped: {error.message}")
            raise  # the new run is shipped after a pause: a volume that is made to fail each time costs little
        if (end := track.history.end_lsn) is not None and end <= position.flushed:  # it may be falling asleep in this very moment
            self.note(track, end_lsn=None)
        await self._let_go(track, service, position)

    async def _break(self, track: Track, position: LogPosition) -> str | None:
        """Why the log doesn't go on from what was shipped; None when it does."""
        shipped = _shipped(track)
        if position.timeline != shipped.timeline:
            return f"it was promoted to timeline {position.timeline}"
        if position.segment_bytes != shipped.segment_bytes or position.flushed < shipped.lsn:
            return f"its log ends at {format_lsn(position.flushed)}, before {format_lsn(shipped.lsn)}, which was shipped"
        if track.is_checked or not shipped.tail:
            track.is_checked = True
            return None
        try:
            tail = await self._tail(track, shipped.lsn)
        except LogGone as error:
            return error.message
        if tail != shipped.tail:
            return f"its log before {format_lsn(shipped.lsn)} isn't the one that was shipped"
        track.is_checked = True
        return None

    async def _tail(self, track: Track, lsn: int) -> bytes:
        shipped = _shipped(track)
        start = page_before(lsn)
        data = await asyncio.to_thread(
            read_log, self._volumes, track.compute.database.id, shipped.timeline, start, lsn, shipped.segment_bytes
        )
        return fingerprint(data, start)

    async def _ship_up_to(self, track: Track, end: int, at: float) -> None:
        """Store the log up to `end`, a few pieces at a time; what is stored stays noted whatever happens to the rest."""
        shipped = _shipped(track)
        sink = self._sink(track.history) if shipped.lsn < end else None
        line = line_of(track.history.run, shipped.timeline)
        while sink is not None and shipped.lsn < end:
            until = min(end, (shipped.lsn // _PIECE_BYTES + _PIECES_AT_ONCE) * _PIECE_BYTES)
            tail_from = page_before(until)
            read_from = page_before(shipped.lsn) if shipped.tail else min(shipped.lsn, tail_from)
            data = await asyncio.to_thread(
                read_log, self._volumes, track.compute.database.id, shipped.timeline, read_from, until, shipped.segment_bytes
            )
            if shipped.tail and fingerprint(data[: shipped.lsn - read_from], read_from) != shipped.tail:
                raise LogGone(f"its log before {format_lsn(shipped.lsn)} isn't the one that was shipped")  # it was given another volume
            cuts = pieces(shipped.lsn, until, _PIECE_BYTES)
            puts = [sink.put_wal(line, begin, data[begin - read_from : begin - read_from + length]) for begin, length in cuts]
            for outcome in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            _shipped(track)
            tail = fingerprint(data[tail_from - read_from :], tail_from)
            shipped = replace(shipped, lsn=until, tail=tail, at=at if until == end else shipped.at)
            self.note(track, shipped=shipped)
        if shipped.at < at:  # known here; while nothing is written, nothing is written down every other second
            track.history = replace(track.history, shipped=replace(shipped, at=at))

    async def _let_go(self, track: Track, service: ServiceSession, position: LogPosition) -> None:
        """Let PostgreSQL reuse files of the log that are shipped; the page before the end stays, to be compared after a crash."""
        shipped = _shipped(track)
        upto = page_before(shipped.lsn)
        if position.kept_from is not None and upto // shipped.segment_bytes > position.kept_from // shipped.segment_bytes:
            await advance_log(service, upto)


def _shipped(track: Track) -> Shipped:
    """How far it is. Raises LogGone when the run was broken while something was waited for: the database has another volume now."""
    if track.history.shipped is None:
        raise LogGone("it was given another volume meanwhile")
    return track.history.shipped


def page_before(lsn: int) -> int:
    """Where the page begins that holds the byte before `lsn`. Pure."""
    return max(0, lsn - 1) // PAGE_BYTES * PAGE_BYTES


def fingerprint(page: bytes, start: int) -> bytes:
    """Of the last page of the log, as far as it is written. Pure."""
    return hashlib.sha256(start.to_bytes(8, "big") + page).digest()
