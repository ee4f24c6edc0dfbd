"""A hostile superuser against Torpor itself: its session inside, its life lines, its log, its role, its files in the volume.

Whatever it does to its own database, Torpor answers, others log in, and its database can still be put to sleep or stopped, and removed.
"""

import contextlib
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import psycopg
import pytest

from tests.support.attacks.kit import Attacker, call, lease, outcome, step
from tests.support.attacks.stronghold import Stronghold
from tests.support.attacks.watch import MARK, around_the_neighbour, descriptors_of, in_torpors_session, marked, stop, volume_of
from tests.support.faults import eventually, processes_of, put_to_sleep, refusal_of
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server
from torpor.base.files import read_untrusted
from torpor.pgwire.frames import frame

pytestmark = [pytest.mark.root]


@pytest.fixture
def attacker(escape: Stronghold, villain: MadeDatabase) -> Iterator[Attacker]:
    with Attacker(escape.server, villain) as attacker:
        yield attacker


# -- Torpor's own session

_NOTICE = frame(b"N", b"SNOTICE\0C00000\0M" + b"x" * 16_000 + b"\0\0")
_ROW = frame(b"D", struct.pack("!hi", 1, 1) + b"x")


@pytest.mark.parametrize(
    "words", [(_NOTICE, 65_536), (_ROW, 20_000_000), (frame(b"N", b"\0"), 30_000_000), (b"\xff" * 1000, 1_000_000)],
    ids=["a gigabyte of notices", "rows without end", "the smallest messages", "no protocol at all"],
)  # fmt: skip
def test_flooding_the_service_session_hurts_nobody_else(escape: Stronghold, villain: MadeDatabase, words: tuple[bytes, int]) -> None:
    server = escape.server
    in_torpors_session(villain, "\n".join([MARK, step("speak", words[0].hex(), words[1])]))
    with around_the_neighbour(escape):
        ask_in_torpors_session(server, villain)
        stop(server, villain)


def test_descriptors_sent_over_torpors_own_session_go_nowhere(escape: Stronghold, villain: MadeDatabase) -> None:
    """As many as the kernel lets one user have under way: whoever receives takes bytes only, and the kernel closes the rest."""
    server, before = escape.server, descriptors_of(escape.server)
    in_torpors_session(villain, "\n".join([MARK, *(step("rights", "client", count, 5000) for count in (253, 16, 1))]))
    with around_the_neighbour(escape):
        ask_in_torpors_session(server, villain)
    eventually(lambda: descriptors_of(server) < before + 30)
    stop(server, villain)


def ask_in_torpors_session(server: Server, villain: MadeDatabase) -> None:
    """Have Torpor ask what it asks before a sleep, some times; whether it can go to sleep isn't the question."""
    for _ in range(3):
        with contextlib.suppress(HTTPError):
            server.call("POST", f"/v1/databases/{villain.name}/sleep", {"tier": "frozen"})
        server.view(villain.name)
    assert marked(server, villain), "it was asked"


def test_no_descriptor_fits_through_a_life_line(escape: Stronghold) -> None:
    """It is a pipe: the kernel passes descriptors through sockets only."""
    with escape.attacker() as attacker:
        pipes = [text.split()[0] for text in attacker.run(step("descriptors"))[0].split(";") if " pipe " in text]
        assert pipes
        answers = attacker.run(*(step("rights", pipe, 1) for pipe in pipes))
    assert {outcome(line).error for line in answers} == {"ENOTSOCK"}


def hostile_sql(attacker: Attacker, name: str) -> None:
    """Break what Torpor asks its questions with."""
    villain = attacker.database
    address = villain.url_as(villain.name, villain.password, f"{villain.name}.postgres")
    with psycopg.connect(address, autocommit=True) as inner:
        inner.execute("SET allow_system_table_mods = on")
        match name:
            case "views":
                inner.execute("ALTER VIEW pg_catalog.pg_stat_activity RENAME TO hidden")
                inner.execute(
                    "CREATE VIEW pg_catalog.pg_stat_activity AS SELECT 2147483647 AS pid, repeat(E'k\\n', 1000000) AS backend_type, "
                    "E'\\x1b[31m' AS state, NULL::text AS wait_event_type, NULL::text AS wait_event, repeat('u', 1000) AS usename, "
                    "NULL::inet AS client_addr, E'a\\nb' AS application_name, 'infinity'::timestamptz AS query_start, '' AS query "
                    "FROM generate_series(1, 20)"
                )
            case "no views":
                inner.execute("ALTER TABLE pg_catalog.pg_authid RENAME TO hidden")
            case "functions":
                # All that Torpor calls by name. Those of PostgreSQL are found by number however their text is changed: they step aside.
                for signature, result, body in (
                    ("host(inet)", "text", "COPY (SELECT 1) TO '/data/called'; RETURN repeat(E'\\x1b[2J', 1000000)"),
                    ("clock_timestamp()", "timestamptz", "RETURN 'infinity'"),
                    ("pg_terminate_backend(int, bigint)", "bool", "PERFORM pg_sleep(600); RETURN true"),
                    ("pg_terminate_backend(int)", "bool", "PERFORM pg_sleep(600); RETURN true"),
                    ("pg_reload_conf()", "bool", "RAISE E'no\\x1b[2J'"),
                    ("round(numeric, int)", "numeric", "RETURN 'NaN'"),
                ):
                    name = signature.partition("(")[0]
                    inner.execute(
                        f"UPDATE pg_catalog.pg_proc SET proname = 'real_{name}' WHERE proname = '{name}' AND oid < 16384".encode()
                    )
                    inner.execute(
                        f"CREATE FUNCTION pg_catalog.{signature} RETURNS {result} LANGUAGE plpgsql AS $$BEGIN {body}; END$$".encode()
                    )
            case "sleeping trigger":
                inner.execute("CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); END'")
                inner.execute("CREATE EVENT TRIGGER t ON login EXECUTE FUNCTION f(); ALTER EVENT TRIGGER t ENABLE ALWAYS")
            case "raising trigger":
                inner.execute("CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE E'no\\x1b[2J'; END$$")
                inner.execute("CREATE EVENT TRIGGER t ON login EXECUTE FUNCTION f(); ALTER EVENT TRIGGER t ENABLE ALWAYS")
            case "settings":
                for setting in ("search_path = public", f'role = "{villain.name}"', "statement_timeout = 1",
                                "session_replication_role = replica",
                                "client_encoding = SQL_ASCII", "default_transaction_read_only = on", "log_statement = 'all'",
                                "session_preload_libraries = '/data/nothing.so'"):  # fmt: skip
                    inner.execute(f"ALTER ROLE torpor SET {setting}".encode())
                    inner.execute(f"ALTER DATABASE postgres SET {setting}".encode())
            case "renamed role":
                inner.execute("ALTER ROLE torpor RENAME TO somebody")
            case "role without rights":
                inner.execute("ALTER ROLE torpor NOLOGIN CONNECTION LIMIT 0 VALID UNTIL '2000-01-01'")
            case "no service database":
                attacker.sql("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
            case "many roles":
                inner.execute(
                    "INSERT INTO pg_catalog.pg_authid SELECT 100000 + i, 'role' || i, false, true, false, false, true, false, false, -1, "
                    "repeat('x', 300), NULL FROM generate_series(1, 100000) i"
                )
            case "odd roles":
                inner.execute("SET client_encoding = SQL_ASCII")
                inner.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
                for number, odd in enumerate(("x", "SCRAM-SHA-256$1:x", "md5", "SCRAM-SHA-256$2147483647:AAAA$AAAA:AAAA", "y" * 100_000)):
                    inner.execute(
                        "INSERT INTO pg_catalog.pg_authid SELECT 200000 + %s, E'odd\\n\\x1b[31m' || %s, false, true, false, false, true, "
                        "false, false, -1, %s, '-infinity'", [number, number, odd],
                    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["views", "no views", "functions", "sleeping trigger", "raising trigger", "settings", "renamed role", "role without rights",
     "no service database", "many roles", "odd roles"],
)  # fmt: skip
def test_whatever_torpor_is_answered_only_that_database_suffers(
    escape: Stronghold, villain: MadeDatabase, attacker: Attacker, name: str
) -> None:
    server = escape.server
    hostile_sql(attacker, name)
    if name != "functions":  # for them there must be somebody to ask about
        attacker.connection.close()
    with around_the_neighbour(escape):
        # Torpor's session from before may still be open: this ends it, and asks anew.
        with contextlib.suppress(HTTPError):
            server.call("POST", f"/v1/databases/{villain.name}/sleep", {"tier": "frozen"})
        with contextlib.suppress(psycopg.Error):
            psycopg.connect(villain.url, connect_timeout=60).close()
        view = server.view(villain.name)
        assert len(str(view)) < 20_000
        assert name != "functions" or marked(server, villain)
        stop(server, villain)
        with contextlib.suppress(psycopg.Error):  # it may be broken now, but then it says so, and soon
            psycopg.connect(villain.url, connect_timeout=60).close()
    if name in ("settings", "many roles", "odd roles"):
        with psycopg.connect(villain.url, connect_timeout=60) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


# -- Torpor's own role


@pytest.mark.parametrize("trick", ["password", "renamed to it", "dropped", "as it is"])
def test_nobody_logs_in_as_torpor(escape: Stronghold, villain: MadeDatabase, attacker: Attacker, trick: str) -> None:
    match trick:
        case "password":
            attacker.sql("ALTER ROLE torpor PASSWORD 'known' VALID UNTIL 'infinity'")
        case "renamed to it":
            attacker.sql("ALTER ROLE torpor RENAME TO other; CREATE ROLE torpor LOGIN SUPERUSER PASSWORD 'known'")
        case "dropped":
            attacker.sql("ALTER ROLE torpor RENAME TO other; ALTER ROLE other NOLOGIN")
    for inner in (villain.name, f"{villain.name}.postgres"):
        for asleep in (False, True):
            if asleep:
                with contextlib.suppress(HTTPError):
                    put_to_sleep(escape.server, villain)
            sqlstate, _ = refusal_of(villain.url_as("torpor", "known", inner))
            assert sqlstate == "28000"
    if trick == "as it is":  # its own hands are not bound inside: a superuser is one
        attacker.sql("SET SESSION AUTHORIZATION torpor")
        assert attacker.sql("SELECT current_user::text") == [("torpor",)]


# -- life lines


def connections(escape: Stronghold, villain: MadeDatabase) -> int:
    return int(escape.server.view(villain.name)["database"]["connections"])


LIES = {"no pid": "lifeline\tffffffff", "pid of another": "lifeline\t01000000", "4096 bytes": "lifeline\t" + "41" * 4096}


@pytest.mark.parametrize(
    ("words", "direct"), [*((words, True) for words in LIES.values()), ("lifeline\tclose", True), ("lifeline\tclose", False)],
    ids=[*LIES, "closed early", "closed early, relayed"],
)  # fmt: skip
def test_who_lies_on_the_life_line_loses_the_session(
    escape: Stronghold, villain: MadeDatabase, attacker: Attacker, words: str, direct: bool
) -> None:
    """Its bytes would not be counted any more, nor the session against the limit: the connection is cut."""
    with psycopg.connect(villain.url, autocommit=True, sslmode="disable" if direct else "require") as liar:
        eventually(lambda: connections(escape, villain) == 2)
        with contextlib.suppress(psycopg.OperationalError):
            liar.execute("SELECT attack(%s)", [words])
        eventually(lambda: connections(escape, villain) == 1)
        eventually(lambda: not answers(liar))
    assert attacker.sql("SELECT 1") == [(1,)]
    escape.check_neighbour()


def answers(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_flooding_the_life_line_keeps_nobody_busy(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    with around_the_neighbour(escape):
        with contextlib.suppress(psycopg.OperationalError):
            attacker.run(step("lifeline", "flood", 2))
        began, before = time.monotonic(), cpu_s(escape.server.pid)
        time.sleep(1)
        assert (cpu_s(escape.server.pid) - before) / (time.monotonic() - began) < 0.8
    eventually(lambda: connections(escape, villain) == 0)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- processes that want to stay


def test_what_outlives_its_session_does_not_outlive_the_stop(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """Daemons deaf to every signal, holding the life line and the client's socket, called like PostgreSQL's own processes."""
    for keep in (0, 1, 1):
        attacker.run(step("daemon", 600, keep))
    assert attacker.run(step("stuck", 600)) == ["started"]
    # Each calls itself so once it runs, which may be after the answer.
    eventually(lambda: sum(comm(pid) == "postgres: torpo" for pid in processes_of(escape.server, villain.id)) == 3)
    attacker.connection.close()
    stop(escape.server, villain)
    with Attacker(escape.server, villain) as again:
        assert again.sql("SELECT 1") == [(1,)]


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_busy_or_stuck_process_keeps_only_its_own_database_awake(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """A parent that waits for its vfork()ed child sleeps so deep that no signal reaches it: the freezer takes it, or says no."""
    attacker.run(step("stuck", 600), step("daemon", 600, 0), step("spin", 600, 2))
    attacker.connection.close()
    eventually(lambda: connections(escape, villain) == 0)
    with around_the_neighbour(escape):
        try:
            escape.server.sleep(villain.name, "frozen")
        except HTTPError:
            assert escape.server.tier(villain.name) == "awake"
        else:
            before = [cpu_s(pid) for pid in processes_of(escape.server, villain.id)]
            time.sleep(0.3)
            assert [cpu_s(pid) for pid in processes_of(escape.server, villain.id)] == before, "asleep is asleep"


def test_a_postmaster_that_stops_itself_is_ended(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    parent = attacker.call("getppid").result
    assert outcome(attacker.run(step("signal", signal.SIGSTOP.value, parent))[0]).succeeded
    with around_the_neighbour(escape):
        escape.server.call("DELETE", f"/v1/databases/{villain.name}?force=true")
    assert processes_of(escape.server, villain.id) == []
    escape.server.create(villain.name)  # for the fixture to remove
    object.__setattr__(villain, "id", escape.server.view(villain.name)["database"]["id"])


# -- files in the volume that Torpor looks at


TRAPS = [
    ("postmaster.pid", "pipe"), ("postmaster.pid", "endless link"), ("postmaster.pid", "directory"), ("postmaster.pid", "huge"),
    ("PG_VERSION", "pipe"), ("PG_VERSION", "endless link"), ("postgresql.auto.conf", "pipe"), (".s.PGSQL.5432", "directory"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what"), TRAPS)
def test_traps_among_the_files_are_stepped_over(escape: Stronghold, trapped: MadeDatabase, name: str, what: str) -> None:
    """Torpor reads some files of the volume as root. None of them makes it wait, follow, or read without end."""
    path = volume_of(escape.server, trapped) / name
    aside = path.with_name(path.name + ".aside")
    owner = path.parent.stat().st_uid
    if path.exists():
        path.rename(aside)
    match what:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/etc/shadow")
        case "endless link":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)
    os.chown(path, owner, owner, follow_symlinks=False)
    began = time.monotonic()
    over = threading.Event()

    def log_in() -> None:
        with contextlib.suppress(psycopg.Error):
            psycopg.connect(trapped.url, connect_timeout=60).close()
        over.set()

    threading.Thread(target=log_in, daemon=True).start()
    while not over.is_set() and time.monotonic() - began < 1:
        escape.check_neighbour()
        escape.server.view(trapped.name)
        time.sleep(0.02)
    escape.server.sleep(trapped.name, "stopped", force=True)
    assert over.wait(40)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if aside.exists():
        aside.rename(path)


@pytest.fixture
def trapped(escape: Stronghold) -> Iterator[MadeDatabase]:
    """One that is stopped, for files in its volume to be replaced."""
    made = escape.server.create()
    stop(escape.server, made)
    yield made
    escape.server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def test_a_lease_on_a_file_makes_nobody_wait(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """Who opens a file with a lease on it waits for up to 45 seconds, unless it refuses to."""
    server, volume = escape.server, volume_of(escape.server, villain)
    for name in LEASED:
        answers = attacker.run(*lease(f"/data/{name}"))
        assert all(outcome(line).succeeded for line in answers), (name, answers)
    for name in LEASED:
        waiting = subprocess.Popen(["cat", volume / name], stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        waiting.kill()
        waiting.wait()
        with pytest.raises(BlockingIOError):
            read_untrusted(volume / name)
    with around_the_neighbour(escape):
        server.view(villain.name)
        began = time.monotonic()
        stop(server, villain)
        with Attacker(server, villain) as again:
            assert again.sql("SELECT 1") == [(1,)]
    assert in_time(time.monotonic() - began, 10), "the kernel takes a lease away after 45 seconds only"


LEASED = ("postmaster.pid", "postgresql.auto.conf")  # what Torpor reads


def test_hostile_settings_in_the_volume(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """ALTER SYSTEM, and a pg_hba.conf and postgresql.conf in the volume: what isolation rests on stays as Torpor wants it."""
    for setting in (
        "listen_addresses = '*'", "unix_socket_directories = '/tmp'", "logging_collector = on", "log_directory = '/data/log'",
        "log_destination = 'csvlog'", "port = 5433", "hba_file = '/data/pg_hba.conf'", "ssl = on", "archive_mode = on",
        "archive_command = 'touch /data/archived'", "external_pid_file = '/data/pid'", "max_connections = 10000",
    ):  # fmt: skip
        with contextlib.suppress(psycopg.Error):
            attacker.sql(f"ALTER SYSTEM SET {setting}")
    volume = volume_of(escape.server, villain)
    for name, text in (("pg_hba.conf", "local all all reject\n"), ("postgresql.conf", "listen_addresses = '*'\n"), ("recovery.signal", "")):
        (volume / name).write_text(text)
        os.chown(volume / name, volume.stat().st_uid, -1)
    (volume / "recovery.signal").unlink()
    stop(escape.server, villain)
    # Some of it (ssl without a certificate) may keep PostgreSQL from starting: then that is told, and others go on.
    try:
        with Attacker(escape.server, villain) as again:
            settings = {str(name): value for name, value in again.sql("SELECT name, setting FROM pg_settings")}
            assert settings["listen_addresses"] == ""
            assert settings["unix_socket_directories"] == "."
            assert settings["logging_collector"] == "off"
            assert settings["hba_file"] == "/conf/pg_hba.conf"
            assert settings["config_file"] == "/conf/postgresql.conf"
    except psycopg.OperationalError as error:
        assert "can't start" in str(error)
    escape.check_neighbour()


# -- the log


def test_the_log_fills_neither_disk_nor_memory(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """At full speed, and as a file of holes: what Torpor keeps is small, and nobody waits for it."""
    log = escape.server.data_dir / "logs" / f"{villain.id}.log"
    o_wronly, f_setfl, log_fd = 1, 4, 2
    with around_the_neighbour(escape):
        assert int(attacker.run(step("log", 300))[0].removeprefix("wrote=")) > 0
        answers = attacker.run(
            call("fcntl", log_fd, f_setfl, o_wronly), call("ftruncate", log_fd, 1 << 40), call("fallocate", log_fd, 0, 0, 100 << 30),
            call("ftruncate", log_fd, 900 << 20), call("pwrite64", log_fd, b"x", 1, 1 << 41),
        )  # fmt: skip
        assert [outcome(answers[number]).error for number in (1, 2, 4)] == ["EFBIG"] * 3, "no file grows beyond what PostgreSQL's own have"
        eventually(lambda: log.stat().st_size < 9 << 20)
    kept = sum(path.stat().st_size for path in log.parent.glob(f"{villain.id}*"))
    assert kept <= 17 << 20


# -- descriptors by the handful


def test_descriptors_sent_towards_torpor_go_nowhere(escape: Stronghold, villain: MadeDatabase, attacker: Attacker) -> None:
    """Over the client's socket, which the relay reads where it is a socket pair: whoever receives wants bytes only."""
    before = descriptors_of(escape.server)
    sockets = [text.split()[0] for text in attacker.run(step("descriptors"))[0].split(";") if " socket " in text]
    with around_the_neighbour(escape), contextlib.suppress(psycopg.Error):
        attacker.run(*(step("rights", sockets[0], 250) for _ in range(100)))
    eventually(lambda: descriptors_of(escape.server) < before + 50)
