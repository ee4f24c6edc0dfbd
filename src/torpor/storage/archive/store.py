"""A bucket with patience: each attempt has its time, and what may pass is tried again, with pauses that double and are spread by chance.

Only HistoryUnreachable is tried again: credentials don't mend themselves, and who meets a full store must know at once.

Concurrency: any number of calls at once, of which a few are on their way at a time. Safe to cancel.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from torpor.base.logs import get_logger
from torpor.model.errors import HistoryUnreachable
from torpor.storage.archive.bucket import Bucket, Stored

log = get_logger(__name__)
T = TypeVar("T")

_AT_ONCE = 16


class Store:
    """Objects by key."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        attempts: int = 6,
        attempt_s: float = 60.0,
        first_pause_s: float = 0.2,
        longest_pause_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._bucket = bucket
        self._attempts = attempts
        self._attempt_s = attempt_s
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._sleep, self._chance = sleep, chance
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Store {self.description}>"

    @property
    def description(self) -> str:
        """Which store it is, for people."""
        return self._bucket.description

    async def put(self, key: str, data: bytes, if_absent: bool = False) -> bool:
        """Store an object, or replace it; durable when it returns. With `if_absent`, one that is there stays, and False is returned: that
        may be what an attempt of this very call has stored.

        Raises HistoryUnreachable, HistoryRefused, HistoryFull, as all calls do.
        """
        return await self._patiently(lambda: self._bucket.put(key, data, if_absent), f"storing {key}")

    async def get(self, key: str) -> bytes:
        """All bytes of an object. Raises HistoryMissing."""
        return await self._patiently(lambda: self._bucket.get(key), f"reading {key}")

    async def list(self, directory: str) -> list[Stored]:
        """All objects below a directory, in no order. About 200 bytes of memory each."""
        return await self._patiently(lambda: self._bucket.list(directory), f"listing {directory}")

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects. Idempotent."""
        if keys:
            await self._patiently(lambda: self._bucket.delete(keys), f"removing {len(keys)} objects")

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        pause_s = self._first_pause_s
        for left in reversed(range(self._attempts)):
            try:
                async with self._turns:
                    return await self._once(attempt, what)
            except HistoryUnreachable as error:
                if not left:
                    raise
                log.warning("the store of the history fails", doing=what, error=str(error), attempts_left=left)
            await self._sleep(pause_s * (0.5 + self._chance() / 2))
            pause_s = min(pause_s * 2, self._longest_pause_s)
        raise AssertionError

    async def _once(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        try:
            async with asyncio.timeout(self._attempt_s):
                return await attempt()
        except TimeoutError as error:
            raise HistoryUnreachable(f"{self.description} took more than {self._attempt_s:g} s for {what}") from error
