"""Whatever kills Torpor, whenever: no connection, no transaction and no answered create is lost, and nothing half-made stays."""

import contextlib
import os
import random
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from urllib.error import HTTPError, URLError

import psycopg
import pytest

from tests.support.faults import (
    assert_nothing_half_made,
    child,
    eventually,
    halted_start,
    in_thread,
    processes_of,
    program,
    put_to_sleep,
    run_program,
    stop_database,
)
from tests.support.server import MadeDatabase, Server

pytestmark = [pytest.mark.fault]

# What a caller of the API sees when Torpor dies under it.
Died = (URLError, ConnectionError, TimeoutError, HTTPError)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def server(running: Server) -> Server:
    if running.process is None:
        running.start()
    return running


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    if server.process is not None:
        with contextlib.suppress(HTTPError):
            server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40)


def restart(server: Server) -> None:
    server.kill()
    server.start()


def newest_wake(server: Server, database: MadeDatabase) -> tuple[str, str]:
    wake = server.view(database.name)["recent_wakes"][0]
    return wake["reason"], wake["tier"]


@pytest.mark.slow
def test_pgbench_on_ten_databases_does_not_notice() -> None:
    with Server(freeze_after_s=0.5, page_after_s="never", stop_after_s="never") as server:
        databases = [server.create(freeze_after_s="never") for _ in range(10)]
        with ThreadPoolExecutor(4) as pool:
            for done in pool.map(lambda d: run_program("pgbench", "-i", "-q", "--unlogged-tables", d.url), databases):
                assert done.returncode == 0, done.stderr
        kept = [connect(database) for database in databases]
        for number, connection in enumerate(kept):
            connection.execute("CREATE TEMP TABLE kept AS SELECT %s::int AS x", (number,))
        # Its own alarm ends it; ours comes first, when all has been seen. So many transactions that each of them is amid some all the time,
        # and so few that the next Torpor has a processor to start on.
        command = [program("pgbench"), "-T", "600", "-c", "2", "-n", "-R", "40"]
        benches = [subprocess.Popen([*command, d.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for d in databases]
        history = "SELECT count(*) FROM pgbench_history"
        eventually(lambda: all((c.execute(history).fetchone() or (0,))[0] for c in kept))
        server.kill()
        assert all(bench.poll() is None for bench in benches)
        server.start()
        assert re.search(r"reconciled .*databases=10 adopted=10 crashed=0 removed=0 strays=0", server.log)
        host = server.call("GET", "/v1/host")
        assert (host["connections"], host["tiers"]["awake"]) == (30, 10)
        for bench in benches:
            bench.send_signal(signal.SIGALRM)
        for bench, connection in zip(benches, kept, strict=True):
            said, complaints = bench.communicate(timeout=60)
            assert bench.returncode == 0, complaints
            assert "number of failed transactions: 0 (" in said
            processed = int(re.findall(r"transactions actually processed: (\d+)", said)[0])
            sums = connection.execute(
                "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
                "(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history),"
                "(SELECT count(*) FROM pgbench_history)"
            ).fetchone()
            assert sums is not None
            assert len(set(sums[:4])) == 1
            assert sums[4] == processed
        for database in databases:
            server.call("PATCH", f"/v1/databases/{database.name}", {"freeze_after_s": 0.5})
        for number, (database, connection) in enumerate(zip(databases, kept, strict=True)):
            server.wait_tier(database.name, "frozen")
            assert server.view(database.name)["database"]["connections"] == 1
            assert connection.execute("SELECT x FROM kept").fetchone() == (number,)
            assert newest_wake(server, database) == ("traffic", "frozen")
            connection.close()


@pytest.mark.parametrize("tier", ["frozen", pytest.param("paged", marks=pytest.mark.root)])
def test_sleeper_with_an_open_transaction_is_adopted_asleep(server: Server, database: MadeDatabase, tier: str) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TEMP TABLE kept (x int)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO kept VALUES (7)")
        put_to_sleep(server, database, tier)
        restart(server)
        assert server.tier(database.name) == "frozen"
        assert server.view(database.name)["database"]["connections"] == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(database.url_as(database.name, "wrong"))
        assert server.tier(database.name) == "frozen"  # its roles are still known
        connection.execute("COMMIT")
        assert newest_wake(server, database) == ("traffic", "frozen")
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        put_to_sleep(server, database)
    eventually(lambda: server.view(database.name)["database"]["connections"] == 0)
    assert newest_wake(server, database) == ("client_left", "frozen")


def test_what_a_client_sent_while_no_torpor_ran_wakes_its_sleeper(server: Server, database: MadeDatabase) -> None:
    with connect(database) as connection:
        put_to_sleep(server, database)
        server.kill()
        connection.pgconn.send_query(b"SELECT 42")
        server.start()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"42"
        assert connection.pgconn.get_result() is None


def test_sigusr2_leaves_computes_running(server: Server, database: MadeDatabase) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT 1 AS x")
        postmaster = server.postmaster(database)
        assert server.stop(signal.SIGUSR2) == 0
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
        server.start()
        assert server.postmaster(database) == postmaster
        assert server.view(database.name)["database"]["connections"] == 1
        put_to_sleep(server, database)
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)


@pytest.mark.parametrize("seed", range(3))
def test_killed_twice_in_a_row(server: Server, database: MadeDatabase, seed: int) -> None:
    """The second time at any moment of its start."""
    with connect(database) as connection:
        connection.execute("BEGIN")
        put_to_sleep(server, database, random.Random(seed).choice(["frozen", "frozen", "paged"] if os.geteuid() == 0 else ["frozen"]))
        server.kill()
        with (server.data_dir / "serve.log").open("ab") as log:
            second = subprocess.Popen(server.command(), stdout=log, stderr=log, env=server.environment(), start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            second.wait(random.Random(seed).uniform(0.25, 0.6))
        second.kill()
        second.wait()
        server.start()
        assert server.view(database.name)["database"]["connections"] == 1
        assert connection.execute("SELECT 1").fetchone() == (1,)
        connection.execute("COMMIT")


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_a_compute_starts(server: Server, database: MadeDatabase, seed: int) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    stop_database(server, database)
    waker, _ = in_thread(lambda: connect(database).close())
    time.sleep(random.Random(seed).uniform(0, 0.06))
    server.kill()
    waker.join(40)
    server.start()
    with connect(database) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    eventually(lambda: postmasters_of(server, database) == [server.postmaster(database)])  # what it forks is called so, too, for a moment
    assert_nothing_half_made(server)


def postmasters_of(server: Server, database: MadeDatabase) -> list[int]:
    return [pid for pid in processes_of(server, database.id) if re.match(rb"[^\0]+/postgres\0-D\0", command_of(pid))]


def command_of(pid: int) -> bytes:
    """Its arguments; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_half_started_compute_serves_its_clients(server: Server, database: MadeDatabase) -> None:
    """It was launched, and still reads its files when the next Torpor finds it."""
    postmaster, waker = halted_start(server, database, lambda: connect(database).close())
    server.kill()
    waker.join(40)
    server.start()
    with contextlib.suppress(ProcessLookupError):
        os.kill(postmaster, signal.SIGCONT)
    with connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_half_stopped_compute_serves_its_clients(server: Server, database: MadeDatabase) -> None:
    """It was told to shut down, and still writes its checkpoint when the next Torpor finds it."""
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    postmaster = server.postmaster(database)
    checkpointer = child(postmaster, "checkpointer")
    server.kill()
    os.kill(checkpointer, signal.SIGSTOP)
    os.kill(postmaster, signal.SIGINT)
    pid_file = server.data_dir / "volumes" / database.id / "data" / "postmaster.pid"
    eventually(lambda: "stopping" in pid_file.read_text())
    server.start()
    with contextlib.suppress(ProcessLookupError):
        os.kill(checkpointer, signal.SIGCONT)
    with connect(database) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)


@pytest.mark.parametrize("seed", range(4))
def test_killed_during_a_freeze_the_roles_are_right(server: Server, database: MadeDatabase, seed: int) -> None:
    with connect(database) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'first'")
        put_to_sleep(server, database)
        connection.execute("ALTER ROLE app PASSWORD 'second'")
        sleeper, _ = in_thread(lambda: put_to_sleep(server, database))
        time.sleep(random.Random(seed).uniform(0, 0.03))
        server.kill()
        sleeper.join(40)
        server.start()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(database.url_as("app", "first"))
        with psycopg.connect(database.url_as("app", "second")) as second:
            assert second.execute("SELECT current_user").fetchone() == ("app",)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_killed_right_after_the_freezer_closed_the_roles_are_right(server: Server, database: MadeDatabase) -> None:
    """The compute froze and Torpor died before it could do anything more about it."""
    with connect(database) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'first'")
        put_to_sleep(server, database)
        connection.execute("ALTER ROLE app PASSWORD 'second'")
        postmaster = server.postmaster(database)

        def is_held() -> bool:
            return Path(f"/proc/{postmaster}/wchan").read_text() in ("do_freezer_trap", "__refrigerator") or _is_frozen(postmaster)

        sleeper, _ = in_thread(lambda: put_to_sleep(server, database))
        deadline = time.monotonic() + 30
        while not is_held():
            assert time.monotonic() < deadline
        server.kill()
        sleeper.join(40)
        server.start()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(database.url_as("app", "first"))
        psycopg.connect(database.url_as("app", "second")).close()


def _is_frozen(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            events = Path(root + path) / "cgroup.events"
            if number == "0" and events.exists() and "frozen 1" in events.read_text():
                return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _create_until_it_dies(server: Server, prefix: str, made: list[MadeDatabase]) -> None:
    with contextlib.suppress(*Died):
        for number in count():
            made.append(server.create(f"{prefix}-{number}"))


@pytest.mark.slow
@pytest.mark.parametrize("warm_pool_size", [0, 2])
def test_killed_at_any_moment_of_creates(warm_pool_size: int) -> None:
    chance = random.Random(warm_pool_size)
    made: list[MadeDatabase] = []
    with Server(warm_pool_size=warm_pool_size, freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        made.append(server.create())
        for attempt in range(3):
            wanted = len(made) + attempt % 2
            creators = [in_thread(lambda p=f"a{attempt}-{n}": _create_until_it_dies(server, p, made))[0] for n in range(2)]  # type: ignore[misc]
            eventually(lambda: len(made) >= wanted)  # noqa: B023  # called at once
            time.sleep(chance.uniform(0.02, 0.4))
            server.kill()
            for creator in creators:
                creator.join(40)
            server.start()
            assert_nothing_half_made(server)
            shown = {d["name"] for d in server.call("GET", "/v1/databases?limit=1000")["databases"]}
            assert {database.name for database in made} <= shown
            for name in shown - {database.name for database in made}:
                server.call("POST", f"/v1/databases/{name}/wake")  # whole, though its answer was lost
                server.call("DELETE", f"/v1/databases/{name}")
        assert len(made) > 1
        for database in made:
            with connect(database) as connection:
                assert connection.execute("SELECT current_database()").fetchone() == (database.name,)
        assert "Traceback" not in server.log, server.log[-6000:]
        server.stop()
        assert server.remains() == []


@pytest.mark.parametrize("seed", range(3))
def test_killed_during_a_delete(server: Server, database: MadeDatabase, seed: int) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    answered: list[object] = []

    def delete() -> None:
        with contextlib.suppress(*Died):
            answered.append(server.call("DELETE", f"/v1/databases/{database.name}"))

    deleter, _ = in_thread(delete)
    time.sleep(random.Random(seed).uniform(0, 0.08))
    server.kill()
    deleter.join(40)
    server.start()
    assert_nothing_half_made(server)
    there = server.call("GET", f"/v1/databases?search={database.name}")["databases"]
    if there:
        assert not answered
        with connect(database) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    else:
        assert not (server.data_dir / "volumes" / database.id).exists()
        assert processes_of(server, database.id) == []


@pytest.mark.parametrize("seed", range(2))
def test_killed_while_the_template_is_made(seed: int) -> None:
    """The first create needs it; what initdb had done is thrown away, and no initdb goes on behind the next one's back."""
    with Server(own_templates=True) as server:
        creator, _ = in_thread(server.create)
        time.sleep(random.Random(seed).uniform(0.1, 1.0))
        server.kill()
        creator.join(40)
        server.start()
        with connect(server.create()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        templates = list((server.data_dir / "volumes" / ".templates").iterdir())
        assert len(templates) == 1, templates
        assert server.stop() == 0
        assert server.remains() == []


def test_warm_pool_is_adopted() -> None:
    with Server(warm_pool_size=2, freeze_after_s=60) as server:
        eventually(lambda: server.call("GET", "/v1/host")["warm"] == 2)
        before = set(server.remains())
        restart(server)
        assert server.call("GET", "/v1/host")["warm"] == 2
        assert set(server.remains()) == before
        made = server.call("POST", "/v1/databases", {"name": "shop"})
        assert made["from_warm_pool"]
        with psycopg.connect(made["credentials"]["url"]) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("shop",)


def test_backends_that_end_during_the_adoption_do_no_harm(server: Server, database: MadeDatabase) -> None:
    """Parallel workers come and go by the dozen while the next Torpor looks through the processes."""
    with connect(database) as connection:
        connection.execute("CREATE TABLE big AS SELECT generate_series(1, 50000) AS x")
        connection.execute("ANALYZE big")
        connection.execute("SET debug_parallel_query = on")
        connection.execute("SET parallel_setup_cost = 0")
        stop: list[int] = []

        def work() -> None:
            while not stop:
                connection.execute("SELECT count(*) FROM big WHERE x % 2 = 0")

        worker, failures = in_thread(work)
        try:
            for _ in range(3):
                restart(server)
                assert server.view(database.name)["database"]["connections"] == 1
        finally:
            stop.append(1)
            worker.join(40)
        assert not failures


def test_door_that_moved_twice_strands_nobody(server: Server, database: MadeDatabase) -> None:
    """The open connection is on a port that the last Torpor knew nothing of."""
    with connect(database) as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        put_to_sleep(server, database)
        for _ in range(2):
            server.kill()
            server.settings["door_port"] = 0
            server.start()
        connection.pgconn.send_query(b"SELECT x FROM kept")
        assert select.select([connection], [], [], 60)[0], "the client is stranded"
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"7"
        assert connection.pgconn.get_result() is None
        server.call("PATCH", f"/v1/databases/{database.name}", {"freeze_after_s": 0.3})
        eventually(lambda: {c["reason"] for c in server.view(database.name)["database"]["awake_because"]} == {"unwatched"})
    server.wait_tier(database.name, "frozen")
