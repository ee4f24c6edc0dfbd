"""Makes and removes databases step by step: row, volume, compute, name. Whatever fails or is killed in between leaves nothing behind.

Concurrency: several at once; each step that another process could see is recorded in the catalog before it is taken.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.processes import uid_runs
from torpor.catalog.catalog import Catalog
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.warmpool import WarmPool
from torpor.model.database import Database, DatabaseState
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides
from torpor.model.size import NO_OVERRIDES, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepReason, Tier, WakeReason
from torpor.model.workspace import WorkspaceId
from torpor.pgwire.scram import make_verifier
from torpor.storage.volumes import Volumes

log = get_logger(__name__)

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_PASSWORD_BYTES = 18
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where PostgreSQL's POSIX segments are


class RemoveStep(StrEnum):
    """The steps of a removal, in order. Killed after any of them, the next start finishes it."""

    RECORDED = "recorded"  # the catalog says that it goes, and has no key of its history any more
    ENDED = "ended"  # nothing of it runs
    EMPTIED = "emptied"  # its volume is gone
    FORGOTTEN = "forgotten"  # and so is its row


def new_id() -> DatabaseId:
    """A DatabaseId that nobody has."""
    return DatabaseId("d" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(12)))


def new_password() -> str:
    """A password that needs no escaping in a URL."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


class Provisioner:
    """Makes databases and takes them away."""

    def __init__(
        self,
        catalog: Catalog,
        volumes: Volumes,
        fleet: Fleet,
        template: Callable[[int], Awaitable[Path]],
        clock: Clock,
        uid_base: int,
        connections: int = 100,
    ) -> None:
        self._catalog = catalog
        self._volumes = volumes
        self._fleet = fleet
        self._template = template
        self._clock = clock
        self._uid_base = uid_base
        self._connections = connections
        self.warm_pool: WarmPool | None = None
        self._creating = 0

    def is_busy(self) -> bool:
        """Whether somebody waits for a create."""
        return self._creating > 0

    def free_uid(self) -> int:
        """The user of a database that is made now. Taken only once it is in the catalog: nothing may be awaited in between."""
        return self._catalog.free_uid(self._uid_base) if os.geteuid() == 0 else os.geteuid()

    async def make_warm(self, major: int) -> Compute:
        """One more sleeping compute without a name."""
        compute = await self._make(None, major, SleepOverrides(), None)
        id = compute.database.id
        try:
            async with compute.awake(WakeReason.CREATED, "for the warm pool"):
                await compute.warm_up()
            await compute.sleep(Tier.FROZEN, SleepReason.IDLE)
            self._catalog.set_state(id, DatabaseState.WARM)
        except BaseException:
            await self.remove(compute)
            raise
        return self._fleet.update(replace(compute.database, state=DatabaseState.WARM))

    async def create(
        self,
        name: str,
        major: int,
        overrides: SleepOverrides,
        workspace: WorkspaceId,
        size: SizeOverrides = NO_OVERRIDES,
        superuser: bool = False,
        pool: PoolOverrides = NO_POOL_OVERRIDES,
    ) -> tuple[Compute, str, bool]:
        """A user's database, awake, with its owner's password; the last value says whether the warm pool had one.

        All or nothing: after an error, or a crash and the next start, there is no trace of it. Raises DatabaseExists, PoolFull, ….
        """
        self._creating += 1
        try:
            password = new_password()
            # 4,096 rounds take 5 ms: in a thread, while the compute wakes.
            verifying = asyncio.create_task(asyncio.to_thread(make_verifier, password), name="make verifier")
            compute, warm = await self._claim_or_make(name, major, overrides, workspace, size, superuser, pool)
            try:
                async with compute.awake(WakeReason.CREATED, "create"):
                    await compute.claim(name, verifying)
                self._catalog.set_state(compute.database.id, DatabaseState.READY)
            except BaseException:
                await self.remove(compute)
                raise
            self._fleet.update(replace(compute.database, state=DatabaseState.READY))
        finally:
            self._creating -= 1
        return compute, password, warm

    async def remove(self, compute: Compute) -> None:
        """Remove a database with all its bytes; a crash in between is finished by the next start."""
        id = compute.database.id
        self._catalog.set_state(id, DatabaseState.DELETING)
        self._fleet.update(replace(compute.database, state=DatabaseState.DELETING))
        _reached(RemoveStep.RECORDED, compute)
        await compute.discard()
        _reached(RemoveStep.ENDED, compute)
        await self._volumes.remove(id)
        _reached(RemoveStep.EMPTIED, compute)
        await asyncio.to_thread(_drop_shared_memory, compute.database.uid)
        self._catalog.remove_database(id)
        _reached(RemoveStep.FORGOTTEN, compute)
        self._fleet.remove(id)

    async def hold(self, compute: Compute) -> None:
        """Have the kernel hold its volume to its size, where it can: from now on, awake or not."""
        await self._volumes.limit(compute.database.id, compute.size.disk_bytes)

    async def _claim_or_make(
        self,
        name: str,
        major: int,
        overrides: SleepOverrides,
        workspace: WorkspaceId,
        size: SizeOverrides,
        superuser: bool,
        pool: PoolOverrides,
    ) -> tuple[Compute, bool]:
        # One in the warm pool was started for the usual number of connections.
        fits = size.connections is None or size.connections <= self._connections
        warm = self.warm_pool.take(major) if self.warm_pool is not None and fits else None
        if warm is None:
            return await self._make(name, major, overrides, workspace, size, superuser, pool), False
        try:
            self._catalog.claim(warm.database.id, name, overrides, size, workspace=workspace, superuser=superuser, pool=pool)
        except BaseException:
            assert self.warm_pool is not None
            self.warm_pool.put(warm)
            raise
        claimed = replace(
            warm.database,
            name=name,
            state=DatabaseState.CLAIMING,
            overrides=overrides,
            size=size,
            workspace=workspace,
            superuser=superuser,
            pool=pool,
        )
        warm = self._fleet.update(claimed)
        await warm.shares.resize(warm.size)
        await self.hold(warm)
        return warm, True

    async def _make(
        self,
        name: str | None,
        major: int,
        overrides: SleepOverrides,
        workspace: WorkspaceId | None,
        size: SizeOverrides = NO_OVERRIDES,
        superuser: bool = False,
        pool: PoolOverrides = NO_POOL_OVERRIDES,
    ) -> Compute:
        template = await self._template(major)
        uid = self.free_uid()
        at = self._clock.time()
        database = Database(new_id(), name, DatabaseState.MAKING, major, uid, at, overrides, size, workspace, superuser, pool=pool)
        self._catalog.add_database(database)
        try:
            await self._volumes.clone(template, database.id, uid)
        except BaseException:
            self._catalog.remove_database(database.id)
            raise
        return self._fleet.add(database)


def _reached(step: RemoveStep, compute: Compute) -> None:
    """Every step goes through here."""
    log.debug("remove", database=compute.database.label, step=str(step))


def _drop_shared_memory(uid: int) -> None:
    """PostgreSQL cleans its shared memory when it starts again after a kill; a removed one never does.

    Nothing goes while a process runs under that uid: it would be another Torpor's, whose uids overlap with ours.
    """
    if os.geteuid() != 0 or uid_runs(uid):
        return
    for path in _SHARED_MEMORY.glob("PostgreSQL.*"):
        try:
            if path.lstat().st_uid == uid:
                path.unlink()
        except FileNotFoundError:
            continue
