"""The contract of volumes, on each kind of pool: XFS with reflinks, btrfs, and a plain directory."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import eventually
from tests.support.pools import kinds, loop_pool
from torpor.base import btrfs
from torpor.model.errors import AlreadyRunning, PoolFull
from torpor.model.names import DatabaseId
from torpor.storage.copying import Selection, copy_tree
from torpor.storage.quotas import BtrfsQuotas, NoQuotas
from torpor.storage.room import PoolLevel
from torpor.storage.volumes import Volumes

pytestmark = pytest.mark.root

A, B, C = (DatabaseId(f"d{letter * 12}") for letter in "abc")
UID = 318_767
MIB = 1 << 20


@pytest.fixture(scope="module", params=[*kinds(), "plain"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a pool may be made, of each kind."""
    if request.param == "plain":
        yield tmp_path_factory.mktemp("plain")
        return
    with loop_pool(request.param, 400) as point:
        yield point


@pytest.fixture
def volumes(place: Path) -> Iterator[Volumes]:
    """An empty pool: on the loop file systems the root of it, as after `torpor host setup`."""
    made = Volumes(place)
    yield made
    made.release()
    for path in place.iterdir():
        made._remove(path)


@pytest.fixture
def source(volumes: Volumes) -> Path:
    """Something like the PGDATA of a template: on the pool, and nobody's volume."""
    data = volumes.root / ".templates/18/data"
    (data / "base/1").mkdir(parents=True)
    (data / "pg_wal/archive_status").mkdir(parents=True)
    for directory in (data, data / "pg_wal"):
        directory.chmod(0o700)
    (data / "base/1/1259").write_bytes(os.urandom(4 * MIB))
    (data / "pg_wal/000000010000000000000001").write_bytes(os.urandom(MIB))
    (data / "PG_VERSION").write_text("18\n")
    volumes._sync()
    return data


def files(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


async def test_a_volume_is_a_copy_of_its_own_and_is_gone_when_it_is_removed(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, UID)
    data, kept = volumes.data(A), files(source)
    assert files(data) == kept
    assert {path.lstat().st_uid for path in [volumes.path(A), data, *data.rglob("*")]} == {UID}
    assert {path.stat().st_mode & 0o077 for path in (volumes.path(A), data, data / "pg_wal")} == {0}
    (data / "base/1/1259").write_bytes(b"mine")
    (data / "pg_wal/000000010000000000000002").write_bytes(b"mine, too")
    assert files(source) == kept
    assert volumes.ids() == {A}
    await volumes.remove(A)
    await volumes.remove(A)
    assert volumes.ids() == set()
    assert not volumes.path(A).exists()
    await volumes.clone(source, A, UID)
    assert files(volumes.data(A)) == kept


async def test_a_copy_of_a_volume_that_is_in_use(volumes: Volumes, source: Path) -> None:
    """As branches are made: by a program of our own, without the log."""
    await volumes.clone(source, A, UID)
    selection = Selection(hollow=frozenset({"pg_wal"}), live=True)
    await volumes.make(B, UID + 1, lambda data: copy_tree(volumes.data(A), data, UID + 1, selection))
    assert set(files(volumes.data(B))) == {"base/1/1259", "PG_VERSION"}
    assert list((volumes.data(B) / "pg_wal").iterdir()) == []
    assert {path.lstat().st_uid for path in [volumes.path(B), *volumes.path(B).rglob("*")]} == {UID + 1}


async def test_two_volumes_swap_places(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, UID)
    await volumes.clone(source, B, UID)
    (volumes.data(A) / "which").write_text("a")
    volumes.exchange(A, B)
    assert (volumes.data(B) / "which").read_text() == "a"
    assert not (volumes.data(A) / "which").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_what_ends_in_the_middle_leaves_nothing(volumes: Volumes, source: Path, code: int) -> None:
    async def fill(data: Path) -> None:
        (data / "pg_wal").mkdir(parents=True, exist_ok=True)
        (data / "half").write_bytes(bytes(MIB))
        raise OSError(code, os.strerror(code))

    with pytest.raises(PoolFull, match="full"):
        await volumes.make(A, UID, fill)
    assert os.listdir(volumes.root) == [".templates"]


async def test_what_a_killed_torpor_left_is_swept(volumes: Volumes, source: Path) -> None:
    """Killed at each step: while a volume was made, and while one was removed."""
    for name in (f".making-{A}", f".removing-{B}"):
        volumes.quotas.make(volumes.root / name)
        shutil.copytree(source, volumes.root / name / "data", dirs_exist_ok=True)
    await volumes.clone(source, C, UID)
    assert volumes.ids() == {C}
    assert await volumes.sweep() == 2
    assert sorted(os.listdir(volumes.root)) == [".templates", C]
    await volumes.clone(source, A, UID)
    assert files(volumes.data(A)) == files(source)


def test_one_torpor_at_a_time_holds_a_pool(volumes: Volumes) -> None:
    program = (
        "import sys; from pathlib import Path; from torpor.storage.volumes import Volumes; from torpor.model.errors import AlreadyRunning\n"
        "volumes = Volumes(Path(sys.argv[1]))\n"
        "try: volumes.hold()\n"
        "except AlreadyRunning: sys.exit(3)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(volumes.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match="another Torpor"):
            volumes.hold()
        other.kill()  # what held it is gone, however it ended
        other.wait()
        volumes.hold(30)
        assert subprocess.run([sys.executable, "-c", program, str(volumes.root)], stdin=subprocess.DEVNULL).returncode == 3
    finally:
        other.kill()
        other.communicate()


async def test_how_large_a_volume_is(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, UID)
    assert 5 * MIB <= volumes.disk_bytes(A) < 7 * MIB
    assert 5 * MIB <= await volumes.measure(A) < 7 * MIB
    assert volumes.disk_bytes(B) == 0


async def test_what_the_kernel_holds(volumes: Volumes, source: Path) -> None:
    """The data has its size, the log has room beyond it, and neighbours notice nothing. Where the kernel holds nobody, that is said."""
    await volumes.clone(source, A, UID)
    await volumes.clone(source, B, UID)
    held = await volumes.limit(A, 24 * MIB)
    assert held is volumes.quotas.holds
    if not held:
        assert isinstance(volumes.quotas, NoQuotas)
        assert "watched" in volumes.held_by
        return
    assert "kernel" in volumes.held_by
    file = volumes.data(A) / "base/1/large"
    with pytest.raises(OSError, match="quota") as failure, file.open("wb") as large:
        for _ in range(100):
            large.write(os.urandom(MIB))
            large.flush()
    assert failure.value.errno == errno.EDQUOT
    assert 18 * MIB <= file.stat().st_size <= 24 * MIB, "what it shares with the template isn't counted again"
    (volumes.data(A) / "pg_wal/segment").write_bytes(os.urandom(20 * MIB))
    (volumes.data(B) / "base/1/large").write_bytes(os.urandom(30 * MIB))
    assert await volumes.limit(A, 64 * MIB), "growing is online"
    with file.open("ab") as large:
        large.write(os.urandom(16 * MIB))
    file.unlink()
    await volumes.remove(A)
    assert not volumes.path(A).exists()


async def test_a_full_volume_gets_some_elbow_room_up_to_a_point(volumes: Volumes, source: Path) -> None:
    if not volumes.quotas.holds:
        return
    await volumes.clone(source, A, UID)
    size = 16 * MIB
    await volumes.limit(A, size)
    file, written = volumes.data(A) / "base/1/large", 0
    for _ in range(2):
        with pytest.raises(OSError, match="quota"), file.open("ab") as large:
            for _ in range(100):
                large.write(os.urandom(MIB))
                large.flush()
        assert written + 8 * MIB < file.stat().st_size
        written = file.stat().st_size
        await volumes.limit(A, size, True)
    with file.open("ab") as large:
        large.write(os.urandom(4 * MIB))
    assert written < size * 3


async def test_who_makes_a_subvolume_inside_gains_nothing_by_it(volumes: Volumes, source: Path) -> None:
    """A tenant's own program can: it counts, it is measured, and it goes with the volume."""
    if not volumes.quotas.holds:
        return
    await volumes.clone(source, A, UID)
    inner = volumes.data(A) / "hideout"
    btrfs.make_subvolume(inner)
    assert btrfs.subvolume(inner) is not None
    number = btrfs.subvolume(volumes.path(A))
    assert number is not None
    btrfs.limit(volumes.root, number, 16 * MIB, 16 * MIB)  # without the log's room, which takes long to fill
    with pytest.raises(OSError, match="quota"), (inner / "hoard").open("wb") as hoard:
        for _ in range(100):
            hoard.write(os.urandom(MIB))
            hoard.flush()
    assert volumes.disk_bytes(A) > 17 * MIB
    await volumes.remove(A)
    assert not volumes.path(A).exists()


async def test_what_was_kept_for_removed_volumes_is_forgotten(volumes: Volumes, source: Path) -> None:
    if not isinstance(volumes.quotas, BtrfsQuotas):
        return
    await volumes.clone(source, A, UID)
    number = btrfs.subvolume(volumes.path(A))
    assert number is not None
    await volumes.remove(A)
    counters = volumes.quotas._counters

    def forgotten() -> bool:
        subprocess.run(["btrfs", "filesystem", "sync", str(volumes.root)], check=False)
        volumes.quotas.tidy()
        return number not in btrfs.groups(counters)

    assert await asyncio.to_thread(eventually, forgotten, 60)


async def test_nothing_is_made_in_the_last_part_of_a_pool(volumes: Volumes, source: Path, place: Path) -> None:
    """Really filled. On a plain directory that is the host's own disk, which is left alone."""
    if place.name != "mnt":
        assert volumes.room().level() is PoolLevel.ROOM
        return
    await volumes.clone(source, A, UID)
    filler = place / "filler"
    with filler.open("wb") as file:
        while volumes.room().level() is PoolLevel.ROOM:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, 4 * MIB)
            volumes._sync()
    with pytest.raises(PoolFull, match="are kept"):
        await volumes.clone(source, B, UID)
    assert volumes.level is PoolLevel.LOW
    assert volumes.ids() == {A}
    await volumes.remove(A)  # always possible
    filler.unlink()

    def has_room() -> bool:
        """XFS and btrfs free what was removed a moment later."""
        volumes._sync()
        volumes.room()
        return volumes.level is PoolLevel.ROOM

    await asyncio.to_thread(eventually, has_room)
    await volumes.clone(source, B, UID)
