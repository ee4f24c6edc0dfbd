"""Major upgrades of real databases from 17 to 18 and back, and what stands against them."""

import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.support.branching import check_pages
from tests.support.faults import assert_nothing_half_made, eventually, refusal_of, stop_database
from tests.support.histories import back_up, done, finished, past_branch, server_with_history, wait_shipped
from tests.support.server import MadeDatabase, Server

CONTENT = """
CREATE TABLE things (id int PRIMARY KEY, name text NOT NULL UNIQUE, made timestamptz DEFAULT now());
INSERT INTO things SELECT id, 'thing ' || id FROM generate_series(1, 2000) AS id;
CREATE SEQUENCE numbers;
SELECT setval('numbers', 4711);
CREATE MATERIALIZED VIEW few AS SELECT * FROM things WHERE id < 10;
CREATE MATERIALIZED VIEW none AS SELECT * FROM things WITH NO DATA;
CREATE SCHEMA "Odd ""one";
CREATE TABLE "Odd ""one"."tab\tle" (x int);
CREATE TABLE parts (at int) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE UNLOGGED TABLE quick AS SELECT 1 AS x;
CREATE EXTENSION hstore;
CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql AS 'SELECT 2 * x';
CREATE ROLE reader LOGIN PASSWORD 'read';
CREATE STATISTICS pairs ON id, name FROM things;
"""


HOSTILE = """
CREATE SCHEMA evil;
CREATE FUNCTION evil.format(text, variadic text[]) RETURNS text LANGUAGE sql AS $$ SELECT 'DROP TABLE things' $$;
CREATE FUNCTION evil.count(text) RETURNS bigint LANGUAGE sql AS 'SELECT 666::bigint';
CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'not you'; END $$;
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nothing is made here'; END $$;
CREATE FUNCTION refuse_torpor() RETURNS event_trigger LANGUAGE plpgsql
    AS $$ BEGIN IF session_user = 'torpor' THEN RAISE 'stay out'; END IF; END $$;
CREATE TABLE things AS SELECT id FROM generate_series(1, 7) AS id;
CREATE TABLE checked (x int CHECK (evil.lower(x::text) = 'x'));
ALTER TABLE things ENABLE ROW LEVEL SECURITY;
ALTER TABLE things FORCE ROW LEVEL SECURITY;
DO $$ BEGIN FOR n IN 1..100 LOOP EXECUTE 'CREATE TABLE many_' || n || ' (id int PRIMARY KEY, name text)'; END LOOP; END $$;
CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION refuse_torpor();
CREATE EVENT TRIGGER at_ddl ON ddl_command_start EXECUTE FUNCTION refuse();
ALTER EVENT TRIGGER at_login ENABLE ALWAYS;
ALTER ROLE torpor SET search_path = evil, pg_catalog;
ALTER ROLE torpor SET statement_timeout = 1;
ALTER DATABASE hostile SET default_transaction_read_only = on;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_history(tenant_superuser=True, freeze_after_s=60, page_after_s="never", stop_after_s="never") as (server, _):
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def connect(database: MadeDatabase, inner: str | None = None) -> "psycopg.Connection[tuple[object, ...]]":
    url = database.url_as(inner, database.password, inner) if inner else database.url
    return psycopg.connect(url, autocommit=True, connect_timeout=40)


def major(database: MadeDatabase, inner: str | None = None) -> int:
    with connect(database, inner) as connection:
        return connection.info.server_version // 10000


def upgrade(server: Server, name: str, **body: object) -> dict[str, str]:
    return done(server, server.call("POST", f"/v1/databases/{name}/upgrade", {"to": 18, **body}))


def nothing_is_left(server: Server) -> None:
    """Once bases that were being taken unasked of what was removed are given up."""
    eventually(lambda: not list((server.data_dir / "volumes").glob(".making-base-*")))
    assert_nothing_half_made(server)


def test_there_and_back(server: Server) -> None:
    shop = server.create("shop", major=17)
    with closing(connect(shop)) as connection:
        connection.execute(CONTENT)
        connection.execute("CREATE TABLE extra (x int)")
        back_up(server, "shop")
        at = time.time()
        time.sleep(0.01)
        connection.execute("DROP TABLE extra")
        connection.execute("BEGIN")  # somebody who is idle in a transaction
        connection.execute("INSERT INTO parts VALUES (1)")
        wait_shipped(server, "shop")
        status, error = server.refusal("POST", "/v1/databases/shop/upgrade", {"to": 18})
        assert (status, error["kind"]) == (409, "database_in_use")
        result = upgrade(server, "shop", force=True)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COMMIT")
    assert result | {"unavailable_s": ""} == {"database": "shop", "from": "17", "to": "18", "before": "shop-before-18", "unavailable_s": ""}
    assert server.view("shop")["database"]["major"] == 18
    assert server.view("shop-before-18")["database"]["major"] == 17
    with connect(shop) as connection:
        assert connection.info.server_version // 10000 == 18
        assert connection.execute("SELECT count(*), sum(twice(id)) FROM things").fetchone() == (2000, 4_002_000)
        assert connection.execute("SELECT nextval('numbers'), (SELECT x FROM quick)").fetchone() == (4712, 1)
        assert connection.execute("SELECT count(*) FROM parts").fetchone() == (0,)
        assert connection.execute("SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'things'").fetchone() == (True,)
        assert connection.execute("SELECT count(*) FROM pg_stats_ext WHERE statistics_name = 'pairs'").fetchone() == (1,)
        connection.execute("INSERT INTO parts VALUES (2)")
    with psycopg.connect(shop.url_as("reader", "read", "shop")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with connect(shop, "shop-before-18") as connection:
        assert connection.info.server_version // 10000 == 17
        assert connection.execute("SELECT count(*) FROM parts").fetchone() == (0,)
    # The past goes on: what was before the upgrade is of the old major.
    then = past_branch(server, "shop", "shop-then", at=at)
    assert server.view("shop-then")["database"]["major"] == 17
    with connect(then) as connection:
        assert connection.info.server_version // 10000 == 17
        assert connection.execute("SELECT count(*) FROM extra").fetchone() == (0,)
    # And back, and again.
    for expected in (17, 18):
        undone = done(server, server.call("POST", "/v1/databases/shop/upgrade/undo", {"force": True}))
        assert undone["before"] == "shop-before-18"
        with connect(shop) as connection:
            assert connection.info.server_version // 10000 == expected
            assert connection.execute("SELECT count(*) FROM parts").fetchone() == (expected - 17,)
        assert major(shop, "shop-before-18") == 35 - expected
    for name in ("shop-then", "shop-before-18"):
        server.call("DELETE", f"/v1/databases/{name}?force=true")
    stop_database(server, shop)
    check_pages(server, shop)
    status, error = server.refusal("POST", "/v1/databases/shop/upgrade/undo", {"force": True})
    assert status == 409
    for to in (18, 17):
        assert server.refusal("POST", "/v1/databases/shop/upgrade", {"to": to})[0] == 400
    server.call("DELETE", "/v1/databases/shop?force=true")
    nothing_is_left(server)


def test_what_stands_against_it_is_said_and_nothing_is_changed(server: Server) -> None:
    shop = server.create("bad", major=17)
    with connect(shop) as connection:
        connection.execute("CREATE TABLE notes (id int, kind regproc)")
        # A client is idle all the while: what can't be done ends no session.
        job = finished(server, server.call("POST", "/v1/databases/bad/upgrade", {"to": 18, "force": True}))
        assert (job["state"], job["error"]["kind"]) == ("failed", "upgrade_refused")
        assert "notes.kind" in job["error"]["message"]
        assert "another type" in job["error"]["hint"]
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert refusal_of(shop.url_as("bad", "wrong", "bad"))[0] == "28P01"
    assert server.view("bad")["database"]["major"] == 17
    assert server.refusal("POST", "/v1/databases/bad/upgrade", {"to": 99})[1]["hint"].startswith("install it")
    server.call("DELETE", "/v1/databases/bad?force=true")
    nothing_is_left(server)


def test_a_hostile_one(server: Server) -> None:
    """Its functions, triggers and settings run into nothing, its odd databases come along."""
    hostile = server.create("hostile", major=17, superuser=True)
    with connect(hostile) as connection:
        connection.execute('CREATE DATABASE "a \'b\' ""c"" =d"')
        connection.execute("CREATE DATABASE bare")
        connection.execute("ALTER SYSTEM SET unix_socket_directories = '/nowhere'")
        with psycopg.connect(hostile.url_as("hostile", hostile.password, "hostile.bare")) as other:
            other.execute("DROP SCHEMA public")
        connection.execute(HOSTILE)
    upgrade(server, "hostile", check=True)  # says that all of it is there afterwards, rows and all
    with connect(hostile) as connection:
        assert connection.info.server_version // 10000 == 17
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (7,)
    server.call("DELETE", "/v1/databases/hostile?force=true")
    nothing_is_left(server)
