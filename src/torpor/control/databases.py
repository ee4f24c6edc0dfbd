"""The use cases on databases: what the API offers. Each checks its input, does its work and answers with a view.

Concurrency: called from many tasks at once. Two operations on one database are put in order by its compute.
"""

import asyncio
import copy
import heapq
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from torpor.catalog.catalog import Catalog
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet, no_database
from torpor.control.exports import Export, Exporter
from torpor.control.names import suggest_name
from torpor.control.provisioning import Provisioner, new_password
from torpor.control.views import Viewer, wake_view
from torpor.model.errors import Conflict, DatabaseInUse, DiskFull, InvalidRequest
from torpor.model.exports import ExportOptions
from torpor.model.names import DatabaseId, check_new_database_name
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides
from torpor.model.size import NO_OVERRIDES, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepPolicy, SleepReason, Tier, WakeReason
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, SizeView, WakeView
from torpor.model.workspace import DEFAULT_WORKSPACE, WorkspaceId
from torpor.pgwire.scram import make_verifier, parse_verifier

TICKET_TTL_S = 60.0
MAX_PAGE = 1000


class Databases:
    """All use cases on databases."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        provisioner: Provisioner,
        viewer: Viewer,
        default_major: int,
        majors: Callable[[], Mapping[int, object]],
        policy: SleepPolicy,
        size: Size,
        forget: Callable[[DatabaseId], None],
        allows_superusers: bool = False,
        exporter: Exporter | None = None,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._provisioner = provisioner
        self._viewer = viewer
        self._default_major = default_major
        self._majors = majors
        self._policy = policy
        self._size = size
        self._forget = forget
        self._allows_superusers = allows_superusers
        self._exporter = exporter
        self._workspace: WorkspaceId | None = None

    def within(self, workspace: WorkspaceId | None) -> Self:
        """The same use cases, confined to the databases of a workspace (None: to none). To them others don't exist."""
        confined = copy.copy(self)
        confined._workspace = workspace
        return confined

    def workspace_of(self, name: str) -> WorkspaceId | None:
        """To which workspace a database belongs. Raises DatabaseNotFound."""
        return self.compute(name).database.workspace

    def count(self) -> int:
        """How many databases there are."""
        return len(self._fleet.names(self._workspace))

    async def create(
        self,
        name: str | None,
        major: int | None,
        overrides: SleepOverrides,
        size: SizeOverrides = NO_OVERRIDES,
        superuser: bool = False,
        pool: PoolOverrides = NO_POOL_OVERRIDES,
    ) -> Created:
        """A new database, its owner's password shown this once. All or nothing.

        Raises InvalidName, InvalidRequest, DatabaseExists, PoolFull, ComputeStartFailed.
        """
        began = time.perf_counter()
        name = check_new_database_name(name) if name is not None else suggest_name(self._fleet.find)
        major = major or self._default_major
        if major not in self._majors():
            have = ", ".join(map(str, sorted(self._majors())))
            raise InvalidRequest(
                f"PostgreSQL {major} is not installed (installed: {have})", f"install it: `torpor postgres install {major}`"
            )
        overrides.apply(self._policy)
        size.apply(self._size)
        pool.apply(self._viewer.pool_policy)
        if superuser and not self._allows_superusers:
            raise InvalidRequest(
                "this Torpor gives no database an owner who is a superuser",
                "it takes the setting tenant_superuser, and a sandbox level that holds one (`torpor doctor`)",
            )
        workspace = self._workspace or DEFAULT_WORKSPACE
        compute, password, warm = await self._provisioner.create(name, major, overrides, workspace, size, superuser, pool)
        view = self._viewer.view(compute)
        return Created(view, self._viewer.credentials(name, password), warm, (time.perf_counter() - began) * 1000)

    def get(self, name: str) -> DatabaseView:
        """One database. Raises DatabaseNotFound."""
        return self._viewer.view(self.compute(name))

    def list(self, after: str | None, limit: int, tier: Tier | None, search: str | None) -> DatabasePage:
        """A page in the order of names. Costs a look at every name (of the tier), and a view of those on the page."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE}")
        names: Iterable[str] = self._fleet.names(self._workspace)
        if tier is not None and self._workspace is not None:
            names = [name for name in names if self._fleet.compute(name).tier is tier]
        elif tier is not None:
            names = [
                c.database.name for c in self._fleet.in_tier(tier) if c.database.name is not None and self._fleet.find(c.database.name)
            ]
        wanted = (name for name in names if (after is None or name > after) and (not search or search in name))
        page = heapq.nsmallest(limit + 1, wanted)
        views = tuple(self._viewer.view(self.compute(name)) for name in page[:limit])
        return DatabasePage(views, page[limit - 1] if len(page) > limit else None)

    async def detail(self, name: str) -> DatabaseDetail:
        """Everything about one database; asks PostgreSQL what keeps it awake, and never wakes it."""
        return await self._viewer.detail(self.compute(name))

    async def update(self, name: str, overrides: SleepOverrides, pool: PoolOverrides | None = None) -> DatabaseDetail:
        """Replace the database's own idle times, which takes effect at once, and what it sets of its pool where that is given: it holds
        for new connections."""
        compute = self.compute(name)
        overrides.apply(self._policy)
        if pool is not None:
            pool.apply(self._viewer.pool_policy)
            self._catalog.set_pool(compute.database.id, pool)
            self._fleet.update(replace(compute.database, pool=pool))
        self._catalog.set_overrides(compute.database.id, overrides)
        self._fleet.update(replace(compute.database, overrides=overrides))
        return await self._viewer.detail(compute)

    async def resize(self, name: str, size: SizeOverrides) -> SizeView:
        """Replace the database's own size. Takes effect at once; more connections than PostgreSQL was started for with its next start."""
        compute = self.compute(name)
        resized = size.apply(self._size)
        self._catalog.set_size(compute.database.id, size)
        self._fleet.update(replace(compute.database, size=size))
        if isinstance(compute.refusal, DiskFull):
            compute.refusal = None  # the new size may be enough; if not, it is stopped again
        await compute.shares.resize(resized)
        await self._provisioner.hold(compute)
        return await self._viewer.size(compute)

    def usual_size(self) -> Size:
        """The size of databases that have none of their own."""
        return self._size

    async def size(self, name: str) -> SizeView:
        """What a database may use, what it may use now, and why. Never wakes it."""
        return await self._viewer.size(self.compute(name))

    async def delete(self, name: str, force: bool) -> None:
        """Remove a database with all its bytes. Raises DatabaseInUse with open connections that aren't just ending, unless `force`."""
        compute = self.compute(name)
        if not force and (connections := await compute.lasting_connections()):
            raise DatabaseInUse(f"database {name} has {connections} open connections", "close them, or use force")
        if self.compute(name) is not compute:  # meanwhile somebody removed it, and made another
            raise no_database(name)
        await self._provisioner.remove(compute)
        self._forget(compute.database.id)

    async def sleep(self, name: str, tier: Tier | None, force: bool) -> DatabaseView:
        """Go down to `tier` now (None: as deep as connections survive). Raises Conflict while something runs, DatabaseInUse."""
        compute = self.compute(name)
        if tier is Tier.AWAKE:
            raise InvalidRequest("awake is no sleep tier", "use frozen, paged or stopped")
        await compute.sleep(tier or (Tier.PAGED if compute.can_page else Tier.FROZEN), SleepReason.API, force)
        return self._viewer.view(compute)

    async def wake(self, name: str) -> WakeView | None:
        """Wake it; the wake that it took, None when it was awake already."""
        wake = await self.compute(name).wake(WakeReason.API, "api")
        return wake_view(wake) if wake is not None else None

    async def reset_password(self, name: str) -> Credentials:
        """Give the owner a new password; the old one stops working at once, open connections go on."""
        compute = self.compute(name)
        password = new_password()
        verifier = await asyncio.to_thread(make_verifier, password)
        async with compute.awake(WakeReason.MAINTENANCE, "password reset"):
            await compute.set_password(name, verifier)
        return self._viewer.credentials(name, password)

    async def ticket(self, name: str) -> Credentials:
        """A password for the owner that works for a minute's logins; the lasting one stays. Wakes nothing."""
        compute = self.compute(name)
        role = await self._fleet.role(compute.database, name)
        verifier = parse_verifier(role.verifier) if role is not None and role.verifier is not None else None
        if verifier is None:
            raise Conflict(f"role {name} of database {name} has no SCRAM password", f"give it one: `torpor url {name} --reset-password`")
        password = secrets.token_urlsafe(24)
        made = await asyncio.to_thread(make_verifier, password, verifier.salt, verifier.iterations)
        self._fleet.tickets.add(compute.database.id, name, made, TICKET_TTL_S)
        return self._viewer.credentials(name, password, time.time() + TICKET_TTL_S)

    async def export(self, name: str, options: ExportOptions) -> Export:
        """A dump, which begins when this returns; the caller closes it. Works whenever PostgreSQL can be started."""
        compute = self.compute(name)
        if self._exporter is None:
            raise Conflict("this Torpor exports nothing itself", f"`torpor export {name}` does")
        return await self._exporter.open(compute, options)

    def wakes(self, name: str, limit: int) -> tuple[WakeView, ...]:
        """The newest wakes, newest first."""
        return self._viewer.wakes(self.compute(name), limit)

    def log_file(self, name: str) -> Path:
        """Where PostgreSQL's own log of a database lies. The file may not exist yet."""
        return self.compute(name).log_file

    def host(self) -> HostView:
        """The host at a glance."""
        return self._viewer.host()

    def compute(self, name: str) -> Compute:
        """The one way from a name that somebody gave to a compute. A foreign one is refused in the words for one that isn't there."""
        compute = self._fleet.compute(name)
        if self._workspace is not None and compute.database.workspace != self._workspace:
            raise no_database(name)
        return compute
