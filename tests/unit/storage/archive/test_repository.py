"""Bases and log: they come back as they were, whatever store they were in, and whenever somebody was killed."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.buckets import Dead, FaultyBucket, MemoryBucket
from torpor.model.errors import Conflict, HistoryCorrupt, HistoryFull, HistoryMissing, HistoryUnreachable
from torpor.model.names import DatabaseId
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.bucket import Bucket
from torpor.storage.archive.format import CHUNK_BYTES
from torpor.storage.archive.repository import Repository
from torpor.storage.archive.retention import BaseFacts, Retention, spans
from torpor.storage.archive.work import Lanes, Pulled

SHOP, OTHER = DatabaseId("d" + "a" * 12), DatabaseId("d" + "b" * 12)
FACTS = BaseFacts(timeline=1, start_lsn=100, stop_lsn=200, ended_at=1000.0, major=18)
ALL = Retention(1e12, 1000)
Tree = dict[str, tuple[str, int, bytes]]


def facts(start: int = 100, stop: int = 200, at: float = 1000.0) -> BaseFacts:
    return BaseFacts(1, start, stop, at, 18)


@pytest.fixture
def shop(bucket: Bucket, archive_in: Callable[[Bucket], Archive]) -> Repository:
    archive = archive_in(bucket)
    return archive.repository(SHOP, archive.new_key(SHOP))


@pytest.fixture
def in_memory(archive_in: Callable[[Bucket], Archive]) -> tuple[FaultyBucket, Repository]:
    bucket = FaultyBucket(MemoryBucket())
    archive = archive_in(bucket)
    return bucket, archive.repository(SHOP, archive.new_key(SHOP))


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A tree that looks a little like a cluster."""
    root, dice = tmp_path / "cluster", random.Random(4)
    (root / "base/1").mkdir(parents=True)
    (root / "base/5").mkdir()
    (root / "pg_wal/archive_status").mkdir(parents=True)
    for number in range(40):
        (root / f"base/1/{number}").write_bytes(dice.randbytes(100) * dice.randrange(300))
        (root / f"base/5/{number}").write_bytes(dice.randbytes(100) * dice.randrange(300))
    (root / "base/5/large").write_bytes(dice.randbytes(CHUNK_BYTES + 12345))
    (root / "base/5/empty").write_bytes(b"")
    (root / "pg_wal/000000010000000000000001").write_bytes(b"log" * 1000)
    (root / "PG_VERSION").write_text("18\n")
    (root / "PG_VERSION").chmod(0o640)
    (root / "postgresql.conf").symlink_to("/etc/passwd")
    root.chmod(0o700)
    return root


def tree_of(root: Path) -> Tree:
    """What lies below a directory."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", 0, os.readlink(path).encode())
        elif path.is_dir():
            found[name] = ("directory", path.stat().st_mode & 0o777, b"")
        else:
            found[name] = ("file", path.stat().st_mode & 0o777, path.read_bytes())
    return found


def empty(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


@contextlib.contextmanager
def killed() -> Iterator[None]:
    """Torpor ends somewhere in here, or gets to the end."""
    with contextlib.suppress(Dead):
        yield


async def test_a_base_comes_back_as_it_was(shop: Repository, cluster: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = await shop.put_base(cluster, FACTS, progress=lambda done, total: steps.append((done, total)))
    assert (made.number, made.facts) == (1, FACTS)
    assert await shop.bases() == [made]
    assert steps == sorted(steps)
    assert steps[-1] == (made.size_bytes, made.size_bytes)
    steps.clear()
    assert await shop.get_base(1, empty(tmp_path / "back"), lambda done, total: steps.append((done, total))) == made
    assert tree_of(tmp_path / "back") == tree_of(cluster)
    assert steps[-1] == (made.size_bytes, made.size_bytes)
    assert await shop.verify(1) == made
    stored = await shop.stored()
    assert stored.log_bytes == 0
    assert CHUNK_BYTES < stored.base_bytes < made.size_bytes + 10_000


async def test_what_is_left_out_stays_out(shop: Repository, cluster: Path, tmp_path: Path) -> None:
    await shop.put_base(cluster, FACTS, leave_out=lambda path: path.startswith("pg_wal/") or path == "base/1")
    await shop.get_base(1, empty(tmp_path / "back"))
    assert set(tree_of(cluster)) - set(tree_of(tmp_path / "back")) == {
        "base/1",
        *(f"base/1/{number}" for number in range(40)),
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status",
    }


async def test_what_didnt_change_isnt_stored_again(shop: Repository, cluster: Path, tmp_path: Path) -> None:
    first = await shop.put_base(cluster, FACTS)
    again = await shop.put_base(cluster, FACTS)
    assert first.stored_bytes > CHUNK_BYTES
    assert again.stored_bytes == 0
    with (cluster / "base/5/large").open("r+b") as file:
        file.seek(CHUNK_BYTES + 8192)
        file.write(b"another")
    (cluster / "base/5/new").write_bytes(b"new" * 1000)
    third = await shop.put_base(cluster, FACTS)
    assert 0 < third.stored_bytes < CHUNK_BYTES / 4
    for number in (1, 2, 3):
        assert (await shop.verify(number)).number == number
    await shop.get_base(3, empty(tmp_path / "back"))
    assert tree_of(tmp_path / "back") == tree_of(cluster)


async def test_databases_share_nothing(archive_in: Callable[[Bucket], Archive], cluster: Path) -> None:
    bucket = MemoryBucket()
    archive = archive_in(bucket)
    one, other = (archive.repository(id, archive.new_key(id)) for id in (SHOP, OTHER))
    first, second = await one.put_base(cluster, FACTS), await other.put_base(cluster, FACTS)
    assert abs(first.stored_bytes - second.stored_bytes) < 5000
    names = [{key.split("/", 2)[2] for key in bucket.objects if key.startswith(f"databases/{id}/chunks")} for id in (SHOP, OTHER)]
    assert not names[0] & names[1]
    with pytest.raises(HistoryCorrupt):  # nor can one's objects be given to another
        for key in [key for key in bucket.objects if key.startswith(f"databases/{SHOP}/bases")]:
            bucket.objects[key.replace(SHOP, OTHER)] = bucket.objects[key]
        await archive_in(bucket).repository(OTHER, archive.new_key(OTHER)).bases()


async def test_one_repository_for_each_database(archive_in: Callable[[Bucket], Archive]) -> None:
    archive = archive_in(MemoryBucket())
    key = archive.new_key(SHOP)
    assert archive.repository(SHOP, key) is archive.repository(SHOP, key)


async def test_holes_cost_nothing(in_memory: tuple[FaultyBucket, Repository], tmp_path: Path) -> None:
    _, shop = in_memory
    source = empty(tmp_path / "source")
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 42)  # 4 TB
        file.seek((1 << 40) + 77)
        file.write(b"something")
    (source / "zeros").write_bytes(bytes(CHUNK_BYTES + 1))
    made = await shop.put_base(source, FACTS)
    assert made.stored_bytes < 10_000
    await shop.get_base(1, empty(tmp_path / "back"))
    with (tmp_path / "back/sparse").open("rb") as file:
        assert file.seek(0, os.SEEK_END) == 1 << 42
        file.seek((1 << 40) + 76)
        assert file.read(11) == b"\0something\0"
    assert (tmp_path / "back/sparse").stat().st_blocks * 512 <= CHUNK_BYTES
    assert (tmp_path / "back/zeros").read_bytes() == bytes(CHUNK_BYTES + 1)


async def test_what_a_tenant_may_leave_there(in_memory: tuple[FaultyBucket, Repository], tmp_path: Path) -> None:
    _, shop = in_memory
    source = empty(tmp_path / "source")
    os.mkfifo(source / "pipe")
    (source / "out").symlink_to("../outside")
    (source / "up").symlink_to("..")
    (source / os.fsdecode(b"\xff\n name")).write_text("x")
    closed = empty(source / "closed")
    (closed / "readonly").write_text("y")
    (closed / "readonly").chmod(0o400)
    (closed / "program").write_text("z")
    (closed / "program").chmod(0o4755)
    closed.chmod(0o500)
    os.link(source / "closed/program", source / "twin")
    await shop.put_base(source, FACTS)
    await shop.get_base(1, empty(tmp_path / "back"))
    assert tree_of(tmp_path / "back") == {
        "out": ("link", 0, b"../outside"),
        "up": ("link", 0, b".."),
        os.fsdecode(b"\xff\n name"): ("file", 0o644, b"x"),
        "closed": ("directory", 0o500, b""),
        "closed/readonly": ("file", 0o400, b"y"),
        "closed/program": ("file", 0o755, b"z"),
        "twin": ("file", 0o755, b"z"),
    }
    assert (tmp_path / "back/twin").samefile(tmp_path / "back/closed/program")
    deep = source
    for _ in range(70):
        deep = empty(deep / "d")
    with pytest.raises(Conflict, match="more than 64 deep"):
        await shop.put_base(source, FACTS)
    assert [base.number for base in await shop.bases()] == [1]


async def test_a_target_that_isnt_empty_is_never_written_through(shop: Repository, cluster: Path, tmp_path: Path) -> None:
    await shop.put_base(cluster, FACTS)
    back = empty(tmp_path / "back")
    (tmp_path / "elsewhere").mkdir()
    (back / "base").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HistoryCorrupt, match="File exists"):
        await shop.get_base(1, back)
    assert tree_of(tmp_path / "elsewhere") == {}


async def test_log_comes_back_in_order(shop: Repository) -> None:
    content = os.urandom(CHUNK_BYTES + 5000)
    assert await shop.put_wal(1, 1000, content[:300]) == 1300
    assert await shop.put_wal(1, 1200, content[200:1000]) == 2000
    assert await shop.put_wal(1, 1200, content[200:1000]) == 2000  # once more, after a crash
    assert await shop.put_wal(1, 2000, content[1000:]) == 1000 + len(content)
    await shop.put_wal(2, 1500, b"another timeline")

    async def log(start: int, end: int | None = None) -> bytes:
        reached, pieces = start, []
        async for at, data in shop.wal(1, start, end):
            assert at == reached
            assert 0 < len(data) <= CHUNK_BYTES
            reached += len(data)
            pieces.append(data)
        return b"".join(pieces)

    assert await log(1000) == content
    assert await log(1250, 1350) == content[250:350]
    assert await log(1100, 1000 + len(content)) == content[100:]
    assert await log(5, None) == b""
    with pytest.raises(HistoryMissing):
        await log(1000, 1001 + len(content))
    with pytest.raises(HistoryMissing):
        await log(999, 1001)
    assert (await shop.stored()).log_bytes > len(content)


async def test_expired_history_is_gone(shop: Repository, bucket: Bucket, cluster: Path, tmp_path: Path) -> None:
    for number in range(1, 4):
        (cluster / "base/5/large").write_bytes(os.urandom(500_000))
        await shop.put_base(cluster, facts(number * 100, number * 100 + 50, number * 1000.0))
        await shop.put_wal(1, number * 100, os.urandom(100))
    before = await shop.stored()
    gone = await shop.expire(Retention(500.0, 10), now=3400.0)
    after = await shop.stored()
    assert gone.bases == (1,)
    assert before.objects - after.objects == gone.objects
    assert 0 <= before.all_bytes - after.all_bytes - gone.stored_bytes < 1000  # a manifest
    assert gone.stored_bytes > 500_000
    assert [(span.base, span.to_lsn) for span in spans(await shop.bases(), await shop.wal_pieces())] == [(2, 400), (3, 400)]
    with pytest.raises(HistoryMissing, match="has no base 1"):
        await shop.get_base(1, empty(tmp_path / "no"))
    await shop.get_base(2, empty(tmp_path / "back"))
    await shop.verify(3)
    assert not (await shop.expire(Retention(500.0, 10), now=3400.0)).objects
    assert (await shop.expire(Retention(0.0, 10), now=9e9, pinned=[2])).bases == ()
    assert (await shop.expire(Retention(0.0, 10), now=9e9)).bases == (2,)
    await shop.verify(3)
    await shop.destroy()
    assert await bucket.list("databases") == []
    assert await shop.bases() == []
    await shop.destroy()


async def test_what_is_held_stays(shop: Repository, cluster: Path) -> None:
    for number in (1, 2):
        await shop.put_base(cluster, facts(number * 100, number * 100 + 50))
        await shop.put_wal(1, number * 100, bytes(100))
    async with shop.hold(1):
        assert (await shop.expire(Retention(0.0, 1), now=9e9)).bases == ()
        assert [at async for at, _ in shop.wal(1, 100, 300)] == [100, 200]
        await shop.verify(1)
    assert (await shop.expire(Retention(0.0, 1), now=9e9)).bases == (1,)


async def test_a_full_store_is_told_and_what_was_there_stays(in_memory: tuple[FaultyBucket, Repository], cluster: Path) -> None:
    bucket, shop = in_memory
    await shop.put_base(cluster, FACTS)
    (cluster / "base/5/large").write_bytes(os.urandom(CHUNK_BYTES * 3))
    bucket.room = 2
    with pytest.raises(HistoryFull):
        await shop.put_base(cluster, FACTS)
    assert [base.number for base in await shop.bases()] == [1]
    await shop.expire(ALL, 0.0)
    bucket.room = None
    assert (await shop.put_base(cluster, FACTS)).number == 2
    await shop.verify(1)
    await shop.verify(2)


async def test_a_store_that_fails_now_and_then(in_memory: tuple[FaultyBucket, Repository], cluster: Path, tmp_path: Path) -> None:
    bucket, shop = in_memory
    bucket.failures = 4
    await shop.put_base(cluster, FACTS)
    bucket.failures, bucket.lost_answers = 3, 2
    await shop.get_base(1, empty(tmp_path / "back"))
    assert tree_of(tmp_path / "back") == tree_of(cluster)
    bucket.failures = -1
    for call in (shop.put_base(cluster, FACTS), shop.get_base(1, empty(tmp_path / "no")), shop.put_wal(1, 0, b"x"), shop.bases()):
        with pytest.raises(HistoryUnreachable):
            await call
    bucket.failures = 0
    await shop.verify(1)


async def test_a_manifest_whose_answer_was_lost(in_memory: tuple[FaultyBucket, Repository], cluster: Path) -> None:
    bucket, shop = in_memory
    await shop.put_base(cluster, FACTS)
    bucket.lost_answers = 1  # nothing but the manifest is put
    assert (await shop.put_base(cluster, FACTS)).number == 2


async def test_two_torpors_in_one_store(archive_in: Callable[[Bucket], Archive], cluster: Path) -> None:
    bucket = MemoryBucket()
    slow = FaultyBucket(bucket, slow_s=0.01)
    mine, other = archive_in(bucket), archive_in(slow)
    key = mine.new_key(SHOP)
    slower = asyncio.create_task(other.repository(SHOP, key).put_base(cluster, FACTS))
    await slow.reached(f"list databases/{SHOP}/chunks")
    await mine.repository(SHOP, key).put_base(cluster, FACTS)
    with pytest.raises(Conflict, match="another Torpor"):
        await slower


@pytest.mark.parametrize("what", ["bases", "chunks", "wal"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
async def test_damage_is_found(in_memory: tuple[FaultyBucket, Repository], cluster: Path, tmp_path: Path, what: str, damage: str) -> None:
    bucket, shop = in_memory
    await shop.put_base(cluster, FACTS)
    await shop.put_wal(1, 0, b"some log")
    assert isinstance(bucket.inner, MemoryBucket)
    objects = bucket.inner.objects
    key = next(key for key in objects if f"/{what}/" in key)
    content, at = objects[key]
    if damage == "gone":
        del objects[key]
    else:
        objects[key] = (content[:-1] if damage == "cut" else content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], at)
    shop._manifests.clear()
    with pytest.raises(HistoryMissing if damage == "gone" else HistoryCorrupt):
        if what == "wal":
            _ = [piece async for piece in shop.wal(1, 0, 8)]
        else:
            await shop.get_base(1, empty(tmp_path / "back"))
    if what == "chunks":
        with pytest.raises(HistoryMissing if damage == "gone" else HistoryCorrupt):
            await shop.verify(1)


async def test_damage_on_the_way_is_asked_again(in_memory: tuple[FaultyBucket, Repository], cluster: Path, tmp_path: Path) -> None:
    bucket, shop = in_memory
    await shop.put_base(cluster, FACTS)
    seen: set[str] = set()

    def first_time(key: str, data: bytes) -> bytes:
        damaged = data if key in seen else data[:-1] + bytes([data[-1] ^ 255])
        seen.add(key)
        return damaged

    bucket.damage = first_time
    await shop.get_base(1, empty(tmp_path / "back"))
    assert tree_of(tmp_path / "back") == tree_of(cluster)


async def test_killed_at_every_step(archive_in: Callable[[Bucket], Archive], cluster: Path, tmp_path: Path) -> None:
    """A base is put, log is put, an old base expires, all goes: killed before each call to the store in turn, nothing whole is lost."""
    kept = MemoryBucket()
    archive = archive_in(kept)
    key = archive.new_key(SHOP)
    (cluster / "base/5/large").write_bytes(os.urandom(300_000))
    await archive.repository(SHOP, key).put_base(cluster, facts(100, 150, 1000.0))
    first = tree_of(cluster)
    (cluster / "base/5/large").write_bytes(os.urandom(500_000))
    (cluster / "base/1/7").unlink()
    second = tree_of(cluster)

    async def work(bucket: Bucket) -> None:
        repository = archive_in(bucket).repository(SHOP, key)
        await repository.put_wal(1, 100, bytes(50))
        await repository.put_base(cluster, facts(150, 200, 2000.0))
        await repository.put_wal(1, 150, bytes(50))
        await repository.expire(Retention(0.0, 1), now=3000.0)

    whole = FaultyBucket(MemoryBucket())
    assert isinstance(whole.inner, MemoryBucket)
    whole.inner.objects.update(kept.objects)
    await work(whole)
    left = {key.split("/")[2] for key in whole.inner.objects}
    assert left == {"bases", "chunks", "wal"}
    for step in range(1, len(whole.calls) + 1):
        bucket = MemoryBucket()
        bucket.objects.update(kept.objects)
        with killed():
            await work(FaultyBucket(bucket, dies_at=step))
        repository = archive_in(bucket).repository(SHOP, key)
        bases = await repository.bases()
        assert [base.number for base in bases] in ([1], [1, 2], [2])
        for base in bases:
            await repository.verify(base.number)
        back = empty(tmp_path / f"back-{step}")
        await repository.get_base(bases[-1].number, back)
        assert tree_of(back) == (first if bases[-1].number == 1 else second)
        await work(bucket)  # the next Torpor does it again, and nothing half made is left
        again = archive_in(bucket).repository(SHOP, key)
        (last,) = await again.bases()
        await again.verify(last.number)
        assert len(bucket.objects) == len(whole.inner.objects)
        with killed():
            await archive_in(FaultyBucket(bucket, dies_at=step)).destroy(SHOP)
        await archive_in(bucket).destroy(SHOP)
        assert not bucket.objects


async def test_who_is_cancelled_leaves_nothing_at_work(in_memory: tuple[FaultyBucket, Repository], cluster: Path, tmp_path: Path) -> None:
    bucket, shop = in_memory
    await shop.put_base(cluster, FACTS)
    (cluster / "base/5/large").write_bytes(os.urandom(CHUNK_BYTES * 3))
    bucket.slow_s = 60.0
    for call in (shop.put_base(cluster, FACTS), shop.get_base(1, empty(tmp_path / "back")), shop.verify(1)):
        bucket.calls.clear()
        task = asyncio.ensure_future(call)
        await bucket.reached("")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
    bucket.slow_s = 0.0
    assert (await shop.put_base(cluster, FACTS)).number == 2


async def test_lanes_end_with_the_first_failure() -> None:
    ended: list[str] = []

    async def work(name: str, fails: bool) -> None:
        try:
            if fails:
                raise HistoryFull("full")
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    turns = asyncio.Semaphore(3)
    with pytest.raises(HistoryFull):
        async with Lanes("test", turns, 2) as lanes:
            await lanes.add(lambda: work("slow", False))
            await lanes.add(lambda: work("failing", True))
            await lanes.add(lambda: work("late", False))
    assert ended == ["failing", "slow"]
    assert not turns.locked()


async def test_what_is_pulled_can_be_closed_early() -> None:
    closed: list[bool] = []

    def count() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    with ThreadPoolExecutor(2) as executor:
        pulled = Pulled(executor, count())
        assert [await pulled.next(), await pulled.next()] == [0, 1]
        await pulled.close()
        assert closed == [True]
        assert await pulled.next() is None
        await pulled.close()
