"""Logins that take turns: while a database takes more than its fair share from neighbours at work, its sessions begin one after another.

Outside of the compute a login costs the door and the kernel a few milliseconds at full priority, whatever the compute's own is.

Concurrency: on the event loop. First come, first served.
"""

import asyncio

from torpor.base.clock import Clock


class Turnstile:
    """Lets one login through each `interval_s`; at 0 all of them, those that wait already included."""

    def __init__(self, clock: Clock) -> None:
        self.interval_s = 0.0
        self.waiting = 0
        self._clock = clock
        self._next_at = float("-inf")
        self._queue = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Turnstile {self.waiting} waiting, {self.interval_s} s apart>"

    async def turn(self) -> None:
        """Wait for the turn of one login. Safe to cancel: the next in the queue takes it."""
        self.waiting += 1
        try:
            async with self._queue:
                if self.interval_s and (wait_s := self._next_at - self._clock.monotonic()) > 0:
                    await self._clock.sleep(wait_s)
                self._next_at = self._clock.monotonic() + self.interval_s
        finally:
            self.waiting -= 1
