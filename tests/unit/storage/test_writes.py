"""The files in which writes are counted: made once, never the same again after a start or an exchange, gone with their database."""

import os
import struct
from pathlib import Path

import pytest

from tests.support.fleet import make_id
from torpor.storage.writes import WORDS, WriteCounters

SHOP, OTHER = make_id(1), make_id(2)


@pytest.fixture
def counters(tmp_path: Path) -> WriteCounters:
    return WriteCounters(tmp_path / "writes")


def epoch(fd: int) -> int:
    return int(struct.unpack("=Q", os.pread(fd, 8, 0))[0])


def test_each_start_changes_the_epoch_and_keeps_the_file(counters: WriteCounters) -> None:
    path = counters.prepare(SHOP)
    assert path is not None and path.stat().st_size == 8 * WORDS and path.stat().st_mode & 0o777 == 0o600
    fd = counters.reader(SHOP)
    first = epoch(fd)
    assert counters.prepare(SHOP) == path
    second = epoch(fd)
    counters.changed(SHOP)
    assert len({first, second, epoch(fd)}) == 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_a_file_that_was_cut_off_says_nothing_that_it_said_before(counters: WriteCounters) -> None:
    path = counters.prepare(SHOP)
    assert path is not None
    fd = counters.reader(SHOP)
    first = epoch(fd)
    os.truncate(path, 0)
    assert os.pread(fd, 8, 0) == b""
    counters.prepare(SHOP)
    assert epoch(fd) != first
    os.close(fd)


def test_a_reader_makes_the_file_of_a_database_that_never_ran(counters: WriteCounters) -> None:
    os.close(counters.reader(SHOP))
    counters.changed(OTHER)  # it has none: nothing could have been read


def test_what_is_gone_is_forgotten(counters: WriteCounters, tmp_path: Path) -> None:
    counters.prepare(SHOP)
    counters.prepare(OTHER)
    counters.forget(SHOP)
    counters.forget(SHOP)
    assert os.listdir(tmp_path / "writes") == [OTHER]
    counters.prepare(SHOP)
    counters.sweep({SHOP})
    assert os.listdir(tmp_path / "writes") == [SHOP]


def test_without_room_nothing_is_counted(counters: WriteCounters, monkeypatch: pytest.MonkeyPatch) -> None:
    path = counters.prepare(SHOP)
    assert path is not None
    fd = counters.reader(SHOP)
    os.truncate(path, 4096)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert counters.prepare(SHOP) is None
    assert os.pread(fd, 8, 0) == b""
    with pytest.raises(OSError, match="can't be counted"):
        WriteCounters(path.parent / "more").reader(OTHER)
    os.close(fd)
