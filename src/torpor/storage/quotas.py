"""Who holds a volume to its size: the kernel where the pool's file system can (btrfs that counts simply), nobody where it can't.

Under the kernel a volume is a subvolume, and its log (`pg_wal`) one inside of it. At the size of the database the data is full, while the
log has some room left: so what PostgreSQL says to the client is an error of one statement, and never a crash for want of room for the log.
What a volume shares with the one that it was copied from counts there, and only there.

Concurrency: blocking; called for different volumes from several threads at once.
"""

import contextlib
from pathlib import Path
from typing import Protocol

from torpor.base import btrfs
from torpor.model.size import GIB, MIB

LOG_ROOM_BYTES = 1 * GIB
"""What a log may have beyond the size. It comes to that only when nothing may be written any more, and yet is."""
_ELBOW_ROOM_BYTES = 16 * MIB  # what is full needs some to become emptier: deleting writes, too, and so do pages that wait in memory


def stopping_point(size_bytes: int) -> int:
    """Beyond how many bytes a database of that size is stopped. Pure."""
    return size_bytes * 5 // 4 + GIB // 4


def data_limit(size_bytes: int, used_bytes: int, limit_bytes: int | None, is_full: bool) -> int:
    """What to hold the data of a volume to. Pure. `limit_bytes` is what it is held to now.

    Who has met the limit gets a little more each time, up to what is stopped: without any room nothing can be deleted either.
    """
    limit = size_bytes if limit_bytes is None or not is_full else max(size_bytes, limit_bytes)
    if used_bytes > limit - MIB:
        limit = max(limit, used_bytes) + _ELBOW_ROOM_BYTES
    return max(size_bytes, min(limit, stopping_point(size_bytes)))


class Quotas(Protocol):
    """How the directories of volumes are made, held and counted."""

    @property
    def holds(self) -> bool:
        """Whether the kernel holds volumes to their size."""
        ...

    def make(self, volume: Path) -> None:
        """Make the directory of a volume, with an empty PGDATA and log in it where they have to be there before they are filled."""
        ...

    def limit(self, volume: Path, size_bytes: int, is_full: bool = False) -> bool:
        """Hold a volume to a size from now on, whether it is in use or not; whether the kernel does. One that is full gets a little more
        each time, up to what it is stopped for: without any room nothing can be deleted either."""
        ...

    def release(self, volume: Path) -> None:
        """It is about to be removed: nothing may stand in the way."""
        ...

    def tidy(self) -> None:
        """Forget what was kept for volumes that are gone."""
        ...


class NoQuotas:
    """A file system that holds nobody."""

    holds = False

    def make(self, volume: Path) -> None:
        """A plain directory."""
        volume.mkdir(mode=0o700)

    def limit(self, volume: Path, size_bytes: int, is_full: bool = False) -> bool:
        """Nothing."""
        return False

    def release(self, volume: Path) -> None:
        """Nothing."""

    def tidy(self) -> None:
        """Nothing."""


class BtrfsQuotas:
    """btrfs, counting simply. Volumes that were made before it counted are plain directories, and held by nobody."""

    holds = True

    def __init__(self, root: Path, counters: Path) -> None:
        self._root = root
        self._counters = counters

    def __repr__(self) -> str:
        return f"<BtrfsQuotas {self._root}>"

    def make(self, volume: Path) -> None:
        """A subvolume for the data, and in it one for the log, which joins its group."""
        btrfs.make_subvolume(volume)
        volume.chmod(0o700)
        number = btrfs.subvolume(volume)
        assert number is not None
        btrfs.make_group(self._root, number)
        (volume / "data").mkdir(mode=0o700)
        btrfs.make_subvolume(volume / "data/pg_wal")
        (volume / "data/pg_wal").chmod(0o700)

    def limit(self, volume: Path, size_bytes: int, is_full: bool = False) -> bool:
        """The data at the size, the log beyond it."""
        number = btrfs.subvolume(volume)
        if number is None:
            return False
        try:
            now = btrfs.counted(self._counters, number)
        except OSError:
            return False
        wanted = data_limit(size_bytes, *now, is_full)
        if wanted != now[1]:
            btrfs.limit(self._root, number, wanted, wanted + LOG_ROOM_BYTES)
        return True

    def release(self, volume: Path) -> None:
        """Lift the limits: to remove files takes room as well."""
        if (number := btrfs.subvolume(volume)) is not None:
            btrfs.limit(self._root, number, None, None)

    def tidy(self) -> None:
        """A group can be removed some seconds after its volume: until then the kernel is busy with it."""
        with contextlib.suppress(OSError):
            for number in btrfs.groups(self._counters):
                if not (self._counters / f"0_{number}").exists():
                    btrfs.remove_group(self._root, number)


def find_quotas(root: Path) -> Quotas:
    """What the file system of `root` offers to this process."""
    counters = btrfs.counters(root)
    if counters is None:
        return NoQuotas()
    return BtrfsQuotas(root, counters)
