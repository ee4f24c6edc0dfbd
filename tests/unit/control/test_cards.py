"""Cards follow what happens to databases, whatever the store does and whoever is killed."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.buckets import Dead, FaultyBucket, MemoryBucket
from tests.support.fleet import House, make_database
from tests.support.shelving import DATABASE, Shelves, shelves
from torpor.base.clock import SystemClock
from torpor.catalog.archived import ArchivedRecords
from torpor.catalog.histories import HistoryRecords
from torpor.control import cards as module
from torpor.control.cards import Cards, card_of
from torpor.control.recovery import goes_beyond, unreachable
from torpor.control.restore import Route
from torpor.model.access_views import AccessView
from torpor.model.archived import Archived, ArchivedState
from torpor.model.cards import Card
from torpor.model.database import DatabaseState
from torpor.model.errors import HistoryUnreachable
from torpor.model.history import History, Shipped, line_of
from torpor.model.jobs import JobState
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolMode, PoolOverrides
from torpor.model.size import GIB, Size, SizeOverrides
from torpor.model.sleep import SleepOverrides
from torpor.storage.archive.card import CardBox
from torpor.storage.archive.retention import Base, BaseFacts, LogPiece
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

ONE, TWO = make_database(1), make_database(2)
NOBODY = AccessView((), (), "")
HISTORY = History(ONE.id, b"key", 3, Shipped(2, 1 << 20, 700, 9.0, b""), keep_bases=4)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_GATHER_S", "_AGAIN_S", "_AGAIN_MOST_S"):
        monkeypatch.setattr(module, name, 0.001)


class Desk:
    """Cards of a house with two databases, of which the first has a history."""

    def __init__(self, root: Path, bucket: MemoryBucket | FaultyBucket) -> None:
        self.house = House(root, SystemClock())
        self.bucket = bucket
        self.histories = HistoryRecords(self.house.catalog.connection)
        self.archived = ArchivedRecords(self.house.catalog.connection)
        known = {database.id for database in self.house.catalog.databases()}
        for database in (ONE, TWO):
            if database.id not in known:
                self.house.catalog.add_database(database)
        for database in self.house.catalog.databases():
            self.house.fleet.add(database)
        if not known:
            self.histories.add(ONE.id, b"key")
        self.box = CardBox(Store(bucket, sleep=_at_once), MasterKey(bytes(32)))
        self.lists = NOBODY
        self.cards = Cards(
            self.box,
            self.house.fleet,
            self.histories,
            self.archived,
            lambda _id: "acme",
            lambda _id: self.lists,
            Size(),
            self.house.clock,
            self.house.tasks,
        )
        self.house.fleet.on_update = self.cards.touch

    async def stored(self) -> list[Card]:
        """What the store has, by whoever can read it."""
        box = CardBox(Store(_inner(self.bucket)), MasterKey(bytes(32)))
        return [await box.newest(names) for names in (await box.ours()).values()]

    async def settled(self) -> None:
        """Until the store has what it should."""
        while self.cards.behind or not self.cards._is_compared:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.001)


def _inner(bucket: MemoryBucket | FaultyBucket) -> MemoryBucket:
    inner = bucket.inner if isinstance(bucket, FaultyBucket) else bucket
    assert isinstance(inner, MemoryBucket)
    return inner


async def _at_once(_pause_s: float) -> None:
    pass


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: a catalog is synced for each of its migrations."""
    with tempfile.TemporaryDirectory(prefix="torpor-test-cards-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
async def desk(place: Path) -> AsyncIterator[Desk]:
    desk = Desk(place, FaultyBucket(MemoryBucket()))
    yield desk
    await desk.house.close()


async def test_what_changes_is_stored(desk: Desk) -> None:
    desk.cards.start()
    await desk.settled()
    (card,) = await desk.stored()
    assert (card.id, card.name, card.workspace, card.archive) == (ONE.id, "db1", "acme", None)
    pool = PoolOverrides(PoolMode.AUTO, 5)
    desk.house.fleet.update(replace(ONE, overrides=SleepOverrides(7.0), pool=pool))
    await desk.settled()
    (card,) = await desk.stored()
    assert card.pool == pool
    assert card.overrides == SleepOverrides(7.0)
    desk.lists = AccessView(("203.0.113.0/24",), (), "")
    desk.archived.begin(ONE.id, b"other", "", 1.0)
    desk.cards.touch(ONE.id)
    await desk.settled()
    (card,) = await desk.stored()
    assert (card.allow, card.archive is not None and card.archive.is_archived) == (("203.0.113.0/24",), False)
    assert len(_inner(desk.bucket).objects) == 1


async def test_nothing_is_asked_of_a_database_that_has_nothing_there(desk: Desk) -> None:
    desk.cards.start()
    await desk.settled()
    assert isinstance(desk.bucket, FaultyBucket)
    asked = len(desk.bucket.calls)
    desk.house.fleet.update(replace(TWO, superuser=True))
    await desk.settled()
    assert await desk.cards.is_gone(TWO.id, 1.0)
    assert len(desk.bucket.calls) == asked


async def test_of_one_that_is_removed_it_goes(desk: Desk) -> None:
    await desk.cards.ensure(ONE.id)
    assert len(await desk.stored()) == 1
    desk.house.catalog.set_state(ONE.id, DatabaseState.DELETING)
    desk.house.fleet.update(replace(ONE, state=DatabaseState.DELETING))
    assert isinstance(desk.bucket, FaultyBucket)
    desk.bucket.failures = -1
    assert not await desk.cards.is_gone(ONE.id, 5.0)
    assert desk.cards.behind == 1
    desk.bucket.failures = 0
    desk.cards.start()
    await desk.settled()
    assert await desk.stored() == []


async def test_a_store_that_fails_is_tried_again(desk: Desk) -> None:
    assert isinstance(desk.bucket, FaultyBucket)
    desk.bucket.failures = -1
    with pytest.raises(HistoryUnreachable):
        await desk.cards.ensure(ONE.id)
    desk.cards.start()
    await desk.bucket.reached("list cards")
    desk.bucket.failures, desk.bucket.lost_answers = 0, 2
    await desk.settled()
    assert [card.id for card in await desk.stored()] == [ONE.id]


async def test_one_that_is_damaged_or_lost_is_stored_again(desk: Desk) -> None:
    await desk.cards.ensure(ONE.id)
    bucket = _inner(desk.bucket)
    (name,) = bucket.objects
    bucket.objects[name] = (b"?", 0.0)
    await desk.cards.ensure(ONE.id)
    assert bucket.objects[name][0] == b"?"
    await desk.cards.ensure(ONE.id, check=True)
    assert [card.id for card in await desk.stored()] == [ONE.id]
    bucket.objects.clear()
    await desk.cards.ensure(ONE.id, check=True)
    assert list(bucket.objects) == [name]


async def test_those_of_others_are_left_alone(desk: Desk) -> None:
    other = replace(card_of(ONE, "acme", NOBODY, Size(), HISTORY, None) or pytest.fail(), id=make_database(9).id)
    await desk.box.put(other, 1.0)
    desk.cards.start()
    await desk.settled()
    assert {card.id for card in await desk.stored()} == {ONE.id, other.id}


async def test_at_its_end_what_is_behind_is_stored(desk: Desk) -> None:
    desk.house.fleet.update(ONE)
    await desk.cards.finish(5.0)
    assert (len(await desk.stored()), desk.cards.behind) == (1, 0)


async def live(desk: Desk) -> None:
    """A database gets a card, is changed, and removed."""
    await desk.cards.ensure(ONE.id)
    desk.house.catalog.set_overrides(ONE.id, SleepOverrides(9.0))
    desk.house.fleet.update(replace(ONE, overrides=SleepOverrides(9.0)))
    await desk.cards.ensure(ONE.id)
    desk.house.catalog.set_state(ONE.id, DatabaseState.DELETING)
    desk.house.fleet.update(replace(ONE, state=DatabaseState.DELETING))
    await desk.cards.ensure(ONE.id)


async def test_killed_at_every_call(place: Path) -> None:
    """Whenever Torpor is killed, the next one makes the store agree with the catalog; meanwhile there is a card of one that is there."""
    for dies_at in range(1, 100):
        bucket = FaultyBucket(MemoryBucket(), dies_at=dies_at)
        desk = Desk(place / str(dies_at), bucket)
        try:
            await live(desk)
        except Dead:
            pass
        else:
            assert dies_at > 5
            await desk.house.close()
            return
        (is_now,) = [one for one in desk.house.catalog.databases() if one.id == ONE.id]
        if is_now.overrides != ONE.overrides and is_now.state is DatabaseState.READY:
            assert len(await desk.stored()) == 1
        await desk.house.close()
        bucket.dies_at = None
        desk = Desk(place / str(dies_at), bucket)
        desk.cards.start()
        await desk.settled()
        if is_now.state is DatabaseState.DELETING:  # what is doomed goes, and its card first
            assert [id for id, _ in desk.histories.doomed()] == [ONE.id]
            await desk.box.destroy(ONE.id)
            assert await desk.stored() == []
        else:
            assert [card.overrides for card in await desk.stored()] == [is_now.overrides]
        await desk.house.close()
    raise AssertionError("it is never done")


def test_what_is_on_it() -> None:
    card = card_of(replace(ONE, size=SizeOverrides(disk_bytes=GIB)), "acme", NOBODY, Size(), HISTORY, None)
    assert card is not None
    assert (card.disk_bytes, card.history and (card.history.keep_bases, card.history.segment_bytes)) == (GIB, (4, 1 << 20))
    assert card_of(ONE, "acme", NOBODY, Size(), None, None) is None
    assert card_of(replace(ONE, state=DatabaseState.BRANCHING), "acme", NOBODY, Size(), HISTORY, None) is None
    assert replace(card, parent=TWO.id).recovered_from == TWO.id
    assert replace(card, parent=TWO.id, branched_at=1.0).recovered_from is None


@pytest.mark.parametrize(
    ("history", "piece", "beyond"),
    [
        (HISTORY, LogPiece(line_of(3, 2), 600, 700), False),
        (HISTORY, LogPiece(line_of(3, 2), 600, 701), True),
        (HISTORY, LogPiece(line_of(2, 9), 600, 9000), False),
        (HISTORY, LogPiece(line_of(4, 1), 1, 2), True),
        # It was restored in place, and nothing was shipped since: all log is of what it was before.
        (replace(HISTORY, shipped=None), LogPiece(line_of(3, 2), 600, 9000), False),
        (replace(HISTORY, shipped=None), LogPiece(line_of(4, 1), 1, 2), True),
        (None, LogPiece(line_of(1, 1), 1, 2), True),
    ],
)
def test_whether_an_archived_volume_is_the_newest(history: History | None, piece: LogPiece, beyond: bool) -> None:
    archived = Archived(ONE.id, b"", ArchivedState.ARCHIVED, "", 1.0)
    card = card_of(ONE, "acme", NOBODY, Size(), history, archived)
    assert card is not None
    assert card.archive is not None
    assert goes_beyond(card.archive, [piece]) is beyond


def test_one_that_came_back_isn_t_archived() -> None:
    card = card_of(ONE, "acme", NOBODY, Size(), HISTORY, Archived(ONE.id, b"", ArchivedState.BACK, "", 1.0))
    assert card is not None
    assert card.archive is None


def test_what_can_t_be_reached_is_told() -> None:
    route = Route(Base(1, BaseFacts(line_of(1, 1), 0, 10, 0.0, 18), 1, 1), 100, 100)
    assert unreachable(route, [LogPiece(line_of(1, 1), 0, 100)]) == ""
    assert "after 0/64" in unreachable(route, [LogPiece(line_of(1, 1), 0, 100), LogPiece(line_of(1, 1), 120, 140)])
    assert "no base copy" in unreachable(route, [LogPiece(line_of(2, 1), 0, 50)])


class Keeper:
    """Is asked for cards, and fails as long as it is told."""

    def __init__(self, found: Shelves) -> None:
        self.found = found
        self.fails = True
        self.seen: list[tuple[ArchivedState, bool]] = []

    def touch(self, id: DatabaseId) -> None:
        pass

    async def ensure(self, id: DatabaseId, check: bool = False) -> None:
        archived = self.found.records.get(id)
        assert archived is not None
        self.seen.append((archived.state, self.found.data.exists()))
        if self.fails:
            raise HistoryUnreachable("a store that fails")


async def test_no_volume_leaves_the_pool_before_its_key_is_in_the_store(place: Path) -> None:
    data = place / "volumes" / DATABASE.id / "data"
    (data / "pg_wal").mkdir(parents=True)
    (data / "PG_VERSION").write_bytes(b"18")
    async with shelves(place) as found:
        keeper = found.archiving.cards = Keeper(found)
        failed = await found.archive()
        assert (failed.state, failed.error and failed.error.kind) == (JobState.FAILED, "history_unreachable")
        assert (found.data / "PG_VERSION").read_bytes() == b"18"
        keeper.fails = False
        assert (await found.archive()).state is JobState.DONE
        assert keeper.seen == [(ArchivedState.STORING, True)] * 2
        assert not found.data.exists()
