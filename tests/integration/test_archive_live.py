"""Archived databases with real PostgreSQL: they come back with a connection, whoever is killed in between."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import eventually, in_thread, stop_database
from tests.support.files import files_below
from tests.support.server import MadeDatabase, Server

ROWS = 30_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never", history_store="") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=60)


def fill(database: MadeDatabase) -> None:
    """Some MB that don't compress well."""
    with connect(database) as connection:
        connection.execute(
            "CREATE TABLE kept AS SELECT n, md5(n::text || random()) || md5(random()::text) AS noise FROM generate_series(1, %s) n", (ROWS,)
        )
        connection.execute("CREATE TABLE acknowledged AS SELECT md5(string_agg(noise, '' ORDER BY n)) AS sum FROM kept")


def check(database: MadeDatabase) -> None:
    """All of it is there, and it can be written."""
    with connect(database) as connection:
        row = connection.execute(
            "SELECT count(*), md5(string_agg(noise, '' ORDER BY n)) = (SELECT sum FROM acknowledged) FROM kept"
        ).fetchone()
        assert row == (ROWS, True)
        connection.execute("CREATE TABLE written AS SELECT 1; DROP TABLE written")


def archive(server: Server, database: MadeDatabase) -> str:
    return str(server.call("POST", f"/v1/databases/{database.name}/archive")["id"])


def archive_until(server: Server, database: MadeDatabase, seen: Callable[[], object]) -> None:
    """Archive it, and wait for something; again when it was busy: with a base of its history, or a session that was just ending."""
    job = archive(server, database)

    def look() -> bool:
        nonlocal job
        if seen():
            return True
        view = server.call("GET", f"/v1/jobs/{job}")
        if view["state"] == "failed":
            assert view["error"]["kind"] in ("conflict", "database_in_use", "unavailable"), view
            job = archive(server, database)
        return False

    eventually(look, 120)


def objects(server: Server, database: MadeDatabase) -> list[Path]:
    return files_below(server.data_dir / "history/archived" / database.id)


def test_there_and_back(server: Server) -> None:
    database = server.create()
    fill(database)
    eventually(lambda: not server.view(database.name)["database"]["connections"])
    archive_until(
        server, database, lambda: server.tier(database.name) == "archived" and not server.call("GET", "/v1/jobs?state=running")["jobs"]
    )
    assert not (server.data_dir / "volumes" / database.id).exists()
    assert objects(server, database)
    assert database.name in [one["name"] for one in server.call("GET", "/v1/databases?tier=archived")["databases"]]
    with pytest.raises(psycopg.OperationalError, match="password"):  # a stranger brings back nothing
        psycopg.connect(database.url_as(database.name, "wrong"), connect_timeout=60)
    assert server.tier(database.name) == "archived"
    server.stop()
    server.start()
    assert server.tier(database.name) == "archived"
    check(database)
    wake = server.view(database.name)["database"]["last_wake"]
    assert wake["tier"] == "archived"
    eventually(lambda: not objects(server, database))
    stop_database(server, database)  # its history goes on as if nothing had been
    history = server.call("GET", f"/v1/databases/{database.name}/history")
    assert (history["shipping"]["broken"], history["shipping"]["behind_bytes"]) == ("", 0)
    assert len(history["windows"]) <= 1


@pytest.mark.fault
def test_killed_on_the_way(server: Server) -> None:
    """kill -9 of Torpor as soon as something can be seen of a step; at which one it really is then, `test_archiving` knows better."""
    database = server.create()
    volumes = server.data_dir / "volumes"
    fill(database)
    eventually(lambda: not server.view(database.name)["database"]["connections"])
    for seen in (
        lambda: any(path.parent.name == "bases" for path in objects(server, database)),
        lambda: not (volumes / database.id).exists(),
    ):
        archive_until(server, database, seen)
        server.kill()
        server.start()
        assert (server.tier(database.name) == "archived") is not (volumes / database.id).exists()
        check(database)
        eventually(lambda: not server.view(database.name)["database"]["connections"])
        eventually(lambda: not objects(server, database), 90)
    archive_until(server, database, lambda: server.tier(database.name) == "archived")
    client, _ = in_thread(lambda: connect(database).close())
    eventually(lambda: (volumes / f".making-{database.id}").exists() or (volumes / database.id).exists(), 120)
    server.kill()
    client.join(120)
    assert not client.is_alive()
    server.start()
    check(database)
    eventually(lambda: not list(volumes.glob(f".*{database.id}")))
    eventually(lambda: not objects(server, database), 90)
    stop_database(server, database)
    server.call("DELETE", f"/v1/databases/{database.name}")


def test_what_is_archived_can_be_reset(server: Server) -> None:
    database = server.create()
    name = f"{database.name}-try"
    made = server.call("POST", f"/v1/databases/{database.name}/branches", {"name": name})
    branch = MadeDatabase(name, made["database"]["id"], made["credentials"]["url"], made["credentials"]["password"])
    with connect(branch) as connection:
        connection.execute("CREATE TABLE tried AS SELECT 1")
    archive_until(server, branch, lambda: server.tier(name) == "archived" and not server.call("GET", "/v1/jobs?state=running")["jobs"])
    server.call("POST", f"/v1/databases/{name}/reset", {"force": True})
    with connect(branch) as connection:
        assert connection.execute("SELECT to_regclass('tried')").fetchone() == (None,)
