"""Restore drills: every so often some database is brought back to some moment, beside all that goes on, looked through, and thrown away.

What is verified is what a restore would use: the history alone. The database itself isn't asked for anything: it isn't woken, nothing of it
is read, nobody waits, and nothing is billed. What was restored is a volume without a database (DRILL_STEPS), in a directory that the next
start of Torpor removes like any other that is half made; its processes are strays for that one, too. So whenever Torpor ends, nothing of a
drill is left.

A drill takes a small share of the machine: a tenth of a processor that everybody else goes before, little memory, a few MB a second of the
store and of the disk, and half of the room that the pool has at most; it waits while the host is short of memory or disks
(`control.considerate`).

Concurrency: one drill at a time, a job; who asks for one waits for the one that runs. One task begins one every so often.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from torpor.base import pressure
from torpor.base.clock import Clock
from torpor.base.files import read_untrusted
from torpor.base.limits import Limits
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.catalog.drills import DrillRecords
from torpor.compute.checking import Damaged, check, check_not_starved
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.recovery import Manner, RecoveryFailed
from torpor.compute.surroundings import Surroundings
from torpor.control.audit import TORPOR
from torpor.control.considerate import Considerate
from torpor.control.drilling import Impossible, choose, choose_moment, gap, is_cut, judge
from torpor.control.history import Histories
from torpor.control.jobs import Jobs, Progress
from torpor.control.provisioning import new_id
from torpor.control.restore import Restores, Route, routes
from torpor.model.database import Database, DatabaseState
from torpor.model.drills import DrillCause, DrillList, DrillResult, DrillView
from torpor.model.errors import Conflict, DrillFailed, DrillNotPossible, HistoryMissing, PoolFull, TooManyJobs, TorporError, Unavailable
from torpor.model.history import History, Moment
from torpor.model.jobs import JobView
from torpor.model.lsn import format_lsn, parse_lsn
from torpor.model.names import DatabaseId
from torpor.model.size import MIB
from torpor.model.workspace import WorkspaceId
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import spans
from torpor.storage.quotas import stopping_point
from torpor.storage.room import PoolLevel

log = get_logger(__name__)

CPU = 0.1
"""Processors that a drill has at most, and only while nobody else wants them."""

BYTES_PER_S = 16 * MIB
"""How fast what is in the store is read, opened and written: that costs Torpor itself about a twentieth of a processor."""

MEMORY_BYTES = 256 * MIB
LONGEST_S = 6 * 3600.0
LONGEST_WAIT_S = 2 * 3600.0
WAITING_IN_WORKSPACE = 3
AGAIN_S = 900.0
"""How soon after one that wasn't possible the next one is tried."""

_BUFFERS_MB = 32
_PROCESSES = 64
_SHARE_OF_ROOM = 0.5
_GROWS = 1.25
_GROWS_BYTES = 128 * MIB  # what PostgreSQL makes anew, and what amcheck's extension takes in each database
_MEASURE_EVERY = 5  # looks
_HISTORY_FILE = re.compile(r"[0-9A-F]{8}\.history")
_SPREAD = 0.5  # of the time between two drills that is left to chance


class DrillStep(StrEnum):
    """What has just been done of a drill."""

    CHOSEN = "chosen"  # what to bring back, and to which moment
    RESTORED = "restored"  # it was brought back, and PostgreSQL is stopped
    CHECKED = "checked"  # it was looked through
    REMOVED = "removed"  # nothing of it is left


DRILL_STEPS = tuple(DrillStep)


@dataclass(slots=True)
class _Report:
    """What becomes known of a drill on the way."""

    moment: str = ""
    base: int | None = None
    size_bytes: int = 0
    log_bytes: int = 0
    tables: int = 0
    rows: int = 0
    checked: tuple[str, ...] = ()


class Drills:
    """All drills of one Torpor."""

    def __init__(
        self,
        records: DrillRecords,
        restores: Restores,
        histories: Histories,
        fleet: Fleet,
        around: Surroundings,
        jobs: Jobs,
        every_s: float | None,
        clock: Clock,
        tasks: TaskOwner,
        chance: random.Random | None = None,
        pressure: Callable[[], pressure.Pressure] = pressure.read,
    ) -> None:
        """`every_s` is how often one is begun, about; None for never."""
        self._records = records
        self._restores = restores
        self._histories = histories
        self._fleet = fleet
        self._around = around
        self._volumes = around.volumes
        self._jobs = jobs
        self._every_s = every_s
        self._clock = clock
        self._tasks = tasks
        self._chance = chance or random.Random()  # noqa: S311  # nobody gains by knowing which database is next
        self._pressure = pressure
        self._turn = asyncio.Lock()
        self._waiting: dict[DatabaseId, WorkspaceId | None] = {}  # the one that is being verified among them
        self._results = records.results()
        self.counted: Counter[DrillResult] = Counter()
        """Drills since Torpor started, by what became of them."""

    def __repr__(self) -> str:
        return f"<Drills every_s={self._every_s}{' running' if self._turn.locked() else ''}>"

    def start(self) -> None:
        """Begin one every so often."""
        if self._every_s is not None:
            self._tasks.spawn_endless(self._run, "drill")

    @property
    def failing(self) -> int:
        """Databases of which the last drill that said something failed."""
        return sum(result is DrillResult.FAILED for result in self._results.values())

    def forget(self, id: DatabaseId) -> None:
        """The database is gone."""
        self._results.pop(id, None)

    # -- what users ask for

    def drill(self, id: DatabaseId, by: str) -> JobView:
        """Begin a drill on a database, as a job. Raises Conflict without a history, or while one waits already; TooManyJobs, also when
        its workspace has some that wait: others want to be verified, too."""
        compute = self._fleet.get(id)
        if compute is None:
            raise Conflict("it is being removed")
        self._histories.history(id)
        if id in self._waiting:
            raise Conflict("a drill on it is under way already", "`torpor job ls` tells how far it is")

        workspace = compute.database.workspace
        if by != TORPOR and list(self._waiting.values()).count(workspace) >= WAITING_IN_WORKSPACE:
            raise TooManyJobs(f"{WAITING_IN_WORKSPACE} drills of this workspace are under way already", "wait for one: `torpor job ls`")

        async def work(progress: Progress) -> dict[str, str]:
            with self._waits(id, workspace):
                progress(0, None, "bytes", "waiting for another drill" if self._turn.locked() else "choosing a moment")
                async with self._turn:
                    return _told(await self._drill(compute, progress))

        return self._jobs.start("drill", compute.database, work, by)

    def last(self, id: DatabaseId) -> DrillView | None:
        """The last drill on a database that said something."""
        compute = self._fleet.get(id)
        return self._records.last(id, compute.database.label if compute is not None else "")

    def of(self, id: DatabaseId, name: str) -> DrillList:
        """The last drills on a database, the newest first."""
        known = {id} & self._results.keys()
        return self._list(tuple(self._records.of(id, name)), known, 1 - len(known))

    def all(self, within: WorkspaceId | None) -> DrillList:
        """The last drill on each database of a workspace (None: of all), the newest first."""
        found, known, unverified = [], set[DatabaseId](), 0
        for id, drill in self._records.last_of_all():
            if (compute := self._fleet.get(id)) is not None and within in (None, compute.database.workspace):
                found.append(replace(drill, database=compute.database.label))
                known.add(id)
        for candidate in self._records.candidates():
            compute = self._fleet.get(candidate.id)
            if candidate.id not in self._results and compute is not None and within in (None, compute.database.workspace):
                unverified += 1
        return self._list(tuple(found), known & self._results.keys(), unverified)

    def _list(self, drills: tuple[DrillView, ...], known: set[DatabaseId], unverified: int) -> DrillList:
        failing = sum(self._results[id] is DrillResult.FAILED for id in known)
        return DrillList(drills, self._every_s, len(known) - failing, failing, unverified)

    # -- by itself

    async def _run(self) -> None:
        assert self._every_s is not None
        pause_s = self._every_s * self._chance.random()  # not all Torpors of a day at once
        while True:
            await self._clock.sleep(pause_s)
            result = await self._drill_some()
            spread = 1 + _SPREAD * (self._chance.random() - 0.5)
            pause_s = spread * (min(AGAIN_S, self._every_s) if result is DrillResult.NOT_POSSIBLE else self._every_s)

    async def _drill_some(self) -> DrillResult | None:
        """One drill on some database; None when there was none to do."""
        candidates = [each for each in self._records.candidates() if self._fleet.get(each.id) is not None]
        chosen = choose(candidates, self._chance, self._clock.time(), AGAIN_S)
        if chosen is None:
            return None
        try:
            job = self.drill(chosen.id, TORPOR)
        except TorporError as error:
            log.info("a drill can't be begun now", cause=error.message)
            return DrillResult.NOT_POSSIBLE
        ended = await self._jobs.wait(job.id)
        return DrillResult.NOT_POSSIBLE if ended.error is not None and ended.error.kind != DrillFailed.kind else None

    # -- one drill

    @contextmanager
    def _waits(self, id: DatabaseId, workspace: WorkspaceId | None) -> Iterator[None]:
        self._waiting[id] = workspace
        try:
            yield
        finally:
            self._waiting.pop(id, None)

    async def _drill(self, compute: Compute, progress: Progress) -> DrillView:
        """From the choice to the report. Raises what isn't to be reported: a removal of the database, the end of Torpor."""
        database, began_at, report = compute.database, self._clock.time(), _Report()
        cause, detail, hint, result = None, "", "", DrillResult.PASSED
        try:
            await self._try(database, report, progress)
        except (TorporError, OSError) as error:
            verdict = judge(await self._unless_expired(error, database, report.base))
            result, cause, detail, hint = verdict.result, verdict.cause, verdict.detail, verdict.hint
        if self._is_gone(database.id):
            raise Conflict(f"{database.label} was removed meanwhile")
        drill = DrillView(
            database.label, result, began_at, self._clock.time(), report.moment, report.base, report.size_bytes, report.log_bytes,
            report.tables, report.rows, report.checked, cause, detail[:1000], hint,
        )  # fmt: skip
        if self._records.add(database.id, drill) and result is not DrillResult.NOT_POSSIBLE:
            self._results[database.id] = result
        self.counted[result] += 1
        tell = log.error if result is DrillResult.FAILED else log.info
        tell("drill", database=database.label, result=str(result), moment=drill.moment, cause=str(cause or ""), detail=detail)
        return drill

    async def _try(self, database: Database, report: _Report, progress: Progress) -> None:
        """Raises what kept it from passing."""
        history = self._histories.history(database.id)
        repository = self._histories.repository(history)
        bases, pieces = await repository.bases(), await repository.wal_pieces()
        still = {base.number for base in await repository.bases()}
        bases = [base for base in bases if base.number in still]  # the log of one that expires now goes after it
        if missing := gap(bases, pieces, history):
            raise Damaged(DrillCause.LOG_GAP, missing)
        found = spans(bases, pieces)
        if not found and not _has_whole_base(history):
            raise Impossible(DrillCause.HOST, "it has no base yet from which it could be restored")
        moment = choose_moment(found, history, self._chance)
        route = routes(bases, pieces, history, moment)[0]
        facts = route.base.facts
        report.moment, report.base = str(moment), route.base.number
        report.size_bytes, report.log_bytes = route.base.size_bytes, max(0, route.until - facts.start_lsn)
        allowed = self._check_room(database, report)
        id = new_id()
        self._reached(DrillStep.CHOSEN, database)
        async with repository.hold(route.base.number), self._volumes.scratch(id, allowed) as scratch:
            async with self._considerate(id, database, allowed) as manners:
                manner = Manner(_limits(), _BUFFERS_MB, scratch / "log", manners.held)
                data = scratch / "data"
                try:
                    to_the_end = await self._restores.rehearse(
                        database, history, repository, route, moment, data, progress, manner, manners.pace
                    )
                except RecoveryFailed as error:
                    check_not_starved(manner.log, error)
                    raise
                self._reached(DrillStep.RESTORED, database)
                await self._check_end(repository, route, data, moment, to_the_end)
                total = report.size_bytes + report.log_bytes
                restored = replace(database, major=facts.major)  # it may have been upgraded since
                counted = await check(
                    restored, id, data, self._around, manner, scratch / "met", lambda note: progress(total, total, "bytes", note)
                )
                report.tables, report.rows, report.checked = counted.tables, counted.rows, counted.checked
            self._reached(DrillStep.CHECKED, database)
        self._reached(DrillStep.REMOVED, database)

    async def _unless_expired(self, error: Exception, database: Database, base: int | None) -> Exception:
        """What is missing since it needn't be kept any more, as of this moment, isn't missing."""
        if isinstance(error, HistoryMissing) and base is not None:
            try:
                left = await self._histories.repository(self._histories.history(database.id)).bases()
            except TorporError as another:
                return another
            if base not in {each.number for each in left}:
                return Impossible(DrillCause.STORE, "the base copy expired while it was being restored")
        return error

    async def _check_end(self, repository: Repository, route: Route, data: Path, moment: Moment, to_the_end: bool) -> None:
        """PostgreSQL says where it left the log that it was given: not before the moment, and not before the end of what can be replayed.

        A replay ends without a complaint at a record that is damaged: that would be a restore that lost commits.
        """
        at = await asyncio.to_thread(_left_at, data)
        if moment.lsn is not None and at >= moment.lsn:
            return
        if not to_the_end or at >= route.end:
            return
        head = b""
        async for _, part in repository.wal(route.base.facts.timeline, at, min(at + 64, route.end)):
            head += part
        if not is_cut(head, at, route.end):
            raise Damaged(
                DrillCause.LOG_UNREADABLE,
                f"PostgreSQL can't replay the log behind {format_lsn(at)}, though it goes on to {format_lsn(route.end)}",
            )

    def _is_gone(self, id: DatabaseId) -> bool:
        compute = self._fleet.get(id)
        return compute is None or compute.database.state is not DatabaseState.READY

    def _check_room(self, database: Database, report: _Report) -> int:
        """How many bytes of the pool a drill may take: what it probably takes must be there twice. Raises Impossible.

        Log that is compressed can become many times as much; but no more than the database may have.
        """
        expected = int((report.size_bytes + report.log_bytes) * _GROWS) + _GROWS_BYTES
        room = self._volumes.room()
        free = max(0, room.free_bytes - room.kept_bytes)
        if self._volumes.level is not PoolLevel.ROOM or expected > free * _SHARE_OF_ROOM:
            detail = f"a drill on it takes {expected >> 20} MB of the pool, and may take half of the {free >> 20} MB that are free"
            raise Impossible(DrillCause.POOL, detail)
        size = database.size.apply(self._around.size)
        return max(expected, min(stopping_point(size.disk_bytes), int(free * _SHARE_OF_ROOM)))

    def _considerate(self, id: DatabaseId, database: Database, allowed: int) -> Considerate:
        looks = 0

        async def refuse() -> Unavailable | None:
            nonlocal looks
            looks += 1
            if self._volumes.level is not PoolLevel.ROOM:
                return PoolFull("the storage pool became full")
            if self._is_gone(database.id):
                return Impossible(DrillCause.HOST, "it was removed")
            if looks % _MEASURE_EVERY == 0 and await asyncio.to_thread(self._volumes.scratch_bytes, id) > allowed:
                return Impossible(DrillCause.POOL, f"it took more than the {allowed >> 20} MB that were meant for it")
            return None

        return Considerate(
            self._pressure, refuse, self._clock, BYTES_PER_S, LONGEST_S, LONGEST_WAIT_S,
            Impossible(DrillCause.TIME, f"it was not done after {LONGEST_S / 3600:g} hours"),
            Impossible(DrillCause.BUSY, f"the host was short of memory or disks for {LONGEST_WAIT_S / 3600:g} hours"),
        )  # fmt: skip

    def _reached(self, step: DrillStep, database: Database) -> None:
        """Every step goes through here."""
        log.debug("drill", database=database.label, step=str(step))


def _has_whole_base(history: History) -> bool:
    """Whether the present stretch has a base, with the log in the store that makes it whole."""
    return history.base_lsn is not None and history.shipped is not None and history.shipped.lsn >= history.base_lsn


def _limits() -> Limits:
    return Limits(
        cpu=CPU, cpu_weight=1, cpu_yields=True, memory_bytes=MEMORY_BYTES, memory_soft_bytes=MEMORY_BYTES * 3 // 4, processes=_PROCESSES,
        disk_yields=True,
    )  # fmt: skip


def _left_at(data: Path) -> int:
    """Where PostgreSQL left the log that it was given, as it noted itself when it began a timeline of its own. Raises Damaged."""
    try:
        newest = max((path for path in (data / "pg_wal").iterdir() if _HISTORY_FILE.fullmatch(path.name)), default=None)
        lines = read_untrusted(newest).splitlines() if newest is not None else []
        return parse_lsn([line for line in lines if line.strip() and not line.startswith("#")][-1].split("\t")[1])
    except (OSError, ValueError, IndexError) as error:
        raise Damaged(DrillCause.RECOVERY, "PostgreSQL doesn't say where it left the log") from error


def _told(drill: DrillView) -> dict[str, str]:
    """The result of a job. Raises what a drill that didn't pass says."""
    where = f"restored to {drill.moment}: " if drill.moment else ""
    if drill.result is DrillResult.FAILED:
        raise DrillFailed(where + drill.detail, drill.hint)
    if drill.result is DrillResult.NOT_POSSIBLE:
        raise DrillNotPossible(drill.detail, drill.hint)
    return {"moment": drill.moment, "tables": str(drill.tables), "rows": str(drill.rows), "checked": ", ".join(drill.checked)}
