"""Histories of real databases: what was committed is in the store in time, and comes back as it was at any moment."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.faults import Inserter, eventually, put_to_sleep, stop_database
from tests.support.files import files_below
from tests.support.histories import back_up, done, finished, past_branch, server_with_history, shipping, wait_shipped
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server
from torpor.model.lsn import parse_lsn, segment_name

Made = tuple[Server, Path]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """A Torpor with histories; databases sleep when they are told to."""
    with server_with_history(freeze_after_s="never", page_after_s="never", stop_after_s="never") as (server, store):
        yield server, store
        assert "Traceback" not in server.log, server.log[-6000:]


def rows(url: str) -> int:
    with psycopg.connect(url, connect_timeout=40) as connection:
        found = connection.execute("SELECT count(*) FROM acknowledged").fetchone()
    assert found is not None
    return int(found[0])


def make(server: Server, name: str) -> MadeDatabase:
    """A database with a table and a base."""
    database = server.create(name)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE acknowledged (client int, number int, at timestamptz DEFAULT clock_timestamp())")
    back_up(server, name)
    return database


def remove(server: Server, *names: str) -> None:
    for name in names:
        server.call("DELETE", f"/v1/databases/{name}?force=true")


def test_moments(made: Made) -> None:
    server, _ = made
    shop = make(server, "moments")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        insert = "INSERT INTO acknowledged VALUES (0, %s) RETURNING extract(epoch FROM clock_timestamp())::float8"
        for number in range(50):
            row = connection.execute(insert, (number,)).fetchone()
        assert row is not None
        at = float(row[0]) + 0.001
        time.sleep(0.005)
        row = connection.execute("INSERT INTO acknowledged VALUES (0, 50) RETURNING pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        transaction = row[0]
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        lsn = row[0]
        for number in range(51, 80):
            connection.execute(insert, (number,))
    for name, moment, count in (
        ("at", {"at": at}, 50),
        ("before", {"before_transaction": transaction}, 50),
        ("lsn", {"lsn": lsn}, 51),
        ("now", {"at": time.time()}, 80),
    ):
        then = past_branch(server, "moments", name, **moment)
        assert rows(then.url) == count, name
        with psycopg.connect(then.url) as connection:
            assert connection.execute("SELECT current_database(), current_user, pg_is_in_recovery()").fetchone() == (name, name, False)
        remove(server, name)
    window = server.call("GET", "/v1/databases/moments/history")["windows"][-1]
    assert window["from_at"] < at < window["to_at"]
    assert parse_lsn(window["from_lsn"]) < parse_lsn(lsn) <= parse_lsn(window["to_lsn"])
    too_early = {"name": "never", "at": window["from_at"] - 10}
    view = finished(server, server.call("POST", "/v1/databases/moments/branches/past", too_early)["job"])
    assert (view["state"], view["error"]["kind"]) == ("failed", "history_missing")
    assert server.refusal("GET", "/v1/databases/never")[0] == 404
    remove(server, "moments")


def test_behind_by_seconds_while_awake_and_by_nothing_asleep(made: Made) -> None:
    server, _ = made
    orders = make(server, "orders")
    inserter, worst = Inserter(orders.url, 0), 0.0
    until = time.monotonic() + 4
    while time.monotonic() < until:
        seen = shipping(server, "orders")["shipped_at"]
        worst = max(worst, time.time() - seen)
        time.sleep(0.05)
    inserter.stop()
    assert inserter.acknowledged > 10
    assert in_time(worst, 5.0)
    with psycopg.connect(orders.url) as connection:
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    put_to_sleep(server, orders)
    assert shipping(server, "orders")["behind_bytes"] == 0
    assert parse_lsn(server.call("GET", "/v1/databases/orders/history")["windows"][-1]["to_lsn"]) >= parse_lsn(row[0])
    # What was committed is there however much time has passed since it fell asleep.
    then = past_branch(server, "orders", "orders-then", at=time.time())
    assert rows(then.url) == inserter.acknowledged
    remove(server, "orders", "orders-then")


def test_a_store_that_fails_holds_up_nobody(made: Made) -> None:
    """It is a file where there was a directory: nothing can be written until it is put back."""
    server, store = made
    shop = make(server, "unlucky")
    gone = store.with_name(f"{store.name}-gone")
    store.rename(gone)
    store.touch()
    try:
        with psycopg.connect(shop.url, autocommit=True) as connection:
            for number in range(20):
                connection.execute("INSERT INTO acknowledged VALUES (0, %s)", (number,))
            eventually(lambda: shipping(server, "unlucky")["trouble"])
            connection.execute("INSERT INTO acknowledged VALUES (0, 20)")
        began = time.monotonic()
        stop_database(server, shop)
        assert in_time(time.monotonic() - began, 10.0)
        behind = shipping(server, "unlucky")
        assert behind["behind_bytes"] > 0
        assert "history" in behind["trouble"] or "directory" in behind["trouble"]
    finally:
        store.unlink()
        gone.rename(store)
    eventually(lambda: shipping(server, "unlucky")["behind_bytes"] == 0, 60)
    assert server.tier("unlucky") == "stopped"  # it was shipped from the sleeping volume
    assert rows(past_branch(server, "unlucky", "unlucky-then").url) == 21
    remove(server, "unlucky", "unlucky-then")


def test_killed_while_it_ships(made: Made) -> None:
    server, _ = made
    shop = make(server, "killed")
    inserter = Inserter(shop.url, 0)
    wait_shipped(server, "killed")
    server.kill()
    time.sleep(0.2)
    server.start()
    inserter.stop()
    assert inserter.acknowledged > 10
    wait_shipped(server, "killed")
    assert rows(past_branch(server, "killed", "killed-then").url) == inserter.acknowledged
    assert len(server.call("GET", "/v1/databases/killed/history")["windows"]) == 1  # no gap
    remove(server, "killed", "killed-then")


def test_log_that_is_gone_begins_a_run(made: Made) -> None:
    """It is said, what was before can still be restored, and a new base is taken at once."""
    server, _ = made
    shop = make(server, "gone")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("INSERT INTO acknowledged VALUES (0, 0)")
        wait_shipped(server, "gone")
        shipped = parse_lsn(server.call("GET", "/v1/databases/gone/history")["windows"][-1]["to_lsn"])
        server.kill()
        connection.execute("CREATE TABLE much AS SELECT md5(i::text) FROM generate_series(1, 60000) i")
        connection.execute("INSERT INTO acknowledged VALUES (0, 1)")
        (server.data_dir / "volumes" / shop.id / "data/pg_wal" / segment_name(1, shipped - 1, 1 << 20)).unlink()
        server.start()
        eventually(lambda: shipping(server, "gone")["broken"])
        eventually(lambda: len(server.call("GET", "/v1/databases/gone/history")["windows"]) == 2)
        connection.execute("INSERT INTO acknowledged VALUES (0, 2)")
    assert rows(past_branch(server, "gone", "gone-newest").url) == 3
    first = server.call("GET", "/v1/databases/gone/history")["windows"][0]
    assert rows(past_branch(server, "gone", "gone-before", lsn=first["to_lsn"]).url) == 1
    remove(server, "gone", "gone-newest", "gone-before")


def test_damage_is_told_and_leaves_nothing(made: Made) -> None:
    server, store = made
    make(server, "damaged")
    id = server.view("damaged")["database"]["id"]
    for chunk in files_below(store / "databases" / id / "chunks"):
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    view = finished(server, server.call("POST", "/v1/databases/damaged/branches/past", {"name": "never"})["job"])
    assert (view["state"], view["error"]["kind"]) == ("failed", "history_corrupt")
    assert server.refusal("GET", "/v1/databases/never")[0] == 404
    assert {path.name for path in (server.data_dir / "volumes").iterdir() if path.name.startswith("d")} == {id}
    remove(server, "damaged")
    eventually(lambda: not (store / "databases" / id).exists(), 90)  # with its key; the objects within a minute


def test_retention(made: Made) -> None:
    server, _ = made
    make(server, "kept")
    back_up(server, "kept")
    kept = server.call("PATCH", "/v1/databases/kept/history", {"keep_days": 30, "keep_bases": 1})
    assert (kept["keep_s"], kept["keep_bases"], sorted(kept["own"])) == (30 * 86_400, 1, ["keep_bases", "keep_s"])
    back_up(server, "kept")
    assert [base["number"] for base in server.call("GET", "/v1/databases/kept/backups")["bases"]] == [3]
    kept = server.call("PATCH", "/v1/databases/kept/history", {"keep_bases": None})
    assert (kept["keep_s"], kept["keep_bases"], kept["own"]) == (30 * 86_400, 30, ["keep_s"])
    remove(server, "kept")


def test_in_place_and_back(made: Made) -> None:
    server, _ = made
    shop = make(server, "replaced")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("INSERT INTO acknowledged VALUES (0, 0)")
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None
        at = float(row[0])
        time.sleep(0.01)
        connection.execute("INSERT INTO acknowledged VALUES (0, 1)")
        status, error = server.refusal("POST", "/v1/databases/replaced/restore", {"at": at})
        assert (status, error["kind"]) == (409, "database_in_use")
    eventually(lambda: not server.view("replaced")["database"]["connections"])
    before = done(server, server.call("POST", "/v1/databases/replaced/restore", {"at": at, "force": True}))["before"]
    kept = shop.url_as(before, shop.password, before)
    assert server.view("replaced")["database"]["id"] == shop.id
    assert (rows(shop.url), rows(kept)) == (1, 2)
    done(server, server.call("POST", "/v1/databases/replaced/restore/undo", {"force": True}))
    assert (rows(shop.url), rows(kept)) == (2, 1)
    # Its history goes on: what was before the restore can still be had.
    back_up(server, "replaced")
    assert rows(past_branch(server, "replaced", "then", at=at).url) == 1
    remove(server, "then", before)
    assert server.refusal("POST", "/v1/databases/replaced/restore/undo", {})[1]["kind"] == "conflict"
    remove(server, "replaced")
