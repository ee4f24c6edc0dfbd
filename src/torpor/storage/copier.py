"""The program that copies a directory tree which a tenant may be writing to (`copying` starts it). It needs little of the standard
library, and nothing else, so that it starts in some 15 ms.

The tree is hostile: nothing in it is followed. Every directory is entered and every file opened relative to its parent's descriptor
and never through a link, so whatever is swapped while it is copied, no byte from outside of the tree gets into the copy. A file is copied
up to the length that it had when it was opened, holes stay holes, and only files, directories, links (as what they say) and hard links
are copied.

Concurrency: none; ends, wherever it is, when whoever started it ends.
"""

import errno
import fcntl
import os
import stat
import sys

_FICLONE = 0x40049409
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_DEEPEST = 40
"""Directories in each other; PostgreSQL's own are five at most."""
_SMALL_BYTES = 16_384  # without reflinks, such a file is read until it is twice the same
_PIECE_BYTES = 8 << 20
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
MAKE_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How directories and files of a hostile tree are opened, and those of a copy made."""
SKIP, HOLLOW, SKIP_PREFIX = "-", "=", "~"
"""What a rule begins with: a path that is left out, a directory that is copied empty, the beginning of names that are left out."""
LIVE, STILL = "live", "still"
"""Whether files may vanish meanwhile."""


class _Copier:
    """One copy: every path is below the two roots, which stay open. Blocking."""

    def __init__(self, uid: int, live: bool, rules: list[str]) -> None:
        self._give_to = uid if uid != os.geteuid() else -1
        self._live = live
        self._skip = {rule[1:] for rule in rules if rule[0] == SKIP}
        self._hollow = {rule[1:] for rule in rules if rule[0] == HOLLOW}
        self._skip_prefixes = tuple(rule[1:] for rule in rules if rule[0] == SKIP_PREFIX) or ("/",)
        self._links: dict[tuple[int, int], str] = {}
        self._root = -1

    def copy(self, source: str, target: str) -> None:
        """Copy the directory `source` to `target`."""
        _make_directory(target, None)
        here = os.open(source, OPEN_DIRECTORY)
        self._root = os.open(target, OPEN_DIRECTORY)
        self._fill(here, self._root, "", 0)

    def _fill(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise OSError(errno.ENAMETOOLONG, "too deep", path[:200])
        with os.scandir(source) as entries:
            found = list(entries)
        for entry in found:
            below = f"{path}{entry.name}"
            if below in self._skip or entry.name.startswith(self._skip_prefixes):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    self._directory(source, target, entry.name, below, depth)
                elif entry.is_symlink():
                    os.symlink(os.readlink(entry.name, dir_fd=source), entry.name, dir_fd=target)
                    if self._give_to >= 0:
                        os.chown(entry.name, self._give_to, self._give_to, dir_fd=target, follow_symlinks=False)
                elif entry.is_file(follow_symlinks=False):
                    self._file(source, target, entry.name, below)
            except FileNotFoundError:
                if not self._live:
                    raise
        self._finish(target, os.fstat(source))

    def _directory(self, source: int, target: int, name: str, below: str, depth: int) -> None:
        inner = os.open(name, OPEN_DIRECTORY, dir_fd=source)
        try:
            _make_directory(name, target)
            copied = os.open(name, OPEN_DIRECTORY, dir_fd=target)
            try:
                if below in self._hollow:
                    self._finish(copied, os.fstat(inner))
                else:
                    self._fill(inner, copied, f"{below}/", depth + 1)
            finally:
                os.close(copied)
        finally:
            os.close(inner)

    def _file(self, source: int, target: int, name: str, below: str) -> None:
        fd = os.open(name, OPEN_FILE, dir_fd=source)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                return
            if about.st_nlink > 1:
                identity = (about.st_dev, about.st_ino)
                if (first := self._links.get(identity)) is not None:
                    os.link(first, name, src_dir_fd=self._root, dst_dir_fd=target, follow_symlinks=False)
                    return
                self._links[identity] = below
            copy = os.open(name, MAKE_FILE, 0o600, dir_fd=target)
            try:
                copy_bytes(fd, copy, about.st_size)
                self._finish(copy, about)
            finally:
                os.close(copy)
        finally:
            os.close(fd)

    def _finish(self, fd: int, about: os.stat_result) -> None:
        if self._give_to >= 0:
            os.fchown(fd, self._give_to, self._give_to)
        mode = stat.S_IMODE(about.st_mode) & 0o777
        if mode != (0o700 if stat.S_ISDIR(about.st_mode) else 0o600):
            os.fchmod(fd, mode)


def _make_directory(path: str, parent: int | None) -> None:
    """One that is there stays: the pool may have made it in its own way."""
    try:
        os.mkdir(path, 0o700, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path, dir_fd=parent, follow_symlinks=False).st_mode):
            raise


def copy_bytes(source: int, target: int, size: int) -> None:
    """Make the empty file `target` a copy of `source`: by a reflink at one instant, else of its first `size` bytes. Blocking."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    else:
        return
    if size <= _SMALL_BYTES:
        before = b""
        while (content := os.pread(source, size, 0)) != before:
            before = content
        view = memoryview(content)
        while view:
            view = view[os.write(target, view) :]
        return
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = min(size, os.lseek(source, at, os.SEEK_HOLE))
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole is left
                raise
            break
        at = _copy_range(source, target, at, end)
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, at: int, end: int) -> int:
    while at < end:
        try:
            copied = os.copy_file_range(source, target, min(_PIECE_BYTES, end - at), at, at)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            copied = os.pwrite(target, os.pread(source, min(_PIECE_BYTES, end - at), at), at)
        if not copied:
            return end  # it was cut off meanwhile
        at += copied
    return at


def main(arguments: list[str]) -> int:
    """The program: source, target, uid, LIVE or STILL, rules. On an error it says its number and where it was."""
    source, target, uid, mode, *rules = arguments
    try:
        _Copier(int(uid), mode == LIVE, rules).copy(source, target)
    except OSError as error:
        sys.stderr.write(f"{error.errno or errno.EIO} {error.filename or ''}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
