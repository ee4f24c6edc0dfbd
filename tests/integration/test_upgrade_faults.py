"""Major upgrades that are cut off at each of their steps: the database is what it was, or what was wanted; nothing is left half made."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import psycopg
import pytest

from tests.support.faults import DYING, assert_nothing_half_made, eventually
from tests.support.histories import finished
from tests.support.server import MadeDatabase, Server
from torpor.base.processes import descendants
from torpor.control.rewind import REWIND_STEPS, RewindStep
from torpor.control.upgrade import UPGRADE_STEPS, UpgradeStep

pytestmark = [pytest.mark.fault]

# What pg_upgrade has made of the database once is used again: its bytes are the same each time. And there are steps that come after the
# rehearsal, which is left out then.
_AGAIN = """
import os, subprocess, torpor.control.upgrade as u
upgraded = u.upgrade
async def again(source, id, to, work, uid, *rest):
    if not os.path.exists({made!r}):
        outcome = await upgraded(source, id, to, work, uid, *rest)
        subprocess.run(['cp', '--archive', str(work / 'new'), {made!r}], check=True)
        return outcome
    subprocess.run(['rm', '--recursive', str(work / 'new')], check=True)
    subprocess.run(['cp', '--archive', {made!r}, str(work / 'new')], check=True)
    return u.Outcome()
u.upgrade = again
"""
_DIES = (
    DYING
    + """
import torpor.control.rewind as w
async def skipped(self, *rest):
    return u.Outcome()
if {skip!r}:
    u.Upgrades._rehearse = skipped
u.Upgrades._reached = dying(u.Upgrades._reached)
w.Rewinds._reached = dying(w.Rewinds._reached)
"""
)
_AFTER = (RewindStep.EXCHANGED, RewindStep.NAMED)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="torpor-test-upgraded-", dir="/dev/shm"))
    yield place / "new"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


def start(server: Server, prelude: str = "") -> None:
    server.prelude = prelude
    server.start()


def names(server: Server) -> set[str]:
    return {one["name"] for one in server.call("GET", "/v1/databases")["databases"]}


def look(database: MadeDatabase, inner: str = "shop") -> tuple[int, int]:
    """Of which major it is, and how many things it has."""
    with psycopg.connect(database.url_as(inner, database.password, inner), connect_timeout=40) as connection:
        found = connection.execute("SELECT count(*) FROM things").fetchone()
        assert found is not None
        return connection.info.server_version // 10000, int(str(found[0]))


def ask_and_die(server: Server, path: str, body: object) -> None:
    """Ask for what it dies at."""
    with suppress(URLError, ConnectionError):
        server.call("POST", path, body)
    assert server.process is not None
    assert server.process.wait(120) == -9, server.log[-3000:]
    server.process = None


@pytest.mark.timeout(900)  # 14 starts
def test_killed_after_each_step(server: Server, made: Path) -> None:
    """Up to the exchange a kill leaves what was, after it what is wanted. Each Torpor is killed after one step, the next sets it right."""
    shop = server.create("shop", major=17)
    with psycopg.connect(shop.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
    again = _AGAIN.format(made=str(made))
    ask = ("/v1/databases/shop/upgrade", {"to": 18, "force": True})
    undo = ("/v1/databases/shop/upgrade/undo", {"force": True})
    server.kill()
    earlier = [step for step in (*UPGRADE_STEPS, *REWIND_STEPS) if step not in (UpgradeStep.REHEARSED, RewindStep.MADE, *_AFTER)]
    for step, skip in ((UpgradeStep.REHEARSED, False), *((step, True) for step in earlier)):
        start(server, again + _DIES.format(step=str(step), skip=skip))
        assert names(server) == {"shop"}, step
        assert look(shop) == (17, 5), step
        ask_and_die(server, *ask)
    start(server, again + _DIES.format(step=str(RewindStep.EXCHANGED), skip=True))
    assert look(shop) == (17, 5)
    assert_nothing_half_made(server)
    ask_and_die(server, *ask)
    # From here on it has happened. It is undone, and killed at that, too: before the exchange, and after it.
    for step in (RewindStep.STOPPED, RewindStep.EXCHANGED):
        start(server, again + _DIES.format(step=str(step), skip=False))
        assert names(server) == {"shop", "shop-before-18"}
        assert (look(shop), look(shop, "shop-before-18")) == ((18, 5), (17, 5)), step
        ask_and_die(server, *undo)
    # And the one that finishes what was left is killed in the midst of that.
    with pytest.raises(RuntimeError, match="-9"):
        start(server, again + _DIES.format(step=str(RewindStep.NAMED), skip=False))
    start(server)
    assert (look(shop), look(shop, "shop-before-18")) == ((17, 5), (18, 5))
    server.call("DELETE", "/v1/databases/shop-before-18?force=true")
    server.call("DELETE", "/v1/databases/shop?force=true")
    assert_nothing_half_made(server)


def test_postgres_that_is_killed_and_a_second_one_meanwhile(server: Server) -> None:
    """An upgrade whose programs are killed says so and leaves nothing, as one that is cancelled; while it goes on, others are refused."""
    other = server.create("other", major=17)
    with psycopg.connect(other.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT 1 AS id")
    known = {path.name for path in (server.data_dir / "volumes").iterdir()}
    job = server.call("POST", "/v1/databases/other/upgrade", {"to": 18, "check": True})
    status, error = server.refusal("POST", "/v1/databases/other/upgrade", {"to": 18})
    assert (status, error["kind"]) == (409, "conflict")
    assert "being upgraded" in error["message"]

    def killed() -> bool:
        for pid in descendants(server.pid):
            with suppress(OSError):  # it has ended since
                given = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if given[0].endswith(b"/postgres") and any(one in (b"old", b"/data/old") for one in given):
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    eventually(killed)
    failed = finished(server, job)
    assert failed["state"] == "failed" and failed["error"]["kind"].startswith("upgrade_"), failed
    job = server.call("POST", "/v1/databases/other/upgrade", {"to": 18, "check": True})
    eventually(lambda: list((server.data_dir / "volumes").glob(".making-*/upgrading/new")))
    server.call("DELETE", f"/v1/jobs/{job['id']}")
    assert finished(server, job)["state"] == "cancelled"
    assert {path.name for path in (server.data_dir / "volumes").iterdir()} == known
    assert look(other, "other") == (17, 1)
    server.call("DELETE", "/v1/databases/other?force=true")
    assert_nothing_half_made(server)
