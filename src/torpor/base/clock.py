"""Time, injected: code asks a Clock, tests pass one that they turn by hand. Stateless."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for people and records, monotonic time for durations, and a way to wait."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait. Safe to cancel."""
        ...


class SystemClock:
    """The real time."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
