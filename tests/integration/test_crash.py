"""Whatever dies in a compute, or lies broken in its volume: acknowledged commits stay, the client is told the cause, others go on."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import Inserter, eventually, halted_start, host_pid, processes_of, put_to_sleep, refusal_of, stop_database
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

pytestmark = [pytest.mark.fault]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40)


def attempts_to_start(server: Server, database: MadeDatabase) -> int:
    """That failed."""
    return sum("start failed" in line and f"database={database.name}" in line for line in server.log.splitlines())


def kill_all(server: Server, database: MadeDatabase) -> None:
    """As a power cut does: every process of the compute at once."""
    for pid in processes_of(server, database.id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_postmaster(server: Server, database: MadeDatabase) -> None:
    os.kill(server.postmaster(database), signal.SIGKILL)


def start_inserting(database: MadeDatabase) -> list[Inserter]:
    with connect(database) as connection:
        connection.execute("CREATE TABLE acknowledged (client int, number int)")
    inserters = [Inserter(database.url, number) for number in range(4)]
    eventually(lambda: all(inserter.acknowledged > 20 for inserter in inserters))
    return inserters


def check_acknowledged(connection: "psycopg.Connection[tuple[object, ...]]", inserters: list[Inserter]) -> None:
    """All that was acknowledged is there, once; at most one more each, whose answer got lost."""
    for inserter in inserters:
        inserter.stop()
        assert not inserter.thread.is_alive()
        query = "SELECT number FROM acknowledged WHERE client = %s ORDER BY number"
        found = [row[0] for row in connection.execute(query, (inserter.number,)).fetchall()]
        assert found in (list(range(inserter.acknowledged)), list(range(inserter.acknowledged + 1)))


@pytest.mark.parametrize("kill", [kill_postmaster, kill_all])
def test_killed_database_is_back_on_the_next_connection(server: Server, database: MadeDatabase, kill: object) -> None:
    assert callable(kill)
    inserters = start_inserting(database)
    kill(server, database)
    eventually(lambda: server.tier(database.name) == "stopped")
    assert server.view(database.name)["database"]["tier_reason"] == "crash"
    with connect(database) as connection:
        check_acknowledged(connection, inserters)
    assert server.view(database.name)["database"]["connections"] <= 1
    put_to_sleep(server, database)


def test_connection_right_after_the_kill_is_served(server: Server, database: MadeDatabase) -> None:
    """Not even a moment in which the dead compute counts as awake is seen by a client: it may be told so, but not kept waiting."""
    for _ in range(3):
        connect(database).close()
        kill_postmaster(server, database)
        began = time.monotonic()

        def served() -> bool:
            try:
                connect(database).close()
            except psycopg.OperationalError:
                return False
            return True

        eventually(served)
        assert in_time(time.monotonic() - began, 5)


def test_one_killed_backend(server: Server, database: MadeDatabase) -> None:
    """PostgreSQL itself starts over: all its sessions end, the compute stays."""
    inserters = start_inserting(database)
    postmaster = server.postmaster(database)
    victim = connect(database)
    pid = victim.info.backend_pid
    os.kill(host_pid(server, database.id, pid), signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        while True:
            victim.execute("SELECT 1")
    victim.close()
    for inserter in inserters:
        inserter.thread.join(40)
        assert not inserter.thread.is_alive()

    def again() -> "psycopg.Connection[tuple[object, ...]] | None":
        with suppress(psycopg.OperationalError):
            return connect(database)
        return None

    connection = eventually(again)
    assert connection is not None
    with connection:
        check_acknowledged(connection, inserters)
    assert server.postmaster(database) == postmaster
    eventually(lambda: server.view(database.name)["database"]["connections"] == 0)
    put_to_sleep(server, database)


@pytest.mark.parametrize("tier", ["frozen", pytest.param("paged", marks=pytest.mark.root)])
def test_killed_while_asleep(server: Server, database: MadeDatabase, tier: str) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        put_to_sleep(server, database, tier)
        kill_postmaster(server, database)
        eventually(lambda: server.tier(database.name) == "stopped")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with connect(database) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    pids = processes_of(server, database.id)
    assert server.postmaster(database) in pids


def test_killed_while_it_starts(server: Server, database: MadeDatabase) -> None:
    """The client that waited is told; the next one, or that one when it comes again, is served."""
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    said: list[tuple[str, str]] = []
    postmaster, waiter = halted_start(server, database, lambda: said.append(refusal_of(database.url)))
    os.kill(postmaster, signal.SIGKILL)
    waiter.join(40)
    ((sqlstate, text),) = said
    assert sqlstate == "58000"
    assert f"database {database.name} can't start" in text

    def served() -> bool:
        with suppress(psycopg.OperationalError), connect(database) as connection:
            return connection.execute("SELECT x FROM kept").fetchone() == (1,)
        return False

    eventually(served)
    assert server.view(database.name)["broken"] == ""


def test_damaged_volume_is_told_and_not_tried_for_ever(server: Server, database: MadeDatabase) -> None:
    other = server.create()
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    stop_database(server, database)
    control = server.data_dir / "volumes" / database.id / "data" / "global" / "pg_control"
    whole = control.read_bytes()
    owner = control.stat()
    os.truncate(control, 100)
    began = time.monotonic()
    for _ in range(15):
        sqlstate, text = refusal_of(database.url)
        assert sqlstate == "58000"
        assert "pg_control" in text
        assert f"torpor logs {database.name}" in text
    took_s = time.monotonic() - began
    assert in_time(took_s, 2.5), "the failure is remembered, not repeated"
    assert attempts_to_start(server, database) <= 1 + took_s // 3  # so long it is remembered
    assert "pg_control" in server.view(database.name)["broken"]
    status, error = server.refusal("POST", f"/v1/databases/{database.name}/wake")
    assert (status, error["kind"]) == (503, "compute_start_failed")
    with connect(other) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    attempts = attempts_to_start(server, database)
    time.sleep(3.2)  # nobody asks, so nothing may happen, also when the failure isn't remembered any more
    assert attempts_to_start(server, database) == attempts
    assert processes_of(server, database.id) == []
    control.write_bytes(whole)
    os.chown(control, owner.st_uid, owner.st_gid)

    def mended() -> bool:
        with suppress(psycopg.OperationalError), connect(database) as connection:
            return connection.execute("SELECT x FROM kept").fetchone() == (1,)
        return False

    eventually(mended)
    assert server.view(database.name)["broken"] == ""


def test_missing_volume(server: Server, database: MadeDatabase) -> None:
    other = server.create()
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    stop_database(server, database)
    volume = server.data_dir / "volumes" / database.id
    aside = volume.with_name(".aside")
    volume.rename(aside)
    sqlstate, text = refusal_of(database.url)
    assert sqlstate == "58000"
    assert "its volume is missing" in text
    server.kill()
    server.start()
    assert server.view(database.name)["broken"] == "its volume is missing"
    assert refusal_of(database.url) == (sqlstate, text)
    with connect(other) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not volume.exists()
    aside.rename(volume)

    def back() -> bool:
        with suppress(psycopg.OperationalError), connect(database) as connection:
            return connection.execute("SELECT x FROM kept").fetchone() == (1,)
        return False

    eventually(back)


def test_empty_pid_file_does_no_harm(server: Server, database: MadeDatabase) -> None:
    """A power cut can leave it so, and PostgreSQL refuses to start over it."""
    connect(database).close()
    stop_database(server, database)
    pid_file = server.data_dir / "volumes" / database.id / "data" / "postmaster.pid"
    pid_file.touch()
    Path(pid_file.with_name(".s.PGSQL.5432.lock")).write_text(f"{os.getpid()}\n")
    os.chmod(pid_file, 0o600)
    connect(database).close()


@pytest.mark.parametrize("asleep", [False, True])
def test_roles_after_a_crash(server: Server, database: MadeDatabase, asleep: bool) -> None:
    """Also those that changed after Torpor last saved them."""
    with connect(database) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'first'")
        connection.execute("CREATE ROLE leaver LOGIN PASSWORD 'first'")
        put_to_sleep(server, database)
        connection.execute("ALTER ROLE app PASSWORD 'second'")
        connection.execute("DROP ROLE leaver")
        if asleep:
            put_to_sleep(server, database)
        kill_all(server, database)
    eventually(lambda: server.tier(database.name) == "stopped")
    assert refusal_of(database.url_as("app", "first"))[0] == "28P01"
    assert refusal_of(database.url_as("leaver", "first"))[0] == "28P01"
    with psycopg.connect(database.url_as("app", "second")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("app",)
