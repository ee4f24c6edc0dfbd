"""Branches: a database made as a copy of another, and brought back to what that is now.

A branch is a database like any other, with an id, a volume, a user, a size and a sleep of its own; it shares with its parent the bytes
that neither has changed since, which is the file system's business alone. So whatever happens to the one is nothing to the other.

Making one (BRANCH_STEPS): a row in the state BRANCHING, a whole copy of the parent's cluster as its volume (`compute/snapshot.py`), a
start, in which PostgreSQL recovers, the names and passwords, READY. Until then it has no name that anybody could use. Whatever fails or
is killed, what there is of it is removed: at once, or by the next start (`control/reconcile.py`).

A reset (RESET_STEPS) makes a nameless branch of the parent, stops it and the one that is reset, and lets their volumes change places, which
is one atomic step of the file system. The database stays who it is: id, user, access lists, traffic, its owner's password.

Concurrency: any number at once, of one parent too. A reset claims its database (`control/claims.py`).
"""

import asyncio
import contextlib
import copy
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.catalog.catalog import Catalog
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.lifecycle import ComputeState
from torpor.compute.service import QueryFailed
from torpor.compute.snapshot import Snapshot, check_whole, snapshot
from torpor.compute.starting import Steps
from torpor.control.archiving import have_volume
from torpor.control.claims import Claims
from torpor.control.databases import Databases
from torpor.control.history import Histories
from torpor.control.names import suggest_name
from torpor.control.provisioning import Provisioner, new_id, new_password
from torpor.control.views import Viewer
from torpor.model.branches import Branched, BranchList, BranchStep, check_life
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import Conflict, DatabaseInUse, StartTimeout
from torpor.model.names import DatabaseId, check_new_database_name
from torpor.model.size import NO_OVERRIDES, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepPolicy, SleepReason, Tier, WakeReason
from torpor.model.views import DatabaseView, StepView
from torpor.model.workspace import WorkspaceId
from torpor.pgwire.scram import make_verifier
from torpor.storage.volumes import Volumes, give_to

log = get_logger(__name__)

_NO_SYNC = b"\nrecovery_init_sync_method = 'syncfs'\n"

Fill = Callable[[Compute, Path, int], Awaitable[Snapshot | None]]
"""Writes the cluster of a branch: of which database, where, for which user. A snapshot is that user's already."""


class Branches:
    """All use cases on branches, and the making of them for others (a restore is a branch, too)."""

    def __init__(
        self,
        databases: Databases,
        catalog: Catalog,
        volumes: Volumes,
        fleet: Fleet,
        provisioner: Provisioner,
        viewer: Viewer,
        clock: Clock,
        policy: SleepPolicy,
        size: Size,
        expires: Callable[[Database], None],
        claims: Claims,
        histories: Histories | None,
    ) -> None:
        self._databases = databases
        self._catalog = catalog
        self._volumes = volumes
        self._fleet = fleet
        self._provisioner = provisioner
        self._viewer = viewer
        self._clock = clock
        self._policy = policy
        self._size = size
        self._expires = expires
        self._claims = claims
        self._histories = histories

    def within(self, workspace: WorkspaceId | None) -> Self:
        """The same use cases, confined to the databases of a workspace."""
        confined = copy.copy(self)
        confined._databases = self._databases.within(workspace)
        return confined

    async def branch(
        self,
        parent: str,
        name: str | None,
        keep_passwords: bool = False,
        ttl_s: float | None = None,
        overrides: SleepOverrides | None = None,
        size: SizeOverrides = NO_OVERRIDES,
        fill: Fill | None = None,
        password: str | None = None,
    ) -> Branched:
        """A new database that is a copy of `parent` as it is now, awake. All or nothing.

        With `fill`, what that writes instead; with `password`, that is its owner's, unless passwords are kept.

        It belongs to the parent's workspace, and has the usual size and idle times but for those given, room for what its parent holds, and
        its parent's pool, and what holds for its cache.
        After `ttl_s` seconds it is removed. Raises DatabaseNotFound, InvalidName, DatabaseExists, Conflict, PoolFull, ….
        """
        steps = Steps(self._clock)
        source = self._databases.compute(parent)
        overrides = overrides or SleepOverrides()
        overrides.apply(self._policy)
        if size.disk_bytes is None:
            size = replace(size, disk_bytes=source.database.size.disk_bytes)
        size.apply(self._size)
        now, life = self._clock.time(), check_life(ttl_s)
        expires_at = now + life if life is not None else None
        name = check_new_database_name(name) if name is not None else suggest_name(self._fleet.find)
        wanted = replace(self.nameless(source, now), name=name, overrides=overrides, size=size, expires_at=expires_at)
        password = None if keep_passwords else password or new_password()
        compute = await self.make(wanted, source, name, fill or self._copy, password, steps)
        try:
            self._catalog.set_state(wanted.id, DatabaseState.READY)
        except BaseException:
            await self._provisioner.remove(compute)
            raise
        self._fleet.update(replace(compute.database, state=DatabaseState.READY))
        self._expires(compute.database)
        _reached(BranchStep.READY, compute, steps)
        credentials = self._viewer.credentials(name, password) if password is not None else None
        timed = tuple(StepView(step.name, step.elapsed_ms) for step in steps.taken)
        return Branched(self._viewer.view(compute), credentials, steps.elapsed_ms, timed)

    def branches(self, parent: str) -> BranchList:
        """The branches of a database, oldest first. Costs a look at each of its workspace's databases."""
        compute = self._databases.compute(parent)
        found = [
            branch
            for name in self._fleet.names(compute.database.workspace)
            if (branch := self._fleet.compute(name)).database.parent == compute.database.id
        ]
        found.sort(key=lambda branch: branch.database.created_at)
        return BranchList(tuple(self._viewer.view(branch) for branch in found))

    def set_life(self, name: str, ttl_s: float | None) -> None:
        """Have a database, a branch or not, removed in so many seconds from now; None: it stays. Raises InvalidRequest."""
        compute, life = self._databases.compute(name), check_life(ttl_s)
        at = self._clock.time() + life if life is not None else None
        self._catalog.set_expiry(compute.database.id, at)
        self._fleet.update(replace(compute.database, expires_at=at))
        self._expires(compute.database)

    async def reset(self, name: str, force: bool = False) -> DatabaseView:
        """Bring a branch back to what its parent is now. What was changed in it is lost; its owner keeps the password. All or nothing.

        Raises Conflict for what is no branch, DatabaseInUse with open connections that aren't just ending, unless `force`.
        """
        compute = self._databases.compute(name)
        source = self._fleet.get(compute.database.parent)
        if compute.database.parent is None:
            raise Conflict(f"database {name} is no branch", "only a branch can be reset to its parent")
        if source is None or source.database.state is not DatabaseState.READY:
            raise Conflict(f"the parent of {name} was removed", "there is nothing to reset it to")
        if source.major != compute.major:
            raise Conflict(f"{name} is of PostgreSQL {compute.major}, and its parent of {source.major}", "make a new branch")
        if not force and (connections := await compute.lasting_connections()):
            raise DatabaseInUse(f"database {name} has {connections} open connections", "close them, or use force")
        with self._claims.take("reset", compute):
            await self._reset(compute, source, name, force)
        return self._viewer.view(compute)

    async def _reset(self, compute: Compute, source: Compute, name: str, force: bool) -> None:
        steps, id = Steps(self._clock), compute.database.id
        role = await self._fleet.role(compute.database, name)
        at = self._clock.time()
        fresh = await self.make(replace(self.nameless(source, at), size=compute.database.size), source, name, self._copy, "", steps)
        try:
            if role is not None and role.verifier is not None:
                async with fresh.awake(WakeReason.MAINTENANCE, "reset"):
                    await fresh.set_password(name, role.verifier)
            await fresh.stop(SleepReason.API)
            await self._volumes.give(fresh.database.id, compute.database.uid)
            await have_volume(compute, "reset")
            await compute.sleep(Tier.STOPPED, SleepReason.API, force)
            if self._histories is not None:
                await self._histories.settle(id)  # what it was until now can be restored, too
            while compute.state is not ComputeState.STOPPED or compute.is_moving:  # somebody came in this very moment
                await compute.sleep(Tier.STOPPED, SleepReason.API, force)
                await compute.stop(SleepReason.API)
            # From here to the exchange nothing is awaited, so nobody can start it.
            if compute.database.state is not DatabaseState.READY:
                raise Conflict(f"{name} was removed meanwhile")
            _reached(BranchStep.STOPPED, compute, steps)
            self._catalog.forget_roles(id)
            compute.moves += 1
            self._volumes.exchange(id, fresh.database.id)
            _reached(BranchStep.EXCHANGED, compute, steps)
            if self._histories is not None:
                self._histories.break_run(id, "it was reset to its parent")
            self._catalog.set_branched(id, at)
            self._fleet.update(replace(compute.database, branched_at=at))
        finally:
            await self._provisioner.remove(fresh)

    # -- for all that is made as a branch

    async def make(
        self, wanted: Database, source: Compute, name: str, fill: Fill, password: str | None, steps: Steps | None = None
    ) -> Compute:
        """A database in the state BRANCHING, awake, on a volume that `fill` writes from what is `source`'s; owner and inner database are
        called `name`. With a `password` that is the owner's and no other role has one ("": neither has the owner); None: all keep theirs.

        All or nothing. The caller makes it READY, or removes it.
        """
        steps = steps or Steps(self._clock)
        # 4,096 rounds take 5 ms: in a thread, while the volume is copied.
        verifying = asyncio.create_task(asyncio.to_thread(make_verifier, password), name="make verifier") if password else None
        wanted = replace(wanted, uid=self._provisioner.free_uid())
        taken: Snapshot | None = None

        async def filled(data: Path) -> None:
            nonlocal taken
            taken = await fill(source, data, wanted.uid)
            if taken is None and os.geteuid() == 0:
                await asyncio.to_thread(give_to, data, wanted.uid)
            await asyncio.to_thread(_spare_sync, data)

        try:
            self._catalog.add_database(wanted)
            compute = self._fleet.add(wanted)
            try:
                _reached(BranchStep.RECORDED, compute, steps)
                await self._volumes.make(wanted.id, wanted.uid, filled, is_hasty=True)
                _reached(BranchStep.COPIED, compute, steps)
                await _started(compute, source.database.label)
                async with compute.awake(WakeReason.CREATED, f"a branch of {source.database.label}"):
                    if taken is not None:
                        await check_whole(compute, taken)
                    _reached(BranchStep.STARTED, compute, steps)
                    await asyncio.to_thread(_sync_again, self._volumes.data(wanted.id))
                    verifier = await verifying if verifying is not None else password
                    await _name(compute, source.database.label, name, verifier)
                    await self._volumes.settle(wanted.id)
                _reached(BranchStep.NAMED, compute, steps)
            except BaseException:
                await self._provisioner.remove(compute)
                raise
        except BaseException:
            if verifying is not None:
                await asyncio.gather(verifying, return_exceptions=True)
            raise
        return compute

    def be_of(self, id: DatabaseId, major: int) -> None:
        """Note of which major a branch is, while its volume is being made: what was can be of an older one than what is."""
        compute = self._fleet.get(id)
        if compute is not None and compute.major != major:
            self._catalog.set_major(id, major)
            self._fleet.update(replace(compute.database, major=major))

    async def _copy(self, source: Compute, data: Path, uid: int) -> Snapshot:
        if not self._volumes.reflinks:
            self._volumes.check_room(await self._volumes.measure(source.database.id))
        return await snapshot(source, self._volumes, data, uid)

    def nameless(self, source: Compute, at: float) -> Database:
        """A branch of `source` that nobody can use yet."""
        parent = source.database
        return Database(
            new_id(),
            None,
            DatabaseState.BRANCHING,
            parent.major,
            0,
            at,
            workspace=parent.workspace,
            superuser=parent.superuser,
            parent=parent.id,
            branched_at=at,
            pool=parent.pool,
            cache=parent.cache,
        )


def _reached(step: BranchStep, compute: Compute, steps: Steps) -> None:
    """Every step goes through here."""
    steps.done(step)
    log.debug("branch", database=compute.database.label, step=str(step))


@contextlib.contextmanager
def _opened(data: Path) -> Iterator[int]:
    """The file with the cluster's own settings, for appending. It is the tenant's: a link is not followed. Raises OSError."""
    fd = os.open(data / "postgresql.auto.conf", os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield fd
    finally:
        os.close(fd)


def _spare_sync(data: Path) -> None:
    """Keep the first start from opening a thousand files to sync them. Blocking.

    With this setting PostgreSQL asks for `syncfs` instead, which the preloaded library takes as done as long as the volume isn't settled.
    """
    with contextlib.suppress(OSError), _opened(data) as fd:
        os.write(fd, _NO_SYNC)


def _sync_again(data: Path) -> None:
    """Take that back once it runs, before the settings are read again: a later crash recovery must sync. Blocking.

    It needn't be durable: after a power cut there is nothing that could still be synced.
    """
    with contextlib.suppress(OSError), _opened(data) as fd:
        size = os.fstat(fd).st_size
        if os.pread(fd, len(_NO_SYNC), max(0, size - len(_NO_SYNC))) == _NO_SYNC:
            os.ftruncate(fd, size - len(_NO_SYNC))


async def _started(compute: Compute, parent: str) -> None:
    """Until it runs, however long PostgreSQL recovers: nobody else waits for it yet."""
    while True:
        try:
            await compute.wake(WakeReason.CREATED, f"a branch of {parent}")
        except StartTimeout:
            continue
        return


async def _name(compute: Compute, parent: str, name: str, verifier: str | None) -> None:
    service = await compute.live().service()
    try:
        await service.name_branch(parent, name, verifier)
    except QueryFailed as error:
        raise Conflict(
            f"the branch can't be called {name}: {error.message}", f"is there something of that name inside {parent}? choose another"
        ) from error
