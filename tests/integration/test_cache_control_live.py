"""The cache of a real database as its owner rules it: rules, purges, and writes that drop what was read, whatever ends meanwhile."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.faults import eventually
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import children

pytestmark = pytest.mark.integration

Connection = psycopg.Connection[tuple[Any, ...]]

_READ = "/* ttl=3600 tags=counter,shown status */ SELECT value FROM counter"


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with Server(freeze_after_s="never", page_after_s="never", stop_after_s="never", pool_workers=1) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def database(torpor: Server) -> Iterator[MadeDatabase]:
    made = torpor.create()
    with direct(made) as one:
        one.execute("CREATE TABLE counter (value integer); INSERT INTO counter VALUES (0); CREATE TABLE other (value integer)")
        one.execute("CREATE SCHEMA app; CREATE TABLE app.note (value integer)")
    yield made
    torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")


def direct(database: MadeDatabase) -> Connection:
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40)


class Reader:
    """A pooled client that remembers what the cache said last."""

    def __init__(self, database: MadeDatabase) -> None:
        self.status = ""
        self.connection = psycopg.connect(f"{database.url}@pool", autocommit=True, connect_timeout=40, prepare_threshold=None)
        self.connection.add_notice_handler(self._hear)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        self.status = (notice.message_primary or "").removeprefix("cache: ")

    def ask(self, statement: str = _READ) -> tuple[int, str]:
        """The first value, and what the cache says of it."""
        self.status = ""
        row = self.connection.execute(statement).fetchone()
        assert row is not None
        return int(row[0]), self.status


def change(torpor: Server, database: MadeDatabase, **body: object) -> Any:
    changed = torpor.call("PATCH", f"/v1/databases/{database.name}/cache", body)
    heard(torpor, database)
    return changed


def heard(torpor: Server, database: MadeDatabase) -> None:
    """Until the worker knows what was changed: it may hear it after what a client asks at the same moment, but before the next purge."""
    purge(torpor, database, "tag", "none")


def purge(torpor: Server, database: MadeDatabase, by: str, *values: str) -> int:
    return int(torpor.call("POST", f"/v1/databases/{database.name}/cache/purge", {"by": by, "values": values})["dropped"])


def test_rules_and_purges(torpor: Server, database: MadeDatabase) -> None:
    path = f"/v1/databases/{database.name}/cache"
    assert purge(torpor, database, "all") == 0  # nobody has been there
    with Reader(database) as reader:
        assert [reader.ask() for _ in range(2)] == [(0, "miss"), (0, "hit")]
        note = "/* ttl=3600 tags=note status */ SELECT count(*) FROM app.note"
        assert [reader.ask(note) for _ in range(2)] == [(0, "miss"), (0, "hit")]
        assert purge(torpor, database, "tag", "nothing", "note") == 1
        assert (reader.ask(note), reader.ask()) == ((0, "miss"), (0, "hit"))
        assert purge(torpor, database, "table", "note") == 0  # that would be public.note
        assert purge(torpor, database, "table", "app.note") == 1
        assert purge(torpor, database, "table", "counter") == 1
        assert (reader.ask(note), reader.ask()) == ((0, "miss"), (0, "miss"))
        assert purge(torpor, database, "statement", "select VALUE from counter") == 1
        assert (reader.ask(note), reader.ask()) == ((0, "hit"), (0, "miss"))
        assert purge(torpor, database, "all") == 2
        assert (reader.ask(note), reader.ask()) == ((0, "miss"), (0, "miss"))

        plain = "SELECT value + {} FROM counter"
        assert reader.ask(plain.format(5)) == (5, "")
        ruled = torpor.call("PUT", f"{path}/rules", {"statement": "SELECT value + 1 FROM counter", "words": "ttl=3600 status tags=r"})
        heard(torpor, database)
        assert [reader.ask(plain.format(7)) for _ in range(2)] == [(7, "miss"), (7, "hit")]
        assert reader.ask(plain.format(8)) == (8, "miss")
        assert purge(torpor, database, "tag", "r") == 2
        torpor.call("DELETE", f"{path}/rules/{ruled['rules'][0]['fingerprint']}")
        heard(torpor, database)
        assert reader.ask(plain.format(7)) == (7, "")
        for bad in ({"statement": "SELECT 1", "words": "ttl=soon"}, {"statement": " ", "words": "ttl=1"}):
            assert torpor.refusal("PUT", f"{path}/rules", bad)[0] == 400
        assert torpor.refusal("POST", f"{path}/purge", {"by": "tag"})[0] == 400
        figures = eventually(lambda: (now := torpor.call("GET", path)["figures"])["purged"] == 8 and now)
        assert figures["hits"] == 5


def test_a_write_drops_what_was_read_before(torpor: Server, database: MadeDatabase) -> None:
    change(torpor, database, on_write=True)
    with direct(database) as writer, Reader(database) as reader:
        assert [reader.ask() for _ in range(2)] == [(0, "miss"), (0, "hit")]
        writer.execute("UPDATE counter SET value = 1")
        assert [reader.ask() for _ in range(2)] == [(1, "miss"), (1, "hit")]
        writer.execute("INSERT INTO other VALUES (1)")
        assert reader.ask() == (1, "hit")
        writer.execute("BEGIN; UPDATE counter SET value = 2; ROLLBACK")
        assert reader.ask() == (1, "hit")
        writer.execute("ALTER TABLE counter ALTER value SET NOT NULL")
        assert reader.ask() == (1, "miss")
        change(torpor, database, on_write=False)
        reader.ask()
        assert reader.ask() == (1, "hit")
        writer.execute("UPDATE counter SET value = 3")
        assert reader.ask() == (1, "hit")  # as was asked for: an hour
        change(torpor, database, on_write=True)
        assert reader.ask() == (3, "miss")


class Load:
    """A writer in a session of its own, and pooled readers. Nobody may be given less than what anybody was told before he asked."""

    def __init__(self, database: MadeDatabase, readers: int = 3) -> None:
        self._database = database
        self.floor = 0
        self.asked = 0
        self.hits = 0
        self.older: list[tuple[int, int, str]] = []
        self.trouble: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._read, daemon=True) for _ in range(readers)]
        for thread in self.threads:
            thread.start()

    def told(self, value: int) -> None:
        with self._lock:
            self.floor = max(self.floor, value)

    def stop(self) -> None:
        self._stop.set()
        for thread in self.threads:
            thread.join(60)
        assert not self.trouble, self.trouble
        assert not self.older, self.older

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                with contextlib.suppress(psycopg.OperationalError), Reader(self._database) as reader:  # PostgreSQL was killed
                    while not self._stop.is_set():
                        floor = self.floor
                        value, status = reader.ask()
                        if value < floor:
                            self.older.append((value, floor, status))
                        self.told(value)
                        with self._lock:
                            self.asked += 1
                            self.hits += status == "hit"
        except BaseException as error:
            self.trouble.append(error)


def test_nobody_is_given_less_than_what_was_acknowledged(torpor: Server, database: MadeDatabase) -> None:
    change(torpor, database, on_write=True)
    load = Load(database)
    try:
        with direct(database) as writer:
            for n in range(1, 301):
                writer.execute("UPDATE counter SET value = value + 1")
                load.told(n)
                if n % 30 == 0:  # a while without writes: then it is served from the cache
                    before = load.hits
                    eventually(lambda before=before: load.hits > before + 3)  # type: ignore[misc]
    finally:
        load.stop()
    assert load.hits > 30


def test_nor_after_postgresql_was_killed_at_any_moment(torpor: Server, database: MadeDatabase) -> None:
    """A commit that was durable when its backend was killed, and that nobody was told of, comes to light with the recovery."""
    change(torpor, database, on_write=True)
    load = Load(database, readers=2)
    n = 0
    try:
        for victim in ("backend", "backend", "postmaster"):
            begun = load.hits
            with contextlib.suppress(psycopg.OperationalError), direct(database) as writer:
                row = writer.execute("SELECT value FROM counter").fetchone()
                assert row is not None
                n = int(row[0])
                load.told(n)
                eventually(lambda begun=begun: load.hits > begun + 3)  # type: ignore[misc]
                postmaster = torpor.postmaster(database)
                with _killing(postmaster, victim):
                    while True:
                        writer.execute("UPDATE counter SET value = value + 1")
                        n += 1
                        load.told(n)
            eventually(lambda least=n: _value(database) >= least)  # type: ignore[misc]  # it has recovered
            load.told(_value(database))
    finally:
        load.stop()


@contextlib.contextmanager
def _killing(postmaster: int, victim: str) -> Iterator[None]:
    """Kill PostgreSQL, or one of its backends, some time from now; again if that one has just ended by itself."""
    over = threading.Event()
    handle = os.pidfd_open(postmaster)

    def kill() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(ProcessLookupError):
                if victim == "postmaster":
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                for pid in children(postmaster)[-1:] if victim == "backend" else ():
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
        os.close(handle)


def _value(database: MadeDatabase) -> int:
    with contextlib.suppress(psycopg.OperationalError), direct(database) as one:
        row = one.execute("SELECT value FROM counter").fetchone()
        return int(row[0]) if row is not None else -1
    return -1


def test_asleep_it_is_served_and_awake_it_is_new(torpor: Server, database: MadeDatabase) -> None:
    change(torpor, database, on_write=True)
    for tier in ("frozen", "stopped"):
        with Reader(database) as reader:
            value, _ = reader.ask()
            assert reader.ask() == (value, "hit")
            torpor.sleep(database.name, tier, force=True)
            assert reader.ask() == (value, "hit")
            assert torpor.tier(database.name) == tier
            with direct(database) as writer:
                writer.execute("UPDATE counter SET value = value + 1")
            assert reader.ask() == (value + 1, "miss")
            assert reader.ask() == (value + 1, "hit")


def test_a_branch_has_the_rules_and_a_reset_drops_what_was_read(torpor: Server, database: MadeDatabase) -> None:
    torpor.call("PUT", f"/v1/databases/{database.name}/cache/rules", {"statement": "SELECT value FROM counter", "words": "ttl=3600 status"})
    heard(torpor, database)
    branch = torpor.call("POST", f"/v1/databases/{database.name}/branches", {})
    name = branch["database"]["name"]
    try:
        rules = [torpor.call("GET", f"/v1/databases/{each}/cache")["rules"] for each in (database.name, name)]
        assert rules[0] == rules[1] != []
        inside = MadeDatabase(name, branch["database"]["id"], branch["credentials"]["url"], branch["credentials"]["password"])
        with direct(inside) as one:
            one.execute("UPDATE counter SET value = 9")
        with Reader(inside) as reader:
            assert [reader.ask("SELECT value FROM counter") for _ in range(2)] == [(9, "miss"), (9, "hit")]
        torpor.call("POST", f"/v1/databases/{name}/reset", {"force": True})
        with Reader(inside) as reader:
            assert reader.ask("SELECT value FROM counter") == (0, "miss")
    finally:
        torpor.call("DELETE", f"/v1/databases/{name}?force=true")


def test_a_new_torpor_knows_what_holds(torpor: Server, database: MadeDatabase) -> None:
    """The computes go on, with the counters that they have mapped; results are gone."""
    torpor.call("PUT", f"/v1/databases/{database.name}/cache/rules", {"statement": "SELECT value FROM counter", "words": "ttl=3600 status"})
    heard(torpor, database)
    change(torpor, database, on_write=True)
    statement = "SELECT value FROM counter"
    with direct(database) as writer:
        with Reader(database) as reader:
            assert [reader.ask(statement) for _ in range(2)] == [(0, "miss"), (0, "hit")]
        assert torpor.take_over() == 0
        with Reader(database) as reader:
            assert [reader.ask(statement) for _ in range(2)] == [(0, "miss"), (0, "hit")]
            writer.execute("UPDATE counter SET value = 4")  # in a session that the new one has adopted
            assert [reader.ask(statement) for _ in range(2)] == [(4, "miss"), (4, "hit")]


def test_counters_go_with_their_database(torpor: Server) -> None:
    made = torpor.create()
    file = torpor.data_dir / "writes" / made.id
    assert file.stat().st_size == 32_768 and file.stat().st_mode & 0o777 == 0o600
    torpor.call("DELETE", f"/v1/databases/{made.name}?force=true")
    assert not file.exists()
