"""Restores that are killed at each of their steps: the database is what it was, or what was wanted, and nothing is left half made."""

import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import URLError

import psycopg
import pytest

from tests.support.faults import eventually
from tests.support.histories import back_up, server_with_history, wait_shipped
from tests.support.server import Server
from torpor.control.restore import RestoreStep
from torpor.control.rewind import RewindStep

pytestmark = [pytest.mark.fault]

_DIES = """
import os, torpor.control.restore as r, torpor.control.rewind as w
def dying(was):
    def reached(self, step, *rest):
        was(self, step, *rest)
        if step == {step!r}:
            os.kill(os.getpid(), 9)
    return reached
r._Filling._reached = dying(r._Filling._reached)
w.Rewinds._reached = dying(w.Rewinds._reached)
"""
_BEFORE = (RestoreStep.BASE, RestoreStep.RECOVERED, RewindStep.RECORDED, RewindStep.STOPPED)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_history(freeze_after_s="never") as (server, _):
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def rows(url: str) -> int:
    with psycopg.connect(url, connect_timeout=40) as connection:
        found = connection.execute("SELECT count(*) FROM things").fetchone()
    assert found is not None
    return int(found[0])


def whole(server: Server, names: set[str]) -> None:
    """Databases are those of these names, and nothing else is on the disk."""
    ids = {one["id"]: one["name"] for one in server.call("GET", "/v1/databases")["databases"]}
    assert set(ids.values()) == names
    eventually(lambda: {path.name for path in (server.data_dir / "volumes").iterdir()} - {".templates"} == set(ids))
    assert not list((server.data_dir / "volumes").glob("*/exchanged"))


def start_to_die(server: Server, step: str = "") -> None:
    """Start it again, to die at that step."""
    server.prelude = _DIES.format(step=str(step)) if step else ""
    server.start()


def ask_and_die(server: Server, path: str, body: object) -> None:
    """Ask for what it dies at."""
    with suppress(URLError, ConnectionError):
        server.call("POST", path, body)
    assert server.process is not None
    assert server.process.wait(60) == -9, server.log[-3000:]
    server.process = None


def test_killed_after_each_step(server: Server) -> None:
    shop = server.create("shop")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
        back_up(server, "shop")
        at = time.time()
        time.sleep(0.01)
        connection.execute("INSERT INTO things VALUES (6)")
    wait_shipped(server, "shop")
    server.kill()
    for step in _BEFORE:
        start_to_die(server, step)
        whole(server, {"shop"})
        assert rows(shop.url) == 6, step
        ask_and_die(server, "/v1/databases/shop/restore", {"at": at, "force": True})
    start_to_die(server, RewindStep.EXCHANGED)
    whole(server, {"shop"})
    ask_and_die(server, "/v1/databases/shop/restore", {"at": at, "force": True})
    # From here on it has happened. It is undone, and killed at that, too: before the exchange, and after it.
    undo = "/v1/databases/shop/restore/undo"
    start_to_die(server, RewindStep.STOPPED)
    (before,) = {one["name"] for one in server.call("GET", "/v1/databases")["databases"]} - {"shop"}
    kept = shop.url_as(before, shop.password, before)
    whole(server, {"shop", before})
    assert (rows(shop.url), rows(kept)) == (5, 6)
    ask_and_die(server, undo, {"force": True})
    start_to_die(server, RewindStep.EXCHANGED)
    whole(server, {"shop", before})
    assert (rows(shop.url), rows(kept)) == (5, 6)
    ask_and_die(server, undo, {"force": True})
    start_to_die(server)
    whole(server, {"shop", before})
    assert (rows(shop.url), rows(kept)) == (6, 5)
    server.call("DELETE", f"/v1/databases/{before}?force=true")
    whole(server, {"shop"})
