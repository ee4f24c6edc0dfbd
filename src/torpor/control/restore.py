"""Databases as they were: a base and the log after it, replayed by PostgreSQL up to a moment.

What is restored is always a branch first, made as any branch is (`control.branches`), but of what the store holds: nothing of the present
is touched, and a failure leaves nothing behind. RESTORE_STEPS are the steps in which its volume is filled.

Concurrency: each restore is a job. Any number at once, beside the database that they are of.
"""

import asyncio
import copy
import os
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.recovery import Manner, MomentNotReached, recover
from torpor.compute.surroundings import Surroundings
from torpor.control.branches import Branches, Fill
from torpor.control.databases import Databases
from torpor.control.history import Histories
from torpor.control.jobs import Jobs, Progress
from torpor.control.names import suggest_name
from torpor.control.provisioning import new_password
from torpor.control.views import Viewer
from torpor.model.branches import PastBranch
from torpor.model.database import Database
from torpor.model.errors import DatabaseExists, HistoryMissing, Unavailable
from torpor.model.history import History, Moment, line_of, timeline_of
from torpor.model.names import DatabaseId, check_new_database_name, is_database_id
from torpor.model.size import NO_OVERRIDES, SizeOverrides
from torpor.model.sleep import SleepOverrides
from torpor.model.workspace import WorkspaceId
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import Base, LogPiece, Span, chain, spans
from torpor.storage.volumes import give_to
from torpor.storage.walfiles import lay_log

log = get_logger(__name__)

_USUAL_SEGMENT_BYTES = 1 << 20
_CLOCKS_DIFFER_S = 120.0  # what the store's clock may be off, and a piece of log be on its way


class RestoreStep(StrEnum):
    """The steps in which a volume is filled with what was, in order."""

    CHOSEN = "chosen"  # which base, and which log
    BASE = "base"  # its files lie in the volume
    LOG = "log"  # the log lies in its pg_wal
    RECOVERED = "recovered"  # PostgreSQL has replayed it, and is stopped


RESTORE_STEPS = tuple(RestoreStep)


@dataclass(frozen=True, slots=True)
class Route:
    """From which base, with which pieces of log up to where; `more` tells whether the log goes on behind that."""

    base: Base
    until: int
    end: int

    @property
    def more(self) -> bool:
        """Whether there is log that isn't laid down at first."""
        return self.until < self.end


def routes(bases: Sequence[Base], pieces: Sequence[LogPiece], history: History, moment: Moment) -> list[Route]:
    """The ways to a moment, the shortest first. Pure. Raises HistoryMissing, which says what there is instead.

    For a transaction nobody knows which base is before it: the newest is tried first. For a time it is the one that was taken last before
    it by the clock, which isn't the newest where the clock was set back since.
    """
    found = sorted(spans(bases, pieces), key=lambda span: (span.from_at if moment.at is not None else 0.0, span.base), reverse=True)
    by_number = {base.number: base for base in bases}
    fitting = [_route(by_number[span.base], span, pieces, moment) for span in found if _holds(span, history, moment)]
    if not fitting:
        raise HistoryMissing(f"{moment} can't be restored: the history doesn't hold it", "`torpor history` tells which moments it holds")
    return fitting if moment.before_transaction is not None else fitting[:1]


def _holds(span: Span, history: History, moment: Moment) -> bool:
    if moment.lsn is not None:
        return span.from_lsn <= moment.lsn <= span.to_lsn
    if moment.at is not None:
        shipped = history.shipped
        is_present = shipped is not None and span.timeline == line_of(history.run, shipped.timeline)
        return span.from_at <= moment.at <= max(span.to_at, shipped.at if shipped is not None and is_present else 0.0)
    return True


def _route(base: Base, span: Span, pieces: Sequence[LogPiece], moment: Moment) -> Route:
    until = span.to_lsn
    if moment.lsn is not None:
        until = next((p.end_lsn for p in chain(pieces, span.timeline, base.facts.start_lsn) if p.end_lsn > moment.lsn), until)
    elif moment.at is not None:
        late = moment.at + _CLOCKS_DIFFER_S
        later = (p.end_lsn for p in chain(pieces, span.timeline, base.facts.start_lsn) if p.at > late and p.end_lsn >= base.facts.stop_lsn)
        until = next(later, until)
    return Route(base, until, span.to_lsn)


class Restores:
    """All use cases that bring back what was."""

    def __init__(
        self,
        databases: Databases,
        branches: Branches,
        histories: Histories,
        fleet: Fleet,
        around: Surroundings,
        viewer: Viewer,
        jobs: Jobs,
        clock: Clock,
    ) -> None:
        self._databases = databases
        self._branches = branches
        self._histories = histories
        self._fleet = fleet
        self._around = around
        self._viewer = viewer
        self._jobs = jobs
        self._clock = clock

    def within(self, workspace: WorkspaceId | None) -> Self:
        """The same use cases, confined to the databases of a workspace."""
        confined = copy.copy(self)
        confined._databases = self._databases.within(workspace)
        confined._branches = self._branches.within(workspace)
        return confined

    def branch(
        self,
        parent: str,
        name: str | None,
        moment: Moment,
        keep_passwords: bool = False,
        ttl_s: float | None = None,
        overrides: SleepOverrides | None = None,
        size: SizeOverrides = NO_OVERRIDES,
        by: str = "torpor",
    ) -> PastBranch:
        """Make a branch of `parent` as it was, as a job. Its owner's password is in the answer, and works once the job is done.

        Raises DatabaseNotFound, InvalidName, DatabaseExists, Conflict without any history, TooManyJobs.
        """
        source = self._databases.compute(parent)
        self._histories.history(source.database.id)
        name = check_new_database_name(name) if name is not None else suggest_name(self._fleet.find)
        if self._fleet.find(name) is not None:
            raise DatabaseExists(f"database {name!r} exists already", "choose another name")
        password = None if keep_passwords else new_password()

        async def work(progress: Progress) -> dict[str, str]:
            fill = self.filler(moment, progress)
            made = await self._branches.branch(parent, name, keep_passwords, ttl_s, overrides, size, fill, password)
            return {"database": made.database.name, "id": made.database.id}

        job = self._jobs.start("branch", source.database, work, by)
        return PastBranch(job, name, self._viewer.credentials(name, password) if password is not None else None)

    def filler(self, moment: Moment, progress: Progress) -> Fill:
        """What fills a volume with the cluster of a database as it was."""

        async def fill(source: Compute, data: Path, uid: int) -> None:
            await self._histories.catch_up(source)
            history = self._histories.history(source.database.id)
            repository = self._histories.repository(history)
            found = routes(await repository.bases(), await repository.wal_pieces(), history, moment)
            await self.fill(source.database, history, repository, found, moment, data, uid, progress)

        return fill

    async def fill(
        self,
        source: Database,
        history: History,
        repository: Repository,
        found: Sequence[Route],
        moment: Moment,
        data: Path,
        uid: int,
        progress: Progress,
    ) -> None:
        """Fill `data` by the first of these routes that leads to the moment. Raises MomentNotReached, HistoryCorrupt, …."""
        for number, route in enumerate(found):
            self._branches.be_of(_id_of(data), route.base.facts.major)  # it may have been upgraded since
            try:
                async with repository.hold(route.base.number):
                    await self._filling(source, history, repository, route, moment, data, uid, progress).run()
                return
            except MomentNotReached:
                if number == len(found) - 1:
                    raise
                log.info("the moment isn't after this base", database=source.label, base=route.base.number)
                await asyncio.to_thread(_empty, data)

    async def rehearse(
        self,
        source: Database,
        history: History,
        repository: Repository,
        route: Route,
        moment: Moment,
        data: Path,
        progress: Progress,
        manner: Manner,
        pace: Callable[[int], Awaitable[None]],
    ) -> bool:
        """Fill `data` as a restore to `moment` would, slowly: `pace` is awaited before each so many bytes. Whether all of the log was
        replayed, since nothing was committed between its end and the moment. The caller holds the base, and removes what was written."""
        filling = self._filling(source, history, repository, route, moment, data, source.uid, progress)
        filling.manner, filling.pace = manner, pace
        await filling.run()
        return filling.to_the_end

    def _filling(
        self,
        source: Database,
        history: History,
        repository: Repository,
        route: Route,
        moment: Moment,
        data: Path,
        uid: int,
        progress: Progress,
    ) -> "_Filling":
        segment_bytes = history.shipped.segment_bytes if history.shipped is not None else _USUAL_SEGMENT_BYTES
        source = replace(source, major=route.base.facts.major)
        return _Filling(self._around, source, repository, route, segment_bytes, moment, data, uid, progress)


class _Filling:
    """One volume that is being filled."""

    def __init__(
        self,
        around: Surroundings,
        source: Database,
        repository: Repository,
        route: Route,
        segment_bytes: int,
        moment: Moment,
        data: Path,
        uid: int,
        progress: Progress,
    ) -> None:
        self._around = around
        self._source = source
        self._repository = repository
        self._route = route
        self._segment_bytes = segment_bytes
        self._moment = moment
        self._data = data
        self._uid = uid
        self._tell = progress
        self.manner: Manner | None = None
        self.pace: Callable[[int], Awaitable[None]] = _at_once
        self.to_the_end = moment == Moment()
        """Whether all of the log was replayed, with no target."""
        facts = route.base.facts
        self._line, self._timeline = facts.timeline, timeline_of(facts.timeline)
        self._log_bytes = max(1, route.until - facts.start_lsn)
        self._total = route.base.size_bytes + 2 * self._log_bytes
        """Bytes to write, and to replay."""

    async def run(self) -> None:
        """All of it."""
        base, facts = self._route.base, self._route.base.facts
        self._reached(RestoreStep.CHOSEN)
        await asyncio.to_thread(_make_directory, self._data)
        await self._repository.get_base(base.number, self._data, lambda done, _: self._tell(done, self._total, "bytes", "base"), self.pace)
        self._reached(RestoreStep.BASE)
        await self._lay(facts.start_lsn - facts.start_lsn % self._segment_bytes, self._route.until)
        self._reached(RestoreStep.LOG)
        await self._recover()
        self._reached(RestoreStep.RECOVERED)

    async def _lay(self, start: int, until: int) -> None:
        done = self._route.base.size_bytes
        async for at, data in self._repository.wal(self._line, start, until):
            await self.pace(len(data))
            await asyncio.to_thread(lay_log, self._data / "pg_wal", self._timeline, at, data, self._segment_bytes)
            done += len(data)
            self._tell(min(done, self._total - self._log_bytes), self._total, "bytes", "log")
        if self._uid != os.geteuid():
            await asyncio.to_thread(give_to, self._data, self._uid)

    async def _recover(self) -> None:
        try:
            return await self._replay(self._moment)
        except MomentNotReached:
            if self._route.more:  # clocks differ by more than was thought
                await self._lay(self._route.until, self._route.end)
            elif self._moment.before_transaction is not None:
                raise
        # Nothing was committed between the end of the log and the moment: all of it is what is wanted.
        self.to_the_end = self._moment.before_transaction is None
        await self._replay(self._moment if not self.to_the_end else Moment())

    async def _replay(self, moment: Moment) -> None:
        await recover(self._source, _id_of(self._data), self._data, self._uid, self._around, moment, self._replaying, self.manner)

    def _replaying(self, name: str) -> None:
        start = self._route.base.facts.start_lsn
        at = position_of(name, self._segment_bytes) if name else start
        done = self._total - self._log_bytes + min(max(0, at - start), self._log_bytes)
        self._tell(done, self._total, "bytes", "replaying")

    def _reached(self, step: RestoreStep) -> None:
        """Every step goes through here."""
        log.debug("restore", database=self._source.label, step=str(step))


def position_of(name: str, segment_bytes: int) -> int:
    """Where a file of the log begins. Pure."""
    return (int(name[8:16], 16) * ((1 << 32) // segment_bytes) + int(name[16:24], 16)) * segment_bytes


def _id_of(data: Path) -> DatabaseId:
    """Whose volume is being made there."""
    id = data.parent.name.rpartition("-")[2]
    if not is_database_id(id):
        raise Unavailable(f"{data} is no volume that is being made")
    return DatabaseId(id)


async def _at_once(count: int) -> None:
    pass


def _make_directory(data: Path) -> None:
    """Where the cluster goes: whoever recovers it must get there."""
    data.parent.chmod(0o711)
    data.mkdir(mode=0o700, exist_ok=True)
    (data / "pg_wal").mkdir(mode=0o700, exist_ok=True)
    (data / "pg_wal").chmod(0o700)


def _empty(data: Path) -> None:
    """Remove all below it but the directory of the log, which may be a subvolume."""
    for path in (*data.iterdir(), *(data / "pg_wal").iterdir()):
        if path.name != "pg_wal":
            subprocess.run(["rm", "--recursive", "--force", "--", str(path)], stdin=subprocess.DEVNULL, check=True)
