"""Workspaces and their keys, on a real catalog."""

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.virtual import VirtualClock, run
from torpor.base.clock import SystemClock
from torpor.catalog.catalog import Catalog
from torpor.catalog.schema import migrations
from torpor.catalog.workspaces import WorkspaceRecords
from torpor.control.keys import EXPIRED_KEPT_S, LAST_USED_GRAIN_S, MAX_KEYS, KeyRing
from torpor.control.workspaces import Workspaces
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import (
    Conflict,
    Forbidden,
    InvalidName,
    InvalidRequest,
    KeyNotFound,
    TorporError,
    WorkspaceExists,
    WorkspaceInUse,
    WorkspaceNotFound,
)
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepOverrides
from torpor.model.workspace import DEFAULT_WORKSPACE, AccessScope, Caller, KeyId, Workspace, WorkspaceId
from torpor.model.workspace_views import CreatedKey

HOST = Caller(AccessScope.HOST, None)
LATER_S = 7 * LAST_USED_GRAIN_S


class HandClock(SystemClock):
    now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


class Town:
    """All workspaces and keys, on a catalog that can be opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = HandClock()
        self.open()

    def open(self) -> None:
        self.catalog = Catalog.open(self.path)
        self.records = WorkspaceRecords(self.catalog.connection)
        self.keys = KeyRing(self.records, self.clock)
        self.databases = 0
        self.workspaces = Workspaces(self.records, self.clock, lambda _: self.databases, self.keys.count, self.keys.forget_workspace)

    def again(self) -> None:
        self.catalog.close()
        self.open()

    def key(self, scope: AccessScope = AccessScope.WRITE, life_s: float | None = None, by: Caller = HOST) -> CreatedKey:
        return self.keys.create(self.workspaces.find("default"), "ci", scope, life_s, by)

    def caller(self, made: CreatedKey) -> Caller | None:
        return self.keys.recognise(made.secret.encode(), "192.0.2.1")


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path / "catalog.sqlite")
    yield town
    town.catalog.close()


# -- workspaces


def test_the_default_workspace_is_always_there(town: Town) -> None:
    assert town.workspaces.find("default").id == DEFAULT_WORKSPACE
    with pytest.raises(Conflict):
        town.workspaces.delete("default")
    town.again()
    assert [view.name for view in town.workspaces.list(None, 10).workspaces] == ["default"]


def test_workspaces_outlive_a_restart(town: Town) -> None:
    made = town.workspaces.create("acme")
    town.again()
    assert town.workspaces.find("acme").id == made.id
    assert town.workspaces.name(made.id) == "acme"
    town.workspaces.delete("acme")
    for _ in range(2):
        with pytest.raises(WorkspaceNotFound):
            town.workspaces.find("acme")
        town.again()
    assert town.workspaces.create("acme").id != made.id


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "self", "a" * 64, "ä", "a\n", "../x", "a/b"])
def test_bad_names(town: Town, name: str) -> None:
    with pytest.raises(InvalidName):
        town.workspaces.create(name)


def test_names_are_unique(town: Town) -> None:
    town.workspaces.create("acme")
    with pytest.raises(WorkspaceExists):
        town.workspaces.create("acme")


def test_only_what_is_empty_goes(town: Town) -> None:
    acme = town.workspaces.create("acme")
    town.databases = 1
    with pytest.raises(WorkspaceInUse):
        town.workspaces.delete("acme")
    town.databases = 0
    for state in (DatabaseState.MAKING, DatabaseState.DELETING):  # nobody sees those, and still they belong to it
        database = Database(DatabaseId("dshopshopshop"), "shop", state, 18, 1, 0.0, workspace=acme.id)
        town.catalog.add_database(database)
        with pytest.raises(WorkspaceInUse):
            town.workspaces.delete("acme")
        assert town.workspaces.find("acme").id == acme.id
        town.catalog.remove_database(database.id)
    town.workspaces.delete("acme")


def test_a_database_is_not_made_in_a_workspace_that_just_went(town: Town) -> None:
    gone = WorkspaceId("wgonegonegone")
    with pytest.raises(WorkspaceNotFound):
        town.catalog.add_database(Database(DatabaseId("da"), "a", DatabaseState.MAKING, 18, 1, 0.0, workspace=gone))
    town.catalog.add_database(Database(DatabaseId("db"), None, DatabaseState.WARM, 18, 1, 0.0, workspace=None))
    with pytest.raises(WorkspaceNotFound):
        town.catalog.claim(DatabaseId("db"), "b", SleepOverrides(), workspace=gone)
    with pytest.raises(WorkspaceNotFound):
        town.keys.create(Workspace(gone, "gone", 0.0), "x", AccessScope.READ, None, HOST)
    assert [(database.name, database.workspace) for database in town.catalog.databases()] == [(None, None)]


def test_those_outside_are_not_there(town: Town) -> None:
    acme = town.workspaces.create("acme")
    assert town.workspaces.find("acme", acme.id).id == acme.id
    with pytest.raises(WorkspaceNotFound) as foreign:
        town.workspaces.find("default", acme.id)
    with pytest.raises(WorkspaceNotFound) as nobodys:
        town.workspaces.find("unknown", acme.id)
    assert str(foreign.value).replace("default", "unknown") == str(nobodys.value)


def test_pages_of_workspaces(town: Town) -> None:
    for name in ("c", "a", "b"):
        town.workspaces.create(name)
    first = town.workspaces.list(None, 2)
    assert ([view.name for view in first.workspaces], first.next) == (["a", "b"], "b")
    second = town.workspaces.list("b", 2)
    assert ([view.name for view in second.workspaces], second.next) == (["c", "default"], None)


def test_databases_of_before_belong_to_the_default_workspace(tmp_path: Path) -> None:
    import apsw

    path = tmp_path / "catalog.sqlite"
    Catalog.open(path).close()
    path.unlink()
    connection = apsw.Connection(str(path))
    for number, text in enumerate(migrations()[:2], 1):
        connection.execute(text)
        connection.pragma("user_version", number)
    connection.pragma("application_id", 0x54525052)
    connection.execute(
        "INSERT INTO databases (id, name, state, major, uid, created_at) VALUES ('dshopshopshop', 'shop', 'ready', 18, 1, 1.5)"
    )
    connection.execute("INSERT INTO databases (id, name, state, major, uid, created_at) VALUES ('dwarmwarmwarm', NULL, 'warm', 18, 2, 1.5)")
    connection.close()
    catalog = Catalog.open(path)
    assert {database.name: database.workspace for database in catalog.databases()} == {"shop": DEFAULT_WORKSPACE, None: None}
    catalog.close()


# -- keys


def test_a_key_is_shown_once_and_kept_as_a_hash(town: Town, tmp_path: Path) -> None:
    made = town.key()
    assert re.fullmatch(r"torpor_k1_k[a-z2-7]{11}_[a-z2-7]{52}", made.secret)
    assert made.secret.startswith(made.key.prefix)
    secret = made.secret.rpartition("_")[2]
    town.catalog.connection.execute("PRAGMA wal_checkpoint")
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in files
    assert hashlib.sha256(secret.encode()).digest() in files
    assert secret not in repr(town.keys.list(town.workspaces.find("default")))


def test_keys_work_until_they_are_revoked(town: Town) -> None:
    made = town.key()
    for _ in range(2):
        caller = town.caller(made)
        assert caller == Caller(AccessScope.WRITE, DEFAULT_WORKSPACE, made.key.id, "ci", "192.0.2.1")
        town.again()
    town.keys.revoke(town.workspaces.find("default"), made.key.id)
    for _ in range(2):
        assert town.caller(made) is None
        town.again()
    with pytest.raises(KeyNotFound):
        town.keys.revoke(town.workspaces.find("default"), made.key.id)


def test_keys_expire(town: Town) -> None:
    made = town.key(life_s=60)
    town.clock.now += 59
    assert town.caller(made) is not None
    town.clock.now += 1
    assert town.caller(made) is None
    assert town.keys.list(town.workspaces.find("default")).keys[0].expired


def test_keys_go_with_their_workspace(town: Town) -> None:
    town.workspaces.create("acme")
    made = town.keys.create(town.workspaces.find("acme"), "ci", AccessScope.ADMIN, None, HOST)
    town.workspaces.delete("acme")
    for _ in range(2):
        assert town.caller(made) is None
        town.again()
    assert town.records.all_keys() == []


def test_another_workspaces_key_cannot_be_revoked(town: Town) -> None:
    made = town.key()
    town.workspaces.create("acme")
    with pytest.raises(KeyNotFound):
        town.keys.revoke(town.workspaces.find("acme"), made.key.id)
    assert town.caller(made) is not None


def test_nobody_gives_more_than_they_have(town: Town) -> None:
    admin = town.caller(town.key(AccessScope.ADMIN, life_s=3600))
    assert admin is not None
    assert town.key(AccessScope.ADMIN, 3600, admin).key.created_by == admin.key
    for scope, life_s, error in (
        (AccessScope.METRICS, 60, Forbidden),
        (AccessScope.HOST, 60, InvalidRequest),
        (AccessScope.READ, None, Forbidden),
        (AccessScope.READ, 3601, Forbidden),
    ):
        with pytest.raises(error):
            town.key(scope, life_s, admin)
    with pytest.raises(InvalidRequest):
        town.key(AccessScope.HOST)
    assert town.key(AccessScope.METRICS).key.scope is AccessScope.METRICS


@pytest.mark.parametrize("life_s", [0, -1, 0.5, float("nan"), float("inf"), 1e300])
def test_lives_out_of_range(town: Town, life_s: float) -> None:
    with pytest.raises(InvalidRequest):
        town.key(life_s=life_s)


@pytest.mark.parametrize("name", ["", " ", "x" * 81, "a\nb", "\x1b[2J", "a ", "\u202ex"])
def test_names_of_keys_are_visible(town: Town, name: str) -> None:
    with pytest.raises(InvalidName):
        town.keys.create(town.workspaces.find("default"), name, AccessScope.READ, None, HOST)


def test_keys_are_bounded(town: Town) -> None:
    for _ in range(MAX_KEYS):
        town.key()
    with pytest.raises(Conflict):
        town.key()


def test_keys_that_expired_long_ago_make_room(town: Town) -> None:
    old, lasting = [town.key(life_s=60) for _ in range(MAX_KEYS - 1)], town.key()
    town.clock.now += 60 + EXPIRED_KEPT_S - 1
    with pytest.raises(Conflict):
        town.key()
    assert len(town.keys.list(town.workspaces.find("default")).keys) == MAX_KEYS
    town.clock.now += 2
    town.key()
    town.again()
    assert len(town.records.all_keys()) == 2
    assert town.caller(old[0]) is None and town.caller(lasting) is not None


def test_when_a_key_was_used_is_told_coarsely_and_written_rarely(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    made = town.key()
    writes = 0
    use_keys = town.records.use_keys

    def counted(used: Mapping[KeyId, float]) -> None:
        nonlocal writes
        writes += bool(used)
        use_keys(used)

    monkeypatch.setattr(town.records, "use_keys", counted)
    for _ in range(1000):
        town.caller(made)
        town.keys.flush()
    assert writes == 1
    town.clock.now += LATER_S
    town.caller(made)
    town.keys.flush()
    town.again()
    used = town.keys.list(town.workspaces.find("default")).keys[0].last_used_at
    assert used is not None and used % LAST_USED_GRAIN_S == 0 and town.clock.now - used < LAST_USED_GRAIN_S


def test_a_revoked_key_is_not_written_again(town: Town) -> None:
    made = town.key()
    town.caller(made)
    town.keys.revoke(town.workspaces.find("default"), made.key.id)
    town.keys.flush()
    assert town.records.all_keys() == []


def test_streams_are_told_of_the_end(town: Town) -> None:
    town.keys._clock = VirtualClock()

    async def main() -> None:
        now = asyncio.get_running_loop().time
        began, lasting, short = now(), town.key(), town.key(life_s=5000)
        waits = [asyncio.create_task(town.keys.ended(made.key.id)) for made in (lasting, lasting, short)]
        await asyncio.sleep(4999)
        assert not any(task.done() for task in waits)
        town.keys.revoke(town.workspaces.find("default"), lasting.key.id)
        await asyncio.gather(*waits[:2])
        assert now() - began < 4999.1
        await waits[2]
        assert 5000 <= now() - began < 5001
        await town.keys.ended(lasting.key.id)

    run(main())


def test_what_the_catalog_refuses_changes_nothing(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    made = town.key()
    town.catalog.connection.pragma("query_only", True)
    for attempt in (
        town.key,
        lambda: town.workspaces.create("acme"),
        lambda: town.keys.revoke(town.workspaces.find("default"), made.key.id),
    ):
        with pytest.raises(TorporError):
            attempt()
    town.catalog.connection.pragma("query_only", False)
    assert town.caller(made) is not None
    assert town.keys.count(DEFAULT_WORKSPACE) == 1
    with pytest.raises(WorkspaceNotFound):
        town.workspaces.find("acme")
