"""SQL over HTTP when Torpor ends or is replaced, what it counts, and its time limits for statements where connections are pooled."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from urllib.request import Request, urlopen

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.faults import eventually
from tests.support.overhttp import http_url, post
from tests.support.server import MadeDatabase, Server

GATE = "pg_advisory_xact_lock(7)"
SLOW = f"SELECT {GATE}, 42"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(http=True, http_port=0, freeze_after_s=60, page_after_s="never", stop_after_s="never", drain_timeout_s=90) as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture
def server(running: Server) -> Server:
    """Each test may end it; the next one starts it again."""
    if running.process is None:
        running.start()
    return running


def waiting(gate: "psycopg.Connection[tuple[object, ...]]") -> object:
    """How many statements wait at the gate."""
    gate.execute("SELECT pg_stat_clear_snapshot()")  # of a transaction
    found = gate.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'").fetchone()
    assert found is not None
    return found[0]


@contextmanager
def request_at_the_gate(
    server: Server, database: MadeDatabase
) -> Iterator[tuple["psycopg.Connection[tuple[object, ...]]", Future[httpx.Response]]]:
    """The session that has the gate, and a request whose statement waits for it."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database.url, autocommit=True) as gate:
        gate.execute("BEGIN")
        gate.execute(f"SELECT {GATE}")
        answer = pool.submit(post, server, database, {"query": SLOW})
        eventually(lambda: waiting(gate) == 1)
        yield gate, answer


def test_a_drain_lets_requests_finish_and_tells_newcomers_when_to_come_again(server: Server) -> None:
    database, other = server.create(), server.create()
    with request_at_the_gate(server, database) as (gate, answer), httpx.Client(timeout=60, trust_env=False) as idle:
        assert post(server, other, {"query": "SELECT 1"}, client=idle).status_code == 200
        server.call("POST", "/v1/drain", {"timeout_s": 90})
        with contextlib.ExitStack() as leaving:
            host, _, port = http_url(server).removeprefix("http://").rpartition(":")
            newcomers = [leaving.enter_context(socket.create_connection((host, int(port)), timeout=90)) for _ in range(2)]
            for newcomer in newcomers:
                newcomer.sendall(b"POST /sql HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            gate.execute("COMMIT")
            told = answer.result(60)
            assert (told.status_code, told.json()["rows"]) == (200, [["", "42"]])
            assert told.headers["connection"] == "close"
            assert server.process is not None
            assert server.process.wait(60) == 0
            server.process = None
            for newcomer in newcomers:
                with newcomer.makefile("rb") as answered:
                    late = answered.read()
                assert late.startswith(b"HTTP/1.1 503 "), late
                assert b"retry-after: 1\r\n" in late
                assert b'"code":"57P01"' in late
        server.start()
        # A client that had kept its connection makes another.
        assert post(server, other, {"query": "SELECT 2"}, client=idle).json()["rows"] == [["2"]]


def test_who_comes_amid_a_drain_is_served_by_the_next_torpor(server: Server) -> None:
    database, other = server.create(), server.create()
    with request_at_the_gate(server, database) as (_gate, answer), ThreadPoolExecutor(2) as pool:
        server.call("POST", "/v1/drain", {"timeout_s": 90})
        newcomers = [pool.submit(post, server, other, {"query": "SELECT 1"}) for _ in range(2)]
        time.sleep(0.2)
        assert not any(newcomer.done() for newcomer in newcomers)
        old = server.process
        assert old is not None
        server.process = server.spawn()  # it is draining
        assert old.wait(60) == 0
        assert [newcomer.result(60).json()["rows"] for newcomer in newcomers] == [[["1"]]] * 2
        told = answer.result(60)
        assert (told.status_code, told.headers["retry-after"], told.json()["code"], told.json()["retryable"]) == (503, "1", "57P01", True)
    eventually(lambda: server.call("GET", "/v1/drain")["state"] == "serving")


def figures(server: Server) -> dict[str, float]:
    with urlopen(Request(server.api_url + "/metrics", headers={"Authorization": f"Bearer {server.token}"})) as answer:
        text = answer.read().decode()
    return {
        ".".join((sample.name.removeprefix("torpor_http_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("torpor_http_")
    }


def test_requests_are_counted(server: Server) -> None:
    database = server.create()
    with request_at_the_gate(server, database) as (gate, answer):
        eventually(lambda: figures(server).get("running") == 1)
        assert figures(server)["connections"] >= 1
        before = figures(server)
        gate.execute("COMMIT")
        assert answer.result(60).status_code == 200
    assert post(server, database, {"query": "SELECT 1 / 0"}).status_code == 400
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.get(http_url(server) + "/nowhere").status_code == 404

    def more(name: str) -> float:
        return figures(server).get(name, 0.0) - before.get(name, 0.0)

    eventually(lambda: more("requests_total.other.refused") == 1)
    assert (more("requests_total.sql.ok"), more("requests_total.sql.refused")) == (1, 1)
    assert more("request_seconds_total.sql") > 0
    assert more("received_bytes_total") > 100
    assert more("sent_bytes_total") > 100
    eventually(lambda: figures(server)["running"] == figures(server)["kept"] == 0)


def test_time_limits_hold_for_their_statement_where_connections_are_pooled(server: Server) -> None:
    database = server.create()
    for mode in ("on", "auto"):
        _check_limits(server, database, f"{database.url}?options=pool%3D{mode}")


def _check_limits(server: Server, database: MadeDatabase, url: str) -> None:
    limit = {"Torpor-Statement-Timeout": "50ms"}
    for asked in ({"query": "SELECT pg_sleep(600)"}, {"queries": [{"query": "SELECT pg_sleep(600)"}]}):
        assert post(server, database, asked, limit, url=url).json()["code"] == "57014"
    shown = {"query": "SHOW statement_timeout"}
    assert post(server, database, shown, {"Torpor-Statement-Timeout": "77s"}, url=url).json()["rows"] == [["77s"]]
    # Nobody else has it, over whichever connection.
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(server, database, shown, url=url).json()["rows"], range(8)))
    assert answers == [[["0"]]] * 8
