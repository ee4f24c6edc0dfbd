"""The end of a log file, and what is written to it from then on.

Concurrency: old lines are read in a thread, since they may be many and not in memory. New ones are in memory and read on the loop:
a thread could still be reading when its file is closed. Following looks at the file four times a second, only while somebody
follows. Bounded: at most 4 MiB of old lines, then 64 KiB at a time. Survives rotation (the path names another file: the rest of the old
one comes first) and truncation (reading goes on at the start).
"""

import asyncio
import io
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from torpor.model.errors import DatabaseNotFound

POLL_S = 0.25
_CHUNK_BYTES = 64 * 1024
_MAX_TAIL_BYTES = 4 * 1024 * 1024


async def tail(path: Path, lines: int) -> bytes:
    """The last `lines` lines; nothing when there is no file."""
    return await asyncio.to_thread(_read_tail, path, lines)


class Follower:
    """A place in a log that may be rotated, truncated, or not there yet. Made by `open`; what is written from then on isn't missed."""

    def __init__(self, locate: Callable[[], Path], path: Path, file: io.FileIO | None, first: bytes) -> None:
        self._locate = locate
        self._path = path
        self._file = file
        self._first = first

    @classmethod
    async def open(cls, locate: Callable[[], Path], lines: int) -> "Follower":
        """Begin `lines` lines before the end of the file that `locate` names now."""
        path = locate()
        return cls(locate, path, *await asyncio.to_thread(_open_tail, path, lines))

    def close(self) -> None:
        """Let go of the file. May be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def parts(self, stopping: asyncio.Event) -> AsyncGenerator[bytes, None]:
        """What is in the log, until `stopping` is set or `locate` knows no file or another path."""
        if self._first:
            yield self._first
        while not stopping.is_set() and _still(self._locate, self._path):
            if part := self._read():
                yield part
                continue
            try:
                await asyncio.wait_for(stopping.wait(), POLL_S)
            except TimeoutError:
                continue

    def _read(self) -> bytes:
        """What is new, at most a chunk."""
        if self._file is None:
            self._file = _open(self._path)
            if self._file is None:
                return b""
        ours = os.fstat(self._file.fileno())
        if ours.st_size < self._file.tell():
            self._file.seek(0)
        part = self._file.read(_CHUNK_BYTES) or b""
        if not part and self._rotated(ours):
            part = self._file.read(_CHUNK_BYTES) or b""  # written between the read and the rotation
            if not part:
                self.close()
        return part

    def _rotated(self, ours: os.stat_result) -> bool:
        try:
            current = self._path.stat()
        except OSError:
            return False  # between two names: keep what we have until the new file is there
        return (current.st_dev, current.st_ino) != (ours.st_dev, ours.st_ino)


def _still(locate: Callable[[], Path], path: Path) -> bool:
    try:
        return locate() == path
    except DatabaseNotFound:
        return False


def _open(path: Path) -> io.FileIO | None:
    try:
        return io.FileIO(path, "rb")
    except FileNotFoundError:
        return None


def _read_tail(path: Path, lines: int) -> bytes:
    file, held = _open_tail(path, lines)
    if file is not None:
        file.close()
    return held


def _open_tail(path: Path, lines: int) -> tuple[io.FileIO | None, bytes]:
    """The file, at its end, and its last lines. A line that is being written counts as one."""
    file = _open(path)
    if file is None:
        return None, b""
    end = file.seek(0, os.SEEK_END)
    held, wanted = b"", _CHUNK_BYTES
    while lines and len(held) < min(end, _MAX_TAIL_BYTES) and held.count(b"\n") <= lines:
        file.seek(max(0, end - wanted))
        held = file.read(min(end, wanted))
        wanted *= 2
    file.seek(end)
    return file, _last_lines(held, lines)


def _last_lines(held: bytes, lines: int) -> bytes:
    cut = len(held) - held.endswith(b"\n")
    for _ in range(lines):
        cut = held.rfind(b"\n", 0, cut)
        if cut < 0:
            return held
    return held[cut + 1 :] if lines else b""
