"""Draining: what runs may finish, what rests is ended with a word, newcomers wait, and at the deadline all is over."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from tests.support.faults import eventually, in_thread, put_to_sleep
from tests.support.server import MadeDatabase, Server

Connection: TypeAlias = "psycopg.Connection[tuple[object, ...]]"
GATE = "pg_advisory_xact_lock(7)"
"""Whoever has it in a transaction decides how long the statements of others run."""
FOR_EVER = ", pg_sleep(600)"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never", drain_timeout_s=60) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def server(running: Server) -> Server:
    """Each test ends it; the next one starts it again."""
    if running.process is None:
        running.start()
    return running


def connect(database: MadeDatabase, sslmode: str = "prefer") -> Connection:
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40, sslmode=sslmode)


@contextlib.contextmanager
def statement_at_the_gate(
    server: Server, database: MadeDatabase, then: str = ""
) -> Iterator[tuple[Connection, Connection, threading.Thread, list[BaseException]]]:
    """A session whose statement waits in a thread, the one with the gate that it waits for, the thread, and how the statement failed.

    `then` is what the statement does behind the gate.
    """
    with connect(database) as worker, connect(database) as gate:
        gate.execute("BEGIN")
        gate.execute(f"SELECT {GATE}")
        working, failures = in_thread(lambda: worker.execute(f"SELECT {GATE} {then}"))
        eventually(lambda: _asked(server, database))
        yield worker, gate, working, failures


def ask(database: MadeDatabase) -> object:
    with connect(database) as connection:
        return connection.execute("SELECT 1").fetchone()


def ended(server: Server, patience_s: float = 40) -> int:
    """The exit code, once it has ended by itself."""
    assert server.process is not None
    code = server.process.wait(patience_s)
    server.process = None
    return code


def command(server: Server, *arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-c", "from torpor.cli import main; main()", *arguments, f"--data-dir={server.data_dir}"]
    with (server.data_dir / "told.log").open("wb") as log:
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=server.environment())


def told(server: Server) -> str:
    """What the last command said on standard error."""
    return (server.data_dir / "told.log").read_text()


def last_words(connection: Connection) -> tuple[str | None, str]:
    with pytest.raises(psycopg.OperationalError) as caught:
        connection.execute("SELECT 1")
    return caught.value.sqlstate, str(caught.value)


@pytest.mark.parametrize("way", ["signal", "command"])
def test_what_runs_finishes_and_what_rests_is_ended(server: Server, way: str) -> None:
    busy, quiet, frozen = (server.create() for _ in range(3))
    with (
        connect(busy) as worker,
        connect(busy) as idle,
        connect(quiet, "disable") as other,
        connect(frozen) as sleeper,
        connect(busy) as transaction,
    ):
        # Farewells that come right behind an answer, and are read with it, are notices to libpq.
        noticed: list[str | None] = []
        transaction.add_notice_handler(lambda notice: noticed.append(notice.sqlstate))
        transaction.execute("CREATE TABLE kept (x int)")
        transaction.execute("BEGIN")
        transaction.execute(f"SELECT {GATE}")
        transaction.execute("INSERT INTO kept VALUES (1)")
        put_to_sleep(server, frozen)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: worker.execute(f"SELECT {GATE}, 42").fetchone())
            eventually(lambda: _asked(server, busy))
            drainer = None
            if way == "signal":
                os.kill(server.pid, signal.SIGTERM)
            else:
                drainer = command(server, "drain", "--timeout=1h")
            for one in (idle, other, sleeper):
                eventually(lambda: _has_word(one))  # noqa: B023  # called at once
                sqlstate, words = last_words(one)
                assert sqlstate == "57P01"
                assert "Torpor is draining" in words
                assert "connect again" in words
            view = server.call("GET", "/v1/drain")
            assert view["state"] == "draining"
            statements = {(one["database"], one["state"]): one["statement"] for one in view["running"]}
            assert statements == {
                (busy.name, "active"): f"SELECT {GATE}, 42",
                (busy.name, "idle in transaction"): "INSERT INTO kept VALUES (1)",
            }
            assert server.refusal("POST", "/v1/databases", {})[0] == 503
            assert server.refusal("GET", "/healthz")[0] == 503
            if drainer is not None:
                eventually(lambda: GATE in told(server))
            # A transaction may go on, in as many statements as it takes.
            transaction.execute("INSERT INTO kept VALUES (2)")
            transaction.execute("COMMIT")
            row = answer.result(30)
        assert row is not None
        assert row[1] == 42, "a statement that runs gets its answer"
        assert ended(server) == 0
        assert "57P01" in (last_words(transaction)[0], *noticed)
        if drainer is not None:
            said, _ = drainer.communicate(timeout=60)
            assert (drainer.returncode, said) == (0, "drained: Torpor has ended\n"), told(server)
    assert server.remains() == []
    assert not (server.data_dir / "api.json").exists()
    assert not (server.data_dir / "handoff.sock").exists()
    server.start()
    with connect(busy) as connection:
        assert connection.execute("SELECT sum(x) FROM kept").fetchone() == (3,)


def _asked(server: Server, database: MadeDatabase) -> bool:
    return any("_lock" in cause["detail"] for cause in server.view(database.name)["database"]["awake_because"])


def _has_word(connection: Connection) -> bool:
    """Whether something came on an idle connection."""
    return bool(select.select([connection.pgconn.socket], [], [], 0)[0])


def test_newcomers_wait_and_the_next_torpor_serves_them(server: Server) -> None:
    """Drained with a successor: no connection is refused, and the statement that ran is still running there."""
    database, other = server.create(), server.create()
    with statement_at_the_gate(server, database) as (worker, gate, working, failures):
        server.call("POST", "/v1/drain", {"timeout_s": 60})
        with ThreadPoolExecutor(4) as pool:
            newcomers = [pool.submit(ask, other) for _ in range(4)]
            time.sleep(0.3)
            assert not any(newcomer.done() for newcomer in newcomers)
            old = server.process
            assert old is not None
            server.process = server.spawn()  # without --take-over: it is draining
            assert old.wait(60) == 0
            assert [newcomer.result(30) for newcomer in newcomers] == [(1,)] * 4
        eventually(lambda: server.call("GET", "/v1/drain")["state"] == "serving")
        assert working.is_alive()
        gate.execute("COMMIT")
        working.join(40)
        assert not failures
        assert worker.execute("SELECT 1").fetchone() == (1,)


def test_the_deadline_ends_what_is_left_and_those_who_wait_are_told(server: Server) -> None:
    database = server.create()
    with statement_at_the_gate(server, database, FOR_EVER) as (_worker, transaction, working, failures):
        drainer = command(server, "drain", "--timeout=600s", "--json", "--no-wait")
        assert json.loads(drainer.communicate(timeout=60)[0])["state"] == "draining"
        waiting, refused = in_thread(lambda: ask(database))
        with socket.create_connection(("127.0.0.1", server.door_port), timeout=60) as silent:
            time.sleep(0.2)
            server.call("POST", "/v1/drain", {"timeout_s": 0.5})  # another thought
            assert ended(server) == 0
            with silent.makefile("rb") as words:
                assert b"57P01" in words.read()
        working.join(40)
        waiting.join(40)
        assert isinstance(failures[0], psycopg.errors.AdminShutdown)
        assert isinstance(refused[0], psycopg.OperationalError)
        assert last_words(transaction)[0] == "57P01"
    assert server.remains() == []


def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    database = server.create()
    with statement_at_the_gate(server, database) as (worker, gate, working, failures):
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: server.call("GET", "/v1/drain")["state"] == "draining")
        os.kill(server.pid, signal.SIGTERM)
        assert ended(server) == 1
        server.start()
        gate.execute("COMMIT")
        working.join(40)
        assert not failures, "its compute was left running"
        assert worker.execute("SELECT 1").fetchone() == (1,)


def test_ctrl_c_ends_statements(server: Server) -> None:
    database = server.create()
    with statement_at_the_gate(server, database, FOR_EVER) as (_worker, gate, working, failures):
        os.kill(server.pid, signal.SIGINT)
        assert ended(server) == 0
        working.join(40)
        assert isinstance(failures[0], psycopg.errors.AdminShutdown)
        assert last_words(gate)[0] == "57P01"


def test_drain_command_without_a_torpor(tmp_path: Path) -> None:
    nobody = Server(tmp_path)
    done = command(nobody, "drain")
    assert done.wait(60) == 3
    assert "Torpor isn't running" in told(nobody)
    odd = command(nobody, "drain", "--timeout=soon")
    assert odd.wait(60) == 2
    assert "write it as 90s, 10m or 1h" in told(nobody)
    for one in (done, odd):
        one.communicate()
