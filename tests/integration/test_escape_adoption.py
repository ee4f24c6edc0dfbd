"""What a hostile compute leaves for the next Torpor to find, after the last one was killed. It starts, soon, and serves the others."""

import contextlib
import os
import time
from pathlib import Path

import psycopg
import pytest

from tests.support.attacks.kit import arm, step
from tests.support.attacks.stronghold import stronghold
from tests.support.faults import eventually, processes_of
from tests.support.pace import in_time
from torpor.base.processes import start_ticks

pytestmark = [pytest.mark.root, pytest.mark.fault]

_SOON_S = 30.0


def replace(path: Path, what: str) -> None:
    """Put something else in the place of a file, as its owner could."""
    owner = path.parent.stat().st_uid
    path.unlink(missing_ok=True)
    match what:
        case "pipe":
            os.mkfifo(path)
        case "lie":  # the pid of somebody else
            path.write_text(f"{os.getpid()}\n/data\n1\n5432\n\n\n\nready   \n")
    os.chown(path, owner, owner, follow_symlinks=False)


def test_traps_for_the_next_torpor() -> None:
    with stronghold() as escape:
        server = escape.server
        villains = {what: server.create() for what in ("pipe", "lie", "daemons", "dead")}
        for database in villains.values():
            arm(server, database)
        left = {what: processes_of(server, database.id) for what, database in villains.items()}
        with psycopg.connect(villains["daemons"].url, autocommit=True) as connection:
            for attack in (step("daemon", 600, 1), step("daemon", 600, 0), step("stuck", 600)):
                connection.execute("SELECT attack(%s)", [attack])
        dead = server.postmaster(villains["dead"])
        kept = psycopg.connect(escape.neighbour.url, autocommit=True)
        server.kill()
        os.kill(dead, 9)
        eventually(lambda: all(start_ticks(pid) is None for pid in left["dead"]))
        for what in ("pipe", "lie"):
            replace(server.data_dir / "volumes" / villains[what].id / "data/postmaster.pid", what)
        began = time.monotonic()
        server.start()
        assert in_time(time.monotonic() - began, _SOON_S)
        assert kept.execute("SELECT count(*) FROM kept").fetchone() == (1,), "the neighbour's session was adopted"
        kept.close()
        escape.check_neighbour()
        for database in villains.values():
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(database.url, connect_timeout=60).close()
            pids = processes_of(server, database.id)
            server.sleep(database.name, "stopped", force=True)
            assert processes_of(server, database.id) == []
            assert all(start_ticks(pid) is None for pid in pids)
            server.call("DELETE", f"/v1/databases/{database.name}?force=true")
        assert server.process is not None and server.process.poll() is None


def test_nothing_of_a_dead_postmaster_lives_on_or_takes_its_place() -> None:
    """A process that a tenant started, and called like a postmaster, ends with the real one: the sandbox's first process sees to it."""
    with stronghold() as escape:
        with escape.attacker() as attacker:
            attacker.run(step("daemon", 600, 1), step("daemon", 600, 0))
            pids = processes_of(escape.server, escape.villain.id)
            postmaster = attacker.call("getppid").result
            with contextlib.suppress(psycopg.OperationalError):
                attacker.run(step("signal", 9, postmaster))
        eventually(lambda: all(start_ticks(pid) is None for pid in pids))
        escape.check_neighbour()
        with escape.attacker_again() as attacker:
            assert attacker.sql("SELECT 1") == [(1,)]
