"""A hostile superuser by the mass: roles, files, claims to be ready, databases that don't want to end. Others and Torpor don't notice.

More of the same comes with TORPOR_ESCAPE_ROLES, as `make soak` sets it.
"""

import contextlib
import os
import signal
import time

import psycopg
import pytest

from tests.support.attacks.kit import Attacker, arm, call, forked, hostile, outcome, step
from tests.support.attacks.stronghold import QUICK_S, Stronghold
from tests.support.attacks.watch import MARK, around_the_neighbour, descriptors_of, in_torpors_session, marked, new_code, stop, volume_of
from tests.support.faults import eventually, processes_of, put_to_sleep, refusal_of
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server
from torpor.model.size import MIB

pytestmark = [pytest.mark.root]

ROLES = int(os.environ.get("TORPOR_ESCAPE_ROLES", "200000"))
_READY_FD = 4


# -- roles


@pytest.mark.parametrize("count", [ROLES])
def test_masses_of_roles(escape: Stronghold, villain: MadeDatabase, count: int) -> None:
    """Above a number none is kept, and each is asked for when it logs in: nobody ever loads all of them."""
    server = escape.server
    inner = villain.url_as(villain.name, villain.password, f"{villain.name}.postgres")
    with around_the_neighbour(escape):
        with psycopg.connect(inner, autocommit=True) as connection:
            connection.execute("SET allow_system_table_mods = on")
            connection.execute(
                "INSERT INTO pg_catalog.pg_authid SELECT 100000 + i, 'role' || i, false, true, false, false, true, false, false, -1, "
                "NULL, NULL FROM generate_series(1, %s) i",
                [count],
            )
            connection.execute("CREATE ROLE last LOGIN PASSWORD 'p'")
        for tier in ("frozen", "stopped"):
            put_to_sleep(server, villain, tier) if tier == "frozen" else stop(server, villain)
            began = time.monotonic()
            for url in (villain.url, villain.url_as("last", "p")):
                with psycopg.connect(url, connect_timeout=60) as connection:
                    assert connection.execute("SELECT count(*) > 0 FROM pg_roles").fetchone() == (True,)
            assert refusal_of(villain.url_as(f"role{count}", "x"))[0] == "28P01"
            assert in_time(time.monotonic() - began, QUICK_S)
        assert len(str(server.view(villain.name))) < 20_000


# -- files


def test_masses_of_tiny_files_come_to_a_limit(escape: Stronghold) -> None:
    """They are few bytes, but the host has only so many inodes: each counts for 4 kB at least."""
    server = escape.server
    made = hostile(server, size={"disk_bytes": 64 * MIB})
    with around_the_neighbour(escape):
        with Attacker(server, made) as attacker:
            assert attacker.run(step("files", "/data/many", 18_000)) == ["18000 files, errno 0"]
            # What is shown is a little older than the question: a walk, and ten times as long after it.
            eventually(lambda: server.view(made.name)["disk_bytes"] >= 18_000 * 4096)
            eventually(lambda: is_read_only(made))
            attacker.run(step("files", "/data/many", -18_000))
            eventually(lambda: not is_read_only(made))
            attacker.run(step("files", "/data/more", 36_000))
            eventually(lambda: not answers(attacker))
        server.call("DELETE", f"/v1/databases/{made.name}?force=true")
    volumes = server.data_dir / "volumes"
    eventually(lambda: not [path for path in volumes.iterdir() if made.id in path.name])


def is_read_only(database: MadeDatabase) -> bool:
    with psycopg.connect(database.url, connect_timeout=40) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


def answers(attacker: Attacker) -> bool:
    try:
        return attacker.sql("SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


# -- being ready


CLAIMS = {
    "twice, and on and on": [call("write", _READY_FD, b"R" * 64, 64) for _ in range(20)],
    "something else": [call("write", _READY_FD, b"X", 1)],
    "nothing, but closed": [call("close", _READY_FD)],
    "by a child that ends": [forked(call("write", _READY_FD, b"R", 1))],
    "with descriptors": [step("rights", _READY_FD, 253, 100), call("write", _READY_FD, b"R", 1)],
    "in the name of others": [step("claim", _READY_FD, 1), step("claim", _READY_FD, 3), step("claim", _READY_FD, os.getpid())],
}
"""What the postmaster says before it is ready, over the socket on which Torpor waits for its word."""


def test_claiming_to_be_ready(escape: Stronghold, villain: MadeDatabase) -> None:
    """Who lies of its being ready starts or doesn't: nothing of it is left after a stop, and no other process is taken for it."""
    server, volume = escape.server, volume_of(escape.server, villain)
    with psycopg.connect(villain.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET shared_preload_libraries = '/data/evil.so'")
    stop(server, villain)
    before = descriptors_of(server)
    for name, script in CLAIMS.items():
        new_code(server, villain, "\n".join([MARK, *script]))
        (volume / "called").unlink(missing_ok=True)
        with around_the_neighbour(escape):
            # A start that failed is remembered for some seconds.
            eventually(lambda: logs_in(villain) or marked(server, villain))
            stop(server, villain)
        assert marked(server, villain), name
        if name == "in the name of others":
            said = (volume / "preload.answer").read_text().splitlines()
            assert [outcome(line).error for line in said[1:]] == ["EPERM"] * 3, "the kernel says who spoke"
        eventually(lambda: descriptors_of(server) < before + 20)
        assert server.process is not None and server.process.poll() is None
    (volume / "preload.script").unlink()
    eventually(lambda: logs_in(villain))


def logs_in(database: MadeDatabase) -> bool:
    with contextlib.suppress(psycopg.Error):
        psycopg.connect(database.url, connect_timeout=60).close()
        return True
    return False


# -- ending


def test_a_torpor_full_of_computes_that_do_not_end_ends_soon() -> None:
    """The others are stopped in order meanwhile, and what is killed then recovers: nothing that was committed is lost."""
    server = Server(on_disk=True, sandbox="full", freeze_after_s=300, page_after_s="never", stop_after_s="never")
    # For ever deaf computes take all turns; a minute is long for a test.
    server.prelude = "import torpor.compute.fleet as f; f._STOPS_AT_ONCE = 1; f._STOP_TURN_S = 0.5; f._STOPPED_WITHIN_S = 3.0; "
    with server, contextlib.ExitStack() as opened:
        halted, deaf, quiet = (server.create(name) for name in ("halted", "deaf", "quiet"))
        sessions = []
        for database in (halted, deaf, quiet):
            if database is not quiet:
                arm(server, database)
            sessions.append(psycopg.connect(database.url, autocommit=True))
            opened.callback(sessions[-1].close)
            sessions[-1].execute("CREATE TABLE kept AS SELECT 1 AS one")
        everything = bytes([0xFF] * 8)
        in_torpors_session(deaf, "\n".join([MARK, call("rt_sigprocmask", 0, everything, 0, 8), call("poll", 0, 0, 600_000)]))
        sessions[0].execute("SELECT attack(%s)", [step("signal", signal.SIGSTOP.value, server_pid(sessions[0]))])
        began = time.monotonic()
        server.stop(signal.SIGINT)
        assert in_time(time.monotonic() - began, 20)
        for database in (halted, deaf, quiet):
            assert processes_of(server, database.id) == []
        assert marked(server, deaf)
        assert "killing what" in server.log
        server.start()
        assert refusal_of(quiet.url_as(quiet.name, "wrong"))[0] == "28P01"
        assert server.tier(quiet.name) == "stopped", "it was stopped in order: its roles are known"
        for database in (halted, deaf, quiet):
            with psycopg.connect(database.url, connect_timeout=40) as connection:
                assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
        assert "Traceback" not in server.log, server.log[-6000:]


def server_pid(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """The postmaster, as the compute counts."""
    row = connection.execute("SELECT attack(%s)", [call("getppid")]).fetchone()
    assert row is not None
    return outcome(str(row[0]).strip()).result


def test_a_session_that_never_answers_holds_up_no_stop(escape: Stronghold, villain: MadeDatabase) -> None:
    """Torpor asks who is to be remembered for some seconds, and not for the 15 that it otherwise has for an answer."""
    in_torpors_session(villain, "\n".join([MARK, call("poll", 0, 0, 600_000)]))
    with around_the_neighbour(escape):
        began = time.monotonic()
        stop(escape.server, villain)
        assert in_time(time.monotonic() - began, 10)
    assert marked(escape.server, villain)
