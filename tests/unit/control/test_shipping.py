"""Shipping with a store and a PostgreSQL that only pretend, in time that jumps: who is slow, full or lying, and what the catalog keeps."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.fleet import make_database
from tests.support.virtual import VirtualClock, run
from tests.unit.storage.test_walfiles import log
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.catalog.histories import HistoryRecords
from torpor.compute.compute import Compute
from torpor.compute.service import ServiceSession
from torpor.control.shipping import Shipper
from torpor.model.errors import ComputeLost, HistoryFull
from torpor.model.history import History
from torpor.model.lsn import format_lsn, parse_lsn, segment_name
from torpor.model.names import DatabaseId
from torpor.model.sleep import Tier

MB = 1 << 20
BEGIN = 3 * MB


class PretendingPostgres:
    """Answers what is asked of the log."""

    def __init__(self) -> None:
        self.flushed, self.timeline, self.slot = BEGIN + 5000, 1, None

    slot: int | None

    async def query(self, text: str) -> list[tuple[str | None, ...]]:
        if "pg_create_physical" in text:
            self.slot = BEGIN + 2200  # in the midst of a page, as the last checkpoint was
        elif "pg_drop" in text:
            self.slot = None
        elif "advance" in text:
            upto = parse_lsn(text.split("'")[3])
            assert self.slot is not None
            assert self.slot <= upto <= self.flushed, "PostgreSQL refuses that"
            self.slot = upto
        else:
            kept = (format_lsn(self.slot), "reserved") if self.slot is not None else (None, "none")
            return [(format_lsn(self.flushed), f"{self.timeline:08X}", str(MB), *kept)]
        return []


class PretendingCompute:
    """Awake or asleep, as the test says."""

    def __init__(self) -> None:
        self.database = replace(make_database(1), uid=0)
        self.tier, self.tier_since, self.postgres = Tier.AWAKE, 1.0, PretendingPostgres()

    def live(self) -> "PretendingCompute":
        if self.tier is not Tier.AWAKE:
            raise ComputeLost("it is asleep")
        return self

    async def service(self) -> PretendingPostgres:
        return self.postgres


class Store:
    """Keeps the log, and may be slow, or refuse."""

    def __init__(self) -> None:
        self.log: dict[int, bytes] = {}
        self.begins: dict[int, int] = {}
        self.takes_s = 0.0
        self.turn = asyncio.Lock()
        self.refusal: Exception | None = None

    async def put_wal(self, timeline: int, start_lsn: int, data: bytes) -> int:
        async with self.turn:  # in the order of asking
            await asyncio.sleep(self.takes_s)
            if self.refusal is not None:
                raise self.refusal
            self.begins.setdefault(timeline, start_lsn)
            known = self.log.setdefault(timeline, b"")
            assert start_lsn == self.begins[timeline] + len(known)
            self.log[timeline] = known + data
        return start_lsn + len(data)


class TurnedClock(VirtualClock):
    """Its wall can be set."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class Yard:
    """A shipper with all that it asks."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.tasks = root, TurnedClock(), TaskOwner("test")
        self.compute, self.store = PretendingCompute(), Store()
        self.catalog = Catalog.open(root / "catalog.sqlite")
        self.catalog.add_database(self.compute.database)
        self.records = HistoryRecords(self.catalog.connection)
        self.pg_wal = root / self.compute.database.id / "data/pg_wal"
        self.pg_wal.mkdir(parents=True)
        for number in range(3, 9):
            (self.pg_wal / segment_name(1, number * MB, MB)).write_bytes(log(1, number * MB, MB))
        self.shipper = self.make()

    def make(self) -> Shipper:
        compute = cast(Compute, self.compute)

        def begin(id: DatabaseId) -> History:
            self.records.add(id, b"key")
            return History(id, b"key")

        return Shipper(
            self.records,
            lambda _history: self.store,
            begin,
            lambda: [compute] if self.compute.tier is Tier.AWAKE else [],
            lambda id: compute if id == compute.database.id else None,
            self.root,
            self.clock,
            self.tasks,
        )

    @property
    def shipped(self) -> int:
        return BEGIN + sum(len(data) for data in self.store.log.values())

    async def until(self, ask: Callable[[], bool]) -> None:
        """Until it holds. Pretended time runs on while a thread reads the log, so patience is counted in real time."""
        deadline = time.monotonic() + 30
        while not ask():
            assert time.monotonic() < deadline
            time.sleep(0.002)  # noqa: ASYNC251  # the thread's turn
            await asyncio.sleep(0.05)

    async def fall_asleep(self) -> None:
        service = cast(ServiceSession, self.compute.postgres)
        await self.shipper.falling_asleep(self.compute.database, service)
        self.compute.tier = Tier.STOPPED

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            try:
                await main()
            finally:
                await self.tasks.stop()

        run(whole())


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def test_a_store_that_is_slow(yard: Yard) -> None:
    async def main() -> None:
        yard.shipper.start()
        yard.store.takes_s = 1.0
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        for more in (100, 3 * MB, 1):
            yard.compute.postgres.flushed += more
            await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        assert yard.store.log[1 << 32 | 1] == b"".join(log(1, n * MB, MB) for n in range(3, 9))[: yard.shipped - BEGIN]

    yard.run(main)


def test_what_a_sleeper_is_behind_is_known_after_a_kill(yard: Yard) -> None:
    """And is shipped from its volume by the next Torpor, once the store isn't full any more."""

    async def main() -> None:
        yard.shipper.start()
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        yard.store.refusal = HistoryFull("the store is full")
        yard.compute.postgres.flushed += 2 * MB
        began = yard.clock.monotonic()
        await yard.fall_asleep()
        assert yard.clock.monotonic() - began < 1.0  # no store is waited for
        assert not await yard.shipper.settle(yard.compute.database.id, 3.0)
        assert yard.records.behind() == [yard.compute.database.id]
        await yard.tasks.stop()  # killed
        yard.tasks = TaskOwner("next")
        yard.shipper = yard.make()
        yard.shipper.start()

        def is_told() -> bool:
            track = yard.shipper.known(yard.compute.database.id)
            return track is not None and track.behind_bytes == 2 * MB and "full" in track.trouble

        await yard.until(is_told)
        yard.store.refusal = None
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        await yard.until(lambda: yard.shipper.known(yard.compute.database.id) is None)  # a sleeper costs nothing
        assert yard.records.behind() == []

    yard.run(main)


def test_clocks_that_jump(yard: Yard) -> None:
    """How often is asked doesn't hang on the wall's clock, nor is log ever taken for shipped that isn't."""

    async def main() -> None:
        yard.shipper.start()
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        for jump_s in (-86_400.0, 7 * 86_400.0):
            yard.clock.ahead_s = jump_s
            yard.compute.postgres.flushed += 1000
            await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        await yard.fall_asleep()
        track = yard.shipper.known(yard.compute.database.id)
        assert track is not None
        assert track.behind_bytes == 0

    yard.run(main)


def test_a_sleeper_that_was_given_another_volume(yard: Yard) -> None:
    """Nothing of it gets into the run of the one before, not even when a Torpor was killed between the exchange and what comes after it."""

    async def main() -> None:
        yard.shipper.start()
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        kept = yard.shipped
        yard.store.refusal = HistoryFull("the store is full")
        yard.compute.postgres.flushed += 2 * MB
        await yard.fall_asleep()
        assert not await yard.shipper.settle(yard.compute.database.id, 3.0)
        await yard.tasks.stop()  # killed
        for number in range(3, 9):  # the log of another one, at the same places
            data = bytearray(log(1, number * MB, MB))
            for page in range(0, MB, 8192):
                data[page + 100] ^= 1
            (yard.pg_wal / segment_name(1, number * MB, MB)).write_bytes(data)
        yard.tasks, yard.store.refusal = TaskOwner("next"), None
        yard.shipper = yard.make()
        yard.shipper.start()
        await yard.until(lambda: yard.records.behind() == [])
        assert yard.shipped == kept
        yard.compute.tier, yard.compute.tier_since = Tier.AWAKE, 2.0
        await yard.until(lambda: (track := yard.shipper.known(yard.compute.database.id)) is not None and track.history.run == 2)
        assert len(yard.store.log[1 << 32 | 1]) == kept - BEGIN

    yard.run(main)


@pytest.mark.parametrize("what", ["timeline", "shorter", "other bytes", "gone"])
def test_what_breaks_a_run(yard: Yard, what: str) -> None:
    async def main() -> None:
        yard.shipper.start()
        await yard.until(lambda: yard.shipped == yard.compute.postgres.flushed)
        await yard.fall_asleep()
        await yard.until(lambda: yard.shipper.known(yard.compute.database.id) is None)
        name = yard.pg_wal / segment_name(1, BEGIN, MB)
        if what == "timeline":
            yard.compute.postgres.timeline = 2
            for number in range(3, 6):
                (yard.pg_wal / segment_name(2, number * MB, MB)).write_bytes(log(2, number * MB, MB))
        elif what == "shorter":
            yard.compute.postgres.flushed -= 1
        elif what == "other bytes":
            data = bytearray(name.read_bytes())
            data[4000] ^= 1
            name.write_bytes(data)
        else:
            name.unlink()
            yard.compute.postgres.flushed = 4 * MB + 10
        yard.compute.tier, yard.compute.tier_since = Tier.AWAKE, 2.0

        def has_broken() -> bool:
            track = yard.shipper.known(yard.compute.database.id)
            return track is not None and track.history.run == 2

        await yard.until(has_broken)
        yard.shipper.flush()
        kept = yard.records.get(yard.compute.database.id)
        assert kept is not None
        assert kept.trouble
        assert kept.base_at is None  # so the next one is taken at once

    yard.run(main)
