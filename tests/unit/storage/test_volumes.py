"""Volumes on real file systems: whole or not there, whatever happens in between."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.base.processes import start_ticks
from torpor.model.errors import DataDirectoryUnusable, PoolFull, Unavailable
from torpor.model.names import DatabaseId
from torpor.storage.volumes import Volumes

A, B = DatabaseId("daaaaaaaaaaaa"), DatabaseId("dbbbbbbbbbbbb")
ME = os.geteuid()


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    return Volumes(tmp_path / "deep/volumes")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something like a PGDATA."""
    made = tmp_path / "source"
    (made / "base/1").mkdir(parents=True)
    made.chmod(0o700)
    (made / "PG_VERSION").write_text("18\n")
    (made / "base/1/1259").write_bytes(os.urandom(100_000))
    (made / "pg_wal").symlink_to("base")
    (made / "base/1/1259").chmod(0o600)
    os.utime(made / "PG_VERSION", (1, 1))
    return made


def contents(root: Path) -> dict[str, object]:
    """What a directory holds, and how."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        body: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (stat.filemode(about.st_mode), int(about.st_mtime), body)
    return found


async def test_a_clone_is_a_copy(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, ME)
    assert contents(volumes.data(A)) == contents(source)
    assert stat.S_IMODE(volumes.path(A).stat().st_mode) == 0o700
    assert stat.S_IMODE(volumes.data(A).stat().st_mode) == 0o700
    (volumes.data(A) / "base/1/1259").write_bytes(b"changed")
    assert (source / "base/1/1259").stat().st_size == 100_000
    assert volumes.ids() == {A}
    assert str(volumes.root) in repr(volumes)


async def test_several_at_once(volumes: Volumes, source: Path) -> None:
    ids = [DatabaseId(f"d{letter * 12}") for letter in "abcdefgh"]
    await asyncio.gather(*(volumes.clone(source, id, ME) for id in ids))
    assert volumes.ids() == set(ids)


def test_others_may_pass_and_not_look(volumes: Volumes) -> None:
    assert stat.S_IMODE(volumes.root.stat().st_mode) == 0o711


async def test_disk_bytes(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, ME)
    assert 100_000 <= volumes.disk_bytes(A) < 200_000
    assert volumes.disk_bytes(B) == 0


async def test_remove_is_idempotent(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, ME)
    await volumes.remove(A)
    await volumes.remove(A)
    assert os.listdir(volumes.root) == []


async def test_a_source_that_is_missing_leaves_nothing(volumes: Volumes, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await volumes.clone(tmp_path / "missing", A, ME)
    assert os.listdir(volumes.root) == []


async def test_what_was_half_done_is_swept(volumes: Volumes, source: Path) -> None:
    await volumes.clone(source, A, ME)
    for name in (f".making-{B}", f".removing-{B}"):
        (volumes.root / name / "data").mkdir(parents=True)
        (volumes.root / name / "data/file").touch()
    (volumes.root / ".templates").mkdir()
    assert volumes.ids() == {A}
    assert await volumes.sweep() == 2
    assert await volumes.sweep() == 0
    assert sorted(os.listdir(volumes.root)) == [".templates", A]


async def test_a_half_made_one_is_made_anew(volumes: Volumes, source: Path) -> None:
    (volumes.root / f".making-{A}/data").mkdir(parents=True)
    (volumes.root / f".making-{A}/data/stale").touch()
    await volumes.clone(source, A, ME)
    assert contents(volumes.data(A)) == contents(source)
    assert os.listdir(volumes.root) == [A]


def fake_cp(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another `cp` that comes first on the path."""
    (directory / "bin").mkdir()
    (directory / "bin/cp").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "bin/cp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}/bin:{os.environ['PATH']}")


async def test_a_full_pool(volumes: Volumes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        'for last; do :; done; mkdir -p "$last"; echo x > "$last/part"; echo "cp: error writing x: No space left on device" >&2; exit 1'
    )
    fake_cp(tmp_path, script, monkeypatch)
    with pytest.raises(PoolFull):
        await volumes.clone(source, A, ME)
    assert os.listdir(volumes.root) == []


async def test_a_cancelled_clone_leaves_nothing(volumes: Volumes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cp(tmp_path, 'for last; do :; done; mkdir -p "$last"; echo x > "$last/part"; echo $$ > "$PID_FILE"; exec sleep 60', monkeypatch)
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    cloning = asyncio.create_task(volumes.clone(source, A, ME))
    for _ in range(2000):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        await asyncio.sleep(0.005)
    assert volumes.ids() == set(), "half a volume is none"
    cloning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    assert os.listdir(volumes.root) == []
    assert start_ticks(int((tmp_path / "pid").read_text())) is None, "the copying has ended"


@pytest.mark.parametrize("text", ["a file", None])
def test_an_unusable_directory(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "file/volumes" if text else Path("/proc/torpor")
    if text:
        (tmp_path / "file").write_text(text)
    with pytest.raises(DataDirectoryUnusable, match=str(path)):
        Volumes(path)


@pytest.fixture
def mounted(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own: `tmpfs` of 1 MB, or `xfs` with reflinks in a loop image."""
    directory = Path(tempfile.mkdtemp(prefix="torpor-volumes-", dir="/var/tmp"))
    target = directory / "mnt"
    target.mkdir()
    try:
        if request.param == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=1000", "tmpfs", str(target)], check=True)
        else:
            image = directory / "image"
            with image.open("wb") as file:
                file.truncate(300 << 20)
            subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
        yield target
    finally:
        if os.path.ismount(target):
            subprocess.run(["umount", str(target)], check=True)
        shutil.rmtree(directory)


@pytest.mark.root
@pytest.mark.parametrize("mounted", ["tmpfs"], indirect=True)
async def test_a_pool_that_is_really_full(mounted: Path, source: Path) -> None:
    volumes = Volumes(mounted / "volumes")
    (source / "big").write_bytes(bytes(700_000))
    await volumes.clone(source, A, ME)
    with pytest.raises(PoolFull, match="full"):
        await volumes.clone(source, B, ME)
    assert os.listdir(volumes.root) == [A]
    await volumes.remove(A)
    await volumes.clone(source, B, ME)
    assert volumes.ids() == {B}


@pytest.mark.root
@pytest.mark.parametrize("mounted", ["xfs"], indirect=True)
async def test_clones_share_their_blocks(mounted: Path, source: Path) -> None:
    volumes = Volumes(mounted / "volumes")
    assert volumes.reflinks
    assert volumes.description == "reflinks"
    template = mounted / "template"
    shutil.copytree(source, template, symlinks=True)
    (template / "big").write_bytes(os.urandom(20 << 20))
    os.sync()
    before = shutil.disk_usage(mounted).used
    for letter in "abcde":
        await volumes.clone(template, DatabaseId(f"d{letter * 12}"), ME)
    os.sync()
    assert shutil.disk_usage(mounted).used - before < 5 << 20
    assert volumes.disk_bytes(A) >= 20 << 20
    (volumes.data(A) / "big").write_bytes(b"mine")
    assert (volumes.data(B) / "big").read_bytes() == (template / "big").read_bytes()


@pytest.mark.root
async def test_everything_belongs_to_the_databases_own_user(volumes: Volumes, source: Path) -> None:
    uid = 318_766
    await volumes.clone(source, A, uid)
    for path in [volumes.path(A), *volumes.path(A).rglob("*")]:
        about = path.lstat()
        assert (about.st_uid, about.st_gid) == (uid, uid), path
    assert (source / "PG_VERSION").stat().st_uid == 0
    assert volumes.root.stat().st_uid == 0


async def test_a_copy_that_is_killed_leaves_nothing(
    volumes: Volumes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cp(tmp_path, f'for last; do :; done; mkdir -p "$last"; kill -{signal.SIGKILL.value} $$', monkeypatch)
    with pytest.raises(Unavailable):
        await volumes.clone(source, A, ME)
    assert os.listdir(volumes.root) == []


def test_the_size_of_a_volume_whose_files_vanish_meanwhile(volumes: Volumes) -> None:
    """As those of PostgreSQL do: there is an answer all the same."""
    data = volumes.data(A)
    data.mkdir(parents=True)
    (data / "kept").write_bytes(b"x" * 8192)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for number in range(200):
                (data / f"gone{number}").write_bytes(b"x" * 4096)
            for number in range(200):
                (data / f"gone{number}").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(10):
            assert volumes.disk_bytes(A) >= 8192
    finally:
        over.set()
        thread.join()


async def test_a_volume_deeper_than_any_path_is_measured_and_removed(volumes: Volumes) -> None:
    """A tenant with a program of its own can dig as deep as it likes; what lies there counts, and goes with the database."""
    data = volumes.data(A)
    data.mkdir(parents=True)
    before = volumes.disk_bytes(A)
    here = os.open(data, os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("hoard", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as hoard:
        hoard.write(b"x" * (21 << 20))
        hoard.flush()
        os.fsync(hoard.fileno())
    os.symlink("/etc", "link", dir_fd=here)
    os.mkfifo("pipe", dir_fd=here)
    os.close(here)
    assert volumes.disk_bytes(A) - before >= 20 << 20
    await volumes.remove(A)
    assert os.listdir(volumes.root) == []
    assert os.access("/etc/passwd", os.R_OK)


async def test_one_that_is_made_in_haste(volumes: Volumes, source: Path) -> None:
    """It needn't be durable until it is settled, or removed; whoever looks at its page sees that at once."""

    async def fill(data: Path) -> None:
        shutil.copytree(source, data)

    for id, end in ((A, volumes.settle), (B, volumes.remove)):
        await volumes.make(id, ME, fill, is_hasty=True)
        page = os.dup(volumes.hasty[id].reader)
        assert os.pread(page, 1, 0) == b"\1"
        await end(id)
        assert os.pread(page, 1, 0) == b"\0"
        os.close(page)
        assert not volumes.hasty
