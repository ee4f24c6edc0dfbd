"""Branches and resets that are cut off: Torpor killed after each step, a parent that wakes under the copy, a pool that is full."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.support.branching import branch, check_pages, connect
from tests.support.faults import assert_nothing_half_made, eventually, in_thread, put_to_sleep, stop_database
from tests.support.server import MadeDatabase, Server
from torpor.control.provisioning import RemoveStep
from torpor.model.branches import BRANCH_STEPS, RESET_STEPS, BranchStep
from torpor.storage.room import look

pytestmark = [pytest.mark.fault]

_DIES = """
import os, torpor.control.branches as b
was = b._reached
def dies(step, compute, steps):
    was(step, compute, steps)
    if step == {step!r}:
        os.kill(os.getpid(), 9)
b._reached = dies
"""
_DIES_REMOVING = """
import os, torpor.control.provisioning as p
was = p._reached
def dies(step, compute):
    was(step, compute)
    if step == {step!r} and compute.database.label == {name!r}:
        os.kill(os.getpid(), 9)
p._reached = dies
"""
_SLOW_COPY = """
import asyncio, os, torpor.compute.snapshot as s
was = s.copy_tree
async def slow(source, target, uid, selection):
    await was(source, target, uid, selection)
    if not selection.live:
        open({mark!r}, 'w').close()
        while os.path.exists({mark!r}):
            await asyncio.sleep(0.005)
s.copy_tree = slow
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(freeze_after_s=60, page_after_s="never", stop_after_s="never") as server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def shop(server: Server) -> MadeDatabase:
    made = server.create("shop")
    with connect(made.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT id FROM generate_series(1, 500) AS id")
    return made


def restart(server: Server, prelude: str = "") -> None:
    server.prelude = prelude
    server.start()


def count(url: str) -> int:
    with connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM things").fetchone()
        assert found is not None
        return int(str(found[0]))


def names(server: Server) -> set[str]:
    return {one["name"] for one in server.call("GET", "/v1/databases")["databases"]}


@pytest.mark.timeout(600)  # ten starts of Torpor
def test_killed_after_each_step(server: Server, shop: MadeDatabase) -> None:
    """A branch is there whole when it was ready, else without a trace; a branch that was reset is what it was, or what its parent is.

    Each Torpor is killed by itself after one step, and what it left is set right by the next one, which is killed after the next step.
    """
    again = branch(server, "shop", "again")
    with connect(again.url) as connection:
        connection.execute("DELETE FROM things WHERE id > 10")
    kills = [("shop/branches", step) for step in BRANCH_STEPS]
    kills += [("again/reset", step) for step in RESET_STEPS if step not in BRANCH_STEPS or step is BranchStep.NAMED]
    before = None
    server.kill()
    for verb, step in kills:
        restart(server, _DIES.format(step=str(step)))
        assert_nothing_half_made(server)
        if before is BranchStep.READY:
            assert count(shop.url_as("try", shop.password, "try")) == 500
            server.call("DELETE", "/v1/databases/try?force=true")
        if before is BranchStep.STOPPED:
            assert count(again.url) == 10
        assert names(server) == {"shop", "again"}, before
        body = {"name": "try", "keep_passwords": True} if verb == "shop/branches" else {"force": True}
        with suppress(URLError, ConnectionError):
            server.call("POST", f"/v1/databases/{verb}", body)
        assert server.process is not None
        assert server.process.wait(60) == -9, f"it went on after {step}"
        server.process = None
        before = step
    restart(server)
    assert_nothing_half_made(server)
    assert server.view("again")["database"]["id"] == again.id
    assert count(again.url) == count(shop.url) == 500
    stop_database(server, again)
    check_pages(server, again)
    remade = branch(server, "shop", "try")
    assert count(remade.url) == 500
    for name in ("again", "try"):
        server.call("DELETE", f"/v1/databases/{name}?force=true")


def test_killed_after_each_step_of_a_removal(server: Server, shop: MadeDatabase) -> None:
    """It is gone without a trace: the next start finishes it, and is killed in the midst of another one. Awake and asleep."""
    doomed = [branch(server, "shop", f"doomed-{step}") for step in RemoveStep]
    put_to_sleep(server, doomed[1])
    stop_database(server, doomed[3])
    server.kill()
    for number, step in enumerate(RemoveStep):
        restart(server, _DIES_REMOVING.format(step=str(step), name=doomed[number].name))
        assert names(server) == {"shop", *(one.name for one in doomed[number:])}
        assert_nothing_half_made(server)
        with suppress(URLError, ConnectionError):
            server.call("DELETE", f"/v1/databases/{doomed[number].name}?force=true")
        assert server.process is not None
        assert server.process.wait(60) == -9, f"it went on after {step}"
        server.process = None
    restart(server)
    assert names(server) == {"shop"}
    assert_nothing_half_made(server)
    assert count(shop.url) == 500


def test_parent_that_wakes_under_the_copy(server: Server, shop: MadeDatabase, tmp_path: Path) -> None:
    """It isn't held up: the copy is thrown away and another one taken, which has what was committed meanwhile."""
    mark = tmp_path / "copied"
    server.kill()
    restart(server, _SLOW_COPY.format(mark=str(mark)))
    made: list[MadeDatabase] = []
    with closing(connect(shop.url)) as connection:
        connection.execute("CREATE TABLE meanwhile (x int)")
        put_to_sleep(server, shop)
        thread, failures = in_thread(lambda: made.append(branch(server, "shop")))
        eventually(mark.exists)
        connection.execute("INSERT INTO meanwhile VALUES (1)")  # while the copy goes on: were it waited for, this would never end
        assert server.tier("shop") == "awake"
        mark.unlink()
        thread.join(60)
    assert not failures
    with connect(made[0].url) as connection:
        assert connection.execute("SELECT x FROM meanwhile").fetchone() == (1,)
    stop_database(server, made[0])
    check_pages(server, made[0])
    server.call("DELETE", f"/v1/databases/{made[0].name}?force=true")
    server.kill()
    restart(server)
    assert_nothing_half_made(server)


def test_parent_that_is_stopped_and_started_under_the_copy(server: Server, shop: MadeDatabase, tmp_path: Path) -> None:
    """Also when it sleeps again by the time that the copy is done."""
    mark = tmp_path / "copied"
    server.kill()
    restart(server, _SLOW_COPY.format(mark=str(mark)))
    stop_database(server, shop)
    made: list[MadeDatabase] = []
    thread, failures = in_thread(lambda: made.append(branch(server, "shop")))
    eventually(mark.exists)
    with connect(shop.url) as connection:
        connection.execute("CREATE TABLE while_copied (x int)")
    stop_database(server, shop)
    mark.unlink()
    thread.join(60)
    assert not failures
    with connect(made[0].url) as connection:
        assert connection.execute("SELECT count(*) FROM while_copied").fetchone() == (0,)
    server.call("DELETE", f"/v1/databases/{made[0].name}?force=true")
    server.kill()
    restart(server)


def test_expired_while_torpor_was_away(server: Server, shop: MadeDatabase) -> None:
    """A time to live goes on without Torpor; the end is in the audit log."""
    server.kill()
    restart(server, "import torpor.model.branches as m; m.SHORTEST_LIFE_S = 0.1; ")
    branch(server, "shop", "short", ttl_s=0.5)
    branch(server, "shop", "long", ttl_s=3600)
    server.kill()
    time.sleep(0.5)
    restart(server)

    eventually(lambda: names(server) == {"shop", "long"})
    record = eventually(lambda: server.call("GET", "/v1/audit?action=database.expire&outcomes=true")["records"])[0]
    assert (record["actor"], record["target"], record["result"]) == ("torpor", "short", "done")
    server.call("DELETE", "/v1/databases/long?force=true")
    assert_nothing_half_made(server)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A Torpor whose pool is a file system in memory, so that it is full at once."""
    server = Server(freeze_after_s=60)
    pool = server.data_dir / "volumes"
    pool.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m,mode=711", "torpor-test", str(pool)], check=True)
    try:
        with server:
            yield server
    finally:
        if os.path.ismount(pool):  # it isn't any more when the server has ended in order
            subprocess.run(["umount", "--lazy", str(pool)], check=True)
        server.destroy()


@pytest.mark.root
def test_full_pool(small: Server) -> None:
    """A branch that finds no room is told so and leaves nothing; the parent goes on, and the next one is made when there is room."""
    shop, pool = small.create("shop"), small.data_dir / "volumes"
    with connect(shop.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT 1 AS id")
        (pool / shop.id / "data" / "large").write_bytes(os.urandom(1 << 20) * 100)
        room = look(pool)
        ballast = pool / ".ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.free_bytes - room.kept_bytes - (8 << 20))
        status, error = small.refusal("POST", "/v1/databases/shop/branches", {"name": "try"})
        assert (status, error["kind"]) == (507, "pool_full")
        assert {path.name for path in pool.iterdir()} == {shop.id, ".templates", ".ballast"}
        assert names(small) == {"shop"}
        connection.execute("INSERT INTO things VALUES (2)")
        ballast.unlink()
        assert_nothing_half_made(small)
    assert count(branch(small, "shop", "try").url) == 2


def test_many_copies_of_one_parent_at_once(server: Server, shop: MadeDatabase) -> None:
    """Backup modes stand side by side, in a database whose slots are all taken by somebody else, too."""
    with connect(shop.url) as connection:
        for n in range(10):
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (f"taken{n}",))
    made: list[MadeDatabase] = []
    threads = [threading.Thread(target=lambda: made.append(branch(server, "shop"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for one in made:
        assert count(one.url) == 500
        server.call("DELETE", f"/v1/databases/{one.name}?force=true")
    with connect(shop.url) as connection:
        for n in range(10):
            connection.execute("SELECT pg_drop_replication_slot(%s)", (f"taken{n}",))
    assert_nothing_half_made(server)
