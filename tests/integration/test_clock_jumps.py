"""The clock of Torpor's host is set while it runs, by forty days: the past stays, and can be restored as before."""

import time
from pathlib import Path

import pytest

from tests.support.branching import connect
from tests.support.histories import back_up, past_branch, server_with_history, wait_shipped
from tests.support.server import Server

pytestmark = [pytest.mark.fault]

_SET = """
import os, torpor.base.clock as c
was = c.SystemClock.time
def time(self):
    try:
        return was(self) + float(open({by!r}).read() or 0)
    except FileNotFoundError:
        return was(self)
c.SystemClock.time = time
"""


def bases(server: Server) -> list[int]:
    return [base["number"] for base in server.call("GET", "/v1/databases/shop/backups")["bases"]]


def test_a_clock_that_is_set_loses_no_history(tmp_path: Path) -> None:
    by = tmp_path / "by"
    with server_with_history(freeze_after_s="never") as (server, _):
        server.kill()
        server.prelude += _SET.format(by=str(by))
        server.start()
        shop = server.create("shop")
        with connect(shop.url) as connection:
            connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
            back_up(server, "shop")
            at = time.time()
            time.sleep(0.01)
            connection.execute("INSERT INTO things VALUES (6)")
            wait_shipped(server, "shop")
            back_up(server, "shop")
            before = bases(server)
            for number, days in enumerate((40, -40)):
                by.write_text(str(days * 86_400))
                connection.execute("INSERT INTO things VALUES (7)")
                back_up(server, "shop")  # what isn't to be kept would go now: all but this one is older than a week
                assert bases(server)[: len(before)] == before
                then = past_branch(server, "shop", f"then{number}", at=at)
                with connect(then.url) as restored:
                    assert restored.execute("SELECT count(*) FROM things").fetchone() == (5,)
        assert "the clock has jumped" in server.log
        assert "Traceback" not in server.log, server.log[-6000:]
