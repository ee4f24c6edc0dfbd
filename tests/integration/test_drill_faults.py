"""Restore drills that are killed at each of their steps: nothing is left, and the database has noticed nothing. Then one by itself."""

from collections.abc import Iterator
from contextlib import suppress
from urllib.error import URLError

import pytest

from tests.support.branching import connect
from tests.support.drilling import HASTE, NEWEST
from tests.support.faults import DYING, assert_nothing_half_made, eventually
from tests.support.histories import back_up, server_with_history, wait_shipped
from tests.support.server import Server
from torpor.control.drills import DRILL_STEPS
from torpor.control.restore import RestoreStep

pytestmark = [pytest.mark.fault, pytest.mark.slow]

_LOOKED_THROUGH = "looked through"  # in the midst of it, while PostgreSQL and pg_amcheck run
STEPS = (*DRILL_STEPS, RestoreStep.LOG, _LOOKED_THROUGH)
_DIES = (
    DYING
    + """
import torpor.control.restore as r, torpor.compute.checking as c
r._Filling._reached = dying(r._Filling._reached)
d.Drills._reached = dying(d.Drills._reached)
serve = c._serve
async def serving(*given):
    if {step!r} == "looked through":
        import threading
        threading.Timer(0.2, lambda: os.kill(os.getpid(), 9)).start()
    await serve(*given)
c._serve = serving
"""
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_history(freeze_after_s="never") as (server, _):
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def test_killed_after_each_step(server: Server) -> None:
    shop = server.create("shop")
    with connect(shop.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
        back_up(server, "shop")
    wait_shipped(server, "shop")
    server.stop()
    for step in STEPS:
        server.prelude = HASTE + NEWEST + _DIES.format(step=str(step))
        server.start()
        assert_nothing_half_made(server)
        assert server.call("GET", "/v1/databases/shop/drills")["drills"] == []
        with suppress(URLError, ConnectionError):
            server.call("POST", "/v1/databases/shop/drills")
        assert server.process is not None
        assert server.process.wait(200) == -9, (step, server.log[-3000:])
        server.process = None
    server.prelude, server.settings["drill_every_s"] = HASTE + NEWEST, 1
    server.start()
    eventually(lambda: server.call("GET", "/v1/drills")["verified"] == 1)
    server.stop()
    server.settings["drill_every_s"] = "never"
    server.start()
    assert_nothing_half_made(server)
    for name in ("run", "logs"):
        assert {path.name.removesuffix(".log") for path in (server.data_dir / name).glob("d*")} <= {shop.id}
    with connect(shop.url) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (5,)
