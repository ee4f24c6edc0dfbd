"""What must hold around an attack: the neighbour notices nothing, Torpor does not grow, nothing is left of what was stopped. Blocking."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.attacks.kit import LIBRARY, call, library
from tests.support.attacks.stronghold import Stronghold
from tests.support.faults import processes_of
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import start_ticks

_TORPOR_MAY_GROW_KB = 200_000


def volume_of(server: Server, database: MadeDatabase) -> Path:
    """PGDATA as the host sees it."""
    return server.data_dir / "volumes" / database.id / "data"


def memory_kb(server: Server) -> int:
    """The most that Torpor has had so far."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])


def descriptors_of(server: Server) -> int:
    """How many descriptors Torpor has open."""
    return len(os.listdir(f"/proc/{server.pid}/fd"))


@contextlib.contextmanager
def around_the_neighbour(escape: Stronghold) -> Iterator[None]:
    """What happens inside slows down nobody else, and costs Torpor no memory to speak of."""
    over, failures = threading.Event(), []

    def watch() -> None:
        try:
            while not over.is_set():
                escape.check_neighbour()
                time.sleep(0.1)
        except BaseException as error:
            failures.append(error)

    before = memory_kb(escape.server)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert not failures, failures
    assert memory_kb(escape.server) - before < _TORPOR_MAY_GROW_KB


def new_code(server: Server, database: MadeDatabase, script: str) -> None:
    """Lay a library out that runs `script` wherever it is loaded next, and lets nothing else be loaded."""
    volume = volume_of(server, database)
    for name, content in (("evil.so", library()), ("preload.script", script.encode())):
        (volume / name).write_bytes(content)
        os.chown(volume / name, volume.stat().st_uid, volume.stat().st_gid)


def in_torpors_session(database: MadeDatabase, script: str) -> None:
    """Have `script` run in the very session that Torpor asks its questions in, at the first question: a view in the place of PostgreSQL's
    own calls it. What it answers is a row that nobody expects."""
    with psycopg.connect(database.url_as(database.name, database.password, f"{database.name}.postgres"), autocommit=True) as inner:
        inner.execute("SET allow_system_table_mods = on")
        inner.execute(f"CREATE OR REPLACE FUNCTION public.attack(text) RETURNS text AS '{LIBRARY}', 'attack' LANGUAGE C STRICT")
        inner.execute("ALTER VIEW pg_catalog.pg_stat_activity RENAME TO hidden")
        said = "'" + script.replace("'", "''") + "'"
        inner.execute(
            f"CREATE VIEW pg_catalog.pg_stat_activity AS SELECT 1 AS pid, public.attack({said}) AS backend_type, '' AS state, "
            "'' AS wait_event_type, '' AS wait_event, '' AS usename, NULL::inet AS client_addr, '' AS application_name, "
            "now() AS query_start, '' AS query".encode()
        )


MARK = call("open", "/data/called", os.O_WRONLY | os.O_CREAT, 0o600)
"""The step that proves that the steps were run at all."""


def marked(server: Server, database: MadeDatabase) -> bool:
    """Whether `MARK` was."""
    return (volume_of(server, database) / "called").exists()


def stop(server: Server, database: MadeDatabase) -> None:
    """Stop it, with force, and see that nothing of it is left."""
    pids = processes_of(server, database.id)
    server.sleep(database.name, "stopped", force=True)
    assert processes_of(server, database.id) == []
    assert not [pid for pid in pids if start_ticks(pid) is not None]
