"""Limits over their line, before real PostgreSQL: what is refused, what it says, and that others and open connections feel nothing."""

import select
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.faults import eventually, put_to_sleep
from tests.support.faults import refusal_of as refusal
from tests.support.pace import in_time
from tests.support.server import MadeDatabase, Server

WAKES_A_MINUTE = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        freeze_after_s=60,
        page_after_s="never",
        stop_after_s="never",
        tls="off",
        failed_login_penalty_s=600,
        wake_rate_per_database=f"100/{WAKES_A_MINUTE / 60}/1",
    ) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def connect(database: MadeDatabase) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database.url, autocommit=True, connect_timeout=40, sslmode="disable")


def refusal_of(url: str) -> tuple[str, str]:
    """SQLSTATE and text, of one attempt: with sslmode=prefer libpq makes two."""
    return refusal(f"{url}?sslmode=disable")


def test_who_is_woken_too_often_sleeps_on_and_nobody_else_is_concerned(server: Server) -> None:
    often, quiet = server.create(), server.create()
    with connect(often) as kept:
        for _ in range(WAKES_A_MINUTE + 1):
            put_to_sleep(server, often)
            try:
                connect(often).close()
            except psycopg.OperationalError:
                break
        put_to_sleep(server, often)
        put_to_sleep(server, quiet)
        wakes = server.view(often.name)["database"]["wakes"]
        sqlstate, text = refusal_of(often.url)
        assert sqlstate == "53400"
        assert f'database "{often.name}" was woken too often' in text
        assert "try again in " in text
        assert server.tier(often.name) == "frozen"
        assert server.view(often.name)["database"]["wakes"] == wakes <= WAKES_A_MINUTE + 1, "no wake was made for who is refused"
        connect(quiet).close()
        assert kept.execute("SELECT 1").fetchone() == (1,), "what is open is woken by its own traffic as ever"
        connect(often).close()  # awake it lets everybody in


def test_an_upgrade_forgives_no_wrong_password(server: Server) -> None:
    guessed, other = server.create(), server.create()
    assert refusal_of(guessed.url.replace(guessed.password, "wrong"))[0] == "28P01"
    assert server.take_over() == 0
    eventually(lambda: server.call("GET", "/v1/host"))
    sqlstate, text = refusal_of(guessed.url)
    assert (sqlstate, "too many failed logins" in text) == ("28T01", True), text
    assert 1 < int(text.rpartition("try again in ")[2].split(" ")[0]) <= 600
    connect(other).close()


def test_a_list_is_in_force_within_a_second_also_for_who_is_busy(server: Server) -> None:
    database = server.create()
    with connect(database) as resting, connect(database) as busy:
        busy.pgconn.send_query(b"SELECT pg_sleep(60)")
        eventually(lambda: any("pg_sleep" in cause["detail"] for cause in server.view(database.name)["database"]["awake_because"]))
        path = f"/v1/databases/{database.name}/access"
        assert server.call("PUT", path, {"deny": ["127.0.0.0/8"]})["closed"] == 2
        began = time.monotonic()
        for connection in (resting, busy):
            readable, _, _ = select.select([connection.pgconn.socket], [], [], 30)
            assert readable
            assert in_time(time.monotonic() - began, 1)
            connection.close()
        assert refusal_of(database.url)[0] == "28000"
        server.call("PUT", path, {})
        connect(database).close()
