"""PostgreSQL's write-ahead log as files: read from outside of the compute that writes it, and laid down for one that is to recover.

The volume that is read is a tenant's, who may have put anything anywhere: each directory on the way is opened without following a link,
only regular files are read, never more than was asked for, and each page must say that it is the one that belongs there. A page of
another place is what is left of a file that PostgreSQL has given another name: then the log isn't there any more. What a page holds
is believed by nobody but the PostgreSQL that will replay it, in the same tenant's sandbox.

Concurrency: blocking; called in threads. What lies below the flushed position doesn't change any more, so no lock is needed.
"""

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from torpor.model.errors import Unavailable
from torpor.model.lsn import PAGE_BYTES, format_lsn, pieces, segment_name
from torpor.model.names import DatabaseId

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HEADER = struct.Struct("<HHIQ")  # magic, flags, timeline, address


class LogGone(Unavailable):
    """A stretch of the log isn't in the volume any more, or never was."""

    kind = "log_gone"


def read_log(volumes: Path, id: DatabaseId, timeline: int, start: int, end: int, segment_bytes: int) -> bytes:
    """The bytes of the log from `start` to `end`, which PostgreSQL must have flushed. Raises LogGone.

    Costs as much memory as it is long. The pages are checked; the one that `start` lies in, too.
    """
    with ExitStack() as opened:
        directory = _descend(opened, volumes, (id, "data", "pg_wal"))
        return b"".join(
            _read_piece(directory, segment_name(timeline, at, segment_bytes), timeline, at, length, segment_bytes)
            for at, length in pieces(start, end, segment_bytes)
        )


def lay_log(pg_wal: Path, timeline: int, start: int, data: bytes, segment_bytes: int) -> None:
    """Write a stretch of the log into the files that a recovering PostgreSQL looks for. What isn't written of a file is zeros, at which
    replay ends.

    The directory is ours alone: no compute has had it yet. Nothing is synced: the volume as a whole will be.
    """
    for at, length in pieces(start, start + len(data), segment_bytes):
        path = pg_wal / segment_name(timeline, at, segment_bytes)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, segment_bytes)
            rest, offset = memoryview(data)[at - start : at - start + length], at % segment_bytes
            while rest:
                written = os.pwrite(fd, rest, offset)
                rest, offset = rest[written:], offset + written
        finally:
            os.close(fd)


def _descend(opened: ExitStack, root: Path, names: Iterable[str]) -> int:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    for name in names:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=fd)
        except OSError as error:
            raise LogGone(f"the directory {name} of the volume can't be opened: {error.strerror}") from error
        opened.callback(os.close, fd)
    return fd


def _read_piece(directory: int, name: str, timeline: int, at: int, length: int, segment_bytes: int) -> bytes:
    """Whole pages are read, so that each has its header."""
    offset = at % segment_bytes
    first = offset - offset % PAGE_BYTES
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise LogGone(f"the log's file {name} is no file")
            data = _pread(fd, offset + length - first, first)
        finally:
            os.close(fd)
    except OSError as error:
        raise LogGone(f"the log's file {name} can't be read: {error.strerror}") from error
    if len(data) < offset + length - first:
        raise LogGone(f"the log's file {name} ends too early")
    for page in range(0, len(data) - _HEADER.size, PAGE_BYTES):
        magic, _, found_timeline, address = _HEADER.unpack_from(data, page)
        expected = at - offset + first + page
        if not magic and not any(data[page : page + PAGE_BYTES]):  # what is left of a file after a switch to the next one
            continue
        if address != expected or found_timeline > timeline:
            raise LogGone(f"the log's file {name} doesn't hold {format_lsn(expected)} of timeline {timeline} any more")
    return data[offset - first :]


def _pread(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)
