"""How often something may happen: a mean rate over each of three windows, for each of many keys. Pure.

For each window the times are counted as by a bucket that holds rate x window and is refilled at the rate (kept as one
number, the time when it is full again). A key without recent events takes no memory.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from torpor.model.limits import Rates

K = TypeVar("K", bound=Hashable)

_SWEEP_FROM = 1024
_TOLERANCE_S = 1e-9


class RateLimit(Generic[K]):
    """Counts events of each key, and says when the next may come."""

    def __init__(self, rates: Rates) -> None:
        self._windows = tuple((1.0 / rate, window_s) for rate, window_s in rates.windows)
        self._full_at: dict[K, list[float]] = {}
        self._sweep_at = _SWEEP_FROM

    def __repr__(self) -> str:
        return f"<RateLimit {len(self._full_at)} keys>"

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: K, now: float) -> float:
        """Seconds until another event of this key is within the rates; 0 when it is now. Counts nothing."""
        full_at = self._full_at.get(key)
        if full_at is None:
            return 0.0
        waits = (at - now - (window_s - each_s) for at, (each_s, window_s) in zip(full_at, self._windows, strict=True))
        longest = max(waits, default=0.0)
        return longest if longest > _TOLERANCE_S else 0.0

    def note(self, key: K, now: float) -> None:
        """One more event, allowed or not."""
        full_at = self._full_at.get(key)
        if full_at is None:
            if len(self._full_at) >= self._sweep_at:
                self._sweep(now)
            full_at = self._full_at[key] = [now] * len(self._windows)
        for position, (each_s, window_s) in enumerate(self._windows):
            # Not beyond one window: events that nobody could refuse must not lock a key out for longer.
            full_at[position] = min(max(full_at[position], now) + each_s, now + window_s)

    def _sweep(self, now: float) -> None:
        """Forget who has been quiet. Each costs one look for each doubling of those that are not."""
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if max(full_at, default=now) > now}
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._full_at))
