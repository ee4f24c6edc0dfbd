"""One Torpor takes the place of another: nobody is refused, dropped or failed, and whoever is killed when, exactly one serves."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.faults import eventually, program, run_program
from tests.support.server import MadeDatabase, Server

pytestmark = [pytest.mark.fault]

PROTOCOL = 1


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never", drain_timeout_s=20) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def server(running: Server) -> Server:
    if running.process is None or running.process.poll() is not None:
        running.start()
    return running


@pytest.fixture(scope="module")
def shared(running: Server) -> MadeDatabase:
    """One database for all tests that need only one."""
    return running.create()


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40)


class Clients:
    """Connect, ask and leave in a tight loop, each in a thread; `waits_s` are how long each needed from connect to answer."""

    def __init__(self, databases: list[MadeDatabase]) -> None:
        self.errors: list[str] = []
        self.waits_s: list[float] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(database,), daemon=True) for database in databases]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(40)

    def _run(self, database: MadeDatabase) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                with connect(database) as connection:
                    assert connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.Error as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self.waits_s.append(time.monotonic() - began)


@pytest.mark.slow
def test_upgrades_under_load_are_noticed_by_nobody(server: Server, shared: MadeDatabase) -> None:
    databases = [shared, server.create(), server.create()]
    busy = databases[1]
    assert run_program("pgbench", "-i", "-q", "--unlogged-tables", busy.url).returncode == 0
    bench = subprocess.Popen(
        [program("pgbench"), "-T", "600", "-c", "2", "-n", busy.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    clients = Clients(databases)
    asleep = server.create(freeze_after_s=0.3)
    with connect(databases[2]) as kept, connect(asleep) as sleeper:
        kept.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        kept.execute("BEGIN")
        sleeper.execute("CREATE TEMP TABLE kept AS SELECT 8 AS x")
        history = "SELECT count(*) FROM pgbench_history"
        with connect(busy) as counter:
            for _ in range(3):
                asked = len(clients.waits_s)
                before = counter.execute(history).fetchone()
                assert server.take_over() == 0
                eventually(lambda: len(clients.waits_s) > asked + 20)  # noqa: B023  # called at once
                eventually(lambda: counter.execute(history).fetchone() != before)  # noqa: B023
        assert kept.execute("SELECT x FROM kept").fetchone() == (7,)
        kept.execute("COMMIT")
        server.wait_tier(asleep.name, "frozen")
        assert sleeper.execute("SELECT x FROM kept").fetchone() == (8,)
        clients.stop()
        assert clients.errors == []
        bench.send_signal(signal.SIGALRM)
        said, complaints = bench.communicate(timeout=60)
        assert (bench.returncode, complaints.count("error")) == (0, 0), complaints
        assert "number of failed transactions: 0 (" in said
        eventually(lambda: server.view(databases[2].name)["database"]["connections"] == 1)


def test_what_waits_at_the_door_and_the_api_goes_along(server: Server, shared: MadeDatabase) -> None:
    """A connection that hasn't said a word, a ticket, a log that is followed, and a kept-alive connection to the API."""
    with socket.create_connection(("127.0.0.1", server.door_port), timeout=60) as silent:
        ticket = server.call("POST", f"/v1/databases/{shared.name}/tickets")["url"]
        follower = socket.create_connection(("127.0.0.1", int(server.api_url.rpartition(":")[2])), timeout=60)
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        follower.sendall(f"GET /v1/databases/{shared.name}/logs?follow=true HTTP/1.1\r\n{head}".encode())
        assert follower.recv(12) == b"HTTP/1.1 200"
        just_came = socket.create_connection(("127.0.0.1", int(server.api_url.rpartition(":")[2])), timeout=60)
        eventually(lambda: server.call("GET", "/v1/host"))
        assert server.take_over() == 0
        rest = b""
        while piece := follower.recv(65536):
            rest += piece
        assert rest.endswith(b"0\r\n\r\n"), "the log ends in order"
        follower.close()
        just_came.close()
        with psycopg.connect(ticket) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        silent.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest
        assert silent.recv(1) in (b"N", b"S")


def test_a_second_torpor_is_told_how(server: Server) -> None:
    done = subprocess.run(server.command(), env=server.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 13
    assert f"another Torpor runs on {server.data_dir}; " in done.stderr
    assert "torpor serve --take-over" in done.stderr


def test_other_addresses_are_refused_before_anything_happens(server: Server) -> None:
    port = server.door_port
    done = subprocess.run(
        [*server.command(), "--take-over", "--door-port=1"], env=server.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 16
    assert f"door_port is 1 here, and {port} where the running Torpor listens" in done.stderr
    assert "handing over" not in server.log[-300:]


def test_taking_over_where_none_runs_is_a_start(server: Server, shared: MadeDatabase) -> None:
    assert server.stop() == 0
    server.process = server.spawn("--take-over")
    eventually((server.data_dir / "api.json").exists)
    connect(shared).close()


# -- the exchange, step by step, with one side killed or odd


def talk(server: Server) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(30)
    sock.connect(str(server.data_dir / "handoff.sock"))
    return sock


def say(sock: socket.socket, **packet: object) -> None:
    sock.send(json.dumps(packet).encode())


def hear(sock: socket.socket) -> dict[str, object]:
    data, fds, _, _ = socket.recv_fds(sock, 1 << 17, 250)
    for fd in fds:
        os.close(fd)
    return dict(json.loads(data)) if data else {}


def test_an_unknown_version_is_refused_clearly(server: Server) -> None:
    with talk(server) as sock:
        say(sock, protocol=99, version="9.9.9", take_over=True)
        refused = hear(sock)["refused"]
        assert isinstance(refused, dict)
        assert "protocol 99" in refused["message"]
        assert "torpor drain" in refused["hint"]
    assert server.call("GET", "/v1/drain")["state"] == "serving"


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[]", b"\xff\xff", b"x" * 100_000])
def test_nonsense_is_no_matter(server: Server, nonsense: bytes) -> None:
    with talk(server) as sock:
        sock.send(nonsense)
    with talk(server) as sock:
        say(sock, protocol=PROTOCOL, version="x", take_over=True)
        assert "ready" in hear(sock)
        sock.send(nonsense)
    assert server.call("GET", "/v1/drain")["state"] == "serving"


@pytest.mark.root
def test_another_user_gets_nothing(server: Server) -> None:
    path = server.data_dir / "handoff.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    script = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "try:\n    s.connect(sys.argv[1])\nexcept PermissionError:\n    sys.exit(7)\nprint(s.recv(1000).decode())"
    )
    assert subprocess.run(["python3", "-c", script, str(path)], timeout=60).returncode == 7
    path.chmod(0o666)
    try:
        said = subprocess.run(["python3", "-c", script, str(path)], capture_output=True, text=True, timeout=60).stdout
    finally:
        path.chmod(0o600)
    assert "you are user 65534" in said


_HEIR = """
import json, os, socket, sys, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
step = sys.argv[2]
def say(**packet): sock.send(json.dumps(packet).encode())
def at(name):
    if step == name:
        print(name, flush=True)
        time.sleep(600)
at("connected")
say(protocol=1, version="x", take_over=True)
sock.recv(65536)
at("ready")
say(go=True)
at("going")
socket.recv_fds(sock, 1 << 17, 250)
at("estate")
while b"whole" not in socket.recv_fds(sock, 1 << 17, 250)[0]:
    pass
at("whole")
if step == "left":
    print(step, flush=True)
    sock.close()  # and stays alive, holding the sockets
    time.sleep(600)
"""


@pytest.mark.parametrize("step", ["connected", "ready", "going", "estate", "whole", "left"])
def test_an_heir_that_dies_leaves_the_old_one_serving(server: Server, shared: MadeDatabase, step: str) -> None:
    clients = Clients([shared])
    with connect(shared) as kept:
        kept.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        pid = server.pid
        heir = subprocess.Popen(["python3", "-c", _HEIR, str(server.data_dir / "handoff.sock"), step], stdout=subprocess.PIPE, text=True)
        assert heir.stdout is not None
        assert heir.stdout.readline().strip() == step
        if step != "left":  # that one is killed by Torpor, which must be sure that nobody else serves
            heir.kill()
        heir.wait(60)
        heir.stdout.close()
        asked = len(clients.waits_s)
        eventually(lambda: len(clients.waits_s) > asked + 3)
        clients.stop()
        assert clients.errors == []
        assert server.process is not None
        assert (server.process.poll(), server.pid) == (None, pid)
        eventually(lambda: server.view(shared.name)["database"]["connections"] == 1)
        assert kept.execute("SELECT x FROM kept").fetchone() == (7,)
    if step in ("estate", "whole", "left"):
        eventually(lambda: "serving again" in server.log)
    if step == "left":
        assert server.take_over() == 0, "it can still be taken over"


_BROKEN = """
from torpor.control.reconcile import Reconciler
from torpor.model.errors import CatalogUnusable

async def reconcile(self, door_port):
    raise CatalogUnusable("for the test", "go on")

Reconciler.reconcile = reconcile
from torpor.cli import main
main()
"""


@pytest.mark.parametrize(("when", "code"), [("before", 14), ("after", 15)])
def test_an_heir_that_cannot_start_leaves_the_old_one_serving(server: Server, shared: MadeDatabase, when: str, code: int) -> None:
    """It finds out before it has the estate, or after."""
    clients = Clients([shared])
    with connect(shared) as kept:
        kept.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        if when == "before":
            heir = server.spawn("--take-over", "--postgres-home=/nonexistent")
        else:
            command = [sys.executable, "-c", _BROKEN, *server.command()[3:], "--take-over"]
            heir = subprocess.Popen(command, env=server.environment(), stderr=subprocess.DEVNULL)
        assert heir.wait(60) == code
        asked = len(clients.waits_s)
        eventually(lambda: len(clients.waits_s) > asked + 3)
        clients.stop()
        assert clients.errors == []
        assert kept.execute("SELECT x FROM kept").fetchone() == (7,)


@pytest.mark.parametrize("moment", ["hello", "going", "whole"])
def test_a_predecessor_that_dies_leaves_the_heir_serving(server: Server, shared: MadeDatabase, moment: str) -> None:
    """Killed when its heir has just said hello, when it lets go, and when it has given everything."""
    with connect(shared) as kept:
        kept.execute("CREATE TEMP TABLE kept AS SELECT 7 AS x")
        old = server.process
        assert old is not None
        size = len(server.log)
        heir = server.spawn("--take-over")
        if moment == "hello":
            eventually(lambda: len(os.listdir(f"/proc/{heir.pid}/fd")) > 3)
        else:
            eventually(lambda: "handing over" in server.log[size:])
            if moment == "whole":
                eventually(lambda: "adopted" in server.log[size:] or "reconciled" in server.log[size:])
        old.kill()
        old.wait()
        server.process = heir
        eventually(lambda: heir.poll() is None and "Torpor serves" in server.log[size:])
        with connect(shared) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert kept.execute("SELECT x FROM kept").fetchone() == (7,)
        assert heir.poll() is None


def test_only_one_of_two_heirs_takes_over(server: Server, shared: MadeDatabase) -> None:
    first, second = server.spawn("--take-over"), server.spawn("--take-over")
    old = server.process
    assert old is not None
    assert old.wait(60) == 0

    def settled() -> bool:
        """The second has taken over from the first, or was told that it came too late."""
        return first.poll() is not None or second.poll() is not None

    eventually(settled)
    alive = [heir for heir in (first, second) if heir.poll() is None]
    assert len(alive) == 1
    server.process = alive[0]
    connect(shared).close()
