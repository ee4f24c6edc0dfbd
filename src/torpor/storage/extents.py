"""How much of a directory tree shares its blocks with other files: asked of the file system, file by file (FIEMAP).

What the file system says is one word for each extent: somebody else has it, too. Who that is it doesn't say.

Concurrency: blocking; bounded in time, since a tenant can have as many files and pieces of files as it likes.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

_FIEMAP = 0xC020660B
_SHARED, _LAST = 0x2000, 0x1
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_AT_ONCE = 512
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def shared_bytes(directory: Path, patience_s: float) -> int | None:
    """Bytes below `directory` that other files have, too. None where that can't be said, or not in time. Follows no link."""
    deadline = time.monotonic() + patience_s
    try:
        fd = os.open(directory, _DIRECTORY)
    except OSError:
        return None
    return _below(fd, deadline)


def _below(directory: int, deadline: float) -> int | None:
    """Closes the descriptor."""
    total = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if time.monotonic() > deadline:
                    return None
                try:
                    if entry.is_dir(follow_symlinks=False):
                        part = _below(os.open(entry.name, _DIRECTORY, dir_fd=directory), deadline)
                    elif entry.is_file(follow_symlinks=False):
                        part = _of_file(entry.name, directory, deadline)
                    else:
                        continue
                except (FileNotFoundError, NotADirectoryError, BlockingIOError):  # it is somebody else's tree
                    continue
                if part is None:
                    return None
                total += part
    except (OSError, RecursionError):
        return None
    finally:
        os.close(directory)
    return total


def _of_file(name: str, directory: int, deadline: float) -> int | None:
    fd = os.open(name, _FILE, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return 0
        total = start = 0
        while time.monotonic() <= deadline:
            asked = bytearray(_HEAD.size + _EXTENT.size * _AT_ONCE)
            _HEAD.pack_into(asked, 0, start, (1 << 64) - 1 - start, 0, 0, _AT_ONCE, 0)
            try:
                fcntl.ioctl(fd, _FIEMAP, asked)
            except OSError as error:
                return 0 if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY) else None
            _, _, _, mapped, _, _ = _HEAD.unpack_from(asked)
            if not mapped:
                return total
            for number in range(mapped):
                logical, _, length, _, _, flags, _, _, _ = _EXTENT.unpack_from(asked, _HEAD.size + number * _EXTENT.size)
                total += length if flags & _SHARED else 0
                start = logical + length
                if flags & _LAST:
                    return total
        return None
    finally:
        os.close(fd)
