"""A twin of the use cases on databases in memory, beside real workspaces, keys and audit log, behind a real server on a loopback port."""

import asyncio
import copy
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from torpor.api import examples
from torpor.api.calls import Services
from torpor.api.server import ApiServer
from torpor.base.clock import SystemClock
from torpor.base.tasks import TaskOwner
from torpor.base.telemetry import Telemetry
from torpor.catalog.access import AccessRecords
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.compute.compute import Compute
from torpor.control.access import AccessControl
from torpor.control.audit import Audit
from torpor.control.jobs import Jobs
from torpor.control.keys import KeyRing
from torpor.control.workspaces import Workspaces
from torpor.model.access import AccessBook
from torpor.model.audit import AuditFilter, AuditRecord
from torpor.model.branches import Branched, BranchList, PastBranch, check_life
from torpor.model.cache import NO_CACHE, NO_POLICY, CachePolicy, CacheRule, CacheStatus, PurgeBy
from torpor.model.drills import DrillList
from torpor.model.errors import DatabaseExists, DatabaseInUse, DatabaseNotFound
from torpor.model.exports import ExportOptions
from torpor.model.fingerprint import fingerprint
from torpor.model.history import Moment
from torpor.model.history_views import BaseList, HistoryView, RetentionView
from torpor.model.jobs import JobView
from torpor.model.names import DatabaseId, check_database_name
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides, PoolPolicy
from torpor.model.recovery_views import RecoverableList, Recovering
from torpor.model.size import NO_OVERRIDES, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, SleepPolicy, Tier, WakeReason
from torpor.model.tokens import TokenRules, TokenRulesView, TokenView
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, SizeView, WakeView
from torpor.model.workspace import DEFAULT_WORKSPACE, AccessScope, Caller, WorkspaceId
from torpor.model.workspace_views import CreatedKey

TOKEN = "test-token-0123456789"


class TwinExport:
    """Four parts; the last one may fail, or come when it is let go."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.closed = 0
        self.failure: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield self.text
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        yield b" end"

    def close(self) -> None:
        self.closed += 1


class TwinDatabases:
    """Keeps databases in a dict. `calls` may be told to fail or to hang through `trouble`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.views: dict[str, DatabaseView] = {}
        self.overrides: dict[str, SleepOverrides] = {}
        self.sizes: dict[str, SizeOverrides] = {}
        self.pools: dict[str, PoolOverrides] = {}
        self.trouble: Any = None
        self.exports: list[TwinExport] = []
        self.lets_go = True
        self.owners: dict[str, WorkspaceId] = {}
        self._workspace: WorkspaceId | None = None
        self._numbers = itertools.count()

    def within(self, workspace: WorkspaceId | None) -> "TwinDatabases":
        confined = copy.copy(self)
        confined._workspace = workspace
        return confined

    def workspace_of(self, name: str) -> WorkspaceId | None:
        return self.owners[self.get(name).name]

    async def create(
        self,
        name: str | None,
        major: int | None,
        overrides: SleepOverrides,
        size: SizeOverrides = NO_OVERRIDES,
        superuser: bool = False,
        pool: PoolOverrides = NO_POOL_OVERRIDES,
    ) -> Created:
        if self.trouble is not None:
            await self.trouble()
        name = check_database_name(name or f"made-up-{next(self._numbers)}")
        if name in self.views:
            raise DatabaseExists(f"database {name!r} exists already", "choose another name")
        view = replace(examples.DATABASE, id=DatabaseId(f"d{name}"), name=name, major=major or 18, connections=0)
        self.views[name], self.overrides[name], self.sizes[name], self.pools[name] = view, overrides, size, pool
        self.owners[name] = self._workspace or DEFAULT_WORKSPACE
        return Created(view, self._credentials(name), True, 1.5)

    def get(self, name: str) -> DatabaseView:
        if name not in self.views or self._workspace not in (None, self.owners[name]):
            raise DatabaseNotFound(f"there is no database {name!r}", "`torpor ls` lists them")
        return self.views[name]

    def list(self, after: str | None, limit: int, tier: Tier | None, search: str | None) -> DatabasePage:
        mine = [n for n in sorted(self.views) if self._workspace in (None, self.owners[n])]
        names = [n for n in mine if n > (after or "") and (search or "") in n and tier in (None, self.views[n].tier)]
        return DatabasePage(tuple(self.views[n] for n in names[:limit]), names[limit - 1] if len(names) > limit else None)

    async def detail(self, name: str) -> DatabaseDetail:
        overrides = self.overrides.get(name, SleepOverrides())
        pool = self.pools.get(name, NO_POOL_OVERRIDES)
        return replace(
            examples.DETAIL,
            database=self.get(name),
            overrides=overrides,
            policy=overrides.apply(SleepPolicy()),
            pool_policy=pool.apply(PoolPolicy()),
            pool_overrides=pool,
        )

    async def update(self, name: str, overrides: SleepOverrides, pool: PoolOverrides | None = None) -> DatabaseDetail:
        self.get(name)
        self.overrides[name] = overrides
        if pool is not None:
            self.pools[name] = pool
        return await self.detail(name)

    async def resize(self, name: str, size: SizeOverrides) -> SizeView:
        self.sizes[self.get(name).name] = size
        return await self.size(name)

    async def size(self, name: str) -> SizeView:
        own = self.sizes[self.get(name).name]
        return replace(examples.SIZE, size=own.apply(Size()), overrides=own)

    def usual_size(self) -> Size:
        return Size()

    async def delete(self, name: str, force: bool) -> None:
        if self.get(name).connections and not force:
            raise DatabaseInUse(f"database {name!r} has open connections", "close them, or force it")
        del self.views[name]

    async def sleep(self, name: str, tier: Tier, force: bool) -> DatabaseView:
        self.views[name] = replace(self.get(name), tier=tier)
        return self.views[name]

    async def wake(self, name: str) -> WakeView | None:
        before = self.get(name).tier
        self.views[name] = replace(self.get(name), tier=Tier.AWAKE)
        return None if before is Tier.AWAKE else WakeView(time.time(), WakeReason.API, before, "", 1.0)

    async def reset_password(self, name: str) -> Credentials:
        self.get(name)
        return self._credentials(name)

    async def ticket(self, name: str) -> Credentials:
        self.get(name)
        return replace(self._credentials(name), expires_at=time.time() + 60)

    async def export(self, name: str, options: ExportOptions) -> "TwinExport":
        self.get(name)
        self.exports.append(TwinExport(" ".join(options.arguments())))
        if not self.lets_go:
            self.exports[-1].go.clear()
        return self.exports[-1]

    def wakes(self, name: str, limit: int) -> tuple[WakeView, ...]:
        self.get(name)
        return (examples.WAKE,) * limit

    def log_file(self, name: str) -> Path:
        return self.directory / f"{self.get(name).id}.log"

    def host(self) -> HostView:
        return examples.HOST

    def _credentials(self, name: str) -> Credentials:
        return Credentials(name, "secret", f"postgresql://{name}:secret@127.0.0.1:7432/{name}")


class TwinBranches:
    """Branches among the databases of a twin."""

    def __init__(self, databases: TwinDatabases) -> None:
        self.databases = databases

    def within(self, workspace: WorkspaceId | None) -> "TwinBranches":
        return TwinBranches(self.databases.within(workspace))

    async def branch(
        self, parent: str, name: str | None, keep_passwords: bool, ttl_s: float | None, overrides: SleepOverrides, size: SizeOverrides
    ) -> Branched:
        self.databases.get(parent)
        made = await self.databases.within(self.databases.workspace_of(parent)).create(name, None, overrides, size)
        branch = replace(made.database, parent=parent, branched_at=1.0, expires_at=ttl_s and time.time() + ttl_s)
        self.databases.views[branch.name] = branch
        return Branched(branch, None if keep_passwords else made.credentials, 1.0, ())

    def branches(self, parent: str) -> BranchList:
        self.databases.get(parent)
        return BranchList(tuple(view for view in self.databases.views.values() if view.parent == parent))

    def set_life(self, name: str, ttl_s: float | None) -> None:
        life = check_life(ttl_s)
        self.databases.views[name] = replace(self.databases.get(name), expires_at=life and time.time() + life)

    async def reset(self, name: str, force: bool) -> DatabaseView:
        self.databases.views[name] = replace(self.databases.get(name), branched_at=time.time())
        return self.databases.views[name]


class TwinRestores:
    """Restores among the databases of a twin: all are done at once."""

    def __init__(self, databases: TwinDatabases) -> None:
        self.databases = databases

    def within(self, workspace: WorkspaceId | None) -> "TwinRestores":
        return TwinRestores(self.databases.within(workspace))

    def branch(
        self,
        parent: str,
        name: str | None,
        moment: Moment,
        keep_passwords: bool,
        ttl_s: float | None,
        overrides: SleepOverrides,
        size: SizeOverrides,
        by: str,
    ) -> PastBranch:
        self.databases.get(parent)
        return replace(examples.PAST_BRANCH, name=name or "made-up", credentials=None if keep_passwords else examples.CREDENTIALS)


class TwinRewinds:
    """Restores in place among the databases of a twin."""

    def __init__(self, databases: TwinDatabases) -> None:
        self.databases = databases

    def within(self, workspace: WorkspaceId | None) -> "TwinRewinds":
        return TwinRewinds(self.databases.within(workspace))

    async def restore(self, name: str, moment: Moment, force: bool, by: str) -> JobView:
        return replace(examples.JOB, database=self.databases.get(name).name)

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        return replace(examples.JOB, kind="undo", database=self.databases.get(name).name)


class TwinUpgrades:
    """Major upgrades among the databases of a twin."""

    def __init__(self, databases: TwinDatabases) -> None:
        self.databases = databases

    def within(self, workspace: WorkspaceId | None) -> "TwinUpgrades":
        return TwinUpgrades(self.databases.within(workspace))

    async def upgrade(self, name: str, to: int, check: bool, force: bool, by: str) -> JobView:
        return replace(examples.JOB, kind="upgrade", database=self.databases.get(name).name)

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        return replace(examples.JOB, kind="undo", database=self.databases.get(name).name)


class TwinRecovery:
    """What a store holds, which is one database."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[str, bool]] = []
        self.has_keys = False

    async def list(self, after: str | None, limit: int) -> RecoverableList:
        return examples.RECOVERABLES

    async def recover(self, wanted: str, name: str | None, moment: Moment, by: str) -> Recovering:
        if wanted != "shop":
            raise DatabaseNotFound(f"the store holds no database {wanted}")
        return replace(examples.RECOVERING, name=name or wanted)

    async def forget(self, wanted: str, force: bool) -> str:
        self.forgotten.append((wanted, force))
        return wanted

    async def keys_are_gone(self, id: DatabaseId) -> bool:
        return not self.has_keys


class TwinArchiving:
    """Says that it archives."""

    def archive(self, id: DatabaseId, by: str) -> JobView:
        return examples.JOB


class TwinDrills:
    """Restore drills that always passed."""

    def drill(self, id: DatabaseId, by: str) -> JobView:
        return examples.JOB

    def of(self, id: DatabaseId, name: str) -> DrillList:
        return examples.DRILLS

    def all(self, within: WorkspaceId | None) -> DrillList:
        return examples.DRILLS


class TwinHistories:
    """The past of databases that have none, but answer as if."""

    def __init__(self) -> None:
        self.kept: dict[DatabaseId, tuple[float | None, int | None]] = {}
        self.asked: list[tuple[str, DatabaseId]] = []

    async def view(self, id: DatabaseId) -> HistoryView:
        return examples.HISTORY

    async def bases(self, id: DatabaseId) -> BaseList:
        return examples.BASES

    def back_up(self, id: DatabaseId, by: str) -> JobView:
        self.asked.append((by, id))
        return examples.JOB

    def own_retention(self, id: DatabaseId) -> tuple[float | None, int | None]:
        return self.kept.get(id, (None, None))

    def set_retention(self, id: DatabaseId, keep_s: float | None, keep_bases: int | None) -> RetentionView:
        self.kept[id] = (keep_s, keep_bases)
        return RetentionView(keep_s if keep_s is not None else 604_800.0, keep_bases or 30)

    async def before_sleep(self, id: DatabaseId) -> None:
        self.asked.append(("before_sleep", id))

    async def settle(self, id: DatabaseId) -> None:
        self.asked.append(("settle", id))


@pytest.fixture
def databases(tmp_path: Path) -> TwinDatabases:
    return TwinDatabases(tmp_path)


class TwinTokens:
    """Which tokens databases take, in memory."""

    def __init__(self) -> None:
        self.rules: dict[DatabaseId, TokenRules] = {}

    def show(self, id: DatabaseId) -> TokenView:
        rules = self.rules.get(id)
        if rules is None:
            return TokenView(None)
        return TokenView(TokenRulesView(rules.issuer, rules.audience, rules.role_claim, rules.roles, rules.jwks_url, 1, rules.version))

    async def replace(self, id: DatabaseId, rules: TokenRules, by: str) -> TokenView:
        self.rules[id] = rules
        return self.show(id)

    async def remove(self, id: DatabaseId, by: str) -> TokenView:
        return TokenView(None, int(self.rules.pop(id, None) is not None))


class TwinCaching:
    """What holds for caches, in memory, and what was dropped."""

    def __init__(self) -> None:
        self.policies: dict[DatabaseId, CachePolicy] = {}
        self.purged: list[tuple[PurgeBy, tuple[str, ...]]] = []

    def show(self, id: DatabaseId) -> CacheStatus:
        policy = self.policies.get(id, NO_POLICY)
        return CacheStatus(policy.on_write, policy.rules, NO_CACHE)

    def set_on_write(self, id: DatabaseId, on: bool) -> CacheStatus:
        self.policies[id] = replace(self.policies.get(id, NO_POLICY), on_write=on)
        return self.show(id)

    def set_rule(self, id: DatabaseId, statement: str, words: str) -> CacheStatus:
        rule = CacheRule(fingerprint(statement.encode()), words, statement)
        self.policies[id] = replace(self.policies.get(id, NO_POLICY), rules=(rule,))
        return self.show(id)

    def remove_rule(self, id: DatabaseId, statement: str) -> CacheStatus:
        rules = tuple(rule for rule in self.show(id).rules if rule.fingerprint != statement)
        self.policies[id] = replace(self.policies.get(id, NO_POLICY), rules=rules)
        return self.show(id)

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        self.purged.append((by, tuple(values)))
        return 3


class NoFleet:
    """No sessions that an access list could forbid."""

    def with_sessions(self) -> list[Compute]:
        return []


class Desk:
    """Everything that the API asks: a twin of the use cases on databases, and the real ones on a catalog of their own."""

    def __init__(self, databases: TwinDatabases, directory: Path) -> None:
        self.catalog = Catalog.open(directory / "catalog.sqlite")
        self.telemetry = Telemetry()
        records = WorkspaceRecords(self.catalog.connection)
        self.clock = TurnedClock()
        self.keys = KeyRing(records, self.clock)
        self.workspaces = Workspaces(
            records, self.clock, lambda id: list(databases.owners.values()).count(id), self.keys.count, self.keys.forget_workspace
        )
        self.audit = Audit(AuditRecords(self.catalog.connection), self.clock, directory / "audit")
        self.books: list[AccessBook] = []
        self.caching = TwinCaching()
        self.access = AccessControl(AccessRecords(self.catalog.connection), NoFleet(), TaskOwner("access"), self.books.append)
        self.jobs = Jobs(self.audit, self.clock)
        self.histories = TwinHistories()
        self.recovery = TwinRecovery()
        self.services = Services(
            databases,
            self.workspaces,
            self.keys,
            self.audit,
            self.telemetry.render,
            access=self.access,
            tokens=TwinTokens(),
            caching=self.caching,
            jobs=self.jobs,
            branches=TwinBranches(databases),
            archiving=TwinArchiving(),
            histories=self.histories,
            restores=TwinRestores(databases),
            rewinds=TwinRewinds(databases),
            upgrades=TwinUpgrades(databases),
            drills=TwinDrills(),
            recovery=self.recovery,
        )

    def key(self, scope: AccessScope, workspace: str = "default", expires_in_s: float | None = None) -> CreatedKey:
        """A new key, made by the host's admin."""
        owner = self.workspaces.find(workspace)
        return self.keys.create(owner, f"{scope} of {workspace}", scope, expires_in_s, Caller(AccessScope.HOST, None))

    def records(self) -> list[AuditRecord]:
        """The audit log, oldest first."""
        return list(self.audit.page(AuditFilter(), 1000, after=0).records)


class TurnedClock(SystemClock):
    """The real time, `ahead_s` ahead."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


@pytest.fixture
def desk(databases: TwinDatabases, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(databases, tmp_path)
    yield desk
    desk.catalog.close()


@pytest.fixture
async def server(desk: Desk, tmp_path: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer(desk.services, TOKEN, "127.0.0.1", 0, tmp_path / "token", grace_s=0.3)
    desk.telemetry.add(server.requests)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def stranger(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False, verify=False) as client:
        yield client


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False, verify=False) as client:
        yield client
