"""Pools of a few hundred megabytes that are really filled, with real databases on them: what is full says so, and nothing is lost."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.branching import branch
from tests.support.faults import Inserter, eventually, put_to_sleep, refusal_of
from tests.support.pools import kinds, server_on
from tests.support.server import MadeDatabase, Server
from torpor.storage.room import PoolLevel, Room, look

pytestmark = [pytest.mark.root, pytest.mark.fault]

MIB = 1 << 20


class Filler:
    """Takes room from a pool, and gives it back."""

    def __init__(self, pool: Path) -> None:
        self._pool = pool
        self._file = pool / ".filler"

    def leave(self, share: float) -> None:
        """Until only so much of what is kept free is left."""
        room = look(self._pool)
        with self._file.open("ab") as file:
            at = file.seek(0, os.SEEK_END)
            os.posix_fallocate(file.fileno(), at, max(MIB, room.free_bytes - int(room.kept_bytes * share)))

    def clear(self) -> None:
        """All of it is free again, in a moment."""
        self._file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with server_on("xfs", 600, freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server


@pytest.fixture
def filler(torpor: Server) -> Iterator[Filler]:
    made = Filler(torpor.data_dir / "volumes")
    yield made
    made.clear()
    eventually(lambda: look(torpor.data_dir / "volumes").level(PoolLevel.LOW) is PoolLevel.ROOM)
    eventually(lambda: torpor.call("GET", "/v1/host")["pool_level"] == "room")


def table(database: MadeDatabase) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("CREATE TABLE acknowledged (writer int, number int)")


def count(database: MadeDatabase) -> int:
    with psycopg.connect(database.url) as connection:
        row = connection.execute("SELECT count(*) FROM acknowledged").fetchone()
    assert row is not None
    return int(row[0])


def is_read_only(database: MadeDatabase) -> bool:
    with psycopg.connect(database.url) as connection:
        return connection.execute("SHOW transaction_read_only").fetchone() == ("on",)


def test_a_full_pool_is_read_only_until_there_is_room(torpor: Server, filler: Filler) -> None:
    writer, sleeper = torpor.create("writer"), torpor.create("sleeper")
    table(writer)
    table(sleeper)
    inserter = Inserter(writer.url, 1)
    eventually(lambda: inserter.acknowledged > 20)
    filler.leave(0.9)
    eventually(lambda: not inserter.thread.is_alive())  # "cannot execute INSERT in a read-only transaction"
    assert count(writer) == inserter.acknowledged
    eventually(lambda: is_read_only(sleeper))
    put_to_sleep(torpor, sleeper)

    status, error = torpor.refusal("POST", "/v1/databases", {"name": "another"})
    assert (status, error["kind"], error["sqlstate"]) == (507, "pool_full", "53100")
    assert "remove databases" in error["hint"]
    assert torpor.call("GET", "/v1/host")["pool_level"] == "low"
    with psycopg.connect(writer.url, autocommit=True) as connection, connection.transaction():  # who must can still delete
        connection.execute("SET TRANSACTION READ WRITE")
        connection.execute("DELETE FROM acknowledged WHERE number = 0")

    filler.clear()
    eventually(lambda: not is_read_only(writer))
    # One that fell asleep meanwhile is told as well, before anybody asks for it.
    auto = torpor.data_dir / "volumes" / sleeper.id / "data/postgresql.auto.conf"
    eventually(lambda: "default_transaction_read_only" not in auto.read_text())
    again = Inserter(writer.url, 2)
    eventually(lambda: again.acknowledged > 20)
    again.stop()
    assert count(writer) == inserter.acknowledged - 1 + again.acknowledged
    for database in (writer, sleeper):
        torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


def test_who_writes_on_in_a_full_pool_is_ended(torpor: Server, filler: Filler) -> None:
    stubborn = torpor.create("stubborn")
    table(stubborn)
    with psycopg.connect(stubborn.url) as connection:
        connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        connection.execute("INSERT INTO acknowledged VALUES (1, 1)")
        connection.commit()
        connection.execute("INSERT INTO acknowledged VALUES (1, 2)")
        filler.leave(0.4)

        def is_ended() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError:
                return True
            return False

        eventually(is_ended)
    assert count(stubborn) == 1
    torpor.call("DELETE", "/v1/databases/stubborn?force=true")


def test_nothing_is_lost_when_a_pool_has_no_room_at_all(torpor: Server, filler: Filler) -> None:
    """Everything is killed before PostgreSQL finds that it can't write, and nothing starts. Then there is room, and all is there."""
    databases = [torpor.create(name) for name in ("one", "two")]
    for database in databases:
        table(database)
    inserters = [Inserter(database.url, number) for number, database in enumerate(databases)]
    eventually(lambda: all(inserter.acknowledged > 20 for inserter in inserters))
    filler.leave(0.1)
    for inserter in inserters:
        eventually(lambda inserter=inserter: not inserter.thread.is_alive())  # type: ignore[misc]
    eventually(lambda: all(torpor.tier(database.name) == "stopped" for database in databases))
    view = torpor.view("one")["database"]
    assert view["tier_reason"] == "disk_full"
    sqlstate, words = refusal_of(databases[0].url)
    assert (sqlstate, "pool is full" in words, "give the pool more room" in words) == ("53100", True, True), words

    filler.clear()
    eventually(lambda: torpor.call("GET", "/v1/host")["pool_level"] == "room")
    for database, inserter in zip(databases, inserters, strict=True):

        def is_there(database: MadeDatabase = database, inserter: Inserter = inserter) -> bool:
            with contextlib.suppress(psycopg.OperationalError):  # the last refusal is remembered for three seconds
                # One more may be there than was acknowledged.
                assert inserter.acknowledged <= count(database) <= inserter.acknowledged + 1
                return True
            return False

        eventually(is_there)
        torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


@pytest.mark.skipif("btrfs" not in kinds(), reason="no btrfs here")
def test_a_quota_is_an_error_of_postgresql_for_who_has_it_and_nothing_for_the_neighbours() -> None:
    with server_on("btrfs", 900, freeze_after_s=60) as torpor:
        full = torpor.create("full", size={"disk_bytes": 64 * MIB})
        neighbour = torpor.create("neighbour")
        table(neighbour)
        inserter = Inserter(neighbour.url, 1)
        assert torpor.view("full")["size"]["held"]["disk"].startswith("held by the kernel")
        with (torpor.data_dir / "volumes" / full.id / "data/base/ballast").open("wb") as ballast:  # so that less has to be written
            os.posix_fallocate(ballast.fileno(), 0, 58 * MIB)
        with psycopg.connect(full.url, autocommit=True) as connection:

            def is_refused() -> bool:
                """Who meets the limit gets a little more each second, so it may take a few."""
                try:
                    with connection.transaction():
                        connection.execute("SET TRANSACTION READ WRITE")
                        connection.execute("CREATE UNLOGGED TABLE waste (x text)")  # the log would count, too
                        connection.execute("ALTER TABLE waste ALTER x SET STORAGE PLAIN")
                        connection.execute("INSERT INTO waste SELECT repeat(md5(i::text), 200) FROM generate_series(1, 3000) i")
                except psycopg.errors.DiskFull as error:
                    assert "No space left on device" in str(error)
                    return True
                with connection.transaction():
                    connection.execute("SET TRANSACTION READ WRITE")
                    connection.execute("ALTER TABLE waste RENAME TO waste_" + str(time.monotonic_ns()))
                return False

            eventually(is_refused, 60)
            eventually(lambda: connection.execute("SHOW transaction_read_only").fetchone() == ("on",))
            postmaster = torpor.postmaster(full)

            torpor.call("PATCH", "/v1/databases/full", {"size": {"disk_bytes": 512 * MIB}})
            eventually(lambda: connection.execute("SHOW transaction_read_only").fetchone() == ("off",))
            connection.execute("CREATE TABLE more AS SELECT repeat(md5(i::text), 200) FROM generate_series(1, 2000) i")
            assert torpor.postmaster(full) == postmaster, "it has neither crashed nor been restarted"
        written = inserter.acknowledged
        eventually(lambda: inserter.acknowledged > written)
        inserter.stop()
        assert count(neighbour) == inserter.acknowledged
        torpor.call("DELETE", "/v1/databases/full?force=true")


def test_rooms_are_told(torpor: Server) -> None:
    host = torpor.call("GET", "/v1/host")
    room = look(torpor.data_dir / "volumes")
    assert isinstance(room, Room)
    assert host["pool_level"] == "room"
    assert 0 < host["pool_free_bytes"] <= host["pool_total_bytes"] == room.total_bytes


def test_what_is_shared_counts_once(torpor: Server) -> None:
    """For whom it came from: what a branch shares is its parent's, and what a parent shares with the template is the template's."""
    parent = torpor.create("origin")
    table(parent)
    own = torpor.view("origin")["size"]
    assert own["disk_own_bytes"] < own["disk_bytes"]
    copy = branch(torpor, "origin", "copy")
    size = torpor.view("copy")["size"]
    assert size["disk_bytes"] > 20 * MIB
    assert size["disk_own_bytes"] < size["disk_bytes"] / 2
    origin = torpor.view("origin")["size"]
    assert origin["disk_own_bytes"] == origin["disk_bytes"]
    for database in (copy, parent):
        torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")
