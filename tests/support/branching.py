"""What the tests and benchmarks of branches share: making one, and finding out whether it is whole and holds what it must."""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.faults import Connection, Inserter, eventually, program, stop_database
from tests.support.server import MadeDatabase, Server

_CHECK_TREES = """CREATE EXTENSION IF NOT EXISTS amcheck;

SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p';

"""


def branch(server: Server, parent: str, name: str | None = None, **settings: object) -> MadeDatabase:
    """Make a branch over the API."""
    made = server.call("POST", f"/v1/databases/{parent}/branches", {"name": name, **settings})
    database, credentials = made["database"], made["credentials"] or {"url": made["database"]["url"], "password": ""}
    return MadeDatabase(database["name"], database["id"], credentials["url"], credentials["password"])


@contextlib.contextmanager
def load(database: MadeDatabase, clients: int = 4) -> Iterator[list[Inserter]]:
    """pgbench, and clients that note each commit that was acknowledged. At the end none of them may have been interrupted."""
    with connect(database.url) as connection:
        connection.execute("CREATE TABLE acknowledged (client int, number int)")
    subprocess.run([program("pgbench"), "-i", "-q", "-s", "1", database.url], check=True, capture_output=True)
    inserters = [Inserter(database.url, number) for number in range(clients)]
    bench = [program("pgbench"), "-n", "-c", "2", "-T", "100000", database.url]
    process = subprocess.Popen(bench, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: all(inserter.acknowledged > 5 for inserter in inserters))
        yield inserters
        assert process.poll() is None, process.communicate()[1]
        assert all(inserter.thread.is_alive() for inserter in inserters), "a client was interrupted"
    finally:
        process.terminate()
        process.communicate()
        for inserter in inserters:
            inserter.stop()


def branch_and_check(server: Server, parent: MadeDatabase, inserters: list[Inserter], deeply: bool) -> None:
    """Make a branch under load, and see that it holds what it must; `deeply`: also a branch of that one, to its last page."""
    before = acknowledged(inserters)
    made = branch(server, parent.name)
    after = acknowledged(inserters)
    with connect(made.url) as connection:
        check_prefix(connection, before, after)
        check_balances(connection)
    if deeply:
        again = branch(server, made.name)
        with connect(again.url) as connection:
            check_prefix(connection, before, after)
            check_balances(connection)
        stop_database(server, again)
        check_pages(server, again)
        server.call("DELETE", f"/v1/databases/{again.name}?force=true")
    server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def acknowledged(inserters: list[Inserter]) -> list[int]:
    """How many rows each knows to be committed."""
    return [inserter.acknowledged for inserter in inserters]


def check_prefix(connection: Connection, before: list[int], after: list[int]) -> None:
    """A copy holds exactly a prefix of the commits that each client was told of: all of those `before` the copy was asked for, none that
    came `after` it was there but for one each, whose answer was still on its way."""
    for client, (least, most) in enumerate(zip(before, after, strict=True)):
        query = "SELECT number FROM acknowledged WHERE client = %s ORDER BY number"
        found = [row[0] for row in connection.execute(query, (client,)).fetchall()]
        assert found == list(range(len(found))), f"client {client} has holes"
        assert least <= len(found) <= most + 1, f"client {client}: {least} <= {len(found)} <= {most + 1}"


def check_balances(connection: Connection) -> None:
    """pgbench's transactions are whole: each moves the same amount in four tables."""
    sums = connection.execute(
        "SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts), (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers),"
        " (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    ).fetchone()
    assert sums is not None
    assert len(set(sums)) == 1, sums


def check_pages(server: Server, database: MadeDatabase, major: int = 18) -> None:
    """Every page of a stopped database has its checksum, and every B-tree agrees with its table."""
    place = server.data_dir / f"check-{database.id}"
    try:
        place.mkdir(mode=0o711)
        data, conf = place / "data", server.data_dir / "conf" / str(major)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(volume(server, database) / "data"), str(data)], check=True)
        lead = []
        if os.geteuid() == 0:  # PostgreSQL wants to run under a user that has a name
            nobody = pwd.getpwnam("nobody")
            subprocess.run(["chown", "--recursive", f"{nobody.pw_uid}:{nobody.pw_gid}", str(data)], check=True)
            lead = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        checked = subprocess.run(
            [*lead, program("pg_checksums", major), "--check", "-D", str(data)], capture_output=True, text=True, cwd="/"
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        single = [*lead, program("postgres", major), "--single", "-j", "-D", str(data), f"--config_file={conf}/postgresql.conf"]
        ran = subprocess.run(
            [*single, "-c", "exit_on_error=true", database.name], input=_CHECK_TREES, capture_output=True, text=True, cwd="/"
        )
        assert ran.returncode == 0, ran.stderr
        assert "bt_index_check" in ran.stdout
        assert "ERROR" not in ran.stderr, ran.stderr
    finally:
        shutil.rmtree(place)


def connect(url: str) -> Connection:
    """A session that commits by itself."""
    return psycopg.connect(url, autocommit=True, connect_timeout=40)


def volume(server: Server, database: MadeDatabase) -> Path:
    """Where its bytes are."""
    return server.data_dir / "volumes" / database.id
