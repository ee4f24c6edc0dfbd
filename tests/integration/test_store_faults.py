"""A store that fails, is full, is slow, or gives back other bytes: whoever uses it tells so, nothing is lost, and all goes on by itself
when the store is well again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.branching import connect
from tests.support.faults import assert_nothing_half_made, eventually, refusal_of, stop_database
from tests.support.files import files_below
from tests.support.histories import back_up, finished, server_with_history, shipping, wait_shipped
from tests.support.server import MadeDatabase, Server

pytestmark = [pytest.mark.fault]

_FAULTY = """
import asyncio, functools, torpor.storage.archive.archive as a
from torpor.model.errors import HistoryFull, HistoryUnreachable
def mode():
    try:
        return open({switch!r}).read()
    except FileNotFoundError:
        return ''
class Faulty(a.DirectoryBucket):
    async def _meet(self):
        if mode() == 'failing':
            raise HistoryUnreachable('the store fails')
        if mode() == 'slow':
            await asyncio.sleep(0.1)
    async def put(self, key, data, if_absent):
        await self._meet()
        if mode() == 'full':
            raise HistoryFull('the store is full')
        return await super().put(key, data, if_absent)
    async def get(self, key):
        await self._meet()
        data = await super().get(key)
        return bytes([data[0] ^ 1]) + data[1:] if mode() == 'corrupting' and '/chunks/' in key else data
    async def list(self, directory):
        await self._meet()
        return await super().list(directory)
    async def delete(self, keys):
        await self._meet()
        await super().delete(keys)
a.DirectoryBucket = Faulty
a.Store = functools.partial(a.Store, first_pause_s=0.01, longest_pause_s=0.02)
"""
_WRITING = {"failing": "history_unreachable", "full": "history_full"}
_READING = {"failing": "history_unreachable", "corrupting": "history_corrupt"}
Made = tuple[Server, Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    switch = tmp_path_factory.mktemp("store") / "mode"
    with server_with_history(freeze_after_s="never", page_after_s="never", stop_after_s="never") as (server, store):
        server.kill()
        server.prelude += _FAULTY.format(switch=str(switch))
        server.start()
        yield server, store, switch
        assert "Traceback" not in server.log, server.log[-6000:]


@contextmanager
def store_is(made: Made, mode: str) -> Iterator[None]:
    """For as long as it lasts."""
    _, _, switch = made
    switch.with_suffix(".new").write_text(mode)
    switch.with_suffix(".new").rename(switch)
    try:
        yield
    finally:
        switch.unlink()


def outcome(server: Server, verb: str, body: object = None) -> str:
    """What became of a job: done, or the kind of its failure, which says more in words."""
    begun = server.call("POST", f"/v1/databases/{verb}", body)
    view = finished(server, begun.get("job", begun))
    if view["state"] == "done":
        return "done"
    assert view["error"]["message"], view
    return str(view["error"]["kind"])


def rows(url: str) -> int:
    with connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM things").fetchone()
    assert found is not None
    return int(str(found[0]))


def shelf(store: Path, database: MadeDatabase) -> list[Path]:
    """What is in the store of it as an archived one."""
    return files_below(store / "archived" / database.id)


@pytest.mark.parametrize("mode", ["failing", "full", "slow", "corrupting"])
def test_everything_meets_such_a_store(made: Made, mode: str) -> None:
    server, store, _ = made
    shop = server.create(mode)
    with connect(shop.url) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 5) AS id")
        back_up(server, mode)
        with store_is(made, mode):  # shipping: nobody waits for it
            connection.execute("INSERT INTO things VALUES (6)")
            if mode in _WRITING:
                eventually(lambda: shipping(server, mode)["trouble"])
            connection.execute("INSERT INTO things VALUES (7)")
            kept = server.call("GET", f"/v1/databases/{mode}/backups")["bases"] if mode != "failing" else []
            assert outcome(server, f"{mode}/backups") == _WRITING.get(mode, "done")
        if mode == "full":
            assert server.call("GET", f"/v1/databases/{mode}/backups")["bases"] == kept  # what isn't whole isn't there
    wait_shipped(server, mode)
    with store_is(made, mode):  # a restore
        assert outcome(server, f"{mode}/branches/past", {"name": f"{mode}-then", "keep_passwords": True}) == _READING.get(mode, "done")
    if mode in _READING:
        assert server.refusal("GET", f"/v1/databases/{mode}-then")[0] == 404
    else:
        assert rows(shop.url_as(f"{mode}-then", shop.password, f"{mode}-then")) == 7
        server.call("DELETE", f"/v1/databases/{mode}-then?force=true")
    stop_database(server, shop)
    with store_is(made, mode):  # there: all of it is read back before anything goes
        assert outcome(server, f"{mode}/archive") == (_WRITING | _READING).get(mode, "done")
    assert rows(shop.url) == 7
    assert_nothing_half_made(server)
    stop_database(server, shop)
    eventually(lambda: outcome(server, f"{mode}/archive") == "done")
    with store_is(made, mode):  # and back
        if mode in _READING:
            sqlstate, words = refusal_of(shop.url)
            assert sqlstate in ("58000", "58030", "XX001", "57P03"), (sqlstate, words)
            assert "is archived, and" in words
            assert server.tier(mode) == "archived"
        else:
            assert rows(shop.url) == 7

    def is_back() -> bool:
        try:
            return rows(shop.url) == 7
        except psycopg.OperationalError:  # the last refusal is remembered for three seconds
            return False

    eventually(is_back)
    eventually(lambda: not shelf(store, shop), 90)
    assert_nothing_half_made(server)
    server.call("DELETE", f"/v1/databases/{mode}?force=true")
