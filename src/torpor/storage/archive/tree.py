"""Directory trees, read into records and bytes, and written again.

What is read may be a tenant's: links are kept as they are and followed by nobody, pipes and devices are left out, holes cost nothing, and
who nests directories without end is refused. What is written goes into a directory of ours that was empty; links come last, so that nothing
is ever written through one.

Concurrency: all of it blocks; memory is a chunk, the names in the directories on the way down, and of files that have several.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torpor.model.errors import Conflict, HistoryCorrupt, PoolFull, Unavailable
from torpor.storage.archive.format import CHUNK_BYTES, PACK_BYTES, SMALL_BYTES, Directory, Entry, File, Link, Twin, ends_pack

_DEPTH = 64
_ZEROS = bytes(CHUNK_BYTES)
_libc = ctypes.CDLL(None, use_errno=True)

Part = tuple[bytes, int, int]
"""Path, offset and length."""


class Bytes:
    """Content that was read: the bytes of its parts, one after the other."""

    __slots__ = ("data", "parts")

    def __init__(self, data: bytes, parts: list[Part]) -> None:
        self.data, self.parts = data, parts


def nothing(path: str) -> bool:
    """Leaves out nothing."""
    return False


def measure(root: Path, leave_out: Callable[[str], bool] = nothing) -> int:
    """Bytes that reading the tree will yield, about: as allocated."""
    total = 0
    for record in _walk(root, leave_out):
        if isinstance(record, _Found):
            total += min(record.status.st_size, record.status.st_blocks * 512)
            record.close()
    return total


def read_tree(root: Path, leave_out: Callable[[str], bool] = nothing) -> Iterator[Entry | Bytes]:
    """All below `root`, in the order of names, without what `leave_out` says of a path (and all below it). Nobody may write there.

    Raises OSError, Conflict for a tree that is nested too deeply, and Unavailable for a file that changes meanwhile.
    """
    pack = bytearray()
    parts: list[Part] = []
    for record in _walk(root, leave_out):
        if not isinstance(record, _Found):
            yield record
            continue
        with contextlib.closing(record):
            size = record.status.st_size
            yield File(record.path, record.status.st_mode & 0o777, size)
            if size > SMALL_BYTES:
                yield from _blocks(record)
                continue
            if size:
                pack += _exactly(record, 0, size)
                parts.append((record.path, 0, size))
        if parts and (len(pack) >= PACK_BYTES or ends_pack(record.path)):
            yield Bytes(bytes(pack), parts)
            pack, parts = bytearray(), []
    if parts:
        yield Bytes(bytes(pack), parts)


class TreeWriter:
    """Makes a tree in a directory, which it makes, too; one that is there may hold empty directories, and nothing else.

    All raise HistoryCorrupt for what no reader yields, and PoolFull.
    """

    def __init__(self, target: Path) -> None:
        self._target = os.fsencode(target)
        with _named(self._target):
            target.mkdir(mode=0o700, exist_ok=True)
        self._links: list[Link] = []
        self._modes: list[tuple[bytes, int]] = []

    def add(self, records: Sequence[Entry]) -> None:
        """Make directories and files, which are all zeros as yet."""
        for record in records:
            self._add(record)

    def _add(self, record: Entry) -> None:
        path = self._path(record.path)
        with _named(record.path):
            if isinstance(record, Directory):
                try:
                    os.mkdir(path, record.mode | 0o700)
                except FileExistsError:
                    if not stat.S_ISDIR(os.lstat(path).st_mode):
                        raise
                self._modes.append((path, record.mode))
            elif isinstance(record, File):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(fd, record.size_bytes)
                    if record.mode & 0o600 == 0o600:
                        os.fchmod(fd, record.mode & 0o777)
                    else:
                        self._modes.append((path, record.mode))
                finally:
                    os.close(fd)
            elif isinstance(record, Twin):
                os.link(self._path(record.of), path, follow_symlinks=False)
            else:
                self._links.append(record)

    def fill(self, parts: list[Part], data: bytes) -> None:
        """Write content into files that were made. Several may do it at once."""
        if sum(length for _, _, length in parts) != len(data):
            raise HistoryCorrupt("a chunk has another length than its index says")
        rest = memoryview(data)
        for name, offset, length in parts:
            with _named(name):
                fd = os.open(self._path(name), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    piece, at = rest[:length], offset
                    while piece:
                        written = os.pwrite(fd, piece, at)
                        piece, at = piece[written:], at + written
                finally:
                    os.close(fd)
            rest = rest[length:]

    def finish(self) -> None:
        """Make links, give directories their modes, and make all of it durable."""
        for link in self._links:
            with _named(link.path):
                os.symlink(link.target, self._path(link.path))
        for path, mode in reversed(self._modes):
            with _named(path):
                os.chmod(path, mode & 0o777)
        fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd) < 0:
                code = ctypes.get_errno()
                with _named(self._target):
                    raise OSError(code, os.strerror(code))
        finally:
            os.close(fd)

    def _path(self, path: bytes) -> bytes:
        if not path or b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
            raise HistoryCorrupt(f"a base holds the path {path[:80]!r}")
        return os.path.join(self._target, path)


class _Found:
    """A regular file on the way, open."""

    __slots__ = ("fd", "path", "status")

    def __init__(self, path: bytes, fd: int, status: os.stat_result) -> None:
        self.path, self.fd, self.status = path, fd, status

    def close(self) -> None:
        os.close(self.fd)


def _walk(root: Path, leave_out: Callable[[str], bool]) -> Iterator[Directory | Link | Twin | _Found]:
    stack: list[tuple[int, bytes, Iterator[str]]] = []
    named: dict[int, bytes] = {}  # by inode, those that have several names
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.append((fd, b"", iter(sorted(os.listdir(fd)))))
    try:
        while stack:
            parent, prefix, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            path = prefix + os.fsencode(name)
            if leave_out(os.fsdecode(path)):
                continue
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if len(stack) >= _DEPTH:
                    raise Conflict(f"directories are nested more than {_DEPTH} deep: {path[:80].decode(errors='replace')}…")
                yield Directory(path, status.st_mode & 0o777)
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                stack.append((fd, path + b"/", iter(sorted(os.listdir(fd)))))
            elif stat.S_ISLNK(status.st_mode):
                yield Link(path, os.fsencode(os.readlink(name, dir_fd=parent)))
            elif stat.S_ISREG(status.st_mode):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=parent)
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    os.close(fd)
                elif status.st_nlink > 1 and status.st_ino in named:
                    os.close(fd)
                    yield Twin(path, named[status.st_ino])
                else:
                    if status.st_nlink > 1:
                        named[status.st_ino] = path
                    yield _Found(path, fd, status)
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _blocks(found: _Found) -> Iterator[Bytes]:
    """The chunks of a large file, without those that are holes, or zeros."""
    size, position = found.status.st_size, 0
    while position < size:
        try:
            data_at = os.lseek(found.fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to its end
                return
            raise
        start = data_at // CHUNK_BYTES * CHUNK_BYTES
        length = min(CHUNK_BYTES, size - start)
        data = _exactly(found, start, length)
        if data != (_ZEROS if length == CHUNK_BYTES else _ZEROS[:length]):
            yield Bytes(data, [(found.path, start, length)])
        position = start + length


def _exactly(found: _Found, offset: int, length: int) -> bytes:
    data = os.pread(found.fd, length, offset)
    while len(data) < length:
        more = os.pread(found.fd, length - len(data), offset + len(data))
        if not more:
            raise Unavailable(f"{found.path.decode(errors='replace')} became shorter while it was read")
        data += more
    return data


@contextlib.contextmanager
def _named(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PoolFull("the storage pool is full", "remove databases you don't need, or give the pool more room") from error
        if error.errno in (errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG, errno.EINVAL):
            raise HistoryCorrupt(f"a base can't be written at {path[-80:].decode(errors='replace')}: {error.strerror}") from error
        raise
