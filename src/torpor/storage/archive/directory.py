"""Objects as files below a directory.

Not through obstore, whose local store syncs nothing: an object must survive a power cut once it is put, since the log that it holds is then
given up by PostgreSQL. A file is written in `.half` and appears under its name only when it is whole and durable.

Concurrency: blocking calls run in the executor that is given; several at once, for the same key too.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from torpor.base.files import sync_directory
from torpor.model.errors import HistoryFull, HistoryMissing, HistoryRefused, HistoryUnreachable, TorporError
from torpor.storage.archive.bucket import Stored

T = TypeVar("T")
_HALF = ".half"
_OLD_S = 3600.0  # a half-written file of that age is what a kill has left
_ATTEMPTS = 20


class DirectoryBucket:
    """A bucket in a directory that is ours alone; it is made when the first object is put."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor
        self._swept = False

    def __repr__(self) -> str:
        return f"<DirectoryBucket {self._root}>"

    @property
    def description(self) -> str:
        """Which store it is, for people."""
        return f"the directory {self._root}"

    async def put(self, key: str, data: bytes, if_absent: bool) -> bool:
        """Store an object; durable when it returns."""
        return await self._run(lambda: self._put(self._root / key, data, if_absent))

    async def get(self, key: str) -> bytes:
        """All bytes of it. Raises HistoryMissing."""
        try:
            return await self._run((self._root / key).read_bytes)
        except FileNotFoundError:
            raise HistoryMissing(f"{key} is not in {self.description}") from None

    async def list(self, directory: str) -> list[Stored]:
        """All objects below a directory."""
        return await self._run(lambda: list(self._walk(self._root / directory)))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, and directories that are empty then. A removal isn't synced: what comes back with a crash is removed again."""
        await self._run(lambda: self._delete(keys))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> TorporError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return HistoryFull(f"{self.description} is full")
        if error.errno in (errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EPERM, errno.EROFS):
            return HistoryRefused(f"{self.description} can't be used: {reason}", "look at its owner and mode")
        return HistoryUnreachable(f"{self.description} can't be used: {reason}")

    def _put(self, path: Path, data: bytes, if_absent: bool) -> bool:
        if if_absent and path.exists():
            return False
        for attempt in range(_ATTEMPTS):
            try:
                return self._write(path, data, if_absent)
            except FileNotFoundError:  # a delete has just removed the directory
                if attempt == _ATTEMPTS - 1:
                    raise HistoryUnreachable(f"{path.parent} vanishes again and again") from None
        raise AssertionError

    def _write(self, path: Path, data: bytes, if_absent: bool) -> bool:
        self._make(path.parent)
        self._make(self._root / _HALF)
        self._sweep()
        half = self._root / _HALF / secrets.token_hex(8)
        fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            if if_absent:
                try:
                    os.link(half, path)
                except FileExistsError:
                    return False
                finally:
                    os.unlink(half)
            else:
                os.rename(half, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(half)
            raise
        sync_directory(path.parent)
        return True

    def _make(self, directory: Path) -> None:
        """Make a directory whose name is durable, with all above it."""
        if directory.is_dir():
            return
        if directory != self._root:
            self._make(directory.parent)
            directory.mkdir(mode=0o700, exist_ok=True)
        else:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(directory.parent)

    def _sweep(self) -> None:
        """Once, remove what a kill has left half written."""
        if self._swept:
            return
        self._swept = True
        for path in (self._root / _HALF).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _OLD_S:
                    path.unlink()

    def _walk(self, directory: Path) -> Iterator[Stored]:
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if entry.name == _HALF:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(Path(entry.path))
                else:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield Stored(os.path.relpath(entry.path, self._root), status.st_size, status.st_mtime)

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._root / key
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root or not self._drop(parent):
                    break

    def _drop(self, directory: Path) -> bool:
        """Remove a directory if nothing is in it; whether it is gone."""
        try:
            directory.rmdir()
        except OSError:
            return False
        return True
