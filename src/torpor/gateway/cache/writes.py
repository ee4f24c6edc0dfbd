"""Which tables were written to: counters in a file that the backends of a database increase when they commit.

Word 0 is the epoch, which counts what can't be told of one table; the others belong to the tables, by their numbers (two tables may share
one: then a write to either counts for both). The file belongs to whom the backends run as, and may be cut off by a hostile one: it is
read, never mapped, and what can't be read is like nothing.

Concurrency: each read is one system call or a few. A backend increases a word after its commit is visible and before its client hears of
it; so what was read before a statement was sent tells, for good, whether its result is older than a commit that somebody was told of.
"""

import os
import struct
from collections.abc import Sequence
from itertools import count

WORDS = 4096
WORD_BYTES = 8
FILE_BYTES = WORDS * WORD_BYTES

_FEW = 4
_ODD = count(-1, -1)
"""Values that nothing else has: counters are never negative."""


def word_of(oid: int) -> int:
    """Where a table is counted."""
    return 1 + oid % (WORDS - 1)


class Writes:
    """The counters of one database. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"<Writes {self._fd}>"

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_same(self, other: "Writes") -> bool:
        """Whether both count in one file."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.fstat(other._fd))
        except OSError:
            return False

    def read(self, oids: Sequence[int]) -> tuple[int, ...]:
        """The epoch, and the counter of each table. Raises nothing: what can't be read gives a value that is equal to no other."""
        if len(oids) > _FEW:
            return pick(self.snapshot(), oids)
        try:
            return tuple(struct.unpack("=Q", os.pread(self._fd, WORD_BYTES, WORD_BYTES * word))[0] for word in (0, *map(word_of, oids)))
        except (OSError, struct.error):
            return (next(_ODD),)

    def snapshot(self) -> bytes:
        """All of them, to `pick` from when it is known which tables were read."""
        try:
            return os.pread(self._fd, FILE_BYTES, 0)
        except OSError:
            return b""


def pick(snapshot: bytes, oids: Sequence[int]) -> tuple[int, ...]:
    """What `read` would have given at the time of the snapshot."""
    if len(snapshot) != FILE_BYTES:
        return (next(_ODD),)
    return tuple(struct.unpack_from("=Q", snapshot, WORD_BYTES * word)[0] for word in (0, *map(word_of, oids)))
