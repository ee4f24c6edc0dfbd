"""The files in which computes count what they wrote, one for each database (native/writes.h says what is in them).

A file is made before a database's first start, and stays as long as the database does: entries of caches are stamped with what it said. The
compute gets a descriptor, which the library maps and closes; the file lies where no sandbox sees it. What a tenant's own code does to the
mapped words can only deceive that tenant. Nothing but the library and `changed` writes to a file, and who reads it takes any content.

Concurrency: called on the event loop; each call is a few system calls. Nothing has to be durable: after a power cut no cache is left.
"""

import contextlib
import fcntl
import os
import secrets
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from torpor.base.logs import get_logger
from torpor.model.names import DatabaseId

log = get_logger(__name__)

WORDS = 4096
"""Words of 64 bits in a file: the epoch, then the tables'."""

_BYTES = 8 * WORDS
_EPOCH_BITS = 62
_SET_FLAGS, _IN_PLACE = 0x4008_6602, 0x0080_0000  # FS_IOC_SETFLAGS, FS_NOCOW_FL


class WriteCounters:
    """All files of one Torpor."""

    def __init__(self, directory: Path) -> None:
        """Make the directory where it is missing. Raises OSError."""
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def __repr__(self) -> str:
        return f"<WriteCounters {self._directory}>"

    def prepare(self, id: DatabaseId) -> Path | None:
        """The file for a compute that is about to start: whatever was read before counts as changed. None when there is no room for it:
        then nothing is counted, nothing that the compute says will be kept, and the old file says nothing any more."""
        path = self._directory / id
        try:
            with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
                if os.fstat(fd).st_size != _BYTES:
                    os.ftruncate(fd, 0)
                    with contextlib.suppress(OSError):  # btrfs would look for new room with each write; others don't know it
                        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("=i", _IN_PLACE))
                    os.posix_fallocate(fd, 0, _BYTES)  # a mapped page that gets no room on the disk would be the end of PostgreSQL
                _begin_epoch(fd)
        except OSError as error:
            log.warning("writes can't be counted", database=id, cause=error.strerror)
            with contextlib.suppress(OSError):
                os.truncate(path, 0)
            return None
        return path

    def reader(self, id: DatabaseId) -> int:
        """A descriptor to read the file with, which is the caller's. Raises OSError."""
        if not (self._directory / id).exists() and self.prepare(id) is None:
            raise OSError("writes can't be counted")
        return os.open(self._directory / id, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def changed(self, id: DatabaseId) -> None:
        """The database holds something else now: whatever was read before counts as changed. The compute doesn't run."""
        with contextlib.suppress(FileNotFoundError), _opened(self._directory / id, os.O_RDWR) as fd:
            _begin_epoch(fd)

    def forget(self, id: DatabaseId) -> None:
        """The database is gone. Idempotent."""
        (self._directory / id).unlink(missing_ok=True)

    def sweep(self, known: Collection[DatabaseId]) -> None:
        """Remove the files of databases that are gone, which a kill left."""
        for name in os.listdir(self._directory):
            if name not in known:
                self.forget(DatabaseId(name))


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _begin_epoch(fd: int) -> None:
    """One that never was. Not the next one: what was stamped with an earlier content of the file, that somebody cut off, must not come true
    again, nor what a backend counts at this moment be lost."""
    os.pwrite(fd, secrets.randbits(_EPOCH_BITS).to_bytes(8, sys.byteorder), 0)
