"""The contract of object stores: a directory, an S3 server, and their twin in memory."""

import asyncio
import os
import time

import pytest

from torpor.model.errors import HistoryMissing
from torpor.storage.archive.bucket import Bucket


async def test_what_was_put_is_there(bucket: Bucket) -> None:
    content = os.urandom(300_000)
    assert await bucket.put("databases/d1/bases/00000001", content, False)
    assert await bucket.put("databases/d1/empty", b"", False)
    assert await bucket.get("databases/d1/bases/00000001") == content
    assert await bucket.get("databases/d1/empty") == b""


async def test_a_second_put_replaces(bucket: Bucket) -> None:
    await bucket.put("a/b", b"first", False)
    assert await bucket.put("a/b", b"second", False)
    assert await bucket.get("a/b") == b"second"


async def test_if_absent_leaves_what_is_there(bucket: Bucket) -> None:
    assert await bucket.put("a/b", b"first", True)
    assert not await bucket.put("a/b", b"second", True)
    assert await bucket.get("a/b") == b"first"


async def test_of_two_at_once_one_is_first(bucket: Bucket) -> None:
    contents = [bytes([number]) * 1000 for number in range(8)]
    first = await asyncio.gather(*(bucket.put("a/b", content, True) for content in contents))
    assert sum(first) == 1
    assert await bucket.get("a/b") == contents[first.index(True)]


@pytest.mark.parametrize("key", ["nothing", "a/nothing", "a/b/c"])
async def test_what_is_not_there_is_missing(bucket: Bucket, key: str) -> None:
    await bucket.put("a/there", b"", False)
    with pytest.raises(HistoryMissing):
        await bucket.get(key)


async def test_a_list_is_of_a_directory(bucket: Bucket) -> None:
    before = time.time()
    keys = ["a/1", "a/b/2", "a/b/c/3", "ab/4"]
    for key in keys:
        await bucket.put(key, key.encode() * 10, False)
    assert {stored.key for stored in await bucket.list("a")} == {"a/1", "a/b/2", "a/b/c/3"}
    assert {stored.key for stored in await bucket.list("a/b")} == {"a/b/2", "a/b/c/3"}
    assert await bucket.list("nothing") == []
    (stored,) = await bucket.list("ab")
    assert (stored.key, stored.size_bytes) == ("ab/4", 40)
    assert before - 2 <= stored.at <= time.time() + 2


async def test_a_delete_takes_what_is_named(bucket: Bucket) -> None:
    for key in ("a/1", "a/2", "a/b/3"):
        await bucket.put(key, b"x", False)
    await bucket.delete(["a/1", "a/b/3", "a/never-was", "nothing/at/all"])
    assert [stored.key for stored in await bucket.list("a")] == ["a/2"]
    await bucket.delete(["a/1", "a/2"])
    assert await bucket.list("a") == []
    assert await bucket.put("a/b/3", b"again", True)


async def test_puts_and_deletes_side_by_side(bucket: Bucket) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(5):
            await bucket.put(f"a/b/{number}", b"x", False)
            await bucket.delete([f"a/b/{number}"])

    await asyncio.gather(*(come_and_go(number) for number in range(4)), bucket.put("a/b/stays", b"x", False))
    assert [stored.key for stored in await bucket.list("a")] == ["a/b/stays"]
