"""The catalog: every change is durable when the call returns (WAL, synchronous=FULL), and whole or not there after any crash.

Concurrency: synchronous, called on the loop's thread and by no other (two threads are not supported); a read takes some µs, a
write about 0.1 ms plus the disk's flush. One process owns the file (the daemon's lock file sees to it).
Bounded: the newest 100 wakes of each database are kept.
Errors while it is open: PoolFull when the disk is full, CatalogUnusable when the file or the disk is damaged.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import apsw

from torpor.base.files import sync_directory
from torpor.catalog.records import Records, faults
from torpor.catalog.schema import migrate
from torpor.model.cache import NO_POLICY, CachePolicy, CacheRule
from torpor.model.database import ComputeRecord, Database, DatabaseState, Role, Step, Wake
from torpor.model.errors import CatalogUnusable, Conflict, DatabaseExists, DatabaseNotFound, WorkspaceNotFound
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolMode, PoolOverrides
from torpor.model.size import NO_OVERRIDES, SizeOverrides
from torpor.model.sleep import SleepOverrides, Tier, WakeReason
from torpor.model.traffic import Traffic
from torpor.model.workspace import DEFAULT_WORKSPACE, WorkspaceId

KEPT_WAKES = 100
"""How many wakes of one database are kept."""

_SMALLEST_BYTES = 512  # one page of the smallest size
_NO_OVERRIDES = SleepOverrides()  # shared: most of 10,000 databases have none


class Catalog(Records):
    """Torpor's records. Made by `open`."""

    @property
    def connection(self) -> apsw.Connection:
        """For further kinds of records in the same file."""
        return self._connection

    @classmethod
    def open(cls, path: Path) -> "Catalog":
        """Open the catalog at `path`, make it when there is none, and bring its schema up to date.

        Raises CatalogUnusable when it is damaged, newer than this Torpor, or can't be read and written.
        """
        with faults(path):
            if not path.exists():
                _make(path)
            elif path.stat().st_size < _SMALLEST_BYTES:
                # SQLite would take it for a new file. Ours appear whole, by a rename: what this one knew isn't to be forgotten silently.
                raise CatalogUnusable(
                    f"{path} is damaged: it is empty, so the records of its databases are lost",
                    "restore it from a copy, or remove it to start anew",
                )
            _keep_private(path)
            connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                if connection.readonly("main") or not os.access(path.parent, os.W_OK, effective_ids=True):
                    raise CatalogUnusable(f"{path} can't be written", "give it and its directory to the user that runs Torpor")
                _prepare(connection)
                damage = str(connection.execute("PRAGMA quick_check(1)").fetchall()[0][0])
                if damage != "ok":
                    raise CatalogUnusable(f"{path} is damaged: {damage.splitlines()[-1]}", "restore it from a copy")
                migrate(connection)
            except BaseException:
                connection.close()
                raise
        return cls(connection)

    def close(self) -> None:
        """Close the file. May be called again."""
        self._connection.close()

    # -- databases ---------------------------------------------------------------------------------------------------------------

    def databases(self) -> list[Database]:
        """All databases in any state, oldest first. 10,000 take about 50 ms."""
        return [
            Database(
                id,
                name,
                DatabaseState(state),
                major,
                uid,
                at,
                _overrides(freeze, page, stop),
                _size(*size),
                workspace,
                bool(superuser),
                parent,
                branched,
                expires,
                _pool(mode, n, r, q),
                _cache(on_write, rules),
            )
            for (
                id,
                name,
                state,
                major,
                uid,
                at,
                workspace,
                freeze,
                page,
                stop,
                *size,
                superuser,
                parent,
                branched,
                expires,
                mode,
                n,
                r,
                q,
                on_write,
                rules,
            ) in self._read("databases")
        ]

    def add_database(self, database: Database) -> None:
        """Add a database. Raises DatabaseExists when its name (or id) is taken."""
        with self._unique(database.label):
            own = database.overrides
            values = (
                database.id,
                database.name,
                database.state.value,
                database.major,
                database.uid,
                database.created_at,
                database.workspace,
            )
            branch = (database.parent, database.branched_at, database.expires_at)
            idle = (own.freeze_after_s, own.page_after_s, own.stop_after_s)
            self._write(
                "add_database",
                (
                    *values,
                    *idle,
                    *astuple(database.size),
                    database.superuser,
                    *branch,
                    *_pool_columns(database.pool).values(),
                    *_cache_columns(database.cache).values(),
                ),
            )

    def set_state(self, id: DatabaseId, state: DatabaseState) -> None:
        """Move a database to `state`. Raises DatabaseNotFound."""
        self._change("set_state", id, state=state.value)

    def claim(
        self,
        id: DatabaseId,
        name: str,
        overrides: SleepOverrides,
        size: SizeOverrides = NO_OVERRIDES,
        workspace: WorkspaceId = DEFAULT_WORKSPACE,
        superuser: bool = False,
        pool: PoolOverrides = NO_POOL_OVERRIDES,
    ) -> None:
        """Name a database of the warm pool: WARM to CLAIMING. Raises DatabaseExists, or Conflict when it isn't WARM any more."""
        with self._unique(name):
            own = {"id": id, "name": name, "workspace": workspace, "superuser": superuser}
            if not self._write("claim", own | _columns(overrides) | _size_columns(size) | _pool_columns(pool)):
                raise Conflict(f"database {id} doesn't wait in the warm pool any more")

    def set_overrides(self, id: DatabaseId, overrides: SleepOverrides) -> None:
        """Replace a database's own idle times. Raises DatabaseNotFound."""
        self._change("set_overrides", id, **_columns(overrides))

    def set_size(self, id: DatabaseId, size: SizeOverrides) -> None:
        """Replace what a database sets of its own size. Raises DatabaseNotFound."""
        self._change("set_size", id, **_size_columns(size))

    def set_pool(self, id: DatabaseId, pool: PoolOverrides) -> None:
        """Replace what a database sets of its own pool. Raises DatabaseNotFound."""
        self._change("set_pool", id, **_pool_columns(pool))

    def set_cache(self, id: DatabaseId, cache: CachePolicy) -> None:
        """Replace what holds for its cache. Raises DatabaseNotFound."""
        self._change("set_cache", id, **_cache_columns(cache))

    def set_major(self, id: DatabaseId, major: int) -> None:
        """Note of which major a database is. Raises DatabaseNotFound."""
        self._change("set_major", id, major=major)

    def set_branched(self, id: DatabaseId, at: float) -> None:
        """Note which moment of its parent a branch is a copy of. Raises DatabaseNotFound."""
        self._change("set_branched", id, at=at)

    def set_expiry(self, id: DatabaseId, at: float | None) -> None:
        """Replace when a database is removed; None: never. Raises DatabaseNotFound."""
        self._change("set_expiry", id, at=at)

    def remove_database(self, id: DatabaseId) -> None:
        """Forget a database with its roles, compute, wakes and traffic. Nothing happens when it isn't there."""
        self._write("remove_database", {"id": id})

    def free_uid(self, base: int) -> int:
        """The smallest uid from `base` up that no database has. Taken only once a database with it is added."""
        return int(self._read("free_uid", {"base": base})[0][0])

    # -- roles -------------------------------------------------------------------------------------------------------------------

    def roles(self, id: DatabaseId) -> dict[str, Role] | None:
        """The roles of a database by name, without tickets; None when they aren't known (never saved, or forgotten)."""
        if not self.knows_roles(id):
            return None
        return {role.name: role for role in map(_role, self._read("roles", {"id": id}))}

    def knows_roles(self, id: DatabaseId) -> bool:
        """Whether all roles of a database are kept."""
        known = self._read("roles_known", {"id": id})
        return bool(known and known[0][0])

    def role(self, id: DatabaseId, name: str) -> Role | None:
        """One of the roles that are kept of a database, without tickets."""
        return next(map(_role, self._read("role", {"id": id, "name": name})), None)

    def save_roles(self, id: DatabaseId, roles: Iterable[Role]) -> None:
        """Make `roles` the roles of a database; writes nothing when they are so already. Raises DatabaseNotFound.

        Tickets are not kept: they live for a minute.
        """
        rows = {role.name: _role_row(id, role) for role in roles}
        kept = self.roles(id)
        if kept is not None and {name: _role_row(id, role) for name, role in kept.items()} == rows:
            return
        with self.transaction():
            self._change("set_roles_known", id, known=1)
            self._write("clear_roles", {"id": id})
            for row in rows.values():
                self._write("add_role", row)

    def forget_roles(self, id: DatabaseId) -> None:
        """Make the roles of a database unknown. Nothing happens when they, or it, are so already."""
        if self.roles(id) is None:
            return
        with self.transaction():
            self._write("set_roles_known", {"id": id, "known": 0})
            self._write("clear_roles", {"id": id})

    # -- computes ----------------------------------------------------------------------------------------------------------------

    def record_compute(self, record: ComputeRecord) -> None:
        """Remember the running compute of a database, instead of any earlier one. Raises DatabaseNotFound."""
        try:
            self._write("record_compute", (record.database_id, record.pid, record.start_ticks, record.boot_id))
        except apsw.ConstraintError as error:
            raise _not_found(record.database_id) from error

    def forget_compute(self, id: DatabaseId) -> None:
        """Remember that a database has no compute. Nothing happens when it had none."""
        self._write("forget_compute", {"id": id})

    def computes(self) -> list[ComputeRecord]:
        """The computes that ran when last heard of."""
        return [ComputeRecord(*row) for row in self._read("computes")]

    # -- wakes -------------------------------------------------------------------------------------------------------------------

    def save_wakes(self, wakes: Sequence[Wake]) -> None:
        """Add wakes, oldest first, in one transaction. Those of databases that are gone are left out."""
        if not wakes:
            return
        with self.transaction():
            for wake in wakes:
                counted = self._read("count_wake", {"id": wake.database_id})
                if not counted:
                    continue
                number = counted[0][0]
                steps = json.dumps([[step.name, step.elapsed_ms] for step in wake.steps], separators=(",", ":"))
                values = (wake.database_id, number, wake.at, wake.reason.value, wake.tier.value, wake.detail, wake.elapsed_ms, steps)
                self._write("add_wake", values)
                self._write("trim_wakes", {"id": wake.database_id, "number": number - KEPT_WAKES})

    def wakes(self, id: DatabaseId, limit: int) -> list[Wake]:
        """The newest wakes of a database, newest first."""
        return [_wake(*row) for row in self._read("wakes", {"id": id, "limit": limit})]

    def last_wakes(self) -> dict[DatabaseId, tuple[int, Wake]]:
        """How often each database was ever woken, and its newest wake. Databases that never were are left out."""
        return {row[0]: (count, _wake(*row)) for count, *row in self._read("last_wakes")}

    # -- traffic -----------------------------------------------------------------------------------------------------------------

    def add_traffic(self, traffic: Mapping[DatabaseId, Traffic]) -> None:
        """Add to the totals of databases, in one transaction. That of databases that are gone is left out."""
        if not any(traffic.values()):
            return
        with self.transaction():
            for id, more in traffic.items():
                self._write("add_traffic", {"id": id, "received": more.received, "sent": more.sent})

    def traffic(self) -> dict[DatabaseId, Traffic]:
        """All bytes ever, of each database that had any."""
        return {id: Traffic(received, sent) for id, received, sent in self._read("traffic")}

    # -- how ---------------------------------------------------------------------------------------------------------------------

    def _change(self, statement: str, id: DatabaseId, **values: Any) -> None:
        if not self._write(statement, {"id": id, **values}):
            raise _not_found(id)

    @contextmanager
    def _unique(self, label: str) -> Iterator[None]:
        try:
            yield
        except apsw.ConstraintError as error:
            if getattr(error, "extendedresult", 0) == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:  # it was removed in this very moment
                raise WorkspaceNotFound("the workspace does not exist any more", "`torpor workspace ls` shows those that do") from error
            raise DatabaseExists(f"database {label!r} exists already", "choose another name") from error


def _make(path: Path) -> None:
    """Make a new catalog under another name and rename it, so that it is there whole or not at all."""
    log = Path(f"{path}-wal")
    if log.exists():
        # SQLite would replay it into the new file.
        raise CatalogUnusable(
            f"{path} is missing, but {log.name} beside it is not", f"restore {path.name}, or remove {log.name} to start anew"
        )
    new = Path(f"{path}.new")
    for leftover in (new, Path(f"{new}-wal"), Path(f"{new}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = apsw.Connection(os.fspath(new), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        _prepare(connection)
        migrate(connection)
    finally:
        connection.close()  # the last connection folds the log into the file
    new.rename(path)
    sync_directory(path.parent)


def _prepare(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(1000)  # somebody may be looking in with the sqlite3 program
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.pragma("foreign_keys", True)
    connection.pragma("secure_delete", True)  # what is removed is overwritten: the keys of databases
    connection.pragma("journal_size_limit", 8 << 20)


def _keep_private(path: Path) -> None:
    """Nobody else may read the verifiers of passwords. SQLite gives its log and index the mode of the file."""
    mode = path.stat().st_mode & 0o7777
    if mode & 0o077:
        with suppress(PermissionError):
            path.chmod(mode & ~0o077)


def _not_found(id: DatabaseId) -> DatabaseNotFound:
    return DatabaseNotFound(f"there is no database with the id {id}")


def _columns(overrides: SleepOverrides) -> dict[str, float | str | None]:
    return {
        "freeze_after_s": overrides.freeze_after_s,
        "page_after_s": overrides.page_after_s,
        "stop_after_s": overrides.stop_after_s,
    }


def _overrides(freeze: float | str | None, page: float | str | None, stop: float | str | None) -> SleepOverrides:
    return _NO_OVERRIDES if freeze is page is stop is None else SleepOverrides(freeze, page, stop)


def _pool_columns(pool: PoolOverrides) -> dict[str, int | str | None]:
    mode = pool.mode.value if pool.mode is not None else None
    return {"pool": mode, "pool_size": pool.size, "pool_role_size": pool.role_size, "pool_queue": pool.queue}


def _pool(mode: str | None, *limits: int | None) -> PoolOverrides:
    if mode is None and all(value is None for value in limits):
        return NO_POOL_OVERRIDES
    return PoolOverrides(PoolMode(mode) if mode is not None else None, *limits)


def _cache_columns(cache: CachePolicy) -> dict[str, int | str]:
    return {"on_write": int(cache.on_write), "rules": json.dumps([astuple(rule) for rule in cache.rules])}


def _cache(on_write: int, rules: str) -> CachePolicy:
    if not on_write and rules == "[]":
        return NO_POLICY
    return CachePolicy(bool(on_write), tuple(CacheRule(*rule) for rule in json.loads(rules)))


def _size_columns(size: SizeOverrides) -> dict[str, float | None]:
    columns = asdict(size)
    return {**columns, "max_connections": columns.pop("connections")}


def _size(*own: Any) -> SizeOverrides:
    return NO_OVERRIDES if all(value is None for value in own) else SizeOverrides(*own)


def _role_row(id: DatabaseId, role: Role) -> tuple[str, str, str | None, int, float | None, int]:
    return id, role.name, role.verifier, int(role.can_login), role.valid_until, int(role.rules)


def _role(row: tuple[str, str | None, int, float | None, int]) -> Role:
    name, verifier, can_login, valid_until, rules = row
    return Role(name, verifier, bool(can_login), valid_until, rules=bool(rules))


def _wake(id: DatabaseId, at: float, reason: str, tier: str, detail: str, elapsed_ms: float, steps: str) -> Wake:
    timed = tuple(Step(name, ms) for name, ms in json.loads(steps))
    return Wake(id, at, WakeReason(reason), Tier(tier), detail, elapsed_ms, timed)
