"""PostgreSQL's own log of one compute: what it last said, and keeping it small.

What is in it, and how fast it grows, is up to the tenant, who can also make it a file of holes: whatever is read of it is bounded. Between
two looks it grows to about 1 GB at most: the library (native/handover.c) limits the size of every file that a compute writes.

Concurrency: short blocking calls, but for `keep_small`, which copies in a thread. The daemon is the only one that cuts a log; PostgreSQL
only appends.
"""

import asyncio
import contextlib
import os
from pathlib import Path

_LIMIT_BYTES = 8 << 20
_TAIL_BYTES = 8192
_CHUNK_BYTES = 1 << 20


def last_words(log: Path) -> str:
    """The last error of a PostgreSQL log, for people: a FATAL or PANIC message, else its last line."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read(_TAIL_BYTES).decode(errors="replace").splitlines() if line.strip()]
        for line in reversed(lines):
            for level in ("PANIC:", "FATAL:"):
                if level in line:
                    return line.partition(level)[2].strip()
        if lines:
            return lines[-1].strip()
    return "it left no message"


async def keep_small(log: Path) -> None:
    """Move the end of a log above 8 MB aside (to `.log.1`, replacing the one before), and empty it: 16 MB, and what comes until the next
    look. What a log holds above 8 MB is dropped from its beginning. Safe to cancel: it goes on in its thread."""
    with contextlib.suppress(OSError):
        if os.stat(log).st_size > _LIMIT_BYTES:
            await asyncio.to_thread(_cut, log)


def _cut(log: Path) -> None:
    # PostgreSQL appends to the open file: it is copied and emptied, not renamed.
    with contextlib.suppress(OSError):
        copy = log.with_suffix(".log.new")
        with log.open("rb") as old, open(copy, "wb", opener=_private) as new:
            old.seek(max(0, os.fstat(old.fileno()).st_size - _LIMIT_BYTES))
            left = _LIMIT_BYTES
            while left and (chunk := old.read(min(left, _CHUNK_BYTES))):
                new.write(chunk)
                left -= len(chunk)
        copy.replace(log.with_suffix(".log.1"))
        os.truncate(log, 0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def remove(log: Path) -> None:
    """Remove a log with its older part. Idempotent."""
    for suffix in (".log", ".log.1", ".log.new"):
        log.with_suffix(suffix).unlink(missing_ok=True)
