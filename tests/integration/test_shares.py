"""Sizes held by the kernel under real databases: what a hog does stays in its own compute."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.faults import eventually, processes_of, put_to_sleep
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server
from torpor.base.cgroups import detect
from torpor.base.limits import Files
from torpor.compute.shares import APART_CPUS, HOST_CPUS
from torpor.daemon.directory import instance_name
from torpor.model.size import MIB

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    """Its own: these tests put load on it. A short boost, so that ceilings can be seen."""
    with Server(on_disk=True, freeze_after_s=60, page_after_s="never", stop_after_s="never", boost_after_wake_s=0.5) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def files(server: Server, database: MadeDatabase) -> Files:
    """Where the limits of a compute are."""
    trees: Any = detect(instance_name(server.data_dir))
    found: Files = trees._base.below(f"{instance_name(server.data_dir)}.{database.id}")
    return found


def memory_limit(server: Server, database: MadeDatabase) -> int:
    found = files(server, database)
    path = found.memory_v1 / "memory.limit_in_bytes" if found.memory_v1 else (found.unified or Path()) / "memory.max"
    return int(path.read_text())


def processes_limit(server: Server, database: MadeDatabase) -> int:
    found = files(server, database)
    return int(((found.pids_v1 or found.unified or Path()) / "pids.max").read_text())


def size_of(server: Server, database: MadeDatabase) -> Any:
    return server.call("GET", f"/v1/databases/{database.name}/size")


@contextlib.contextmanager
def busy(database: MadeDatabase, sessions: int) -> Iterator[None]:
    """So many sessions that do nothing but compute."""
    connections = [psycopg.connect(database.url, autocommit=True) for _ in range(sessions)]

    def compute(connection: "psycopg.Connection[Any]") -> None:
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT sum(sqrt(i)) FROM generate_series(1, 1000000000) i")

    threads = [threading.Thread(target=compute, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for connection in connections:
            connection.cancel()
        for thread in threads:
            thread.join()
        for connection in connections:
            connection.close()


def test_a_size_holds_from_the_start_and_a_change_within_a_second(torpor: Server) -> None:
    database = torpor.create("sized", size={"max_memory_bytes": 256 * MIB, "connections": 20})
    assert memory_limit(torpor, database) == 256 * MIB
    assert processes_limit(torpor, database) == 84
    began = time.monotonic()
    torpor.call("PATCH", "/v1/databases/sized", {"size": {"max_memory_bytes": 512 * MIB, "connections": None}})
    assert memory_limit(torpor, database) == 512 * MIB
    assert processes_limit(torpor, database) == 164
    assert in_time(time.monotonic() - began, 1)
    torpor.call("PATCH", "/v1/databases/sized", {"size": {"max_memory_bytes": 128 * MIB}})
    assert memory_limit(torpor, database) == 128 * MIB
    view = size_of(torpor, database)
    assert view["overrides"]["connections"] is None
    assert set(view["held"]) == {"processor", "memory", "processes", "disk"}
    torpor.call("DELETE", "/v1/databases/sized?force=true")


def test_more_connections_than_usual_are_what_postgresql_is_started_for(torpor: Server) -> None:
    database = torpor.create("many", size={"connections": 150})
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("154",)
    assert size_of(torpor, database)["connection_limit"] == 150
    torpor.call("PATCH", "/v1/databases/many", {"size": {"connections": 300}})
    assert size_of(torpor, database)["connection_limit"] == 150  # until its next start
    torpor.call("PATCH", "/v1/databases/many", {"size": {"connections": 10}})
    assert size_of(torpor, database)["connection_limit"] == 10
    torpor.call("DELETE", "/v1/databases/many?force=true")


def test_the_ceiling_follows_the_load_and_is_lifted_for_the_next_wake(torpor: Server) -> None:
    # A minimum that it gets from busy neighbours, too, and that one step takes to the maximum: nobody wants more than he could have.
    database = torpor.create("spiky", size={"min_cpu": 0.3, "max_cpu": 1.2})
    eventually(lambda: (size_of(torpor, database)["cpu_ceiling"] or 2) < 1.2)
    # Of the decisions only the last are kept, and a busy host makes many.
    assert [each["reason"] for each in size_of(torpor, database)["decisions"] if each["kind"] == "processor"][-1] == "boost_over"
    began = time.monotonic()
    with busy(database, 2):
        eventually(lambda: size_of(torpor, database)["cpu_ceiling"] == 1.2, patience_s=120)  # how soon is judged below
        risen_s = time.monotonic() - began
        cpu = files(torpor, database)
        if cpu.cpu_v1 is not None:
            quota = cpu.cpu_v1 / "cpu.cfs_quota_us"
            eventually(lambda: quota.read_text() == "24000\n")
        since, before = time.monotonic(), torpor.view("spiky")["database"]["cpu_ms"]
        time.sleep(1)
        used = (torpor.view("spiky")["database"]["cpu_ms"] - before) / 1000 / (time.monotonic() - since)
    assert in_time(risen_s, 3)  # a second, and what the login and a busy host take
    assert used < 1.5
    view = size_of(torpor, database)
    assert "saturated" in {each["reason"] for each in view["decisions"]}
    eventually(lambda: not torpor.view("spiky")["database"]["connections"])
    put_to_sleep(torpor, database)
    if cpu.cpu_v1 is not None:
        assert (cpu.cpu_v1 / "cpu.cfs_quota_us").read_text() == "-1\n"
        assert (cpu.cpu_v1 / "cpu.idle").read_text() == "0\n"
    assert size_of(torpor, database)["pace"] is None
    torpor.call("DELETE", "/v1/databases/spiky?force=true")


def test_who_uses_more_than_a_fair_share_yields(torpor: Server) -> None:
    greedy = torpor.create("greedy", size={"min_cpu": 0.05})
    entitled = torpor.create("entitled", size={"min_cpu": 2})
    with busy(greedy, 1), busy(entitled, 1):
        cpu = files(torpor, greedy)
        directory = cpu.cpu_v1 or cpu.unified
        assert directory is not None

        def yields() -> bool:
            """Who yields may be another one again when the next question is asked."""
            paces = [size_of(torpor, database)["pace"] for database in (greedy, entitled, greedy)]
            return [pace == "yielding" for pace in paces] == [True, False, True] and (directory / "cpu.idle").read_text() == "1\n"

        eventually(yields)
        eventually(lambda: places(torpor, greedy) == {APART_CPUS})
        eventually(lambda: places(torpor, entitled) == {HOST_CPUS})
    eventually(lambda: places(torpor, greedy) == {HOST_CPUS})
    eventually(lambda: size_of(torpor, greedy)["pace"] == "normal")
    for name in ("greedy", "entitled"):
        torpor.call("DELETE", f"/v1/databases/{name}?force=true")


def places(torpor: Server, database: MadeDatabase) -> set[int]:
    """On how many processors its processes may run."""
    found = set()
    for pid in processes_of(torpor, database.id):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            found.add(len(os.sched_getaffinity(pid)))
    return found


def test_out_of_memory_ends_the_hog_only_and_its_database_comes_back(torpor: Server) -> None:
    hog = torpor.create("hog", size={"max_memory_bytes": 96 * MIB})
    quiet = torpor.create("quiet")
    with psycopg.connect(quiet.url, autocommit=True) as neighbour, psycopg.connect(hog.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        postmaster = neighbour.execute("SELECT pg_postmaster_start_time()").fetchone()
        eventually(lambda: size_of(torpor, hog)["cpu_ceiling"])
        time.sleep(3)  # the count of kills before, which is looked at each second
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT length(repeat('x', 900000000))")

        def back() -> bool:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(hog.url) as again:
                return again.execute("SELECT answer FROM kept").fetchone() == (42,)
            return False

        assert eventually(back)
        assert neighbour.execute("SELECT pg_postmaster_start_time()").fetchone() == postmaster
    reasons = eventually(lambda: [each for each in size_of(torpor, hog)["decisions"] if each["reason"] == "out_of_memory"])
    assert reasons[0]["inputs"]["killed"] >= 1
    assert "out of memory" in torpor.log
    for name in ("hog", "quiet"):
        torpor.call("DELETE", f"/v1/databases/{name}?force=true")


def test_the_next_torpor_holds_what_it_adopts(torpor: Server) -> None:
    database = torpor.create("adopted", size={"max_memory_bytes": 192 * MIB})
    postmaster = torpor.postmaster(database)
    torpor.kill()
    found = files(torpor, database)
    if found.memory_v1 is not None:
        (found.memory_v1 / "memory.memsw.limit_in_bytes").write_text("-1")
        (found.memory_v1 / "memory.limit_in_bytes").write_text("-1")  # as a Torpor of before sizes leaves it
    torpor.start()
    assert torpor.postmaster(database) == postmaster
    assert memory_limit(torpor, database) == 192 * MIB
    eventually(lambda: size_of(torpor, database)["cpu_ceiling"])
    torpor.call("DELETE", "/v1/databases/adopted?force=true")


def test_a_full_disk_is_read_only_until_there_is_room(torpor: Server) -> None:
    database = torpor.create("full", size={"disk_bytes": 64 * MIB})
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE waste AS SELECT repeat(md5(i::text), 20) AS x FROM generate_series(1, 60000) i")

        def read_only() -> bool:
            return connection.execute("SHOW transaction_read_only").fetchone() == ("on",)

        eventually(read_only)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TABLE more AS SELECT 1")
        assert connection.execute("SELECT count(*) FROM waste").fetchone() == (60000,)
        # Deleting helps, and needs no more than saying so.
        with connection.transaction():
            connection.execute("SET TRANSACTION READ WRITE")
            connection.execute("DROP TABLE waste")
        torpor.call("PATCH", "/v1/databases/full", {"size": {"disk_bytes": 256 * MIB}})
        eventually(lambda: not read_only())
        connection.execute("CREATE TABLE more AS SELECT 1")
    torpor.call("DELETE", "/v1/databases/full?force=true")


def test_a_volume_that_grows_on_and_on_is_stopped_until_it_may_be_larger(torpor: Server) -> None:
    database = torpor.create("glutton", size={"disk_bytes": 64 * MIB})

    def grow() -> bool:
        """As one who doesn't want to be held: writes whatever the default is, and comes again when thrown out."""
        try:
            with psycopg.connect(database.url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("CREATE TABLE IF NOT EXISTS waste (x text)")
                connection.execute("ALTER TABLE waste ALTER x SET STORAGE PLAIN")
                for _ in range(8):
                    connection.execute("INSERT INTO waste SELECT repeat(md5(i::text), 200) FROM generate_series(1, 5000) i")
        except psycopg.OperationalError as error:
            return "was stopped: its volume has grown" in str(error)
        return False

    assert eventually(grow)
    view = torpor.view("glutton")
    assert (view["database"]["tier"], view["database"]["tier_reason"]) == ("stopped", "disk_full")
    assert view["disk_bytes"] < 64 * MIB * 1.25 + 256 * MIB + 2048 * MIB  # what some disks take until it is looked at
    torpor.call("PATCH", "/v1/databases/glutton", {"size": {"disk_bytes": 2048 * MIB}})
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("DROP TABLE waste")
    torpor.call("DELETE", "/v1/databases/glutton?force=true")
