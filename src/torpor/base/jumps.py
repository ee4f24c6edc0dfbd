"""Whether the wall's clock goes on evenly. One that was set takes what is young for old: whoever removes by age asks here first.

It is compared with a clock that nobody sets and that counts while the machine is suspended. Nothing is noticed but at a look, and what was
set before the first one never is.
"""

import time
from collections.abc import Callable

_JUMP_S = 300.0  # less is a clock that is being put right, or time that passed between two readings


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Jumps:
    """What was seen of the wall's clock."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _since_boot) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._at: float | None = None

    def look(self) -> float:
        """By how many seconds it has jumped since the last look; 0 for none."""
        before, self._offset = self._offset, self._wall() - self._steady()
        jumped = self._offset - before
        if abs(jumped) < _JUMP_S:
            return 0.0
        self._at = self._steady()
        return jumped

    def within(self, seconds: float) -> bool:
        """Whether it was seen to jump so lately."""
        return self._at is not None and self._steady() - self._at < seconds
