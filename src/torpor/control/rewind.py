"""Restores in place: a database becomes what it was, keeps its id, its name and its owner's password, and what it is now stays as a branch.
And the exchange of volumes, and of majors, that these and major upgrades (`control/upgrade.py`) end with.

What was is made as a branch first (`control.restore`), with all that may fail and take long. Then the two exchange their volumes, which is
one atomic step of the file system, and each gives owner and inner database its own name. To undo a restore is the same exchange again.

The exchange is in the catalog before it begins, and the volume that is to be the database's bears a mark: so after a kill -9, at whatever
step, the next Torpor knows whether it has happened. If so, it finishes the naming; if not, all is as it was, and what was made for it goes.
REWIND_STEPS are the steps.

Concurrency: each is a job. One at a time of one database. While volumes are exchanged, for about a second, clients are told to come back.
"""

import asyncio
import contextlib
import copy
import os
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from torpor.base.clock import Clock
from torpor.base.files import sync_directory
from torpor.base.logs import get_logger
from torpor.catalog.catalog import Catalog
from torpor.catalog.rewinds import RewindRecords
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.lifecycle import ComputeState
from torpor.compute.service import literal
from torpor.control.archiving import have_volume
from torpor.control.branches import Branches
from torpor.control.claims import Claims
from torpor.control.databases import Databases
from torpor.control.history import Histories
from torpor.control.jobs import Jobs, Progress
from torpor.control.provisioning import Provisioner
from torpor.control.restore import Restores
from torpor.model.database import DatabaseState
from torpor.model.errors import Conflict, DatabaseInUse, TorporError, Unavailable
from torpor.model.history import Moment
from torpor.model.jobs import JobView
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepReason, Tier, WakeReason
from torpor.model.workspace import WorkspaceId
from torpor.storage.volumes import Volumes

log = get_logger(__name__)

_MARK = "exchanged"  # beside the cluster, in the volume that a database is to have
_LONGEST_NAME = 63


class RewindStep(StrEnum):
    """The steps of a restore in place, in order. Up to RECORDED a kill leaves nothing, up to EXCHANGED nothing but what was."""

    MADE = "made"  # what was, as a branch in the making
    RECORDED = "recorded"  # the catalog says which two exchange
    STOPPED = "stopped"  # neither runs, and neither may be started
    EXCHANGED = "exchanged"  # each has the other's volume
    NAMED = "named"  # and in it owner and inner database of its own name


REWIND_STEPS = tuple(RewindStep)


class Rewinds:
    """All use cases that restore in place."""

    def __init__(
        self,
        databases: Databases,
        branches: Branches,
        restores: Restores | None,
        histories: Histories | None,
        records: RewindRecords,
        catalog: Catalog,
        fleet: Fleet,
        volumes: Volumes,
        provisioner: Provisioner,
        jobs: Jobs,
        claims: Claims,
        clock: Clock,
    ) -> None:
        self._databases = databases
        self._branches = branches
        self._restores = restores
        self._histories = histories
        self._records = records
        self._catalog = catalog
        self._fleet = fleet
        self._volumes = volumes
        self._provisioner = provisioner
        self._jobs = jobs
        self._clock = clock
        self._claims = claims

    def within(self, workspace: WorkspaceId | None) -> Self:
        """The same use cases, confined to the databases of a workspace."""
        confined = copy.copy(self)
        confined._databases = self._databases.within(workspace)
        return confined

    async def restore(self, name: str, moment: Moment, force: bool, by: str) -> JobView:
        """Bring a database back to a moment, as a job. What it is now stays as a branch, which the job's result names.

        Raises DatabaseNotFound, Conflict without any history, DatabaseInUse with open connections that aren't just ending, unless `force`.
        """
        compute = self._databases.compute(name)
        if self._histories is None or self._restores is None:
            raise Conflict("this Torpor keeps no history")
        self._histories.history(compute.database.id)
        await check_unused(compute, force)
        claim = self._claims.take("restored", compute)
        return self._jobs.start("restore", compute.database, lambda progress: self._restore(compute, moment, force, progress), by, claim)

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        """Take back the last restore in place, as a job: the database and its branch exchange what they are. Once more does it again.

        Raises DatabaseNotFound, Conflict when none was made or what it was is gone, DatabaseInUse.
        """
        compute = self._databases.compute(name)
        kept = self.kept(compute)
        if kept is None or kept.database.state is not DatabaseState.READY:
            raise Conflict(
                f"database {name} was not restored in place, or what it was before is gone", "`torpor branches` shows what there is"
            )
        await check_unused(compute, force)
        await check_unused(kept, force)
        claim = self._claims.take("restored", compute, kept)
        return self._jobs.start("undo", compute.database, lambda progress: self._undo(compute, kept, force, progress), by, claim)

    def kept(self, compute: Compute) -> Compute | None:
        """The database that has what that one was before its last exchange; None when there was none, or that is gone."""
        return self._fleet.get(self._records.kept(compute.database.id))

    async def exchange(self, compute: Compute, kept: Compute, force: bool, why: str, busy: TorporError) -> None:
        """Let a database have the volume and the major of `kept`, which was made for it and is stopped, and `kept` what it is now.

        All or nothing: where it can't be, `kept` is removed. It can't be taken back by halves, so whoever is cancelled waits for its end.
        Whoever wants to start either meanwhile is told `busy`. Raises DatabaseInUse, Conflict.
        """
        try:
            await have_volume(compute, "its volume is exchanged")
            await check_unused(compute, force)
            await asyncio.to_thread(_mark, self._volumes.path(kept.database.id), compute.database.id)
            with self._catalog.transaction():
                self._record(compute, kept, True)
                self._catalog.set_state(kept.database.id, DatabaseState.READY)
        except BaseException:
            await self._provisioner.remove(kept)
            raise
        await _finished(self._exchange(compute, kept, force, True, why, busy))

    async def finish_left(self) -> None:
        """Once at start: what another Torpor was killed at."""
        for id, kept_id, is_made, majors in self._records.unfinished():
            compute, kept = self._fleet.get(id), self._fleet.get(kept_id)
            if compute is None or kept is None:
                self._records.forget(id)
                continue
            try:
                await self._finish_left(compute, kept, is_made, majors)
            except (TorporError, OSError) as error:
                log.error("an exchange could not be finished", database=compute.database.label, cause=str(error))

    async def _finish_left(self, compute: Compute, kept: Compute, is_made: bool, majors: tuple[int, int] | None) -> None:
        has_happened = await asyncio.to_thread((self._volumes.path(compute.database.id) / _MARK).exists)
        log.warning("an exchange was cut off", database=compute.database.label, other=kept.database.label, has_happened=has_happened)
        if has_happened and majors is not None:
            self._set_majors(compute, kept, majors)
        await self._give(compute, kept)
        if not has_happened and is_made:
            self._records.forget(compute.database.id)
            await self._provisioner.remove(kept)
            return
        await self._finish(compute, kept)

    # -- inside

    async def _restore(self, compute: Compute, moment: Moment, force: bool, progress: Progress) -> dict[str, str]:
        name, now = compute.database.label, self._clock.time()
        role = await self._fleet.role(compute.database, name)
        wanted = self._branches.nameless(compute, now)
        wanted = replace(wanted, name=self._free_name(name, now), size=compute.database.size)
        assert self._restores is not None
        kept = await self._branches.make(wanted, compute, name, self._restores.filler(moment, progress), None)
        try:
            if role is not None and role.verifier is not None:
                async with kept.awake(WakeReason.MAINTENANCE, "restore"):
                    await kept.set_password(name, role.verifier)
            await kept.stop(SleepReason.API)
            self._reached(RewindStep.MADE, compute)
        except BaseException:
            await self._provisioner.remove(kept)
            raise
        await self.exchange(compute, kept, force, f"it was restored to {moment}", _busy(compute))
        return {"database": name, "before": kept.database.label}

    async def _undo(self, compute: Compute, kept: Compute, force: bool, progress: Progress) -> dict[str, str]:
        for each in (compute, kept):
            await have_volume(each, "a restore is undone")
        progress(0, None, "", "exchanging")
        await asyncio.to_thread(_mark, self._volumes.path(kept.database.id), compute.database.id)
        self._record(compute, kept, False)
        await _finished(self._exchange(compute, kept, force, False, "a restore, or an upgrade, was undone", _busy(compute)))
        return {"database": compute.database.label, "before": kept.database.label}

    def _record(self, compute: Compute, kept: Compute, is_made: bool) -> None:
        self._records.begin(compute.database.id, kept.database.id, is_made, (kept.major, compute.major))

    async def _exchange(self, compute: Compute, kept: Compute, force: bool, is_made: bool, why: str, busy: TorporError) -> None:
        self._reached(RewindStep.RECORDED, compute)
        id, kept_id = compute.database.id, kept.database.id
        compute.refusal = kept.refusal = busy
        try:
            await stop((compute, kept), force)
            if self._histories is not None:
                await asyncio.gather(self._histories.settle(id), self._histories.settle(kept_id))
            await stop((compute, kept), force)  # from here to the exchange nothing is awaited
            self._reached(RewindStep.STOPPED, compute)
            for each in (compute, kept):
                if each.database.state is not (DatabaseState.READY if each is compute or not is_made else DatabaseState.BRANCHING):
                    raise Conflict(f"{each.database.label} was removed meanwhile")
                self._catalog.forget_roles(each.database.id)
                each.moves += 1
            self._volumes.exchange(id, kept_id)
        except BaseException:
            admit(busy, compute, kept)
            await self._take_back(compute, kept, is_made)
            raise
        self._reached(RewindStep.EXCHANGED, compute)
        try:
            self._set_majors(compute, kept, (kept.major, compute.major))
            if self._histories is not None:
                self._histories.break_run(id, why)
                if not is_made:
                    self._histories.break_run(kept_id, why)
            await self._give(compute, kept)
        finally:
            admit(busy, compute, kept)
        if is_made:
            self._fleet.update(replace(kept.database, state=DatabaseState.READY))
        await self._finish(compute, kept)

    def _set_majors(self, compute: Compute, kept: Compute, majors: tuple[int, int]) -> None:
        """What is in their volumes now is of these. Idempotent."""
        if (compute.major, kept.major) != majors:
            with self._catalog.transaction():
                for each, major in zip((compute, kept), majors, strict=True):
                    self._catalog.set_major(each.database.id, major)
            for each, major in zip((compute, kept), majors, strict=True):
                self._fleet.update(replace(each.database, major=major))

    async def _take_back(self, compute: Compute, kept: Compute, is_made: bool) -> None:
        self._records.forget(compute.database.id)
        with contextlib.suppress(OSError):
            (self._volumes.path(kept.database.id) / _MARK).unlink()
        if is_made:
            await self._provisioner.remove(kept)

    async def _give(self, compute: Compute, kept: Compute) -> None:
        for each in (compute, kept):
            if each.tier is Tier.STOPPED:
                await self._volumes.give(each.database.id, each.database.uid)

    async def _finish(self, compute: Compute, kept: Compute) -> None:
        """Names and the end of it. Idempotent."""
        await _name(compute, kept.database.label)
        await _name(kept, compute.database.label)
        self._reached(RewindStep.NAMED, compute)
        for each in (compute, kept):
            with contextlib.suppress(FileNotFoundError):
                (self._volumes.path(each.database.id) / _MARK).unlink()
        self._records.finish(compute.database.id)

    def _free_name(self, name: str, now: float) -> str:
        tail = datetime.fromtimestamp(now, UTC).strftime("-before-%Y%m%d-%H%M%S")
        free = name[: _LONGEST_NAME - len(tail)] + tail
        if self._fleet.find(free) is not None:
            raise Conflict(f"there is a database {free} already", "try again in a second")
        return free

    def _reached(self, step: RewindStep, compute: Compute) -> None:
        """Every step goes through here."""
        log.debug("rewind", database=compute.database.label, step=str(step))


async def check_unused(compute: Compute, force: bool) -> None:
    if not force and (connections := await compute.lasting_connections()):
        raise DatabaseInUse(f"database {compute.database.label} has {connections} open connections", "close them, or use force")


async def stop(computes: Iterable[Compute], force: bool) -> None:
    """Until none of them runs, in the very moment in which this returns."""
    while running := [compute for compute in computes if compute.state is not ComputeState.STOPPED or compute.is_moving]:
        for compute in running:
            await compute.sleep(Tier.STOPPED, SleepReason.API, force)
            await compute.stop(SleepReason.API)


def admit(busy: TorporError, *computes: Compute) -> None:
    """Let them be started again, unless something else forbids it by now."""
    for compute in computes:
        if compute.refusal is busy:
            compute.refusal = None


def _busy(compute: Compute) -> Unavailable:
    return Unavailable(f"database {compute.database.label} is being restored", "try again in a moment")


async def _finished(exchange: Coroutine[Any, Any, None]) -> None:
    """Until it has ended, whoever is cancelled meanwhile: there is no way back any more. Raises what it raises."""
    task = asyncio.ensure_future(exchange)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    task.result()


async def _name(compute: Compute, other: str) -> None:
    """Where owner and inner database have the name of the other one, give them that of this one."""
    label = compute.database.label
    async with compute.awake(WakeReason.MAINTENANCE, "restore"):
        service = await compute.live().service()
        names = {
            row[0]
            for row in await service.query(
                f"SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ({literal(label)}, {literal(other)})"  # noqa: S608  # quoted
            )
        }
        if other in names and label not in names:
            await service.name_branch(other, label, None)


def _mark(volume: Path, id: DatabaseId) -> None:
    """Say durably that this volume is to be that database's."""
    fd = os.open(volume / _MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, id.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(volume)
