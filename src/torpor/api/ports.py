"""What the API needs of the use cases. The composition root passes the real ones; tests have a twin in memory.

Concurrency: called on the loop; methods that aren't coroutines answer from memory. All raise errors of torpor.model.errors.
A call isn't cancelled when its client goes away, only when Torpor stops.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torpor.model.access import ScopeKey
from torpor.model.access_views import AccessView
from torpor.model.audit import AuditFilter, AuditResult
from torpor.model.branches import Branched, BranchList, PastBranch
from torpor.model.cache import CacheStatus, PurgeBy
from torpor.model.drain import DrainView
from torpor.model.drills import DrillList
from torpor.model.exports import ExportOptions
from torpor.model.history import Moment
from torpor.model.history_views import BaseList, HistoryView, RetentionView
from torpor.model.jobs import JobView
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolOverrides
from torpor.model.recovery_views import RecoverableList, Recovering
from torpor.model.size import Size, SizeOverrides
from torpor.model.sleep import SleepOverrides, Tier
from torpor.model.tokens import TokenRules, TokenView
from torpor.model.views import Created, Credentials, DatabaseDetail, DatabasePage, DatabaseView, HostView, SizeView, WakeView
from torpor.model.workspace import AccessScope, Caller, KeyId, Workspace, WorkspaceId
from torpor.model.workspace_views import AuditPage, CreatedKey, KeyList, KeyView, WorkspacePage, WorkspaceView


class Databases(Protocol):
    """The use cases. Every `name` is a database's name as a stranger typed it: unknown or odd ones raise DatabaseNotFound."""

    def within(self, workspace: WorkspaceId | None) -> "Databases":
        """The same use cases, confined to one workspace: to them the databases of others don't exist. None confines to nothing."""
        ...

    def workspace_of(self, name: str) -> WorkspaceId | None:
        """To which workspace a database belongs."""
        ...

    async def create(
        self, name: str | None, major: int | None, overrides: SleepOverrides, size: SizeOverrides, superuser: bool, pool: PoolOverrides
    ) -> Created:
        """Make a database in the workspace of these use cases, else in the default one.

        A name is made up when none is given, the major is the daemon's when none is given.
        """
        ...

    def get(self, name: str) -> DatabaseView:
        """One database as lists show it."""
        ...

    def list(self, after: str | None, limit: int, tier: Tier | None, search: str | None) -> DatabasePage:
        """Databases in the order of their names, from the first after `after`."""
        ...

    async def detail(self, name: str) -> DatabaseDetail:
        """All about one database; PostgreSQL is asked why it is awake, if it is."""
        ...

    async def update(self, name: str, overrides: SleepOverrides, pool: PoolOverrides | None) -> DatabaseDetail:
        """Replace the database's own idle times, and what it sets of its pool where that is given."""
        ...

    async def resize(self, name: str, size: SizeOverrides) -> SizeView:
        """Replace what the database sets of its own size."""
        ...

    async def size(self, name: str) -> SizeView:
        """What a database may use, and why."""
        ...

    def usual_size(self) -> Size:
        """The size of databases that have none of their own."""
        ...

    async def delete(self, name: str, force: bool) -> None:
        """Remove a database and its data. Raises DatabaseInUse with open connections that aren't just ending, unless forced."""
        ...

    async def sleep(self, name: str, tier: Tier, force: bool) -> DatabaseView:
        """Bring a database down to frozen, paged or stopped; forced, also while it is busy."""
        ...

    async def wake(self, name: str) -> WakeView | None:
        """Wake a database. None when it was awake."""
        ...

    async def reset_password(self, name: str) -> Credentials:
        """Give the owner a new password."""
        ...

    async def ticket(self, name: str) -> Credentials:
        """A password of short life for the owner."""
        ...

    async def export(self, name: str, options: ExportOptions) -> "Export":
        """A dump, which has begun when this returns."""
        ...

    def wakes(self, name: str, limit: int) -> tuple[WakeView, ...]:
        """The newest wakes, newest first."""
        ...

    def log_file(self, name: str) -> Path:
        """Where PostgreSQL writes the log of this database; the file need not exist."""
        ...

    def host(self) -> HostView:
        """The host at a glance."""
        ...


class Export(Protocol):
    """A dump that goes on."""

    def parts(self) -> AsyncGenerator[bytes, None]:
        """All of it. Raises what it fails at."""
        ...

    def close(self) -> None:
        """End it, wherever it is."""
        ...


class Drains(Protocol):
    """How Torpor is asked to end when nothing runs any more."""

    def drain(self, timeout_s: float | None) -> DrainView:
        """Begin, or change the time that what runs may still take; None: the daemon's setting."""
        ...

    def drain_view(self) -> DrainView:
        """How far it is."""
        ...


class Branches(Protocol):
    """The use cases on branches."""

    def within(self, workspace: WorkspaceId | None) -> "Branches":
        """The same use cases, confined to the databases of one workspace."""
        ...

    async def branch(
        self, parent: str, name: str | None, keep_passwords: bool, ttl_s: float | None, overrides: SleepOverrides, size: SizeOverrides
    ) -> Branched:
        """Make a database that is a copy of `parent` as it is now, in its workspace. A name is made up when none is given."""
        ...

    def branches(self, parent: str) -> BranchList:
        """The branches of a database."""
        ...

    def set_life(self, name: str, ttl_s: float | None) -> None:
        """Have a database removed in so many seconds from now; None: it stays."""
        ...

    async def reset(self, name: str, force: bool) -> DatabaseView:
        """Bring a branch back to what its parent is now; forced, also with open connections."""
        ...


class Jobs(Protocol):
    """Long operations. `within` is the workspace that the caller sees, None for all; jobs of others are not found."""

    def list(self, within: WorkspaceId | None, database: str | None = None) -> tuple[JobView, ...]:
        """Jobs, the newest first."""
        ...

    def get(self, id: str, within: WorkspaceId | None) -> JobView:
        """One job."""
        ...

    def workspace_of(self, id: str, within: WorkspaceId | None) -> WorkspaceId | None:
        """To which workspace a job belongs."""
        ...

    def events(self, id: str, within: WorkspaceId | None) -> AsyncGenerator[JobView, None]:
        """How it is now, then each change, the last of them its end."""
        ...

    async def cancel(self, id: str, within: WorkspaceId | None) -> JobView:
        """Stop a job."""
        ...


class Restores(Protocol):
    """The use cases that bring back what was."""

    def within(self, workspace: WorkspaceId | None) -> "Restores":
        """The same use cases, confined to the databases of one workspace."""
        ...

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
        """Begin to make a branch of `parent` as it was."""
        ...


class Rewinds(Protocol):
    """The use cases that restore in place."""

    def within(self, workspace: WorkspaceId | None) -> "Rewinds":
        """The same use cases, confined to the databases of one workspace."""
        ...

    async def restore(self, name: str, moment: Moment, force: bool, by: str) -> JobView:
        """Begin to bring a database back to a moment."""
        ...

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        """Begin to take that back."""
        ...


class Recovery(Protocol):
    """The use cases on databases that are in the store and not here."""

    async def list(self, after: str | None, limit: int) -> RecoverableList:
        """A page of them."""
        ...

    async def recover(self, wanted: str, name: str | None, moment: Moment, by: str) -> Recovering:
        """Begin to bring one back, by its name or id, called as it was or `name`."""
        ...

    async def forget(self, wanted: str, force: bool) -> str:
        """Have all removed that the store holds of one; its name."""
        ...

    async def keys_are_gone(self, id: DatabaseId) -> bool:
        """Of a database that was removed here: whether the store has its keys no more, which is waited for a moment."""
        ...


class Upgrades(Protocol):
    """The use cases of major upgrades."""

    def within(self, workspace: WorkspaceId | None) -> "Upgrades":
        """The same use cases, confined to the databases of one workspace."""
        ...

    async def upgrade(self, name: str, to: int, check: bool, force: bool, by: str) -> JobView:
        """Begin to upgrade a database, or to see whether it can be."""
        ...

    async def undo(self, name: str, force: bool, by: str) -> JobView:
        """Begin to take that back."""
        ...


class Histories(Protocol):
    """The use cases on the past of databases. They don't ask whether the database is there, or whose it is."""

    async def view(self, id: DatabaseId) -> HistoryView:
        """What can be restored, and what it costs."""
        ...

    async def bases(self, id: DatabaseId) -> BaseList:
        """The base copies, oldest first."""
        ...

    def back_up(self, id: DatabaseId, by: str) -> JobView:
        """Begin to take a base copy."""
        ...

    def own_retention(self, id: DatabaseId) -> tuple[float | None, int | None]:
        """What the database sets itself of how much is kept: seconds, base copies."""
        ...

    def set_retention(self, id: DatabaseId, keep_s: float | None, keep_bases: int | None) -> RetentionView:
        """Replace that."""
        ...

    async def before_sleep(self, id: DatabaseId) -> None:
        """Somebody asks for a sleep: take what is still missing from the history, within seconds."""
        ...

    async def settle(self, id: DatabaseId) -> None:
        """It fell asleep: wait until its log is in the store, for seconds at most."""
        ...


class Drills(Protocol):
    """The use cases of restore drills. They don't ask whether a database is there, or whose it is."""

    def drill(self, id: DatabaseId, by: str) -> JobView:
        """Begin one on a database."""
        ...

    def of(self, id: DatabaseId, name: str) -> DrillList:
        """The last ones on a database, which is called `name`."""
        ...

    def all(self, within: WorkspaceId | None) -> DrillList:
        """The last one on each database of a workspace; None: of all."""
        ...


class Archiving(Protocol):
    """The use case of archiving a database. It doesn't ask whether the database is there, or whose it is."""

    def archive(self, id: DatabaseId, by: str) -> JobView:
        """Begin to archive it."""
        ...


class Access(Protocol):
    """The use cases on access lists. They don't ask whether the database or workspace is there."""

    def show(self, key: ScopeKey) -> AccessView:
        """The lists of a scope."""
        ...

    async def replace(self, key: ScopeKey, allow: Iterable[str], deny: Iterable[str], version: str | None, by: str) -> AccessView:
        """Replace them; when it returns they are in force. Raises Conflict when they aren't those of `version` any more."""
        ...


class Caching(Protocol):
    """The use cases on caches. They don't ask to whom the database belongs."""

    def show(self, id: DatabaseId) -> CacheStatus:
        """What holds, and how it is doing."""
        ...

    def set_on_write(self, id: DatabaseId, on: bool) -> CacheStatus:
        """Whether writes drop what was read before."""
        ...

    def set_rule(self, id: DatabaseId, statement: str, words: str) -> CacheStatus:
        """How statements of a kind are cached. Raises InvalidRequest and Conflict."""
        ...

    def remove_rule(self, id: DatabaseId, statement: str) -> CacheStatus:
        """That they aren't. Raises InvalidRequest when nothing was said of them."""
        ...

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        """Drop results; how many there were. Raises InvalidRequest."""
        ...


class Tokens(Protocol):
    """The use cases on tokens by which clients log in. They don't ask whether the database is there."""

    def show(self, id: DatabaseId) -> TokenView:
        """Which tokens a database takes."""
        ...

    async def replace(self, id: DatabaseId, rules: TokenRules, by: str) -> TokenView:
        """Have it take these, and no others. Raises InvalidRequest when the keys are none, or can't be fetched."""
        ...

    async def remove(self, id: DatabaseId, by: str) -> TokenView:
        """Have it take none."""
        ...


class Workspaces(Protocol):
    """The use cases on workspaces."""

    def create(self, name: str) -> WorkspaceView:
        """Make a workspace."""
        ...

    def list(self, after: str | None, limit: int) -> WorkspacePage:
        """Workspaces in the order of their names."""
        ...

    def find(self, name: str, within: WorkspaceId | None = None) -> Workspace:
        """The workspace of that name; those outside of `within` don't exist."""
        ...

    def by_id(self, id: WorkspaceId) -> Workspace:
        """The workspace of that id."""
        ...

    def view(self, workspace: Workspace) -> WorkspaceView:
        """A workspace as lists show it."""
        ...

    def delete(self, name: str) -> None:
        """Remove an empty workspace with its keys."""
        ...


class Keys(Protocol):
    """The use cases on API keys."""

    def create(self, workspace: Workspace, name: str, scope: AccessScope, expires_in_s: float | None, by: Caller) -> CreatedKey:
        """Make a key; its text is in the answer and nowhere else."""
        ...

    def list(self, workspace: Workspace) -> KeyList:
        """The keys of a workspace."""
        ...

    def revoke(self, workspace: Workspace, id: str) -> KeyView:
        """End a key at once."""
        ...

    def recognise(self, text: bytes, address: str) -> Caller | None:
        """Who has this key; None for what is no valid key."""
        ...

    async def ended(self, id: KeyId) -> None:
        """Waits until a key isn't valid any more."""
        ...


class Audit(Protocol):
    """The audit log."""

    def record(
        self,
        actor: str,
        action: str,
        target: str,
        *,
        workspace: WorkspaceId | None = None,
        actor_name: str = "",
        address: str = "",
        result: AuditResult = AuditResult.DONE,
        detail: str = "",
        begun: int | None = None,
    ) -> int:
        """Write a record, durably; its number. What can't be recorded must not be done."""
        ...

    def page(self, wanted: AuditFilter, limit: int, before: int | None = None, after: int | None = None) -> AuditPage:
        """Records, the newest first; with `after` the oldest first."""
        ...
