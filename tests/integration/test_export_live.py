"""Exports that Torpor makes itself: they work whatever keeps the owner's programs out, and leave nothing behind however they end."""

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.faults import eventually, stop_database
from tests.support.server import MadeDatabase, Server

MIB = 1 << 20
END = b"-- PostgreSQL database dump complete"


@contextmanager
def exporting(server: Server, name: str, **body: object) -> Iterator[http.client.HTTPResponse]:
    """The answer, of which nothing was read yet."""
    address = urlsplit(server.api_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"/v1/databases/{name}/export", json.dumps(body), headers)
        response = connection.getresponse()
        yield response
        response.close()
    finally:
        connection.close()


def export(server: Server, name: str, **body: object) -> bytes:
    with exporting(server, name, **body) as response:
        content = response.read()
        assert response.status == 200, content
        return content


def execute(database: MadeDatabase, text: str) -> None:
    with psycopg.connect(database.url, autocommit=True, connect_timeout=40) as connection:
        connection.execute(text.encode())


def dumpers(server: Server, database: MadeDatabase) -> list[int]:
    """The processes of pg_dump that run for it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
            if line[0].endswith(b"/pg_dump") and database.name.encode() in line:
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def meeting_places(server: Server) -> list[str]:
    directory = server.data_dir / "dump"
    return os.listdir(directory) if directory.exists() else []


def assert_nothing_left(server: Server, database: MadeDatabase) -> None:
    eventually(lambda: not dumpers(server, database))
    eventually(lambda: not meeting_places(server))


@pytest.fixture
def made(torpor: Server) -> Iterator[MadeDatabase]:
    database = torpor.create()
    execute(database, "CREATE TABLE things AS SELECT n, repeat('x', 1000) AS wide FROM generate_series(1, 20000) AS n")
    yield database
    torpor.call("DELETE", f"/v1/databases/{database.name}?force=true")


def test_what_the_owner_may_not_read_is_exported_too(torpor: Server, made: MadeDatabase) -> None:
    execute(
        made,
        "CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; CREATE TABLE apart (secret text); INSERT INTO apart VALUES ('told');"
        "ALTER TABLE apart ENABLE ROW LEVEL SECURITY; ALTER TABLE apart FORCE ROW LEVEL SECURITY; GRANT app TO CURRENT_USER;"
        "ALTER TABLE apart OWNER TO app; REVOKE app FROM CURRENT_USER",
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(made, "TABLE apart")
    stop_database(torpor, made)
    whole = export(torpor, made.name)
    assert b"told" in whole and END in whole
    assert b"OWNER TO" not in whole and b"OWNER TO app" in export(torpor, made.name, owners=True, schema_only=True)
    assert export(torpor, made.name, format="custom").startswith(b"PGDMP")
    assert_nothing_left(torpor, made)
    stop_database(torpor, made)  # nothing keeps it awake


def test_one_whose_connections_are_all_taken(torpor: Server) -> None:
    crowded = torpor.create(size={"connections": 5})
    try:
        with ExitStack() as opened:
            for _ in range(5):
                opened.enter_context(psycopg.connect(crowded.url, connect_timeout=40))
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(crowded.url, connect_timeout=40)
            assert END in export(torpor, crowded.name)
    finally:
        torpor.call("DELETE", f"/v1/databases/{crowded.name}?force=true")


def test_a_client_that_leaves_ends_pg_dump(torpor: Server, made: MadeDatabase) -> None:
    with exporting(torpor, made.name) as response:
        response.read(1000)
        (dumper,) = eventually(lambda: dumpers(torpor, made))
        assert _cgroup(dumper) == _cgroup(torpor.postmaster(made))  # it counts as the database's own
        with exporting(torpor, made.name) as second:
            second.read(1000)
            status, error = torpor.refusal("POST", f"/v1/databases/{made.name}/export", {})
            assert (status, error["kind"]) == (429, "too_many_jobs")
    assert_nothing_left(torpor, made)
    eventually(lambda: END in export(torpor, made.name))


def _cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_a_reader_that_stops_holds_up_pg_dump_and_not_torpor(torpor: Server, made: MadeDatabase) -> None:
    execute(made, "INSERT INTO things SELECT n, repeat('y', 1000) FROM generate_series(1, 40000) AS n")
    before = _memory(torpor.pid)
    with exporting(torpor, made.name) as response:
        response.read(1000)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            torpor.call("GET", "/v1/host")
        assert _memory(torpor.pid) - before < 30 * MIB
        assert END in response.read()
    assert_nothing_left(torpor, made)


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_database_that_goes_in_the_middle_breaks_the_export_off(torpor: Server, made: MadeDatabase) -> None:
    with exporting(torpor, made.name) as response:
        response.read(1000)
        torpor.sleep(made.name, "stopped", force=True)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert_nothing_left(torpor, made)
    assert END in export(torpor, made.name)


@pytest.mark.root
@pytest.mark.parametrize("level", ["no_user_namespace", "own_user"])
def test_a_kill_of_torpor_leaves_no_pg_dump_in_weaker_sandboxes_either(level: str) -> None:
    server = Server()
    server.allow_only(level)
    with server:
        database = fill(server)
        assert END in export(server, "shop")
        kill_while_exporting(server, database)


def test_a_kill_of_torpor_leaves_no_pg_dump() -> None:
    with Server() as server:
        database = fill(server)
        kill_while_exporting(server, database)
        server.start()
        assert END in export(server, "shop")
        assert_nothing_left(server, database)


def fill(server: Server) -> MadeDatabase:
    database = server.create("shop")
    execute(database, "CREATE TABLE things AS SELECT n, repeat('x', 1000) AS wide FROM generate_series(1, 20000) AS n")
    return database


def kill_while_exporting(server: Server, database: MadeDatabase) -> None:
    with exporting(server, "shop") as response:
        response.read(1000)
        assert eventually(lambda: dumpers(server, database))
        server.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    eventually(lambda: not dumpers(server, database))


def test_a_database_that_was_stopped_since_it_is_far_too_large(torpor: Server) -> None:
    greedy = torpor.create(size={"disk_bytes": 64 * MIB})

    def grow() -> bool:
        """As one who doesn't want to be held."""
        try:
            with psycopg.connect(greedy.url, autocommit=True, connect_timeout=40) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("CREATE TABLE IF NOT EXISTS waste (x text)")
                connection.execute("ALTER TABLE waste ALTER x SET STORAGE PLAIN")
                for _ in range(8):
                    connection.execute("INSERT INTO waste SELECT repeat(md5(i::text), 200) FROM generate_series(1, 5000) i")
        except psycopg.OperationalError as error:
            return "was stopped: its volume has grown" in str(error)
        return False

    try:
        assert eventually(grow, 60)
        with exporting(torpor, greedy.name) as response:
            response.read(1000)
            assert response.status == 200
            with pytest.raises(psycopg.OperationalError, match="was stopped"):  # it runs, and nobody gets in
                psycopg.connect(greedy.url, connect_timeout=40)
            tail = b""
            while part := response.read(1 << 20):
                tail = (tail + part)[-1000:]
            assert END in tail
        torpor.wait_tier(greedy.name, "stopped")
        assert b"CREATE TABLE" in export(torpor, greedy.name, schema_only=True)
        torpor.wait_tier(greedy.name, "stopped")
    finally:
        torpor.call("DELETE", f"/v1/databases/{greedy.name}?force=true")
