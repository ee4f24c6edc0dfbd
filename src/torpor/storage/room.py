"""How much room the pool has, and what that allows. Pure but for `look`.

The last part of a pool is kept free: what is written to a file system without room fails at a moment that PostgreSQL can only answer with a
crash, and deleting needs room as well. So the pool counts as full before it is, in three lines like those of a volume.
"""

import contextlib
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from torpor.base.host.facts import POOL_IMAGE_NAME
from torpor.base.host.sealed import Sealed
from torpor.model.size import GIB, MIB

FULL_HINT = "remove databases that aren't needed, or give the pool more room"
_SHARE, _LEAST_BYTES, _MOST_BYTES = 0.05, 64 * MIB, 1 * GIB
_MOST_SHARE = 0.25  # of a pool that is hardly one
_AGAIN = 1.25
_FASTEST_BYTES_PER_S = 1 * GIB  # how fast a pool is taken to fill
_OFTEN_S, _RARELY_S = 0.05, 1.0


class PoolLevel(IntEnum):
    """How full the pool is, by what is done about it."""

    ROOM = 0
    LOW = 1  # nothing is made any more, and databases are read-only by default
    SHORT = 2  # sessions that write all the same are ended
    OUT = 3  # nothing runs


@dataclass(frozen=True, slots=True)
class Room:
    """What a pool has. `free_bytes` can be had for sure: where the pool is a sparse file, the disk below it counts too."""

    free_bytes: int
    total_bytes: int

    @property
    def kept_bytes(self) -> int:
        """How much is kept free."""
        return int(min(max(self.total_bytes * _SHARE, _LEAST_BYTES), _MOST_BYTES, self.total_bytes * _MOST_SHARE))

    def level(self, before: PoolLevel = PoolLevel.ROOM) -> PoolLevel:
        """How full that is. Full ends only clearly above the line, since it costs everybody something."""
        kept = self.kept_bytes
        if self.free_bytes < kept // 4:
            return PoolLevel.OUT
        if self.free_bytes < kept // 2:
            return PoolLevel.SHORT
        if self.free_bytes < kept or (before is not PoolLevel.ROOM and self.free_bytes < kept * _AGAIN):
            return PoolLevel.LOW
        return PoolLevel.ROOM

    @property
    def look_again_s(self) -> float:
        """In which time the next line can't have been crossed."""
        kept = self.kept_bytes
        below = [line for line in (kept, kept // 2, kept // 4) if line < self.free_bytes]
        if not below:
            return _RARELY_S
        return min(max((self.free_bytes - max(below)) / _FASTEST_BYTES_PER_S, _OFTEN_S), _RARELY_S)


def look(root: Path) -> Room:
    """The room of the pool at `root`. A few system calls."""
    stat = os.statvfs(root)
    sealed = Sealed(root.parent)
    layers = [(root, root.parent / POOL_IMAGE_NAME)]
    if sealed.exists:
        layers = [(root, sealed.pool_image), (sealed.point, sealed.image)]
    return Room(_obtainable(layers), stat.f_blocks * stat.f_frsize)


def _obtainable(layers: list[tuple[Path, Path]]) -> int:
    """How many bytes can be written to the file system that is mounted at the first point: it lies in a sparse file, perhaps, and that in
    the next."""
    point, image = layers[0]
    stat = os.statvfs(point)
    free = stat.f_bavail * stat.f_frsize
    with contextlib.suppress(OSError):
        has = image.stat().st_blocks * 512
        if os.path.ismount(point):
            below = os.statvfs(image)
            # What the file has of the disk already and the file system in it doesn't use can be written to without more of the disk.
            spare = max(0, has - (stat.f_blocks - stat.f_bfree) * stat.f_frsize)
            free = min(free, spare + (_obtainable(layers[1:]) if layers[1:] else below.f_bavail * below.f_frsize))
    return free
