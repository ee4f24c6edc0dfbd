"""The cache of results before a real PostgreSQL, through real drivers: what is served, to whom, and that nothing is woken for it."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest
from psycopg.rows import tuple_row

from tests.support.faults import eventually
from tests.support.server import MadeDatabase, Server

pytestmark = pytest.mark.integration

_MAKE = """
CREATE TABLE item (a integer PRIMARY KEY, b text);
INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 100) n;
CREATE VIEW few AS SELECT * FROM item WHERE a <= 3;
CREATE SEQUENCE turn;
CREATE ROLE bob LOGIN PASSWORD 'bob';
CREATE TABLE secret (owner text, word text);
INSERT INTO secret VALUES (CURRENT_USER, 'mine'), ('bob', 'of bob');
ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (owner = CURRENT_USER);
GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob;
CREATE SCHEMA other;
CREATE TABLE other.item AS SELECT 0 AS a, 'other'::text AS b;
CREATE FUNCTION sly() RETURNS integer LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT count(*) FROM few); END $$;
CREATE FUNCTION writing() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE item SET b = b WHERE a = 100; RETURN 1; END $$;
"""

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def torpor() -> Iterator[Server]:
    with Server(
        freeze_after_s="never", page_after_s="never", stop_after_s="never", pool_size=4, pool_wait_s=30, pool_idle_s=1, pool_workers=1
    ) as server:  # fmt: skip
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def database(torpor: Server) -> MadeDatabase:
    made = torpor.create()
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(_MAKE)
    return made


class Client:
    """A pooled connection that remembers what the cache said last."""

    def __init__(self, database: MadeDatabase, mode: str = "on", url: str = "", options: str = "", **more: Any) -> None:
        self.connection: Connection = psycopg.connect(
            url or database.url, autocommit=True, options=f"pool={mode} {options}", row_factory=tuple_row, **more
        )
        self._said: list[str] = []
        self.connection.add_notice_handler(lambda notice: self._said.append(str(notice.message_primary)))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, text: str, *values: object, prepare: bool | None = None, binary: bool = False) -> list[tuple[object, ...]]:
        """Run it; all rows."""
        self._said.clear()
        return self.connection.execute(text, values or None, prepare=prepare, binary=binary).fetchall()

    @property
    def said(self) -> str:
        """What the cache said of the last one."""
        return ", ".join(each.removeprefix("cache: ") for each in self._said if each.startswith("cache: "))


_WORDS = "/* ttl=600 status */ "


def test_every_way_of_asking_has_its_hits(database: MadeDatabase) -> None:
    with Client(database) as one, Client(database, "auto", application_name="another") as two:
        for text, values, prepare, binary in (
            ("SELECT * FROM few ORDER BY a", (), None, False),
            ("SELECT b FROM item WHERE a = %s", (7,), False, False),
            ("SELECT b FROM item WHERE a = %s", (8,), True, False),
            ("SELECT a FROM item WHERE a = %s", (8,), True, True),
        ):
            first = one.ask(_WORDS + text, *values, prepare=prepare, binary=binary)
            assert one.said == "miss" and first
            for client in (one, two):
                assert client.ask(_WORDS + text, *values, prepare=prepare, binary=binary) == first
                assert client.said == "hit"
        assert one.ask(_WORDS + "SELECT b FROM item WHERE a = %s", 9) == [("item 9",)] and one.said == "miss"


def test_drivers_are_served_while_the_database_is_stopped(torpor: Server) -> None:
    made = torpor.create()
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE item AS SELECT 7 AS a, 'seven' AS b")
    text = "/* ttl=600 */ SELECT a, b FROM item WHERE a = "
    host, port = "127.0.0.1", torpor.door_port

    async def with_asyncpg() -> object:
        connection = await asyncpg.connect(made.url + "@pool")
        try:
            return [tuple(row) for _ in range(3) for row in await connection.fetch(text + "$1", 7)]
        finally:
            await connection.close()

    def all_drivers() -> list[object]:
        found: list[object] = [asyncio.run(with_asyncpg())]
        with Client(made) as client:
            found += [client.ask(text + "%s", 7, prepare=prepare) for prepare in (False, True, True)]
        with contextlib.closing(psycopg2.connect(made.url + "@pool")) as plain:
            plain.autocommit = True
            with plain.cursor() as cursor:
                cursor.execute(text + "%s", (7,))
                found.append(cursor.fetchall())
        pg = pg8000.native.Connection(made.name, host=host, port=port, database=made.name + "@pool", password=made.password)
        try:
            found.append([tuple(row) for row in pg.run(text + ":a", a=7)])
            found.append([tuple(row) for row in pg.run(text + "7")])
        finally:
            pg.close()
        return found

    awake = all_drivers()
    eventually(lambda: _goes_down(torpor, made))
    assert all_drivers() == awake
    assert all(rows == [(7, "seven")] * len(rows) for rows in awake)  # type: ignore[arg-type]
    assert torpor.tier(made.name) == "stopped"


def _goes_down(torpor: Server, made: MadeDatabase) -> bool:
    """As soon as the pool has let go of its backends."""
    with contextlib.suppress(HTTPError):
        torpor.sleep(made.name, "stopped")
    return torpor.tier(made.name) == "stopped"


def test_what_is_not_kept_and_why(database: MadeDatabase) -> None:
    with Client(database) as one:
        for text, reason in (
            ("SELECT random() > 2", "volatile random"),
            ("SELECT nextval('turn') > 0", "volatile turn"),
            ("SELECT a FROM item WHERE a = 1 FOR UPDATE", "locks rows"),
            ("SELECT writing()", "writes"),
            ("WITH x AS (DELETE FROM item WHERE a < 0 RETURNING 1) SELECT count(*) FROM x", "writes"),
            ("SHOW TimeZone", "not a read"),
        ):
            for _ in range(2):
                one.ask(_WORDS + text)
                assert one.said == f"bypass ({reason})", text
        assert one.ask(_WORDS + "SELECT sly()") == [(3,)] and one.said == "miss"
        first = one.ask("/* ttl=600 force status */ SELECT nextval('turn')")
        assert one.said == "miss"
        assert one.ask("/* ttl=600 force status */ SELECT nextval('turn')") == first and one.said == "hit"
        with one.connection.transaction():
            assert one.ask(_WORDS + "SELECT 1") == [(1,)] and one.said == "bypass (in a transaction)"
        with pytest.raises(psycopg.errors.DivisionByZero):
            one.ask(_WORDS + "SELECT 1 / (a - 1) FROM item")
        with pytest.raises(psycopg.errors.DivisionByZero):
            one.ask(_WORDS + "SELECT 1 / (a - 1) FROM item")
        one.connection.execute("/* ttl=600 */ SELECT 1; SELECT 2")
        cursor = one.connection.execute("/* ttl=600 */ SELECT 1; SELECT 2")
        assert cursor.fetchall() == [(1,)] and cursor.nextset() and cursor.fetchall() == [(2,)]
        for _ in range(2):
            with one.connection.cursor().copy("/* ttl=600 */ COPY (SELECT a FROM item ORDER BY a LIMIT 2) TO STDOUT") as copy:
                assert list(copy.rows()) == [("1",), ("2",)]
            with one.connection.transaction(), one.connection.cursor("named") as named:
                assert len(named.execute("/* ttl=600 */ SELECT a FROM item").fetchall()) == 100
    with Client(database, "auto") as two:
        two.connection.execute("CREATE TEMPORARY TABLE mine (a integer)")
        two.ask(_WORDS + "SELECT count(*) FROM few")
        assert two.said == "bypass (pinned)"


def test_nobody_is_given_what_is_anothers(database: MadeDatabase) -> None:
    bob = database.url_as("bob", "bob")
    with Client(database) as one, Client(database, url=bob) as two, Client(database, options="-c search_path=other") as three:
        for _ in range(2):
            assert one.ask(_WORDS + "SELECT word FROM secret") == [("mine",)]
            assert two.ask(_WORDS + "SELECT word FROM secret") == [("of bob",)]
            assert one.ask(_WORDS + "SELECT b FROM item WHERE a IN (0, 1)") == [("item 1",)]
            assert three.ask(_WORDS + "SELECT b FROM item WHERE a IN (0, 1)") == [("other",)]
        assert (one.said, three.said) == ("hit", "hit")
        stamp = _WORDS + "SELECT '2026-01-01 00:00+00'::timestamptz::text"
        one.connection.execute("SET TimeZone = 'Asia/Tokyo'")
        assert (one.ask(stamp), two.ask(stamp)) == ([("2026-01-01 09:00:00+09",)], [("2026-01-01 00:00:00+00",)])
        assert one.ask(stamp) == [("2026-01-01 09:00:00+09",)] and one.said == "hit"
        one.connection.execute("SET TimeZone = 'UTC'")
        assert one.ask(stamp) == [("2026-01-01 00:00:00+00",)] and one.said == "miss"
        assert two.ask(_WORDS + "SELECT 1") == [(1,)]
        with Client(database, client_encoding="LATIN1") as four:
            assert (four.ask(_WORDS + "SELECT 'ä'"), one.ask(_WORDS + "SELECT 'ä'")) == ([("ä",)], [("ä",)])


def test_the_setting_of_a_session(database: MadeDatabase) -> None:
    with Client(database) as one, Client(database, options=r"-c torpor.cache=ttl=600\ status -c work_mem=7MB") as two:
        one.connection.execute("SET torpor.cache = 'ttl=600 status'")
        assert (one.ask("SELECT count(*) FROM item"), one.said) == ([(100,)], "miss")
        assert (one.ask("SELECT count(*) FROM item"), one.said) == ([(100,)], "hit")
        assert (two.ask("SHOW work_mem"), two.said) == ([("7MB",)], "bypass (not a read)")
        two.ask("SELECT 5"), two.ask("SELECT 5")
        assert two.said == "hit"
        two.connection.execute("SET torpor.cache = off")
        two.ask("SELECT 5")
        assert two.said == ""
        one.connection.execute("DISCARD ALL")
        one.ask("SELECT count(*) FROM item")
        assert one.said == ""
    with Client(database, "auto") as three:
        three.connection.execute("SET torpor.cache TO 'ttl=600 status'", prepare=True)
        three.ask("SELECT 6")
        assert three.said == "miss", "it pins nobody"


def test_stale_ones_are_made_anew_behind_the_clients_back(database: MadeDatabase) -> None:
    with Client(database) as one:
        text = "/* ttl=1 swr=600 force status */ SELECT nextval('turn')"
        first = one.ask(text, prepare=False)

        def is_made_anew() -> bool:
            return one.ask(text, prepare=False) != first

        eventually(is_made_anew)
        assert one.said in ("hit", "stale")


def test_many_that_miss_at_once_ask_once(database: MadeDatabase) -> None:
    text = "/* ttl=600 force */ SELECT nextval('turn'), pg_sleep(0.3)"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(database)) for _ in range(8)]
        answers: list[object] = []
        threads = [threading.Thread(target=lambda client=client: answers.append(client.ask(text)[0][0])) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 8 and len(set(answers)) == 1


def test_when_the_backend_of_the_first_dies_the_others_are_served(database: MadeDatabase) -> None:
    text = "/* ttl=600 force */ SELECT 'served', pg_sleep(CASE WHEN (SELECT last_value FROM gate) = 1 THEN 60 ELSE 0 END)"
    with Client(database, "auto") as boss, Client(database) as first, Client(database) as second:
        boss.connection.execute("CREATE SEQUENCE gate")
        boss.connection.execute("SELECT pg_advisory_lock(1)")
        told: list[object] = []

        def ask(client: Client) -> None:
            try:
                told.append(client.ask(text)[0][0])
            except psycopg.OperationalError:
                told.append("lost")

        threads = [threading.Thread(target=ask, args=(client,)) for client in (first, second)]
        threads[0].start()
        sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        eventually(lambda: boss.ask(sleeping) != [])
        threads[1].start()
        boss.connection.execute("SELECT setval('gate', 2)")
        ((pid,),) = boss.ask(sleeping)
        boss.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        for thread in threads:
            thread.join()
        assert sorted(map(str, told)) == ["lost", "served"]


def test_what_waits_for_another_can_be_cancelled(database: MadeDatabase) -> None:
    text = "/* ttl=600 force */ SELECT pg_sleep(60)"
    with Client(database, "auto") as boss, Client(database) as first, Client(database) as second:
        boss.connection.execute("SELECT pg_advisory_lock(1)")
        failed: list[object] = []

        def ask(client: Client) -> None:
            try:
                client.ask(text)
            except psycopg.errors.QueryCanceled as error:
                failed.append(error.sqlstate)

        threads = [threading.Thread(target=ask, args=(client,)) for client in (first, second)]
        threads[0].start()
        eventually(lambda: boss.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == [(1,)])
        threads[1].start()
        for thread, client in ((threads[1], second), (threads[0], first)):
            while thread.is_alive():  # it may not have asked yet
                client.connection.cancel_safe()
                thread.join(0.1)
        assert failed == ["57014"] * 2
        assert second.ask("SELECT 1") == first.ask("SELECT 2 - 1") == [(1,)]


def test_large_results_stream_and_are_not_kept(database: MadeDatabase) -> None:
    with Client(database) as one:
        text = _WORDS + "SELECT repeat('x', 10000) FROM generate_series(1, 2000)"
        for _ in range(2):
            assert len(one.ask(text)) == 2000
            assert one.said == "bypass (too large)"


def test_figures_are_shown(torpor: Server, database: MadeDatabase) -> None:
    with Client(database) as one:
        one.ask(_WORDS + "SELECT 77"), one.ask(_WORDS + "SELECT 77")
        eventually(lambda: (torpor.view(database.name)["database"]["pool"] or {"cache": {"hits": 0}})["cache"]["hits"] > 0)


@pytest.fixture
def written(torpor: Server, database: MadeDatabase) -> Iterator[MadeDatabase]:
    """Writes drop what was read, as long as the test runs."""
    torpor.call("PATCH", f"/v1/databases/{database.name}/cache", {"on_write": True})
    yield database
    torpor.call("PATCH", f"/v1/databases/{database.name}/cache", {"on_write": False})


def test_nothing_older_than_an_acknowledged_write_is_served(written: MadeDatabase) -> None:
    """The bound is zero: whoever asks after a writer was told of its commit is given that value, or a later one."""
    with psycopg.connect(written.url, autocommit=True) as direct:
        direct.execute("CREATE TABLE IF NOT EXISTS clock (a integer)")
        direct.execute("TRUNCATE clock")
        direct.execute("INSERT INTO clock VALUES (0)")
        acknowledged = 0
        is_over = False
        read: list[int] = []
        wrong: list[tuple[int, object]] = []

        def reads(prepare: bool) -> None:
            with Client(written) as client:
                hits = 0
                while not is_over:
                    least = acknowledged
                    value = client.ask("/* ttl=600 swr=600 status */ SELECT a FROM clock", prepare=prepare)[0][0]
                    hits += client.said == "hit"
                    if not isinstance(value, int) or value < least:
                        wrong.append((least, value))
                read.append(hits)

        threads = [threading.Thread(target=reads, args=(prepare,)) for prepare in (False, True, False)]
        for thread in threads:
            thread.start()
        for number in range(1, 200):
            direct.execute("UPDATE clock SET a = %s", (number,))
            acknowledged = number
            with Client(written) if number % 50 == 0 else contextlib.nullcontext() as pooled:
                if pooled is not None:  # what the pool itself writes counts as well
                    pooled.connection.execute("UPDATE clock SET a = a")
        is_over = True
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(read) == 3


def test_writes_of_all_kinds_are_seen_and_others_leave_it(torpor: Server, written: MadeDatabase) -> None:
    text = _WORDS + "SELECT coalesce(sum(a), 0) FROM books"
    with Client(written) as one, psycopg.connect(written.url, autocommit=True) as direct:
        direct.execute("CREATE TABLE books (a integer PRIMARY KEY)")
        direct.execute("CREATE TABLE pages (book integer REFERENCES books ON DELETE CASCADE)")
        direct.execute("CREATE TABLE elsewhere (a integer)")
        expected = 0
        for change, difference in (
            ("INSERT INTO books VALUES (1), (2)", 3),
            ("UPDATE books SET a = 5 WHERE a = 2", 3),
            ("DELETE FROM books WHERE a = 1", -1),
            ("DO $$ BEGIN INSERT INTO books VALUES (7); END $$", 7),
            ("WITH x AS (INSERT INTO books VALUES (8) RETURNING 1) SELECT * FROM x", 8),
            ("MERGE INTO books USING (VALUES (9)) v (n) ON a = n WHEN NOT MATCHED THEN INSERT VALUES (n)", 9),
            ("BEGIN; TRUNCATE books CASCADE; COMMIT", -29),
            ("COPY books FROM PROGRAM 'echo 4'", 4),
            ("ALTER TABLE books ADD b integer", 0),
        ):
            one.ask(text)
            assert one.ask(text) == [(expected,)] and one.said == "hit"
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                direct.execute(change)
                expected += difference
                assert one.ask(text) == [(expected,)] and one.said == "miss", change
        one.ask(text)
        with direct.transaction(force_rollback=True):
            direct.execute("INSERT INTO books VALUES (100)")
            assert one.ask(text) == [(expected,)] and one.said == "hit", "it isn't committed"
        direct.execute("INSERT INTO elsewhere VALUES (1)")
        assert one.ask(text) == [(expected,)] and one.said == "hit"
        pages = _WORDS + "SELECT count(*) FROM pages"
        direct.execute("INSERT INTO books VALUES (50)")
        direct.execute("INSERT INTO pages VALUES (50)")
        assert one.ask(pages) == [(1,)]
        direct.execute("DELETE FROM books WHERE a = 50")
        assert one.ask(pages) == [(0,)] and one.said == "miss", "what a foreign key does counts as well"
        one.ask(pages)
        torpor.call("POST", f"/v1/databases/{written.name}/cache/purge", {"by": "table", "values": ["pages"]})
        one.ask(pages)
        assert one.said == "miss"


def test_when_postgresql_ends_what_is_kept_is_served_and_the_rest_made_anew(torpor: Server) -> None:
    made = torpor.create()
    with Client(made) as one:
        one.connection.execute("CREATE TABLE item AS SELECT 1 AS a")
        assert one.ask(_WORDS + "SELECT a FROM item") == [(1,)]
        os.kill(torpor.postmaster(made), signal.SIGKILL)
        eventually(lambda: torpor.tier(made.name) == "stopped")
        assert one.ask(_WORDS + "SELECT a FROM item") == [(1,)] and one.said == "hit"
        assert torpor.tier(made.name) == "stopped"
        assert one.ask(_WORDS + "SELECT a + 1 FROM item") == [(2,)] and one.said == "miss"


def test_drivers_that_remember_columns_hear_that_they_have_changed(torpor: Server, database: MadeDatabase) -> None:
    text = "/* ttl=600 */ SELECT * FROM growing"

    async def ask() -> list[int]:
        one, two = [await asyncpg.connect(database.url + "@pool") for _ in range(2)]
        try:
            widths = [len((await each.fetch(text))[0]) for each in (one, two, one, two)]
            await one.execute("ALTER TABLE growing ADD c integer")
            torpor.call("POST", f"/v1/databases/{database.name}/cache/purge", {"by": "table", "values": ["public.growing"]})
            widths += [len((await each.fetch(text))[0]) for each in (one, two, one, two)]
        finally:
            await one.close()
            await two.close()
        return widths

    with psycopg.connect(database.url, autocommit=True) as direct:
        direct.execute("CREATE TABLE growing AS SELECT 1 AS a, 2 AS b")
    assert asyncio.run(ask()) == [2] * 4 + [3] * 4
