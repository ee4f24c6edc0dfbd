"""Major upgrades: a database goes on as one of a newer PostgreSQL, with its id, name, passwords and data; what it was stays as a branch.

All of it is tried on a copy first, while the database goes on to be used: the copy is upgraded (`compute/upgrading.py`), compared with what
it was, every row counted and every page looked at, started, and thrown away. What stands against an upgrade is found here.

Then the database is stopped, for as long as pg_upgrade takes for its catalogs (seconds; it copies no data), its copy is upgraded and
compared in the same way, without counting, and the two exchange volumes and majors, as in a restore in place (`control/rewind.py`). An
undo is the same exchange again. A kill before the exchange leaves what was, after it what is wanted. UPGRADE_STEPS are the steps until
then; those of the exchange are REWIND_STEPS.

Concurrency: each is a job, and claims its database. While it is switched, clients are told to come back.
"""

import asyncio
import contextlib
import copy
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.service import QueryFailed, Row
from torpor.compute.snapshot import snapshot
from torpor.compute.surroundings import Surroundings
from torpor.compute.upgrading import Manner, Outcome, lay, refuse_tablespaces, upgrade
from torpor.control.archiving import have_volume
from torpor.control.branches import Branches
from torpor.control.claims import Claims
from torpor.control.databases import Databases
from torpor.control.jobs import Jobs, Progress
from torpor.control.provisioning import Provisioner
from torpor.control.rewind import Rewinds, admit, check_unused, stop
from torpor.model.database import DatabaseState
from torpor.model.errors import BinariesMissing, Conflict, InvalidRequest, TorporError, Unavailable
from torpor.model.jobs import JobView
from torpor.model.names import MAX_NAME_LENGTH, DatabaseId
from torpor.model.sleep import SleepReason, WakeReason
from torpor.model.workspace import WorkspaceId
from torpor.storage.copying import Selection, copy_tree
from torpor.storage.volumes import Volumes, give_to

log = get_logger(__name__)

_WORK = "upgrading"  # beside where the cluster is to be, in a volume that is being made
_OWN_SLOTS = "torpor_"
_NEW_BYTES = 64 << 20  # catalogs and log of the new cluster
_CHECKED_BYTES = 8 << 30  # what pg_amcheck reads in a minute or two
_STATISTICS_CARRIED_SINCE = 18
_MOST_TABLES = 10_000
_FEW, _USUAL = 10, 100  # targets of statistics: a first look at all tables, then as PostgreSQL does by itself
_GENTLY = "SET statement_timeout = 0; SET lock_timeout = '1s'; SET vacuum_cost_delay = '2ms'"
_DATABASES = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
_TABLES = """SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY c.relpages LIMIT {most}"""
_WITH_STATISTICS = """SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_statistic_ext s
  JOIN pg_catalog.pg_class c ON c.oid = s.stxrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LIMIT {most}"""


class UpgradeStep(StrEnum):
    """The steps of an upgrade before the exchange, in order; the first three twice: in the rehearsal, and in earnest."""

    COPIED = "copied"  # the copy lies beside where the upgraded cluster is to be
    UPGRADED = "upgraded"  # and was upgraded
    LAID = "laid"  # and is where a cluster is
    REHEARSED = "rehearsed"  # all went well, and was thrown away
    HELD = "held"  # the database is stopped, and may not be started
    READY = "ready"  # its upgraded copy has run, and is stopped, too


UPGRADE_STEPS = tuple(UpgradeStep)


class Upgrades:
    """All use cases of major upgrades."""

    def __init__(
        self,
        databases: Databases,
        branches: Branches,
        rewinds: Rewinds,
        fleet: Fleet,
        provisioner: Provisioner,
        volumes: Volumes,
        around: Surroundings,
        blank: Callable[[int], Awaitable[Path]],
        jobs: Jobs,
        claims: Claims,
        clock: Clock,
    ) -> None:
        """`blank` gives a cluster of a major with nothing in it."""
        self._databases = databases
        self._branches = branches
        self._rewinds = rewinds
        self._fleet = fleet
        self._provisioner = provisioner
        self._volumes = volumes
        self._around = around
        self._blank = blank
        self._jobs = jobs
        self._claims = claims
        self._clock = clock

    def within(self, workspace: WorkspaceId | None) -> Self:
        """The same use cases, confined to the databases of a workspace."""
        confined = copy.copy(self)
        confined._databases = self._databases.within(workspace)
        confined._rewinds = self._rewinds.within(workspace)
        return confined

    async def upgrade(self, name: str, to: int, check: bool, force: bool, by: str) -> JobView:
        """Upgrade a database to a newer major, as a job; with `check` only rehearse it. What it is now stays as a branch, which the job's
        result names.

        Raises DatabaseNotFound, InvalidRequest for a major that isn't newer or isn't installed, Conflict, DatabaseInUse with open
        connections that aren't just ending, unless `force` or `check`.
        """
        compute = self._databases.compute(name)
        if to <= compute.major:
            raise InvalidRequest(
                f"database {name} is of PostgreSQL {compute.major} already"
                if to == compute.major
                else "there is no way back to an older major",
                "" if to == compute.major else "`torpor upgrade --undo` takes an upgrade back; else `torpor export` and `torpor import`",
            )
        try:
            for major in (compute.major, to):
                await asyncio.to_thread(self._around.binaries, major)
        except BinariesMissing as error:
            raise InvalidRequest(error.message, error.hint) from error
        if not check:
            await check_unused(compute, force)
        claim = self._claims.take("upgraded", compute)
        return self._jobs.start("upgrade", compute.database, lambda progress: self._upgrade(compute, to, check, force, progress), by, claim)

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        """Take back the last upgrade, as a job: the database and the branch that was kept exchange what they are. Once more does it again.

        What was written since is in that branch then. Raises as `Rewinds.undo`, and Conflict when the last exchange was no upgrade.
        """
        compute = self._databases.compute(name)
        kept = self._rewinds.kept(compute)
        if kept is not None and kept.major == compute.major:
            raise Conflict(
                f"database {name} was restored since it was upgraded, or never upgraded", "`torpor branches` shows what there is"
            )
        return await self._rewinds.undo(name, force, by)

    # -- inside

    async def _upgrade(self, compute: Compute, to: int, check: bool, force: bool, progress: Progress) -> dict[str, str]:
        before = compute.major
        await have_volume(compute, "upgrade")
        outcome = await self._rehearse(compute, to, progress)
        result = {"database": compute.database.label, "from": str(before), "to": str(to), **await self._told(compute, outcome)}
        if check:
            return result
        began = self._clock.monotonic()
        kept = await self._switch(compute, to, force, progress)
        result |= {"before": kept.database.label, "unavailable_s": f"{self._clock.monotonic() - began:.1f}"}
        log.info("upgraded", database=compute.database.label, before=before, after=to, unavailable_s=result["unavailable_s"])
        try:
            await self._gather_statistics(compute, to, progress)
        except TorporError as error:
            log.warning("statistics are missing after an upgrade", database=compute.database.label, cause=str(error))
            result["statistics"] = "not all are gathered: run ANALYZE"
        return result

    async def _rehearse(self, compute: Compute, to: int, progress: Progress) -> Outcome:
        """All of it on a copy that is thrown away; what it said."""
        used = await self._volumes.measure(compute.database.id)
        trial, outcome = await self._made(compute, to, Manner(True, used <= _CHECKED_BYTES), "rehearsing", progress)
        await self._provisioner.remove(trial)
        self._reached(UpgradeStep.REHEARSED, compute)
        return outcome

    async def _switch(self, compute: Compute, to: int, force: bool, progress: Progress) -> Compute:
        """In earnest; the database that has what it was."""
        await check_unused(compute, force)
        if compute.refusal is not None:
            raise compute.refusal
        label = compute.database.label
        busy = Unavailable(f"database {label} is being upgraded to PostgreSQL {to}", "try again in some seconds")
        compute.refusal = busy
        try:
            progress(0, None, "", "stopping")
            await stop((compute,), force)
            self._reached(UpgradeStep.HELD, compute)
            moves = compute.moves
            kept, _ = await self._made(compute, to, Manner(False, False), "switching", progress, self._free_name(label, to))
            try:
                await kept.stop(SleepReason.API)
                if compute.moves != moves or compute.database.state is not DatabaseState.READY:
                    raise Conflict(f"{label} was removed, or replaced, while it was upgraded")
                self._reached(UpgradeStep.READY, compute)
                progress(0, None, "", "exchanging")
            except BaseException:
                await self._provisioner.remove(kept)
                raise
            await self._rewinds.exchange(compute, kept, force, f"it was upgraded to PostgreSQL {to}", busy)
            return kept
        finally:
            admit(busy, compute)

    async def _made(
        self, compute: Compute, to: int, manner: Manner, what: str, progress: Progress, name: str | None = None
    ) -> tuple[Compute, Outcome]:
        """A database that is a copy of it, upgraded and awake, in the state BRANCHING. All or nothing."""
        outcome = Outcome()

        async def fill(source: Compute, data: Path, uid: int) -> None:
            nonlocal outcome
            outcome = await self._fill(
                source, wanted.id, to, data, uid, manner, lambda done, note: progress(done, None, "", f"{what}: {note}")
            )

        wanted = replace(self._branches.nameless(compute, self._clock.time()), size=compute.database.size, major=to)
        if name is not None:
            wanted = replace(wanted, name=name)
        made = await self._branches.make(wanted, compute, compute.database.label, fill, None)
        return made, outcome

    async def _fill(
        self, source: Compute, id: DatabaseId, to: int, data: Path, uid: int, manner: Manner, tell: Callable[[int, str], None]
    ) -> Outcome:
        """Write the upgraded cluster to `data`."""
        work = data.parent / _WORK
        tell(0, "copying")
        blank = await self._blank(to)
        copied = 0 if self._volumes.reflinks else await self._volumes.measure(source.database.id)
        self._volumes.check_room(copied + _NEW_BYTES)
        work.parent.chmod(0o711)
        work.mkdir(mode=0o700)
        await snapshot(source, self._volumes, work / "old", uid)
        await copy_tree(blank, work / "new", uid, Selection())
        await asyncio.to_thread(refuse_tablespaces, work / "old")
        if uid != os.geteuid():
            await asyncio.to_thread(give_to, work, uid)
        self._reached(UpgradeStep.COPIED, source)
        outcome = await upgrade(source.database, id, to, work, uid, self._around, manner, tell)
        self._reached(UpgradeStep.UPGRADED, source)
        await asyncio.to_thread(lay, work, data)
        self._reached(UpgradeStep.LAID, source)
        tell(0, "starting")
        return outcome

    def _free_name(self, name: str, to: int) -> str:
        for tail in (f"-before-{to}", *(f"-before-{to}-{n}" for n in range(2, 100))):
            free = name[: MAX_NAME_LENGTH - len(tail)] + tail
            if self._fleet.find(free) is None:
                return free
        raise Conflict(f"there are enough databases called {free}", "`torpor rm` those that aren't needed")

    async def _told(self, compute: Compute, outcome: Outcome) -> dict[str, str]:
        """What its owner must know of an upgrade."""
        told = {}
        if outcome.settings_left_out:
            told["settings_left_out"] = ", ".join(outcome.settings_left_out)
        if outcome.troubles:
            told["extensions"] = "; ".join(outcome.troubles)
        if slots := await asyncio.to_thread(_slots, self._volumes.data(compute.database.id)):
            told["slots_left_out"] = ", ".join(slots)
        return told

    async def _gather_statistics(self, compute: Compute, to: int, progress: Progress) -> None:
        """What the planner must know, and pg_upgrade doesn't carry over: gently, table by table, first a little of all."""
        carried = to >= _STATISTICS_CARRIED_SINCE
        async with compute.awake(WakeReason.MAINTENANCE, "statistics after an upgrade"):
            names = [row[0] or "" for row in await (await compute.live().service()).query(_DATABASES, _MOST_TABLES)]
            for target in (_USUAL,) if carried else (_FEW, _USUAL):
                for name in names:
                    session = await compute.live().another_service(name)
                    try:
                        await session.query(f"{_GENTLY}; SET default_statistics_target = {target}")
                        listing = (_WITH_STATISTICS if carried else _TABLES).format(most=_MOST_TABLES)
                        await self._analyze(session.query, await session.query(listing, 2 * _MOST_TABLES), progress)
                    finally:
                        await session.close()

    async def _analyze(self, query: Callable[..., Awaitable[list[Row]]], tables: list[Row], progress: Progress) -> None:
        for number, row in enumerate(tables):
            progress(number, len(tables), "tables", "gathering statistics")
            with contextlib.suppress(QueryFailed):  # it is locked, or gone
                await query(f"ANALYZE {row[0]}", patience_s=3600.0)

    def _reached(self, step: UpgradeStep, compute: Compute) -> None:
        """Every step goes through here."""
        log.debug("upgrade", database=compute.database.label, step=str(step))


def _slots(data: Path) -> list[str]:
    """The replication slots of its owner's. The volume is a tenant's: no link is followed."""
    try:
        fd = os.open(data / "pg_replslot", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return sorted(name for name in os.listdir(fd) if not name.startswith(_OWN_SLOTS))[:20]
    finally:
        os.close(fd)
