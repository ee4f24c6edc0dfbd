"""Databases fall asleep and wake without their clients noticing; what runs keeps them awake."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.faults import eventually, put_to_sleep
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server


@pytest.fixture
def database(torpor: Server) -> MadeDatabase:
    return torpor.create()


@pytest.fixture
def connection(database: MadeDatabase) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        yield connection


Connection = psycopg.Connection[tuple[object, ...]]


def causes(torpor: Server, name: str) -> set[str]:
    return {cause["reason"] for cause in torpor.view(name)["database"]["awake_because"]}


def test_idle_database_freezes_and_wakes_with_everything_intact(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    connection.execute("CREATE TEMP TABLE kept (x int)")
    connection.execute("PREPARE ask AS SELECT x FROM kept")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO kept VALUES (7)")
    assert in_time(torpor.wait_tier(database.name, "frozen"), 4)
    assert connection.execute("EXECUTE ask").fetchall() == [(7,)]
    connection.execute("COMMIT")
    detail = torpor.view(database.name)
    assert detail["database"]["last_wake"]["reason"] == "traffic"
    assert detail["database"]["last_wake"]["tier"] == "frozen"
    assert detail["database"]["tier"] == "awake"


@pytest.mark.root
def test_paged_database_wakes_on_its_open_connection(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    connection.execute("CREATE TEMP TABLE kept AS SELECT generate_series(1, 1000) AS x")
    put_to_sleep(torpor, database, "paged")
    assert connection.execute("SELECT sum(x) FROM kept").fetchone() == (500500,)
    assert torpor.view(database.name)["recent_wakes"][0]["tier"] == "paged"


@pytest.mark.parametrize("tier", ["frozen", "stopped"])
def test_new_connection_wakes(torpor: Server, database: MadeDatabase, tier: str) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    torpor.wait_tier(database.name, "frozen")
    eventually(lambda: not torpor.view(database.name)["database"]["connections"])
    put_to_sleep(torpor, database, tier)
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
    wake = torpor.view(database.name)["recent_wakes"][0]
    assert (wake["reason"], wake["tier"]) == ("connection", tier)
    assert database.name in wake["detail"]
    assert wake["steps"]


def test_long_silent_statement_ends_on_time(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    began = time.monotonic()
    connection.execute("SELECT pg_sleep(4)")
    took_s = time.monotonic() - began
    assert took_s >= 4
    assert in_time(took_s - 4, 0.5)
    assert torpor.view(database.name)["recent_wakes"][0]["reason"] != "traffic"


def test_running_statement_is_named(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    runner = threading.Thread(target=connection.execute, args=("SELECT pg_sleep(2.5)",))
    runner.start()
    detail = eventually(lambda: _with_cause(torpor, database, "statement"))
    runner.join()
    (cause,) = detail["database"]["awake_because"]
    assert "pg_sleep(2.5)" in cause["detail"]
    assert detail["next_step"]["at"] is None


def _with_cause(torpor: Server, database: MadeDatabase, reason: str) -> Any:
    """Everything about it once that is why it is awake; nothing before."""
    view = torpor.view(database.name)
    return view if [cause["reason"] for cause in view["database"]["awake_because"]] == [reason] else None


def test_lock_waiter_keeps_awake_until_it_has_its_lock(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    connection.execute("CREATE TABLE contested (x int)")
    connection.execute("BEGIN")
    connection.execute("LOCK TABLE contested")
    had_it: list[float] = []

    def wait() -> None:
        with psycopg.connect(database.url) as second:
            second.execute("SELECT * FROM contested")
            had_it.append(time.monotonic())

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: causes(torpor, database.name) == {"lock_wait"})
    time.sleep(2.5)
    assert causes(torpor, database.name) == {"lock_wait"}
    assert not had_it
    given = time.monotonic()
    connection.execute("COMMIT")
    waiter.join(40)
    assert in_time(had_it[0] - given, 1)


def test_idle_transaction_does_not_keep_awake(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT 1")
    assert in_time(torpor.wait_tier(database.name, "frozen"), 4)


def test_client_that_leaves_a_sleeper_is_seen_off(torpor: Server, database: MadeDatabase) -> None:
    connection = psycopg.connect(database.url)
    torpor.wait_tier(database.name, "frozen")
    connection.close()
    deadline = time.monotonic() + 30
    while torpor.view(database.name)["database"]["connections"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert torpor.view(database.name)["recent_wakes"][0]["reason"] == "client_left"
    assert in_time(torpor.wait_tier(database.name, "frozen"), 2)


def test_slow_reader_gets_its_whole_result(torpor: Server, database: MadeDatabase) -> None:
    """A result larger than all socket buffers, read after a pause longer than the idle time: freezing would strand it."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 30000)")
        time.sleep(3)
        eventually(lambda: causes(torpor, database.name) == {"statement"})
        rows = 0
        while (result := connection.pgconn.get_result()) is not None:
            rows += result.ntuples
        assert rows == 30000


def test_freezing_never_strands_a_client(torpor: Server) -> None:
    """Queries that arrive at the very moment of the freeze, on four databases that freeze as soon as they may."""
    databases = [torpor.create(freeze_after_s=0.1) for _ in range(4)]
    began = time.monotonic()
    slowest: list[float] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def ask(database: MadeDatabase, pause_s: float) -> None:
        try:
            with psycopg.connect(database.url, autocommit=True) as connection:
                while not over.is_set():
                    asked = time.monotonic()
                    connection.execute("SELECT 1")
                    slowest.append(time.monotonic() - asked)
                    # Around the idle time, so that question and freeze meet.
                    time.sleep(pause_s * random.uniform(0.9, 1.1))
        except BaseException as error:
            failures.append(error)

    def wakes() -> int:
        return sum(torpor.view(database.name)["database"]["wakes"] for database in databases)

    threads = [threading.Thread(target=ask, args=(database, 0.12 + 0.02 * n)) for n, database in enumerate(databases)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: wakes() > 40 and time.monotonic() - began > 6)
    finally:
        over.set()
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive(), "a client is stranded"
    assert not failures
    assert in_time(max(slowest), 2)


def test_never_means_never(torpor: Server) -> None:
    database = torpor.create(freeze_after_s="never")
    torpor.call("POST", f"/v1/databases/{database.name}/wake")
    time.sleep(2)
    assert torpor.tier(database.name) == "awake"
    assert causes(torpor, database.name) == {"pinned"}


def test_open_connections_forbid_stopping(torpor: Server, database: MadeDatabase, connection: Connection) -> None:
    status, error = torpor.refusal("POST", f"/v1/databases/{database.name}/sleep", {"tier": "stopped"})
    assert (status, error["kind"]) == (409, "database_in_use")
    assert connection.execute("SELECT 1").fetchone() == (1,)
    torpor.sleep(database.name, "stopped", force=True)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")


def test_ladder_goes_down_to_stopped() -> None:
    with Server(freeze_after_s=0.3, page_after_s=0.3, stop_after_s=1) as server:
        database = server.create()
        server.wait_tier(database.name, "stopped")
        assert server.view(database.name)["database"]["tier_reason"] == "idle"
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute("SELECT 1")
            eventually(lambda: server.tier(database.name) in ("frozen", "paged"))
            time.sleep(2.5)
            assert server.tier(database.name) in ("frozen", "paged")  # not stopped: a connection is open
            assert connection.execute("SELECT 2").fetchone() == (2,)


def test_memory_pressure_moves_the_longest_asleep_down_first() -> None:
    with Server(freeze_after_s=0.3, page_after_s="never", stop_after_s="never", memory_high_percent=1) as server:
        database = server.create()
        with psycopg.connect(database.url) as connection:
            server.wait_tier(database.name, "frozen")
            time.sleep(2.5)
            connected = server.view(database.name)["database"]
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connected["tier"] in ("frozen", "paged")
        server.wait_tier(database.name, "stopped")
        assert server.view(database.name)["database"]["tier_reason"] == "pressure"
