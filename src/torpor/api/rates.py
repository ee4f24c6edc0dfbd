"""How often somebody may ask: a token bucket for each key or address. Pure.

A bucket is one number, the moment when it is full again; one that is full takes no memory. At most `max_keys` are remembered: beyond
that the one that asked longest ago is forgotten, which fills it. Whoever commands more addresses than that isn't slowed by this.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

MAX_KEYS = 65_536
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request: whether there was enough in the bucket, what is left, when it is full again, when to come back."""

    allowed: bool
    left: int
    full_in_s: float
    retry_in_s: float


class Buckets:
    """Buckets that hold `burst` and are refilled with `per_s`."""

    def __init__(self, per_s: float, burst: float, max_keys: int = MAX_KEYS) -> None:
        self.per_s = per_s
        self.burst = burst
        self._max_keys = max_keys
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Buckets {self.per_s:g}/s burst={self.burst:g} keys={len(self._full_at)}>"

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: Hashable, now: float, cost: float = 1.0) -> Taken:
        """Take `cost` out of the bucket of `key`, unless there isn't enough in it; then nothing is taken."""
        missing_s = max(self._full_at.get(key, now) - now, 0.0)
        after_s = missing_s + cost / self.per_s
        over_s = after_s - self.burst / self.per_s
        if over_s > _TOLERANCE:
            return Taken(False, int(self.burst - missing_s * self.per_s + _TOLERANCE), missing_s, over_s)
        self._full_at[key] = now + after_s
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._max_keys:
            self._forget(now)
        return Taken(True, int(self.burst - after_s * self.per_s + _TOLERANCE), after_s, 0.0)

    def _forget(self, now: float) -> None:
        """The one that asked longest ago, and those after it that are full by now. A few, so that nobody waits for it."""
        self._full_at.popitem(last=False)
        for _ in range(8):
            key, full_at = next(iter(self._full_at.items()))
            if full_at > now:
                return
            del self._full_at[key]
