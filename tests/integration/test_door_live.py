"""The door before real PostgreSQL: who gets in, who doesn't and why, what goes through, asleep and awake, handed over and relayed."""

import asyncio
import contextlib
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psycopg
import pytest

from tests.support.faults import eventually, in_thread, program, put_to_sleep, refusal_of, runs, stop_database
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

TIERS = ["awake", "frozen", pytest.param("paged", marks=pytest.mark.root), "stopped"]
TEN_MB = 10 << 20


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """Few connections, little patience."""
    with Server(max_connections=6, login_timeout_s=1, freeze_after_s=1, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def relaying() -> Iterator[Server]:
    with Server(relay=True, freeze_after_s=1, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(params=["hand-over", "relay"])
def carrier(request: pytest.FixtureRequest, torpor: Server) -> Server:
    """Both ways of carrying a session."""
    if request.param == "relay":
        server: Server = request.getfixturevalue("relaying")
        return server
    return torpor


@pytest.fixture
def database(torpor: Server) -> Iterator[MadeDatabase]:
    made = torpor.create()
    yield made
    torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")


@pytest.fixture
def carried(carrier: Server) -> Iterator[MadeDatabase]:
    made = carrier.create()
    yield made
    carrier.call("DELETE", f"/v1/databases/{made.name}?force=true")


def connect(url: str, **options: object) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(url, autocommit=True, connect_timeout=40, **options)  # type: ignore[arg-type]


def bring_down(server: Server, database: MadeDatabase, tier: str) -> None:
    if tier == "stopped":
        stop_database(server, database)
    elif tier != "awake":
        put_to_sleep(server, database, tier)


def user_of(url: str) -> object:
    with connect(url) as connection:
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        return row[0]


# -- who gets in


@pytest.mark.parametrize("tier", TIERS)
def test_changes_of_roles_are_noticed_at_once(torpor: Server, database: MadeDatabase, tier: str) -> None:
    def as_(role: str, password: str = "first") -> str:
        return database.url_as(role, password)

    torpor.call("PATCH", f"/v1/databases/{database.name}", {"freeze_after_s": 300})  # it sleeps when the test says so
    roles = ("same", "changed", "dropped", "nologin", "expired", "lasting", "hashed", "emptied", "renamed")
    with connect(database.url) as connection:
        for role in roles:
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
        if tier != "awake":
            put_to_sleep(torpor, database)  # so that Torpor knows what they were before
            connection.execute("SELECT 1")
        for role in roles:
            assert user_of(as_(role)) == role
        connection.execute("ALTER ROLE changed PASSWORD 'second'")
        connection.execute("DROP ROLE dropped")
        connection.execute("ALTER ROLE nologin NOLOGIN")
        connection.execute("ALTER ROLE expired VALID UNTIL '2001-01-01'")
        connection.execute("ALTER ROLE lasting VALID UNTIL '2101-01-01'")
        connection.execute("SET password_encryption = 'md5'")
        connection.execute("ALTER ROLE hashed PASSWORD 'second'")
        connection.execute("ALTER ROLE emptied PASSWORD NULL")
        connection.execute("ALTER ROLE renamed RENAME TO other")
    bring_down(torpor, database, tier)
    for refused in (as_("changed"), as_("dropped"), as_("expired"), as_("hashed"), as_("emptied"), as_("renamed")):
        assert refusal_of(refused)[0] == "28P01", refused
    assert refusal_of(as_("nologin"))[0] == "28000"
    assert torpor.tier(database.name) == tier
    assert user_of(as_("same")) == "same"
    assert user_of(as_("lasting")) == "lasting"
    assert user_of(as_("other")) == "other"
    assert user_of(as_("changed", "second")) == "changed"
    assert user_of(as_("hashed", "second")) == "hashed"


def test_torpors_own_role_stays_outside(torpor: Server, database: MadeDatabase) -> None:
    for password in ("torpor", database.password):
        sqlstate, text = refusal_of(database.url_as("torpor", password))
        assert sqlstate == "28000"
        assert "belongs to Torpor" in text
    # Nor does it serve as a way in from inside.
    with connect(database.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SET ROLE torpor")


@pytest.mark.parametrize("tier", ["frozen", "stopped"])
def test_strangers_wake_nothing(torpor: Server, database: MadeDatabase, tier: str) -> None:
    bring_down(torpor, database, tier)
    before = torpor.view(database.name)["database"]
    assert refusal_of(database.url_as(database.name, "wrong"))[0] == "28P01"
    assert refusal_of(database.url_as("nobody", database.password))[0] == "28P01"
    assert refusal_of(database.url_as("torpor", database.password))[0] == "28000"
    after = torpor.view(database.name)["database"]
    assert (after["tier"], after["wakes"], after["tier_since"]) == (tier, before["wakes"], before["tier_since"])


def test_unknown_database(torpor: Server, database: MadeDatabase) -> None:
    sqlstate, text = refusal_of(database.url_as(database.name, database.password, "nowhere"))
    assert sqlstate == "3D000"
    assert '"nowhere" does not exist' in text
    # An inner one that isn't there is PostgreSQL's own to refuse.
    sqlstate, text = refusal_of(database.url_as(database.name, database.password, f"{database.name}.nowhere"))
    assert (sqlstate, text) == ("3D000", 'database "nowhere" does not exist')


def test_too_many_connections_are_refused_at_the_door(strict: Server) -> None:
    database = strict.create()
    with contextlib.ExitStack() as opened:
        for _ in range(6):
            opened.enter_context(connect(database.url))
        sqlstate, text = refusal_of(database.url)
        assert sqlstate == "53300"
        assert text.startswith(f'database "{database.name}" has 6 connections, and 6 are its limit\nHINT:')
        strict.wait_tier(database.name, "frozen")  # Torpor's own session still gets in
    eventually(lambda: strict.view(database.name)["database"]["connections"] == 0)
    connect(database.url).close()


# -- ways to the database


def test_routing(torpor: Server, database: MadeDatabase) -> None:
    with connect(database.url) as connection:
        connection.execute("CREATE DATABASE other")
    other = torpor.create()

    def current(inner: str, options: str = "") -> object:
        url = database.url_as(database.name, database.password, inner)
        with connect(url + (f"?options={quote(options)}" if options else "")) as connection:
            row = connection.execute("SELECT current_database(), current_setting('work_mem')").fetchone()
            assert row is not None
            return row

    assert current(f"{database.name}.other") == ("other", "4MB")
    assert current("other", f"endpoint={database.name}") == ("other", "4MB")
    assert current("other", f"--cluster={database.name}") == ("other", "4MB")
    assert current("other", f"-c work_mem=5MB endpoint={database.name}") == ("other", "5MB")
    assert current(f"{database.name}.other", f"endpoint={database.name}") == ("other", "4MB")
    conflict = database.url_as(database.name, database.password, f"{database.name}.other") + f"?options={quote(f'endpoint={other.name}')}"
    with pytest.raises(psycopg.OperationalError, match="names another"):
        connect(conflict)
    # The password of one database opens no other.
    assert refusal_of(other.url_as(database.name, database.password))[0] == "28P01"
    torpor.call("DELETE", f"/v1/databases/{other.name}")


def test_client_address_is_the_real_one(carried: MadeDatabase) -> None:
    with connect(carried.url) as connection, socket.socket(fileno=socket.dup(connection.fileno())) as sock:
        row = connection.execute("SELECT host(inet_client_addr()), inet_client_port()").fetchone()
        assert row == sock.getsockname()


def test_encryption_is_refused_in_order(database: MadeDatabase) -> None:
    with connect(database.url, sslmode="prefer", gssencmode="disable") as connection:
        row = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert row == (False,)
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL, but SSL was required"):
        connect(database.url, sslmode="require")


# -- cancelling


@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_psycopg_cancels(carrier: Server, carried: MadeDatabase, version: str) -> None:
    """Protocol 3.2 has keys of 32 bytes."""
    with connect(carried.url, max_protocol_version=version) as connection:
        assert connection.pgconn.full_protocol_version == (30002 if version == "3.2" else 30000)
        began = time.monotonic()
        runner, failures = in_thread(lambda: connection.execute("SELECT pg_sleep(20)"))
        eventually(lambda: runs(carrier, carried, "pg_sleep"))
        connection.cancel_safe()
        runner.join(40)
        assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        assert in_time(time.monotonic() - began, 3)
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_asyncpg_cancels_what_takes_too_long(carried: MadeDatabase) -> None:
    connection = await asyncpg.connect(carried.url)
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(20)", timeout=0.4)
        assert await connection.fetchval("SELECT 1") == 1
        assert in_time(time.monotonic() - began, 3)
    finally:
        await connection.close()


def send_cancel(port: int, pid: int, key: int, source: str = "127.0.0.1") -> None:
    with socket.create_connection(("127.0.0.1", port), 5, source_address=(source, 0)) as sock:
        sock.sendall(struct.pack("!IHHII", 16, 1234, 5678, pid, key & 0xFFFFFFFF))
        assert sock.recv(1) == b""  # no answer, whatever comes of it


async def test_forged_cancels_do_nothing(torpor: Server, database: MadeDatabase) -> None:
    other = await asyncio.to_thread(torpor.create)
    victim, attacker = await asyncpg.connect(database.url), await asyncpg.connect(other.url)
    try:
        pid, key = victim._protocol.backend_pid, victim._protocol.backend_secret
        running = asyncio.create_task(victim.fetchval("SELECT 7 FROM pg_sleep(1.5)"))
        await asyncio.sleep(0.3)
        for forged in (key ^ 1, 0, attacker._protocol.backend_secret):
            await asyncio.to_thread(send_cancel, torpor.door_port, pid, forged)
        # The right key, but from an address that has no session there.
        await asyncio.to_thread(send_cancel, torpor.door_port, pid, key, "127.0.0.2")
        assert await running == 7
        running = asyncio.create_task(victim.fetchval("SELECT 7 FROM pg_sleep(20)"))
        await asyncio.to_thread(eventually, lambda: runs(torpor, database, "pg_sleep(20)"))
        await asyncio.to_thread(send_cancel, torpor.door_port, pid, key)  # it was the address and the key that mattered
        with pytest.raises(asyncpg.QueryCanceledError):
            await running
    finally:
        await victim.close()
        await attacker.close()
        await asyncio.to_thread(torpor.call, "DELETE", f"/v1/databases/{other.name}?force=true")


# -- replication


def test_replication_commands(database: MadeDatabase) -> None:
    with connect(database.url, replication="database") as connection:
        identity = connection.pgconn.exec_(b"IDENTIFY_SYSTEM")
        assert identity.get_value(0, 3) == database.name.encode()
        slot = connection.pgconn.exec_(b"CREATE_REPLICATION_SLOT kept TEMPORARY LOGICAL pgoutput")
        assert slot.get_value(0, 0) == b"kept", slot.error_message


def test_logical_stream_keeps_awake(torpor: Server, database: MadeDatabase) -> None:
    with connect(database.url) as connection:
        connection.execute("CREATE TABLE told (x int)")
        connection.execute("CREATE PUBLICATION told FOR TABLE told")
        connection.execute("SELECT pg_create_logical_replication_slot('told', 'pgoutput')")
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as received:
        command = [program("pg_recvlogical"), "-d", database.url, "-S", "told", "--start", "-f", received.name, "-F", "1"]
        command += ["-o", "proto_version=1", "-o", "publication_names=told", "--no-loop"]
        stream = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            began = time.monotonic()
            eventually(lambda: {c["reason"] for c in torpor.view(database.name)["database"]["awake_because"]} == {"replication"})
            while time.monotonic() - began < 2.5:  # more than twice its idle time
                assert torpor.tier(database.name) == "awake"
                time.sleep(0.1)
            with connect(database.url) as connection:
                connection.execute("INSERT INTO told VALUES (1)")
            eventually(lambda: Path(received.name).stat().st_size)
        finally:
            stream.terminate()
            stream.communicate()
    torpor.wait_tier(database.name, "frozen")


def test_base_backup_through_the_door(torpor: Server, database: MadeDatabase) -> None:
    stop_database(torpor, database)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        # libpq replaces the database of a physical replication connection: only the options can say which one is meant.
        url = f"{database.url}?options={quote(f'endpoint={database.name}')}"
        command = [program("pg_basebackup"), "-d", url, "-D", f"{directory}/copy", "-c", "fast", "--max-rate=12M"]
        backup = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        reasons: set[str] = set()
        while backup.poll() is None:
            reasons |= {cause["reason"] for cause in torpor.view(database.name)["database"]["awake_because"]}
            time.sleep(0.05)
        _, complaints = backup.communicate()
        assert backup.returncode == 0, complaints
        assert "backup" in reasons
        assert (Path(directory) / "copy" / "PG_VERSION").read_text().strip() == "18"
        checked = subprocess.run([program("pg_verifybackup"), f"{directory}/copy", "-n"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
    assert torpor.view(database.name)["recent_wakes"][0]["reason"] == "connection"


# -- what goes through


def test_copy_of_fifty_megabytes_both_ways(carried: MadeDatabase) -> None:
    line = b"x" * 1023 + b"\n"
    with connect(carried.url) as connection:
        connection.execute("CREATE UNLOGGED TABLE big (x text)")
        with connection.cursor().copy("COPY big FROM STDIN") as copy:
            for _ in range(5):
                copy.write(line * (TEN_MB // len(line)))
        received = 0
        with connection.cursor().copy("COPY big TO STDOUT") as copy:
            for part in copy:
                received += len(part)
        assert received == 5 * TEN_MB


def test_notification_wakes_and_arrives(carrier: Server, carried: MadeDatabase) -> None:
    with connect(carried.url) as listener:
        listener.execute("LISTEN news")
        carrier.wait_tier(carried.name, "frozen")
        with connect(carried.url) as speaker:
            speaker.execute("NOTIFY news, 'it rains'")
            (heard,) = listener.notifies(timeout=60, stop_after=1)
        assert (heard.channel, heard.payload) == ("news", "it rains")


@pytest.mark.parametrize("tier", ["frozen", pytest.param("paged", marks=pytest.mark.root)])
def test_session_survives_sleep(carrier: Server, carried: MadeDatabase, tier: str) -> None:
    with connect(carried.url) as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT 1 AS x")
        bring_down(carrier, carried, tier)
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
        wake = carrier.view(carried.name)["recent_wakes"][0]
        assert (wake["reason"], wake["tier"]) == ("traffic", tier)
        eventually(lambda: carrier.view(carried.name)["database"]["ingress_bytes"] > 0)


def test_client_that_vanishes_is_seen_off(carrier: Server, carried: MadeDatabase) -> None:
    connection = connect(carried.url)
    bring_down(carrier, carried, "frozen")
    with socket.socket(fileno=socket.dup(connection.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset, without a goodbye
    connection.pgconn.finish()
    connection.close()
    eventually(lambda: carrier.view(carried.name)["database"]["connections"] == 0)
    assert carrier.view(carried.name)["recent_wakes"][0]["reason"] == "client_left"


def test_relayed_sessions_outlive_their_torpor() -> None:
    with Server(relay=True, freeze_after_s=60) as server:
        database = server.create()
        with connect(database.url) as connection:
            connection.execute("CREATE TEMP TABLE kept AS SELECT 1 AS x")
            server.kill()
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
            server.start()
            assert server.view(database.name)["database"]["connections"] == 1
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
        eventually(lambda: server.view(database.name)["database"]["connections"] == 0)


# -- hostile clients


def test_three_thousand_silent_connections_slow_nobody(torpor: Server, database: MadeDatabase) -> None:
    with contextlib.ExitStack() as opened:
        for number in range(3000):  # of several addresses: one may not have so many
            source = (f"127.0.1.{number % 8}", 0)
            opened.enter_context(socket.create_connection(("127.0.0.1", torpor.door_port), 30, source_address=source))
        times = []
        for _ in range(15):
            began = time.monotonic()
            connect(database.url).close()
            times.append(time.monotonic() - began)
        assert in_time(statistics.median(times), 0.5), times
    eventually(lambda: "\ntorpor_door_pending 0" in _metrics(torpor))


def _metrics(server: Server) -> str:
    from urllib.request import Request, urlopen

    with urlopen(Request(server.api_url + "/metrics", headers={"Authorization": f"Bearer {server.token}"})) as answer:
        text: str = answer.read().decode()
        return text


def _drip(sock: socket.socket) -> None:
    for byte in b"\0\0\0\x50\0\3\0\0user\0app\0database\0shop\0application_name\0" + b"x" * 40:
        sock.sendall(bytes([byte]))
        time.sleep(0.1)


def _garbage(sock: socket.socket) -> None:
    sock.sendall(bytes(range(256)) * 4)


def _huge(sock: socket.socket) -> None:
    sock.sendall(b"\x7f\xff\xff\xff")


def _half(sock: socket.socket) -> None:
    sock.sendall(b"\0\0\0\x50\0\3\0\0user\0")


def _silence(_sock: socket.socket) -> None:
    """Says nothing."""


@pytest.mark.parametrize(
    ("say", "sqlstate"), [(_drip, b"08006"), (_garbage, b"08P01"), (_huge, b"08P01"), (_half, b"08006"), (_silence, b"08006")]
)
def test_misbehaving_client_is_told_and_closed_in_time(strict: Server, say: Callable[[socket.socket], None], sqlstate: bytes) -> None:
    with socket.create_connection(("127.0.0.1", strict.door_port), 10) as sock:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            say(sock)
        heard = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(4096):
                heard += part
        assert heard.startswith(b"E")
        assert b"C" + sqlstate in heard
        assert in_time(time.monotonic() - began, 8 if say is _drip else 3)
