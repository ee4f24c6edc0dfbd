"""Faults under the pool: PostgreSQL, workers and Torpor killed under load, databases that sleep while clients wait, and clients that leave
amid a COPY. What was acknowledged is there, once and whole; what was not is there whole or not at all, and nobody repeated it.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.rows import tuple_row

from tests.support.faults import eventually, in_thread
from tests.support.poolworkers import rss, workers
from tests.support.server import MadeDatabase, Server

pytestmark = pytest.mark.integration

_CLIENTS = 4
_EACH = 25
"""Transactions that a client has acknowledged between two faults."""

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with Server(freeze_after_s=1, page_after_s="never", stop_after_s="never", pool_size=2, pool_wait_s=300, pool_workers=1) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def pooled(database: MadeDatabase, mode: str = "on") -> Connection:
    """A pooled connection; each call another."""
    return psycopg.connect(database.url, autocommit=True, options=f"pool={mode}", row_factory=tuple_row)


class Clerk:
    """A client that writes numbered transactions of two rows each, over as many connections as it takes, and never tries one twice."""

    def __init__(self, database: MadeDatabase, name: int) -> None:
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self._database, self._name, self._number = database, name, 0
        self._is_over = threading.Event()
        self._thread, self._failures = in_thread(self._work)

    def finish(self) -> None:
        """Wait for its end. Raises what went wrong in it."""
        self._is_over.set()
        self._thread.join()
        for failure in self._failures:
            raise failure

    def _work(self) -> None:
        mode = ("on", "auto")[self._name % 2]
        while not self._is_over.is_set():
            with contextlib.suppress(psycopg.OperationalError), pooled(self._database, mode) as connection:
                while not self._is_over.is_set():
                    self._write(connection)
            self._is_over.wait(0.02)

    def _write(self, connection: Connection) -> None:
        self._number += 1
        self.unknown.add(self._number)
        with connection.transaction():
            for part in (1, 2):
                connection.execute("INSERT INTO written VALUES (%s, %s, %s)", (self._name, self._number, part), prepare=True)
        self.unknown.discard(self._number)
        self.acknowledged.add(self._number)


def _kill_postgresql(torpor: Server, database: MadeDatabase) -> None:
    os.kill(torpor.postmaster(database), signal.SIGKILL)


def _restart_postgresql(torpor: Server, database: MadeDatabase) -> None:
    torpor.call("POST", f"/v1/databases/{database.name}/sleep", {"tier": "stopped", "force": True})  # it is woken again at once


def _kill_the_worker(torpor: Server, _database: MadeDatabase) -> None:
    for worker in workers(torpor):
        os.kill(worker, signal.SIGKILL)


def _kill_backends(_torpor: Server, database: MadeDatabase) -> None:
    with psycopg.connect(database.url, autocommit=True) as direct:
        direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user")


def _kill_torpor(torpor: Server, _database: MadeDatabase) -> None:
    torpor.kill()
    torpor.start()


def _upgrade_torpor(torpor: Server, _database: MadeDatabase) -> None:
    assert torpor.take_over() == 0


@pytest.mark.parametrize(
    ("fault", "times"),
    [(_kill_postgresql, 2), (_restart_postgresql, 2), (_kill_the_worker, 2), (_kill_backends, 2), (_kill_torpor, 1), (_upgrade_torpor, 1)],
)
def test_nothing_is_halved_or_repeated(torpor: Server, fault: Callable[[Server, MadeDatabase], None], times: int) -> None:
    made = torpor.create()
    with pooled(made) as one:
        one.execute("CREATE TABLE written (client integer, number integer, part integer)")
    clerks = [Clerk(made, name) for name in range(_CLIENTS)]
    try:
        for turn in range(times):
            _until_all_have_written(clerks, (turn + 1) * _EACH)
            fault(torpor, made)
        _until_all_have_written(clerks, (times + 1) * _EACH)
    finally:
        for clerk in clerks:
            clerk.finish()
    with psycopg.connect(made.url, autocommit=True) as direct:
        found = direct.execute("SELECT client, number, count(*), count(DISTINCT part) FROM written GROUP BY client, number").fetchall()
    assert all(row[2:] == (2, 2) for row in found), "whole, and once"
    for name, clerk in enumerate(clerks):
        there = {number for client, number, *_ in found if client == name}
        assert clerk.acknowledged <= there <= clerk.acknowledged | clerk.unknown


def _until_all_have_written(clerks: list[Clerk], count: int) -> None:
    eventually(lambda: all(len(clerk.acknowledged) >= count for clerk in clerks))


def test_a_database_that_sleeps_while_clients_wait(torpor: Server) -> None:
    made = torpor.create()
    with pooled(made) as one, pooled(made) as two, pooled(made) as three:
        for holder in (one, two):
            holder.execute("BEGIN")
            holder.execute("SELECT 1")
        answers: list[object] = []
        thread, failures = in_thread(lambda: answers.append(three.execute("SELECT 'served'").fetchone()))
        eventually(lambda: (torpor.view(made.name)["database"]["pool"] or {"waiting": 0})["waiting"] == 1)
        torpor.wait_tier(made.name, "frozen")
        assert not answers
        one.execute("COMMIT")
        thread.join()
        assert (answers, failures) == ([("served",)], [])
        two.execute("COMMIT")
        eventually(lambda: _falls_asleep(torpor, made))
        woken = [_asks(connection, answers) for connection in (one, two, three)]
        for thread, failures in woken:
            thread.join()
            assert not failures
        assert answers[1:] == [("woken",)] * 3


def _asks(connection: Connection, answers: list[object]) -> tuple[threading.Thread, list[BaseException]]:
    return in_thread(lambda: answers.append(connection.execute("SELECT 'woken'").fetchone()))


def _falls_asleep(torpor: Server, made: MadeDatabase) -> bool:
    torpor.sleep(made.name, "stopped")
    return torpor.tier(made.name) == "stopped"


def test_a_client_that_leaves_amid_a_copy_of_more_than_memory(torpor: Server) -> None:
    """It reads a little of what would be 100 GB, and goes: the worker keeps nothing, and the backend doesn't go on for nobody."""
    made = torpor.create()
    with pooled(made) as one:
        one.execute("SELECT 1")
        (worker,) = workers(torpor)
        before = rss(worker)
        leaver = pooled(made)
        with contextlib.suppress(psycopg.Error):
            copying = leaver.cursor().copy("COPY (SELECT repeat('x', 100000) FROM generate_series(1, 1000000)) TO STDOUT")
            rows = copying.__enter__()
            assert sum(len(rows.read()) for _ in range(50)) > 1_000_000
            assert rss(worker) - before < 20_000_000
            assert one.execute("SELECT 1").fetchone() == (1,)
            with socket.socket(fileno=os.dup(leaver.fileno())) as raw:
                raw.shutdown(socket.SHUT_RDWR)
        eventually(lambda: one.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'").fetchone() == (0,))
        assert rss(worker) - before < 20_000_000
        leaver.close()


def test_statements_that_are_too_long_to_be_kept(torpor: Server) -> None:
    """What isn't prepared passes at any length; what is, is kept by the pool, so there is a limit, which says so."""
    made = torpor.create()
    long = "SELECT 1 /* " + "x" * 5_000_000 + " */"
    with pooled(made) as one:
        assert one.execute(long, prepare=False).fetchone() == (1,)
        assert one.execute("SELECT length(%s)", ("x" * 5_000_000,), prepare=True).fetchone() == (5_000_000,)
        with pytest.raises(psycopg.OperationalError, match="too long to be prepared in the pool"):
            one.execute(long, prepare=True)
