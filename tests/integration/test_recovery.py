"""A lost machine: its databases come back on another one, from the store and a copy of the master key alone."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import obstore
import psycopg
import pytest
from obstore.store import S3Store

from tests.support.buckets import BUCKET, CREDENTIALS, s3_server
from tests.support.faults import DYING, eventually, stop_database
from tests.support.files import files_below
from tests.support.histories import back_up, done, finished, wait_shipped
from tests.support.server import MadeDatabase, Server
from torpor.control.recovery import RecoverStep
from torpor.control.restore import RestoreStep
from torpor.model.branches import BranchStep

_DIES = (
    DYING
    + """
import torpor.control.branches as b, torpor.control.recovery as c, torpor.control.restore as r
{target} = dying({target})
"""
)
_STEPS = (
    ("c._reached", str(RecoverStep.OWNED)),
    ("r._Filling._reached", str(RestoreStep.BASE)),
    ("b._reached", str(BranchStep.COPIED)),
    ("c._reached", str(RecoverStep.SETTLED)),
)
"""All after which something else is left behind than before."""
_FLAGS = """
import asyncio, os, torpor.control.recovery as c
size, held = c.Held.size_bytes, c.Recovery._held
async def halted(*arguments):
    while os.path.exists({halt!r}):
        await asyncio.sleep(0.01)
    return await held(*arguments)
c.Held.size_bytes = property(lambda self: 1 << 60 if os.path.exists({full!r}) else size.fget(self))
c.Recovery._held = halted
"""


@dataclass(frozen=True, slots=True)
class Lost:
    """What outlived a machine, a store and a copy of its master key, and what is known of it."""

    place: Path
    shop: MadeDatabase
    kept: MadeDatabase
    at: float
    """When `shop` had 500 rows, of 1000."""


@contextmanager
def safe_place() -> Iterator[Path]:
    """Where what outlives a machine is."""
    place = Path(tempfile.mkdtemp(prefix="torpor-test-safe-", dir="/dev/shm"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def machine(place: Path, prelude: str = "", **settings: object) -> Iterator[Server]:
    """One with that store and that key."""
    usual = {"history_store": place / "store", "key_file": place / "master.key", "freeze_after_s": 60, "stop_after_s": "never"}
    server = Server(**usual | settings)  # type: ignore[arg-type]  # settings of `torpor serve`
    server.prelude = "import torpor.control.shipping as s; s._LONGEST_PAUSE_S = 1.0; " + prelude
    with server:
        yield server
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.fixture(scope="module")
def lost() -> Iterator[Lost]:
    """A machine that was used, and whose data directory is gone."""
    with safe_place() as place:
        with machine(place) as server:
            server.call("POST", "/v1/workspaces", {"name": "acme"})
            shop, kept = server.create("shop", workspace="acme"), server.create("kept", freeze_after_s=77)
            fill(kept, 40)
            fill(shop, 500)
            back_up(server, "shop")
            at = time.time()
            time.sleep(0.05)
            with psycopg.connect(shop.url, autocommit=True) as connection:
                connection.execute("INSERT INTO things SELECT n, md5(n::text) FROM generate_series(501, 1000) n")
            server.call("PUT", "/v1/databases/shop/access", {"deny": ["198.51.100.0/24"]})
            server.call("PATCH", "/v1/databases/shop/history", {"keep_days": 3})
            back_up(server, "kept")
            stop_database(server, kept)
            eventually(lambda: finished(server, server.call("POST", "/v1/databases/kept/archive"))["state"] == "done")
            wait_shipped(server, "shop")
            eventually(lambda: server.call("GET", "/v1/recovery")["behind"] == 0)
            assert (server.call("GET", "/v1/recovery")["here"], listed(server)) == (2, {})
            server.kill()
        yield Lost(place, shop, kept, at)


def fill(database: MadeDatabase, rows: int) -> None:
    with psycopg.connect(database.url, autocommit=True, connect_timeout=60) as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, noise text)")
        connection.execute("INSERT INTO things SELECT n, md5(n::text) FROM generate_series(1, %s) n", (rows,))
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerks-own'")
        connection.execute("GRANT SELECT ON things TO clerk")


def rows(url: str) -> int:
    with psycopg.connect(url, connect_timeout=60) as connection:
        found = connection.execute("SELECT count(*), count(*) FILTER (WHERE noise = md5(id::text)) FROM things").fetchone()
        connection.execute("CREATE TEMPORARY TABLE written AS SELECT 1")
    assert found is not None
    assert found[0] == found[1]
    return int(found[0])


def there(server: Server, database: MadeDatabase, role: str = "", password: str = "") -> str:
    """The address of a database on another machine, when its host name has moved there."""
    return f"postgresql://{role or database.name}:{password or database.password}@127.0.0.1:{server.door_port}/{database.name}"


def recover(server: Server, wanted: str, **more: object) -> dict[str, str]:
    return done(server, server.call("POST", "/v1/recovery", {"database": wanted, **more})["job"])


def listed(server: Server) -> dict[str, Any]:
    return {view["name"]: view for view in server.call("GET", "/v1/recovery")["databases"]}


@pytest.fixture
def s3_settings(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The same store, at an S3 server."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = lost.place / "store"
    with s3_server() as url:
        bucket = S3Store(BUCKET, config={"endpoint": url, "region": "us-east-1"}, client_options={"allow_http": True})
        for path in files_below(store):
            if path.parent.name != ".half":
                obstore.put(bucket, f"safe/{path.relative_to(store)}", path.read_bytes())
        yield {"history_store": f"s3://{BUCKET}/safe", "history_endpoint": url}


def test_all_of_it_comes_back(lost: Lost, s3_settings: dict[str, object]) -> None:
    shop, kept = lost.shop, lost.kept
    with machine(lost.place, "", **s3_settings) as server:
        found = listed(server)
        assert set(found) == {"shop", "kept"}
        assert (found["shop"]["workspace"], found["shop"]["archived"], found["shop"]["trouble"]) == ("acme", False, "")
        assert (found["kept"]["archived"], found["kept"]["id"]) == (True, kept.id)
        first = server.call("GET", "/v1/recovery?limit=1")
        second = server.call("GET", f"/v1/recovery?limit=1&after={first['next']}")
        assert [page["databases"][0]["name"] for page in (first, second)] == ["kept", "shop"]
        assert second["next"] is None
        assert found["shop"]["from_at"] <= lost.at <= found["shop"]["to_at"]
        began = time.monotonic()
        made = recover(server, "shop")
        print(f"the first database of a lost machine was back after {time.monotonic() - began:.1f} s")
        assert (made["from"], made["database"], made["id"] != shop.id) == (shop.id, "shop", True)
        assert rows(there(server, shop)) == 1000
        with psycopg.connect(there(server, shop, "clerk", "clerks-own")) as connection:
            assert connection.execute("SELECT count(*) FROM things").fetchone() == (1000,)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(there(server, shop, "clerk", "wrong"))
        assert server.call("GET", "/v1/databases/shop/access")["deny"] == ["198.51.100.0/24"]
        assert server.call("GET", "/v1/databases/shop/history")["retention"]["keep_s"] == 3 * 86_400
        assert [one["name"] for one in server.call("GET", "/v1/databases?workspace=acme")["databases"]] == ["shop"]
        recover(server, "kept")
        assert rows(there(server, kept)) == 40
        assert server.view("kept")["overrides"]["freeze_after_s"] == 77
        assert {name: view["recovered_as"] for name, view in listed(server).items()} == {"shop": "shop", "kept": "kept"}
        recover(server, "shop", name="shop-then", at=lost.at)
        assert rows(f"postgresql://shop-then:{shop.password}@127.0.0.1:{server.door_port}/shop-then") == 500
        assert listed(server)["shop"]["recovered_as"] == "shop"
        back_up(server, "shop")  # and it has a history of its own
        assert server.call("GET", "/v1/recovery")["here"] >= 1


def _nothing_is_left(server: Server, job: bool) -> None:
    """Of what a kill cut off nothing is there but the job that was, if one had begun."""
    assert server.call("GET", "/v1/databases")["databases"] == []
    assert [job["state"] for job in server.call("GET", "/v1/jobs")["jobs"]] == ["interrupted"] * job
    eventually(lambda: {path.name for path in (server.data_dir / "volumes").iterdir()} <= {".templates"})


@pytest.mark.fault
def test_killed_at_each_step(lost: Lost) -> None:
    with machine(lost.place) as server:
        usual = server.prelude
        server.kill()
        for number, (target, step) in enumerate(_STEPS):
            server.prelude = usual + _DIES.format(target=target, step=step)
            server.start()
            _nothing_is_left(server, number > 1)  # the first one dies before there is a job
            with suppress(URLError, ConnectionError):
                server.call("POST", "/v1/recovery", {"database": "shop"})
            assert server.process is not None
            assert server.process.wait(60) == -9, (step, server.log[-3000:])
            server.process = None
        server.prelude = usual
        server.start()
        _nothing_is_left(server, True)
        recover(server, "shop")
        assert rows(there(server, lost.shop)) == 1000
        server.call("DELETE", "/v1/databases/shop?force=true")


@pytest.mark.fault
def test_what_is_damaged_and_who_comes_second(lost: Lost) -> None:
    with safe_place() as place:
        shutil.copytree(lost.place, place, dirs_exist_ok=True)
        store = place / "store"
        for path in files_below(store / "archived" / lost.kept.id / "chunks"):
            path.write_bytes(path.read_bytes()[:-1])
        full, halt = place / "full", place / "halt"
        with machine(place, _FLAGS.format(full=str(full), halt=str(halt))) as server:
            full.touch()
            failed = finished(server, server.call("POST", "/v1/recovery", {"database": "kept"})["job"])
            assert (failed["state"], failed["error"]["kind"]) == ("failed", "pool_full")
            full.rename(halt)
            begun = server.call("POST", "/v1/recovery", {"database": "kept"})["job"]  # its history has all of it, too
            second = server.refusal("POST", "/v1/recovery", {"database": lost.kept.id, "name": "kept-too"})
            assert (second[0], second[1]["message"]) == (409, "database kept is being recovered")
            halt.unlink()
            done(server, begun)
            assert rows(there(server, lost.kept)) == 40
            taken = server.refusal("POST", "/v1/recovery", {"database": "kept"})
            assert (taken[1]["kind"], "--as NAME" in taken[1]["hint"]) == ("database_exists", True)
            whole = {path: path.read_bytes() for path in files_below(store / "databases" / lost.shop.id / "wal") if "-" in path.name}
            for path, data in whole.items():
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            failed = finished(server, server.call("POST", "/v1/recovery", {"database": "shop"})["job"])
            assert (failed["state"], failed["error"]["kind"]) == ("failed", "history_corrupt")
            assert [one["name"] for one in server.call("GET", "/v1/databases")["databases"]] == ["kept"]
            for path, data in whole.items():
                path.write_bytes(data)
            lively = server.refusal("POST", "/v1/recovery/forget", {"database": "shop"})
            assert "another Torpor may still run it" in lively[1]["message"]
            (card,) = (store / "cards").glob(f"*/{lost.shop.id}/*")
            (other,) = (store / "cards").glob(f"*/{lost.kept.id}/*")
            shutil.copy(other, card)
            (damaged,) = [view for view in server.call("GET", "/v1/recovery")["databases"] if view["id"] == lost.shop.id]
            assert (damaged["name"], "damaged" in damaged["trouble"]) == ("", True)
            assert server.refusal("POST", "/v1/recovery", {"database": lost.shop.id})[1]["kind"] == "history_corrupt"
            for id in (lost.shop.id, lost.kept.id):
                server.call("POST", "/v1/recovery/forget", {"database": id, "force": True})
            assert listed(server) == {}
            assert not [path for path in files_below(store / "cards") if path.parent.name in (lost.shop.id, lost.kept.id)]
            eventually(
                lambda: not [path for id in (lost.shop.id, lost.kept.id) for path in [*store.glob(f"*/{id}"), *store.glob(f"cards/*/{id}")]]
            )
            assert rows(there(server, lost.kept)) == 40
            back_up(server, "kept")
            for cards in (store / "cards").iterdir():
                cards.rename(store / "cards" / "another")  # as if another master key had sealed them
            found = server.call("GET", "/v1/recovery")
            assert (found["databases"], found["foreign"]) == ([], 1)
            refused = server.refusal("POST", "/v1/recovery", {"database": "shop"})[1]
            assert (refused["kind"], "another master key" in refused["message"]) == ("database_not_found", True)
            assert "key_file" in refused["hint"]
