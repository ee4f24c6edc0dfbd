"""Restore drills on real databases: what passes, and damage of every kind, each with its cause. Nothing is touched, and nothing is left."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.branching import connect, volume
from tests.support.drilling import HASTE, NEWEST, drill, flip, last, metrics, objects, with_repository
from tests.support.faults import assert_nothing_half_made, put_to_sleep, stop_database
from tests.support.histories import back_up, finished, server_with_history, wait_shipped
from tests.support.server import MadeDatabase, Server
from torpor.storage.archive.repository import Repository

pytestmark = [pytest.mark.integration, pytest.mark.slow]

_STORE_FAILS = """
import os, torpor.storage.archive.directory as b
from torpor.model.errors import HistoryUnreachable
_get = b.DirectoryBucket.get
async def get(self, key):
    if os.path.exists(self._root / "fails"):
        raise HistoryUnreachable("the store does not answer")
    return await _get(self, key)
b.DirectoryBucket.get = get
import torpor.storage.archive.store as s
s.Store.__init__.__kwdefaults__["attempts"] = 2
"""


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Server, Path]]:
    asleep_when_asked = {"freeze_after_s": "never", "page_after_s": "never", "stop_after_s": "never"}
    with server_with_history(HASTE + NEWEST + _STORE_FAILS, **asleep_when_asked) as (server, store):
        yield server, store
        assert "Traceback" not in server.log, server.log[-6000:]


def filled(server: Server, name: str) -> MadeDatabase:
    """A database with a base, and a thousand rows in a table and its index."""
    made = server.create(name)
    with connect(made.url) as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO things SELECT n, 'thing ' || n FROM generate_series(1, 1000) n")
    return made


def failed(server: Server, name: str, cause: str) -> str:
    """What a drill says of it that must fail for that cause."""
    job = drill(server, name)
    assert (job["state"], job["error"]["kind"]) == ("failed", "drill_failed"), job
    found = last(server, name)
    assert (found["result"], found["cause"]) == ("failed", cause), found
    assert found["hint"] and job["error"]["hint"] == found["hint"]
    return str(found["detail"])


def failing(server: Server) -> set[str]:
    """Whose last drill failed."""
    found = server.call("GET", "/v1/drills?result=failed")
    assert found["failing"] == len(found["drills"])
    return {each["database"] for each in found["drills"]}


def test_a_history_that_is_whole(place: tuple[Server, Path]) -> None:
    server, _ = place
    shop = filled(server, "shop")
    back_up(server, "shop")
    with connect(shop.url) as connection:
        connection.execute("INSERT INTO things SELECT n, 'more' FROM generate_series(1001, 1500) n")
    wait_shipped(server, "shop")
    stop_database(server, shop)
    before = server.view("shop")["database"]
    job = drill(server, "shop")
    assert job["state"] == "done", job
    assert set(job["result"]["checked"].split(", ")) == {"checksums", "amcheck", "rows"}
    found = last(server, "shop")
    assert found["result"] == "passed" and found["rows"] > 1500 and found["tables"] > 60 and found["moment"] == "the newest"
    after = server.view("shop")
    assert after["database"] == before, "the database itself was not touched, nor woken"
    assert after["history"]["drill"] == found
    assert server.call("GET", "/v1/drills")["verified"] >= 1
    assert 'torpor_drills_total{result="passed"}' in metrics(server)
    assert_nothing_half_made(server)


def test_bytes_that_changed_in_the_store(place: tuple[Server, Path]) -> None:
    server, store = place
    made = filled(server, "changed")
    back_up(server, "changed")
    wait_shipped(server, "changed")
    largest = max(objects(store, made, "chunks"), key=lambda path: path.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
    failed(server, "changed", "stored_damaged")
    largest.unlink()
    failed(server, "changed", "stored_missing")
    assert "changed" in failing(server)
    before = len(failing(server))
    assert f"torpor_drills_failing {before}\n" in metrics(server)
    back_up(server, "changed")  # as the hint says
    wait_shipped(server, "changed")
    assert drill(server, "changed")["state"] == "done"
    assert "changed" not in failing(server)
    assert f"torpor_drills_failing {before - 1}\n" in metrics(server)


def test_log_that_is_missing(place: tuple[Server, Path]) -> None:
    server, store = place
    made = filled(server, "lost")
    back_up(server, "lost")
    for turn in range(3):
        with connect(made.url) as connection:
            connection.execute("INSERT INTO things VALUES (%s, 'later')", (2000 + turn,))
        wait_shipped(server, "lost")
    pieces = objects(store, made, "wal")
    assert len(pieces) > 2
    pieces[-2].unlink()
    assert "the log is missing from" in failed(server, "lost", "log_gap")


def test_log_that_can_not_be_replayed(place: tuple[Server, Path]) -> None:
    """PostgreSQL ends its replay there without a complaint: that would be a restore that lost what came after it."""
    server, store = place
    made = filled(server, "torn")
    back_up(server, "torn")
    with connect(made.url) as connection:
        connection.execute("INSERT INTO things SELECT n, repeat('x', 100) FROM generate_series(2000, 4000) n")
    wait_shipped(server, "torn")

    async def damage(repository: Repository) -> None:
        (base,) = await repository.bases()
        later = [piece for piece in await repository.wal_pieces() if piece.start_lsn >= base.facts.stop_lsn]
        piece = max(later, key=lambda piece: piece.end_lsn - piece.start_lsn)
        async for at, data in repository.wal(piece.timeline, piece.start_lsn, piece.end_lsn):
            middle = len(data) // 2
            await repository.put_wal(piece.timeline, at, data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])

    with_repository(server, store, made, damage)
    assert "though it goes on" in failed(server, "torn", "log_unreadable")


def test_a_page_that_was_damaged_before_it_was_copied(place: tuple[Server, Path]) -> None:
    server, _ = place
    made = filled(server, "rotten")
    with connect(made.url) as connection:
        row = connection.execute("SELECT pg_relation_filepath('things')").fetchone()
    assert row is not None
    stop_database(server, made)
    flip(volume(server, made) / "data" / str(row[0]), 8192 + 4000)
    back_up(server, "rotten")
    wait_shipped(server, "rotten")
    assert f"{row[0]}, block 1" in failed(server, "rotten", "checksums")


def test_an_index_that_does_not_fit_its_table(place: tuple[Server, Path]) -> None:
    server, _ = place
    made = filled(server, "crooked")
    with connect(made.url) as connection:
        connection.execute("CREATE FUNCTION twist(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        connection.execute("CREATE INDEX twisted ON things (twist(id))")
        connection.execute("CREATE OR REPLACE FUNCTION twist(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT -$1'")
    back_up(server, "crooked")
    wait_shipped(server, "crooked")
    assert "twisted" in failed(server, "crooked", "amcheck")


def test_a_store_that_fails_says_nothing_of_the_history(place: tuple[Server, Path]) -> None:
    server, store = place
    filled(server, "away")
    back_up(server, "away")
    wait_shipped(server, "away")
    assert drill(server, "away")["state"] == "done"
    (store / "fails").touch()
    try:
        job = drill(server, "away")
    finally:
        (store / "fails").unlink()
    assert (job["state"], job["error"]["kind"]) == ("failed", "drill_not_possible"), job
    assert last(server, "away")["cause"] == "store"
    assert server.view("away")["history"]["drill"]["result"] == "passed", "what was found before stands"
    job = server.call("POST", "/v1/databases/away/drills")
    server.call("DELETE", "/v1/databases/away?force=true")
    ended = finished(server, job)
    assert ended["state"] == "done" or ended["error"]["kind"] == "conflict", ended  # it was removed meanwhile
    assert_nothing_half_made(server)
    assert all(each["database"] != "away" for each in server.call("GET", "/v1/drills")["drills"])


def test_a_frozen_one_sleeps_on_beside_it(place: tuple[Server, Path]) -> None:
    server, _ = place
    made = filled(server, "asleep")
    back_up(server, "asleep")
    wait_shipped(server, "asleep")
    with psycopg.connect(made.url) as connection:
        connection.execute("SELECT 1")
        connection.commit()
        put_to_sleep(server, made)
        before = server.view("asleep")["database"]
        began = time.time()
        assert drill(server, "asleep")["state"] == "done"
        after = server.view("asleep")["database"]
        assert (after["tier"], after["tier_since"], after["wakes"]) == ("frozen", before["tier_since"], before["wakes"])
        assert after["tier_since"] < began
    assert_nothing_half_made(server)
