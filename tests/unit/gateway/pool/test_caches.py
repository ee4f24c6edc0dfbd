"""The daemon's end of the cache: what a worker is told, in which order, and how purges are answered."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import make_id
from torpor.gateway.pool.caches import Caches, no_caches
from torpor.gateway.pool.messages import MAX_PACKET_BYTES, unpack
from torpor.gateway.pool.stores import SharedStore
from torpor.model.cache import MAX_RULES, NO_POLICY, CachePolicy, CacheRule, PurgeBy
from torpor.model.cachestore import StoreAddress
from torpor.model.names import DatabaseId

SHOP = make_id(1)


class Told:
    """A worker that remembers what it was told."""

    def __init__(self) -> None:
        self.introduced: set[DatabaseId] = set()
        self.said: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self.largest = 0
        self.told = asyncio.Event()

    def tell(self, packet: bytes, fd: int = -1) -> None:
        self.largest = max(self.largest, len(packet))
        self.said.append(unpack(packet))
        self.told.set()
        if fd >= 0:
            self.fds.append(fd)

    def ops(self) -> list[str]:
        ops = [each["op"] for each in self.said]
        self.said.clear()
        return ops


@pytest.fixture
def worker() -> Iterator[Told]:
    told = Told()
    yield told
    for fd in told.fds:
        os.close(fd)


class Policies:
    """What holds, as a test wants it."""

    def __init__(self) -> None:
        self.policy = NO_POLICY
        self.has_counters = True

    def of(self, _id: DatabaseId) -> CachePolicy:
        return self.policy

    def counters(self, _id: DatabaseId) -> int:
        if not self.has_counters:
            raise OSError("no room")
        return os.open("/dev/null", os.O_RDONLY)


def test_a_worker_is_told_once_and_of_each_change(worker: Told) -> None:
    holds = Policies()
    caches = Caches(holds.of, holds.counters, SharedStore(None, Path()))
    caches.changed(worker, SHOP)
    assert worker.ops() == []  # it doesn't know the database yet
    caches.introduce(worker, SHOP)
    caches.introduce(worker, SHOP)
    assert worker.ops() == ["cache"]
    holds.policy = CachePolicy(True, (CacheRule("f" * 16, "ttl=1"),))
    caches.changed(worker, SHOP)
    assert worker.said[0]["rules"] == [["f" * 16, "ttl=1"]] and worker.said[0]["on_write"]
    assert worker.ops() == ["cache", "writes"] and len(worker.fds) == 1
    holds.has_counters = False
    caches.changed(worker, SHOP)
    assert worker.ops() == ["cache"]  # and without counters it keeps nothing
    caches.changed(None, SHOP)


def test_as_many_rules_as_there_may_be_fit(worker: Told) -> None:
    holds = Policies()
    holds.policy = CachePolicy(False, tuple(CacheRule("f" * 16, "x" * 1024, "y" * 200) for _ in range(MAX_RULES)))
    Caches(holds.of, holds.counters, SharedStore(None, Path())).introduce(worker, SHOP)
    assert worker.largest < MAX_PACKET_BYTES


async def test_purges_are_asked_for_in_parts_and_added_up(worker: Told) -> None:
    caches = no_caches()
    assert await caches.purge(None, SHOP, PurgeBy.ALL, ()) == 0
    assert await caches.purge(worker, SHOP, PurgeBy.ALL, ()) == 0
    caches.introduce(worker, SHOP)
    worker.said.clear()
    purge = asyncio.ensure_future(caches.purge(worker, SHOP, PurgeBy.TABLE, ["\U0001f600" * 200] * 50))
    total = 0
    while not purge.done():
        await asyncio.sleep(0)
        for said in worker.said:
            caches.purged({"ticket": said["ticket"], "dropped": len(said["values"])})
            total += len(said["values"])
        worker.said.clear()
    assert await purge == total == 50
    assert worker.largest < MAX_PACKET_BYTES
    caches.purged({"ticket": 12345, "dropped": 1})  # nobody asked


async def test_a_worker_that_ends_has_dropped_everything(worker: Told) -> None:
    caches = no_caches()
    caches.introduce(worker, SHOP)
    purge = asyncio.ensure_future(caches.purge(worker, SHOP, PurgeBy.ALL, ()))
    await asyncio.sleep(0)
    caches.gone(worker)
    assert await purge == 0
    caches.forget(worker, SHOP)
    assert worker.said[-1]["ticket"] == 0


async def test_who_shares_has_another_secret_after_each_purge(worker: Told, tmp_path: Path) -> None:
    holds = Policies()
    caches = Caches(holds.of, holds.counters, SharedStore(StoreAddress("store"), tmp_path / "shared"))
    caches.introduce(worker, SHOP)
    secrets = [worker.said[0]["secret"]]
    assert len(bytes.fromhex(secrets[0])) == 32 and (tmp_path / "shared" / SHOP).stat().st_mode & 0o777 == 0o600
    caches.changed(worker, SHOP)
    assert worker.said[1]["secret"] == secrets[0]
    again = Caches(holds.of, holds.counters, SharedStore(StoreAddress("store"), tmp_path / "shared"))
    other = Told()
    again.introduce(other, SHOP)
    assert other.said[0]["secret"] == secrets[0]  # a Torpor that was started again
    worker.said.clear()
    worker.told.clear()
    await caches.unshare(SHOP)
    purge = asyncio.ensure_future(caches.purge(worker, SHOP, PurgeBy.TAG, ["a"]))
    await worker.told.wait()
    assert [said["op"] for said in worker.said] == ["cache", "purge"]
    secrets.append(worker.said[0]["secret"])
    caches.purged({"ticket": worker.said[1]["ticket"], "dropped": 3})
    assert await purge == 3
    worker.said.clear()
    caches.forget(worker, SHOP)
    assert [said["op"] for said in worker.said] == ["cache", "purge"]
    secrets.append(worker.said[0]["secret"])
    await caches.unshare(SHOP)  # nobody need be there who could be told
    assert not (tmp_path / "shared" / SHOP).exists() and len(set(secrets)) == 3
    off = SharedStore(None, tmp_path / "shared")
    assert off.secret(SHOP) is None
