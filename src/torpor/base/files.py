"""Files: reading those of somebody who may mean harm (a tenant's volume is the tenant's), and making the names of our own durable.

Concurrency: short blocking reads, which never wait for anybody: not for the writer of a pipe, not for who holds a lease.
"""

import os
import stat
from errno import EINVAL
from pathlib import Path

_SMALL_BYTES = 65536


def open_untrusted(path: Path) -> int:
    """A descriptor of a regular file, which the caller closes. Follows no link.

    Raises OSError for anything else; BlockingIOError when somebody holds a lease on it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(EINVAL, "not a regular file", str(path))
    return fd


def read_untrusted(path: Path, limit: int = _SMALL_BYTES) -> str:
    """The first bytes of a regular file, as text; raises OSError for anything else. Follows no link, and waits for no pipe."""
    fd = open_untrusted(path)
    try:
        return os.read(fd, limit).decode(errors="replace")
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make what was made, renamed or removed in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
