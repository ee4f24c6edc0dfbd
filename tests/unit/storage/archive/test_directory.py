"""What is particular about a directory: modes, room, and what a kill leaves."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torpor.model.errors import HistoryFull, HistoryRefused
from torpor.storage.archive.directory import DirectoryBucket


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


async def test_nobody_else_may_read(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    bucket = DirectoryBucket(tmp_path / "history", executor)
    await bucket.put("a/b/c", b"x", False)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "history").rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "history/a/b/c").stat().st_mode & 0o777 == 0o600


async def test_an_empty_history_leaves_no_directories(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    bucket = DirectoryBucket(tmp_path, executor)
    await bucket.put("a/b/c", b"x", False)
    await bucket.delete(["a/b/c"])
    assert [(names, files) for _, names, files in os.walk(tmp_path)] == [([".half"], []), ([], [])]


@pytest.mark.root
async def test_a_full_disk(small: Path, executor: ThreadPoolExecutor) -> None:
    bucket = DirectoryBucket(small, executor)
    with pytest.raises(HistoryFull):
        await bucket.put("a/large", os.urandom(2 << 20), False)
    assert await bucket.list("a") == []
    await bucket.put("a/small", bytes(1000), False)  # what was half written has been removed
    assert len(await bucket.get("a/small")) == 1000


async def test_a_path_that_is_no_directory(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HistoryRefused, match="look at its owner and mode"):
        await DirectoryBucket(tmp_path / "file", executor).put("a/b", b"x", False)


async def test_what_a_kill_left_half_written_is_removed_when_it_is_old(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    (tmp_path / ".half").mkdir()
    old, young = tmp_path / ".half/old", tmp_path / ".half/young"
    for path in (old, young):
        path.write_text("x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    bucket = DirectoryBucket(tmp_path, executor)
    await bucket.put("a", b"x", False)
    assert not old.exists()
    assert young.exists()  # somebody else may be at it
