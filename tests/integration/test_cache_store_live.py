"""The shared store of the cache, a real Redis: what outlives a worker, what doesn't after a purge, and that nobody waits for a store that
is slow, gone, or doesn't want us."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import tuple_row

from tests.support.faults import eventually
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

pytestmark = pytest.mark.integration

_PROGRAM = shutil.which("redis-server") or shutil.which("redis-check-rdb")  # Debian: the same program by another name
_PASSWORD = "s3cret"
_ASK = "/* ttl=600 status tags=a */ SELECT a, b FROM item WHERE a = %s"


class Store:
    """A Redis."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, password: str = _PASSWORD) -> None:
        assert _PROGRAM is not None
        flags = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no", "--requirepass", password]
        self.password = password

        def answers() -> bool:
            if self.process is None or self.process.poll() is not None:  # perhaps somebody's own connection has that port just now
                self.process = subprocess.Popen(["redis-server", *flags], executable=_PROGRAM, cwd=self.folder, stdout=subprocess.DEVNULL)
            return self.say("PING") == b"+PONG\r\n"

        eventually(answers)

    def say(self, *words: str) -> bytes:
        """The first bytes that it answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
                connection.sendall(f"AUTH {self.password}\r\n{' '.join(words)}\r\n".encode())
                said = b""
                while said.count(b"\r\n") < 2:
                    said += connection.recv(4096) or b"\r\n\r\n"
                return said.removeprefix(b"+OK\r\n")
        except OSError:
            return b""

    @property
    def keys(self) -> int:
        return int(self.say("DBSIZE")[1:].split(b"\r")[0] or 0)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if _PROGRAM is None:
        pytest.skip("there is no redis-server")
    store = Store(tmp_path_factory.mktemp("redis"))
    yield store
    store.end()


@pytest.fixture(scope="module")
def torpor(store: Store) -> Iterator[Server]:
    url = f"redis://:{_PASSWORD}@127.0.0.1:{store.port}/0"
    with Server(
        freeze_after_s="never", page_after_s="never", stop_after_s="never", pool_idle_s=1, pool_workers=1, cache_store=url
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def database(torpor: Server) -> MadeDatabase:
    made = torpor.create()
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE item (a integer PRIMARY KEY, b integer); INSERT INTO item SELECT n, 0 FROM generate_series(1, 5000) n"
        )
    return made


class Client:
    """A pooled connection that remembers what the cache said last."""

    def __init__(self, database: MadeDatabase) -> None:
        self.connection = psycopg.connect(database.url, autocommit=True, options="pool=on", row_factory=tuple_row)
        self.said = ""
        self.connection.add_notice_handler(lambda notice: self._hear(str(notice.message_primary)))

    def _hear(self, text: str) -> None:
        self.said = text.removeprefix("cache: ")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, number: int, prepare: bool | None = None) -> str:
        """What the cache says of the row with that number."""
        assert self.connection.execute(_ASK, (number,), prepare=prepare).fetchall() == [(number, 0)]
        return self.said


def workers(torpor: Server) -> list[int]:
    """The processes of the pool."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"torpor.gateway.pool.worker" in (path / "cmdline").read_bytes()
                and f"\nPPid:\t{torpor.pid}\n" in (path / "status").read_text()
            ):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def lose_worker(torpor: Server, database: MadeDatabase) -> None:
    """Another worker has the clients that come now."""
    (pid,) = workers(torpor)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not workers(torpor))

    def is_served() -> bool:
        try:
            with Client(database) as client:
                return miss(client)
        except psycopg.OperationalError:  # Torpor hasn't noticed yet
            return False

    eventually(is_served)


def miss(client: Client) -> bool:
    """Ask what nobody has asked."""
    return bool(client.connection.execute(f"/* ttl=600 tags=x{time.monotonic_ns()} */ SELECT a FROM item").fetchall())


def share(store: Store, database: MadeDatabase) -> None:
    """Until the store is used: a connection to it is made only when it is missed, and given up when the machine is too slow."""
    with Client(database) as client:

        def shared() -> bool:
            before = store.keys
            return miss(client) and store.keys > before

        eventually(shared)


def figures(torpor: Server, database: MadeDatabase) -> dict[str, int]:
    found: dict[str, int] = torpor.call("GET", f"/v1/databases/{database.name}/cache")["figures"]
    return found


@pytest.mark.parametrize("whose", ["worker", "torpor"])
def test_results_outlive_their_process(torpor: Server, store: Store, database: MadeDatabase, whose: str) -> None:
    begin = count(100 if whose == "worker" else 500, 10)

    def outlives() -> bool:  # a machine that is slow may miss the deadline now and then, and ten in a row
        numbers = range(first := next(begin), first + 10)
        share(store, database)
        with Client(database) as client:
            assert {client.ask(number, prepare=number % 2 > 0) for number in numbers} == {"miss"}
        if whose == "worker":
            lose_worker(torpor, database)
        else:
            torpor.stop()
            torpor.start()
        share(store, database)
        with Client(database) as client:
            return "hit" in [client.ask(number, prepare=number % 2 > 0) for number in numbers]

    assert eventually(outlives)
    assert eventually(lambda: figures(torpor, database)["shared"])
    told = store.say("KEYS", "*")
    assert b"item" not in told and database.id.encode() not in told


def test_what_was_purged_does_not_come_back(torpor: Server, store: Store, database: MadeDatabase) -> None:
    share(store, database)
    with Client(database) as client:
        for number in range(4000, 4010):
            client.ask(number)
    torpor.call("POST", f"/v1/databases/{database.name}/cache/purge", {"by": "tag", "values": ["a"]})
    lose_worker(torpor, database)
    share(store, database)
    with Client(database) as client:
        assert {client.ask(number) for number in range(4000, 4010)} == {"miss"}


@pytest.mark.parametrize("how", ["paused", "gone", "another password"])
def test_nobody_waits_for_a_store_that_does_not_answer(torpor: Server, store: Store, database: MadeDatabase, how: str) -> None:
    share(store, database)
    if how == "paused":
        store.signal(signal.SIGSTOP)
    else:
        store.end()
        if how == "another password":
            store.start("changed")
    try:
        with Client(database) as client:
            before = figures(torpor, database)["skipped"]
            began = time.monotonic()
            assert {client.ask(number) for number in range(4300, 4350)} == {"miss"}
            took_s = time.monotonic() - began
            assert {client.ask(number) for number in range(4300, 4350)} == {"hit"}
            assert in_time(took_s, 1.0)  # 50 of them, of which few have waited for 20 ms
            assert eventually(lambda: figures(torpor, database)["skipped"] > before)
            if how == "another password":
                eventually(lambda: miss(client) and "WRONGPASS" in torpor.log)
            torpor.call("POST", f"/v1/databases/{database.name}/cache/purge", {"by": "all", "values": []})
    finally:
        if how == "paused":
            store.signal(signal.SIGCONT)
        else:
            store.end()
            store.start()
    share(store, database)
    assert "s3cret" not in torpor.log
