"""Cards in a store: who can read them, and which of them count."""

from dataclasses import replace

import pytest

from tests.support.buckets import FaultyBucket, MemoryBucket
from torpor.model.cards import Card, CardArchive, CardHistory
from torpor.model.errors import HistoryCorrupt, HistoryMissing
from torpor.model.names import DatabaseId
from torpor.model.size import SizeOverrides
from torpor.model.sleep import SleepOverrides
from torpor.storage.archive import card as cards
from torpor.storage.archive.bucket import Stored
from torpor.storage.archive.card import CardBox, survey
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import MasterKey

SHOP, OTHER = DatabaseId("d" + "a" * 12), DatabaseId("d" + "b" * 12)
CARD = Card(
    SHOP, "shop", "acme", 18, 5.0, 10 << 30, SleepOverrides(30, "never"), SizeOverrides(max_cpu=2.0), True, OTHER, 6.0, 7.5,
    ("203.0.113.0/24",), (), CardHistory(b"wrapped", 1 << 20, None, 3), CardArchive(b"also", True, 8.0, 900, 1 << 32 | 1, 77),
)  # fmt: skip


def box(bucket: MemoryBucket | FaultyBucket, key: int = 0) -> CardBox:
    return CardBox(Store(bucket), MasterKey(bytes([key]) * 32))


async def test_what_is_stored_is_read() -> None:
    bucket = MemoryBucket()
    name = await box(bucket).put(CARD, 1.0)
    assert name.startswith(f"cards/{MasterKey(bytes(32)).fingerprint}/{SHOP}/")
    assert await box(bucket).names(SHOP) == [name]
    assert await box(bucket).newest([name]) == CARD
    for secret in (b"shop", b"acme", b"wrapped"):
        assert secret not in bucket.objects[name][0]
    bare = Card(OTHER, "b", "default", 18, 0.0, 0, SleepOverrides(), SizeOverrides())
    assert await box(bucket).newest([await box(bucket).put(bare, 1.0)]) == bare


async def test_the_name_tells_whether_it_is_the_same() -> None:
    bucket = MemoryBucket()
    first = await box(bucket).put(CARD, 1.0)
    assert await box(bucket).put(CARD, 2.0) == first == box(bucket).name(CARD)
    assert box(bucket).name(replace(CARD, name="shops")) != first
    assert box(bucket, 1).name(CARD).rpartition("/")[2] != first.rpartition("/")[2]  # nor can it be guessed


async def test_of_several_the_newest_that_can_be_read_counts() -> None:
    bucket = MemoryBucket()
    old, new = await box(bucket).put(CARD, 1.0), await box(bucket).put(replace(CARD, name="renamed"), 2.0)
    assert (await box(bucket).newest([new, old])).name == "renamed"
    bucket.objects[new] = (b"?" + bucket.objects[new][0][1:], 0.0)
    assert (await box(bucket).newest([new, old])).name == "shop"
    bucket.objects.pop(old)
    with pytest.raises(HistoryCorrupt, match="damaged"):
        await box(bucket).newest([new, old][::-1])
    with pytest.raises(HistoryMissing):
        await box(bucket).newest([])


async def test_one_that_came_damaged_is_read_again() -> None:
    memory = MemoryBucket()
    name = await box(memory).put(CARD, 1.0)
    damages = [b"?"]
    faulty = FaultyBucket(memory, damage=lambda _, data: data[:-1] + damages.pop() if damages else data)
    assert await box(faulty).newest([name]) == CARD


async def test_none_stands_in_for_another() -> None:
    bucket = MemoryBucket()
    name = await box(bucket).put(CARD, 1.0)
    moved = name.replace(SHOP, OTHER)
    bucket.objects[moved] = bucket.objects[name]
    with pytest.raises(HistoryCorrupt):
        await box(bucket).newest([moved])
    foreign = name.replace(box(bucket).fingerprint, box(bucket, 1).fingerprint)
    bucket.objects[foreign] = bucket.objects[name]
    with pytest.raises(HistoryCorrupt):
        await box(bucket, 1).newest([foreign])


async def test_one_of_a_newer_torpor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()
    monkeypatch.setattr(cards, "FORMAT", 9)
    name = await box(bucket).put(CARD, 1.0)
    monkeypatch.undo()
    with pytest.raises(HistoryCorrupt, match="format 9, this Torpor knows 1; use a newer Torpor"):
        await box(bucket).newest([name])


async def test_several_hosts_share_a_store() -> None:
    bucket = MemoryBucket()
    name = await box(bucket).put(CARD, 1.0)
    await box(bucket, 1).put(CARD, 1.0)
    await box(bucket, 1).put(replace(CARD, name="x"), 1.0)
    await box(bucket, 1).put(replace(CARD, id=OTHER), 1.0)
    await bucket.put(f"databases/{SHOP}/bases/1", b"", False)
    found = await box(bucket).survey()
    assert (found.ours, found.foreign) == ({SHOP: [name]}, {box(bucket, 1).fingerprint: 2})
    assert set(await box(bucket, 1).ours()) == {SHOP, OTHER}
    await box(bucket).destroy(SHOP)
    await box(bucket).destroy(SHOP)
    assert (await box(bucket).ours(), len(await box(bucket, 1).ours())) == ({}, 2)


def test_what_is_no_card_is_none() -> None:
    names = ["cards/x", "cards/key/shop/1", f"cards/key/{SHOP}", f"cards/key/{SHOP}/1/2", f"cards/key/{SHOP}/1"]
    found = survey([Stored(name, 0, 0.0) for name in names], "key")
    assert found.ours == {SHOP: [f"cards/key/{SHOP}/1"]}
