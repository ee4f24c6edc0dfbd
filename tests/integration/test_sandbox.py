"""Each sandbox level in a real Torpor: what its processes are to the kernel, that all that Torpor does with them works, and who may what.

What a tenant may try from inside is in test_escape_*.py.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.test_serve import UserServer
from tests.support.faults import eventually, host_pid, in_thread, put_to_sleep, runs, stop_database
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import inner_pid, namespace_init, start_ticks

pytestmark = pytest.mark.root  # levels are tried as root and as nobody

_NAMESPACES = ("pid", "mnt", "ipc", "uts", "net")


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    """Without TLS, so that the client's own socket is handed over."""
    return psycopg.connect(database.url, autocommit=True, sslmode="disable")


@pytest.fixture(params=["full", "no_user_namespace", "own_user", "shared_user", "none"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Torpor on a host that gives that level."""
    settings: dict[str, Any] = {"freeze_after_s": 1, "page_after_s": "never", "stop_after_s": "never"}
    made = Server(**settings) if request.param in ("full", "no_user_namespace", "own_user") else UserServer(**settings)
    made.allow_only(request.param)
    with made:
        yield made
        assert "Traceback" not in made.log, made.log[-6000:]


@pytest.fixture
def level(server: Server) -> str:
    return str(server.call("GET", "/v1/host")["sandbox"].partition(", ")[0])


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def status(pid: int, key: str) -> str:
    """A line of /proc/<pid>/status."""
    return next(line.split(":")[1].strip() for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{key}:"))


def test_what_the_kernel_says_of_a_compute(server: Server, database: MadeDatabase, level: str) -> None:
    assert server.view(database.name)["sandbox"].startswith(f"{level}, ")
    with connect(database) as connection:
        pid = host_pid(server, database.id, connection.info.backend_pid)
        for each in (pid, server.postmaster(database)):
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                if level != "none":
                    assert int(status(each, name), 16) == 0, name
            assert os.stat(f"/proc/{each}").st_uid != 0
            if level in ("full", "no_user_namespace", "shared_user"):
                assert (status(each, "NoNewPrivs"), status(each, "Seccomp")) == ("1", "2")
                for kind in _NAMESPACES:
                    assert os.readlink(f"/proc/{each}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
            shares_user = os.readlink(f"/proc/{each}/ns/user") == os.readlink("/proc/self/ns/user")
            assert shares_user == (level not in ("full", "shared_user"))
            limits = {line[:26].strip(): line[26:47].strip() for line in Path(f"/proc/{each}/limits").read_text().splitlines()}
            assert limits["Max core file size"] == "0"
            assert int(limits["Max open files"]) <= 4096


def test_it_sleeps_wakes_cancels_and_is_adopted(server: Server, database: MadeDatabase, level: str) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        put_to_sleep(server, database)
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        server.kill()
        server.start()
        assert "adopted=1" in server.log.splitlines()[-1] or "adopted=1" in server.log
        assert server.view(database.name)["database"]["connections"] == 1
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        put_to_sleep(server, database)
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        runner, failures = in_thread(lambda: connection.execute("SELECT pg_sleep(30)"))
        eventually(lambda: runs(server, database, "pg_sleep"))
        connection.cancel()
        runner.join(40)
        assert isinstance(failures[0], psycopg.errors.QueryCanceled)
    stop_database(server, database)
    assert not server.remains()
    with connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_parallel_queries_have_shared_memory(server: Server, database: MadeDatabase) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT g FROM generate_series(1, 200000) g")
        connection.execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
        plan = "\n".join(
            str(row[0])
            for row in connection.execute("EXPLAIN (ANALYZE, COSTS off) SELECT count(*) FROM numbers a JOIN numbers b USING (g)")
        )
        assert "Workers Launched" in plan


def test_only_the_sandbox_is_left_after_the_start(server: Server, database: MadeDatabase, level: str) -> None:
    """What made it has ended; its first process remains, and with that everything ends."""
    if level in ("own_user", "none"):
        return
    connect(database).close()
    postmaster = server.postmaster(database)
    first = namespace_init(postmaster)
    assert first is not None
    assert (inner_pid(first), inner_pid(postmaster)) == (1, 2)
    assert [pid for pid in server.remains() if _inner_pid(pid) == 1] == [first]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: server.tier(database.name) == "stopped")
    eventually(lambda: not server.remains())
    with connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def _inner_pid(pid: int) -> int | None:
    """What it takes for its pid; None when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return inner_pid(pid)
    return None


def test_what_outlived_its_postmaster_is_ended_before_the_next_start(server: Server, database: MadeDatabase, level: str) -> None:
    """Also when Torpor was killed first, and has no cgroup to find it by: the sandbox holds a lock on the volume."""
    if level in ("own_user", "none"):
        return
    connect(database).close()
    postmaster = server.postmaster(database)
    first = namespace_init(postmaster)
    server.kill()
    os.kill(postmaster, signal.SIGSTOP)  # it can't end in order
    (server.data_dir / "catalog.sqlite").chmod(0o600)
    with contextlib.suppress(FileNotFoundError):
        (server.data_dir / "volumes" / database.id / "data" / "postmaster.pid").unlink()
    server.start()
    with connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert namespace_init(server.postmaster(database)) != first
    assert first is not None
    assert start_ticks(first) is None


def test_a_host_that_gives_less_than_asked_for_is_refused() -> None:
    server = Server(sandbox="full")
    server.allow_only("own_user")
    with pytest.raises(RuntimeError, match=r"ended with 18:(.|\n)*gives computes the sandbox level own_user"):
        server.start()
    server.destroy()


def test_one_that_an_earlier_torpor_started_is_shown_as_it_is() -> None:
    with Server(freeze_after_s=60) as server:
        server.allow_only("own_user")
        server.stop()
        server.start()
        database = server.create()
        with connect(database) as kept:
            server.kill()
            server.prelude = ""
            server.start()
            view = server.view(database.name)
            assert view["sandbox"].startswith("own_user, ")
            assert f"torpor sleep {database.name} --tier stopped" in view["sandbox_lacks"]
            assert kept.execute("SELECT 1").fetchone() == (1,)
        stop_database(server, database)
        connect(database).close()
        assert server.view(database.name)["sandbox"].startswith("full, ")


# -- owners and superusers


@pytest.fixture(scope="module")
def generous() -> Iterator[Server]:
    """A Torpor that lets owners be superusers."""
    with Server(tenant_superuser=True, freeze_after_s=1, page_after_s="never", stop_after_s="never", warm_pool_size=1) as made:
        yield made
        assert "Traceback" not in made.log, made.log[-6000:]


def test_an_owner_may_be_a_superuser(generous: Server) -> None:
    database = generous.create(superuser=True)
    assert generous.view(database.name)["database"]["superuser"]
    with connect(database) as connection:
        assert connection.execute("SHOW is_superuser").fetchone() == ("on",)
        connection.execute("CREATE TABLE said (line text)")
        connection.execute("COPY said FROM PROGRAM 'echo from a shell of the sandbox'")
        assert connection.execute("SELECT line FROM said").fetchone() == ("from a shell of the sandbox",)
    plain = generous.create()
    assert not generous.view(plain.name)["database"]["superuser"]
    with connect(plain) as connection:
        assert connection.execute("SHOW is_superuser").fetchone() == ("off",)
    generous.stop()
    generous.start()
    assert generous.view(database.name)["database"]["superuser"]
    # On a host that holds none any more it isn't started at all.
    generous.stop()
    generous.allow_only("own_user")
    generous.start()
    with pytest.raises(psycopg.OperationalError, match="its owner is a superuser"):
        connect(database)
    with connect(plain) as connection:
        connection.execute("SELECT 1")


def test_superusers_take_the_setting() -> None:
    with Server() as server:
        status_code, error = server.refusal("POST", "/v1/databases", {"superuser": True})
    assert status_code == 400
    assert "tenant_superuser" in error["hint"]


def test_what_an_owner_may_do(server: Server, database: MadeDatabase) -> None:
    with connect(database) as connection:
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'secret'")
        connection.execute("GRANT clerk TO current_user")
        connection.execute("CREATE DATABASE archive")
        for extension in ("hstore", "pg_trgm", "pgcrypto", "citext"):
            connection.execute(f"CREATE EXTENSION {extension}")
        # What others run isn't hidden from it; an ordinary role reads "<insufficient privilege>" there.
        assert connection.execute("SELECT count(*) > 1, bool_or(query LIKE '<%') FROM pg_stat_activity").fetchone() == (True, False)
        assert connection.execute("SELECT count(*) FROM pg_ls_waldir()").fetchone() is not None  # of pg_monitor
        for statement in ("COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')", "ALTER ROLE current_user SUPERUSER"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_login_triggers_do_not_run_in_torpors_own_sessions() -> None:
    with Server(tenant_superuser=True, freeze_after_s="never") as server:
        database = server.create(superuser=True)
        with psycopg.connect(database.url_as(database.name, database.password, f"{database.name}.postgres"), autocommit=True) as inner:
            inner.execute("CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(60); END$$")
            inner.execute("CREATE EVENT TRIGGER t ON login EXECUTE FUNCTION f(); ALTER EVENT TRIGGER t ENABLE ALWAYS")
        put_to_sleep(server, database)  # closes Torpor's session; the next one would meet the trigger
        with connect(database):
            assert not [cause for cause in server.view(database.name)["database"]["awake_because"] if "did not say" in cause["detail"]]
            put_to_sleep(server, database)
