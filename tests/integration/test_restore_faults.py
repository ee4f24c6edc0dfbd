"""Restores that are killed at each of their steps: the database is what it was, or what was wanted, and nothing is left half made."""

import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import URLError

import psycopg
import pytest

from tests.support.faults import DYING, eventually
from tests.support.histories import back_up, server_with_history, wait_shipped
from tests.support.server import Server
from torpor.control.restore import RestoreStep
from torpor.control.rewind import RewindStep

pytestmark = [pytest.mark.fault]

_DIES = (
    DYING
    + """
import torpor.control.restore as r, torpor.control.rewind as w
r._Filling._reached = dying(r._Filling._reached)
w.Rewinds._reached = dying(w.Rewinds._reached)
"""
)
_AFTER = (RewindStep.EXCHANGED, RewindStep.NAMED)
_BEFORE = (*RestoreStep, *(step for step in RewindStep if step not in _AFTER))


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


def other(server: Server) -> str:
    """The name of what the database was before its restore."""
    (name,) = {one["name"] for one in server.call("GET", "/v1/databases")["databases"]} - {"shop"}
    return str(name)


def start_to_die(server: Server, step: str = "") -> None:
    """Start it again, to die at that step."""
    if step == RewindStep.NAMED:  # what is unfinished comes to that step at the start
        start_to_die(server)
        server.kill()
    server.prelude = _DIES.format(step=str(step)) if step else ""
    server.start()


def ask_and_die(server: Server, path: str, body: object) -> None:
    """Ask for what it dies at."""
    with suppress(URLError, ConnectionError):
        server.call("POST", path, body)
    assert server.process is not None
    assert server.process.wait(60) == -9, server.log[-3000:]
    server.process = None


@pytest.mark.timeout(600)  # sixteen starts of Torpor, and as many restores
def test_killed_after_each_step(server: Server) -> None:
    """All steps there are, in order; each Torpor sets right what the one before left, and is killed at the next one."""
    shop = server.create("shop")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
        back_up(server, "shop")
        at = time.time()
        time.sleep(0.01)
        connection.execute("INSERT INTO things VALUES (6)")
    wait_shipped(server, "shop")
    server.kill()
    restore, undo = ("/v1/databases/shop/restore", {"at": at, "force": True}), ("/v1/databases/shop/restore/undo", {"force": True})
    for step in _BEFORE:
        start_to_die(server, step)
        whole(server, {"shop"})
        assert rows(shop.url) == 6, step
        ask_and_die(server, *restore)
    start_to_die(server, RewindStep.EXCHANGED)
    whole(server, {"shop"})
    assert rows(shop.url) == 6
    ask_and_die(server, *restore)
    # From here on it has happened. It is undone, again and again, and killed at that, too: before the exchange, and after it.
    before, now, then = "", 5, 6
    for step in (RewindStep.RECORDED, RewindStep.STOPPED, RewindStep.EXCHANGED, RewindStep.NAMED):
        start_to_die(server, step)
        before = before or other(server)
        kept = shop.url_as(before, shop.password, before)
        whole(server, {"shop", before})
        assert (rows(shop.url), rows(kept)) == (now, then), step
        ask_and_die(server, *undo)
        if step in _AFTER:
            now, then = then, now
    start_to_die(server)
    whole(server, {"shop", before})
    assert (rows(shop.url), rows(kept)) == (now, then)
    server.call("DELETE", f"/v1/databases/{before}?force=true")
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("INSERT INTO things VALUES (7)")
    wait_shipped(server, "shop")
    server.kill()
    start_to_die(server, RewindStep.NAMED)
    ask_and_die(server, *restore)
    start_to_die(server)
    before = other(server)
    whole(server, {"shop", before})
    assert (rows(shop.url), rows(shop.url_as(before, shop.password, before))) == (5, now + 1)
    server.call("DELETE", f"/v1/databases/{before}?force=true")
    whole(server, {"shop"})
