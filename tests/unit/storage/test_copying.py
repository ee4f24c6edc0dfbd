"""Copies of trees that mean harm, and of trees that change meanwhile, on real file systems."""

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from torpor.storage.copying import Selection, clear_tree, copy_files, copy_tree

ME = os.geteuid()
EVERYTHING = Selection()
SECRET = b"of the host"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "base/1").mkdir(parents=True)
    (made / "pg_wal").mkdir()
    (made / "pg_wal/000000010000000000000001").write_bytes(os.urandom(100_000))
    (made / "base/1/1259").write_bytes(os.urandom(3_000_000))
    (made / "base/1/small").write_bytes(b"small")
    (made / "postmaster.pid").write_text("1")
    (made / "base/pgsql_tmp7").mkdir()
    return made


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    tree.chmod(0o750)
    (tree / "base/1/small").chmod(0o640)
    asyncio.run(copy_tree(tree, tmp_path / "copy", ME, EVERYTHING))
    for source in tree.rglob("*"):
        copied = tmp_path / "copy" / source.relative_to(tree)
        assert copied.stat().st_mode == source.stat().st_mode
        if source.is_file():
            assert copied.read_bytes() == source.read_bytes()
    assert (tmp_path / "copy").stat().st_mode == tree.stat().st_mode


async def test_what_is_left_out(tree: Path, tmp_path: Path) -> None:
    (tree / "base/postmaster.pid").write_text("a table's name may be anything")
    selection = Selection(frozenset({"postmaster.pid"}), frozenset({"pg_wal"}), ("pgsql_tmp",))
    await copy_tree(tree, tmp_path / "copy", ME, selection)
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert copied == {"base", "base/1", "base/1/1259", "base/1/small", "base/postmaster.pid", "pg_wal"}


async def test_links_are_copied_as_what_they_say(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (tree / "file").symlink_to(outside / "secret")
    (tree / "directory").symlink_to(outside)
    (tree / "nowhere").symlink_to("/does/not/exist")
    await copy_tree(tree, tmp_path / "copy", ME, EVERYTHING)
    for name in ("file", "directory", "nowhere"):
        assert os.readlink(tmp_path / "copy" / name) == os.readlink(tree / name)


async def test_pipes_and_sockets_hold_nothing_up(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.chdir(tree):  # a path for a socket must be short
            listener.bind("socket")
        await copy_tree(tree, tmp_path / "copy", ME, EVERYTHING)
    assert not (tmp_path / "copy/pipe").exists()
    assert not (tmp_path / "copy/socket").exists()


async def test_hard_links_are_copied_once(tree: Path, tmp_path: Path) -> None:
    for n in range(20):
        os.link(tree / "base/1/1259", tree / f"base/again{n}")
    await copy_tree(tree, tmp_path / "copy", ME, EVERYTHING)
    assert (tmp_path / "copy/base/1/1259").stat().st_nlink == 21
    assert (tmp_path / "copy/base/again7").read_bytes() == (tree / "base/1/1259").read_bytes()


async def test_holes_stay_holes(tree: Path, tmp_path: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"in the middle")
        file.truncate(1 << 40)
    await copy_tree(tree, tmp_path / "copy", ME, EVERYTHING)
    copied = (tmp_path / "copy/sparse").stat()
    assert copied.st_size == 1 << 40
    assert copied.st_blocks * 512 < 1 << 20
    with (tmp_path / "copy/sparse").open("rb") as file:
        file.seek(5 << 20)
        assert file.read(20) == b"in the middle" + bytes(7)


async def test_directories_without_end(tree: Path, tmp_path: Path) -> None:
    deep = tree
    for _ in range(60):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(OSError) as raised:
        await copy_tree(tree, tmp_path / "copy", ME, EVERYTHING)
    assert raised.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("live", [False, True])
async def test_a_directory_that_is_swapped_for_a_link(tree: Path, tmp_path: Path, live: bool) -> None:
    """However it is timed: nothing from outside gets into a copy."""
    outside, inside, aside = tmp_path / "outside", tree / "base/evil", tmp_path / "aside"
    outside.mkdir()
    for n in range(50):
        (outside / f"f{n}").write_bytes(SECRET)
    inside.mkdir()
    for n in range(50):
        (inside / f"f{n}").write_bytes(b"of the tenant")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            inside.rename(aside)
            inside.symlink_to(outside)
            inside.unlink()
            aside.rename(inside)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for n in range(8):
            copy = tmp_path / f"copy{n}"
            try:
                await copy_tree(tree, copy, ME, Selection(live=live))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
            for path in copy.rglob("*"):
                assert path.is_symlink() or not path.is_file() or path.read_bytes() != SECRET
            shutil.rmtree(copy)
    finally:
        stop.set()
        thread.join()


async def test_files_that_vanish(tree: Path, tmp_path: Path) -> None:
    """Are none in a copy of what is written meanwhile; of what stands still they are an error."""
    for n in range(300):
        (tree / f"base/1/{n}").write_bytes(b"x")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for n in range(300):
                (tree / f"base/1/{n}").unlink()
                (tree / f"base/1/{n}").write_bytes(b"x")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for n in range(3):
            await copy_tree(tree, tmp_path / f"copy{n}", ME, Selection(live=True))
            assert (tmp_path / f"copy{n}/base/1/1259").stat().st_size == 3_000_000
    finally:
        stop.set()
        thread.join()
    with pytest.raises(FileNotFoundError):
        await copy_tree(tmp_path / "missing", tmp_path / "nothing", ME, EVERYTHING)


async def test_a_copy_that_is_given_up(tree: Path, tmp_path: Path) -> None:
    """Nothing writes any more once it is cancelled."""
    for n in range(2000):
        (tree / f"base/1/{n}").write_bytes(b"x")
    task = asyncio.create_task(copy_tree(tree, tmp_path / "copy", ME, EVERYTHING))
    while not (tmp_path / "copy").exists():  # noqa: ASYNC110  it is about to begin
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    await asyncio.sleep(0.05)
    assert not (tmp_path / "copy").exists()


@pytest.mark.root
async def test_a_copy_belongs_to_its_user(tree: Path, tmp_path: Path) -> None:
    (tree / "link").symlink_to("base")
    await copy_tree(tree, tmp_path / "copy", 12_345, EVERYTHING)
    copied = [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]
    assert {path.lstat().st_uid for path in copied} == {12_345} == {path.lstat().st_gid for path in copied}


def test_files_by_name(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    name = "000000010000000000000001"
    copy_files(tmp_path, ("tree", "pg_wal"), [name], tmp_path / "log")
    assert (tmp_path / "log" / name).read_bytes() == (tree / "pg_wal" / name).read_bytes()
    with pytest.raises(FileNotFoundError):
        copy_files(tmp_path, ("tree", "pg_wal"), ["missing"], tmp_path / "log")
    (tree / "pg_wal/link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        copy_files(tmp_path, ("tree", "pg_wal"), ["link"], tmp_path / "log")
    os.mkfifo(tree / "pg_wal/pipe")
    with pytest.raises(OSError, match="not a regular file"):
        copy_files(tmp_path, ("tree", "pg_wal"), ["pipe"], tmp_path / "log")
    (tree / "pg_wal").rename(tree / "aside")
    (tree / "pg_wal").symlink_to("aside")
    with pytest.raises(OSError):
        copy_files(tmp_path, ("tree", "pg_wal"), [name], tmp_path / "log")


async def test_cleared_for_another_try(tree: Path, tmp_path: Path) -> None:
    """The directory and its pg_wal stay: they may be subvolumes."""
    copy = tmp_path / "copy"
    clear_tree(copy)
    await copy_tree(tree, copy, ME, EVERYTHING)
    log = (copy / "pg_wal").stat().st_ino
    clear_tree(copy)
    assert [path.name for path in copy.rglob("*")] == ["pg_wal"]
    assert (copy / "pg_wal").stat().st_ino == log
    await copy_tree(tree, copy, ME, EVERYTHING)
    assert (copy / "base/1/small").read_bytes() == b"small"


def test_the_programs_arguments() -> None:
    assert Selection(frozenset({"a b"}), frozenset({"pg_wal"}), ("tmp",), live=True).arguments() == ["live", "-a b", "=pg_wal", "~tmp"]
    assert Selection().arguments() == ["still"]
