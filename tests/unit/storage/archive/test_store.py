"""Patience: what is tried again, how often, after which pauses; what isn't."""

import asyncio

import pytest

from tests.support.buckets import FaultyBucket, MemoryBucket
from torpor.model.errors import HistoryFull, HistoryMissing, HistoryUnreachable
from torpor.storage.archive.store import Store


class Pauses:
    """A sleep that takes no time, and notes how long it should have been."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, pause_s: float) -> None:
        self.taken.append(pause_s)


async def test_a_store_that_fails_for_a_while_is_asked_again() -> None:
    pauses = Pauses()
    faulty = FaultyBucket(MemoryBucket(), failures=3)
    store = Store(faulty, sleep=pauses, chance=lambda: 1.0)
    assert await store.put("a/b", b"x")
    assert pauses.taken == [0.2, 0.4, 0.8]
    assert await store.get("a/b") == b"x"


async def test_pauses_are_spread_by_chance_and_bounded() -> None:
    pauses = Pauses()
    store = Store(FaultyBucket(MemoryBucket(), failures=-1), attempts=9, longest_pause_s=3.0, sleep=pauses, chance=lambda: 0.0)
    with pytest.raises(HistoryUnreachable):
        await store.get("a/b")
    assert pauses.taken == [0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5, 1.5]


async def test_a_lost_answer_doesnt_matter() -> None:
    faulty = FaultyBucket(MemoryBucket(), lost_answers=1)
    store = Store(faulty, sleep=Pauses())
    assert not await store.put("a/b", b"x", if_absent=True)  # its own first attempt was there before
    faulty.lost_answers = 2
    await store.delete(["a/b"])
    assert await store.list("a") == []


async def test_what_doesnt_mend_itself_is_told_at_once() -> None:
    pauses = Pauses()
    faulty = FaultyBucket(MemoryBucket(), room=0)
    store = Store(faulty, sleep=pauses)
    with pytest.raises(HistoryFull, match="more room"):
        await store.put("a/b", b"x")
    with pytest.raises(HistoryMissing):
        await store.get("a/b")
    assert not pauses.taken
    assert len(faulty.calls) == 2


async def test_an_attempt_has_its_time() -> None:
    faulty = FaultyBucket(MemoryBucket(), slow_s=60)
    store = Store(faulty, attempts=2, attempt_s=0.02, sleep=Pauses())
    with pytest.raises(HistoryUnreachable, match=r"a store that fails took more than 0\.02 s for listing a"):
        await store.list("a")
    assert faulty.calls == ["list a", "list a"]


async def test_who_is_cancelled_ends_at_once() -> None:
    store = Store(FaultyBucket(MemoryBucket(), failures=-1), first_pause_s=60)
    waiting = asyncio.create_task(store.get("a/b"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_nothing_to_delete_asks_nobody() -> None:
    faulty = FaultyBucket(MemoryBucket())
    await Store(faulty).delete([])
    assert not faulty.calls
