"""The log as files: what is read from a volume is bounded and in its place, whatever its tenant has put there."""

import os
import struct
from pathlib import Path

import pytest

from tests.support.fleet import make_id
from torpor.model.lsn import segment_name
from torpor.storage.walfiles import LogGone, lay_log, read_log

MB = 1 << 20
PAGE = 8192
ID = make_id(1)


def log(timeline: int, start: int, length: int) -> bytes:
    """A stretch of a log, from the beginning of a page."""
    pages = []
    for address in range(start, start + length, PAGE):
        header = struct.pack("<HHIQ", 0xD118, 0, timeline, address)
        pages.append(header + bytes([address // PAGE % 251 + 1]) * (PAGE - len(header)))
    return b"".join(pages)[:length]


@pytest.fixture
def pg_wal(tmp_path: Path) -> Path:
    """The directory of a volume's log, with the files from 3 MB to 6 MB."""
    directory = tmp_path / ID / "data" / "pg_wal"
    directory.mkdir(parents=True)
    for start in (3 * MB, 4 * MB, 5 * MB):
        (directory / segment_name(1, start, MB)).write_bytes(log(1, start, MB))
    return directory


@pytest.mark.parametrize(
    ("start", "end"),
    [(3 * MB, 6 * MB), (3 * MB + 5, 3 * MB + 6), (4 * MB - 1, 4 * MB + 1), (4 * MB, 4 * MB), (4 * MB, 4 * MB + 7), (4 * MB + 9000, 6 * MB)],
)
def test_reads_exactly_what_was_asked_for(tmp_path: Path, pg_wal: Path, start: int, end: int) -> None:
    whole = log(1, 3 * MB, 3 * MB)
    assert read_log(tmp_path, ID, 1, start, end, MB) == whole[start - 3 * MB : end - 3 * MB]


def test_what_is_not_there_any_more_is_gone(tmp_path: Path, pg_wal: Path) -> None:
    with pytest.raises(LogGone, match="can't be read"):
        read_log(tmp_path, ID, 1, 2 * MB, 4 * MB, MB)
    with pytest.raises(LogGone):
        read_log(tmp_path, ID, 2, 3 * MB, 4 * MB, MB)
    (pg_wal / segment_name(1, 6 * MB, MB)).write_bytes(log(1, 2 * MB, MB))  # an old one that was given a new name
    with pytest.raises(LogGone, match="any more"):
        read_log(tmp_path, ID, 1, 5 * MB, 6 * MB + 100, MB)
    (pg_wal / segment_name(1, 5 * MB, MB)).write_bytes(log(1, 5 * MB, 3 * PAGE))
    with pytest.raises(LogGone, match="too early"):
        read_log(tmp_path, ID, 1, 5 * MB, 6 * MB, MB)


def test_what_is_left_of_a_file_after_a_switch_is_zeros(tmp_path: Path, pg_wal: Path) -> None:
    (pg_wal / segment_name(1, 5 * MB, MB)).write_bytes(log(1, 5 * MB, 2 * PAGE) + bytes(MB - 2 * PAGE))
    assert read_log(tmp_path, ID, 1, 5 * MB, 6 * MB, MB)[2 * PAGE :] == bytes(MB - 2 * PAGE)
    (pg_wal / segment_name(1, 5 * MB, MB)).write_bytes(bytes(MB - 1) + b"x")
    with pytest.raises(LogGone, match="any more"):
        read_log(tmp_path, ID, 1, 5 * MB, 6 * MB, MB)


def test_no_link_is_followed(tmp_path: Path, pg_wal: Path) -> None:
    name = segment_name(1, 4 * MB, MB)
    other = tmp_path / "somebody-else"
    (pg_wal / name).rename(other)
    (pg_wal / name).symlink_to(other)
    with pytest.raises(LogGone):
        read_log(tmp_path, ID, 1, 4 * MB, 5 * MB, MB)
    moved = tmp_path / "pg_wal-of-somebody-else"
    pg_wal.rename(moved)
    pg_wal.symlink_to(moved)
    with pytest.raises(LogGone, match="pg_wal"):
        read_log(tmp_path, ID, 1, 3 * MB, 4 * MB, MB)


def test_a_pipe_or_a_directory_holds_up_nobody(tmp_path: Path, pg_wal: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        name = pg_wal / segment_name(1, 6 * MB, MB)
        make(name)
        with pytest.raises(LogGone):
            read_log(tmp_path, ID, 1, 6 * MB, 7 * MB, MB)
        name.unlink() if not name.is_dir() else name.rmdir()


def test_what_is_laid_down_is_what_was_read(tmp_path: Path, pg_wal: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    stretches = [(3 * MB + 100, 4 * MB - 50), (4 * MB - 50, 5 * MB), (5 * MB, 5 * MB + 777)]
    for start, end in stretches:
        lay_log(target, 1, start, read_log(tmp_path, ID, 1, start, end, MB), MB)
    whole = log(1, 3 * MB, 3 * MB)
    laid = b"".join(path.read_bytes() for path in sorted(target.iterdir()))
    assert len(laid) == 3 * MB
    assert laid[100 : 2 * MB + 777] == whole[100 : 2 * MB + 777]
    assert not any(laid[:100]) and not any(laid[2 * MB + 777 :])


def test_a_later_timeline_has_files_of_its_own(tmp_path: Path) -> None:
    lay_log(tmp_path, 1, 3 * MB, b"a" * 100, MB)
    lay_log(tmp_path, 2, 3 * MB + 50, b"b" * 50, MB)
    assert {path.name for path in tmp_path.iterdir()} == {segment_name(1, 3 * MB, MB), segment_name(2, 3 * MB, MB)}
