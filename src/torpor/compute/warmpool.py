"""The warm pool: clusters cloned, started and put to sleep in advance, waiting for a create to claim one.

Concurrency: one task refills it, one cluster at a time, and steps back while creates or starts are under way, so that it is never in
anybody's way. `take` is synchronous: two creates never get the same one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.model.errors import PoolFull, TorporError

log = get_logger(__name__)

_STEP_BACK_S = 0.25
_AFTER_FAULT_S = 30.0


class WarmPool:
    """Sleeping computes without a name, all of one major."""

    def __init__(
        self, size: int, major: int, make: Callable[[int], Awaitable[Compute]], busy: Callable[[], bool], clock: Clock, tasks: TaskOwner
    ) -> None:
        """`make` gives one more warm compute of a major; `busy` says whether somebody is waiting for a create or a start."""
        self._size = size
        self._major = major
        self._make = make
        self._busy = busy
        self._clock = clock
        self._tasks = tasks
        self._ready: deque[Compute] = deque()
        self._wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"<WarmPool {len(self._ready)}/{self._size} of PostgreSQL {self._major}>"

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def computes(self) -> Collection[Compute]:
        """Those that wait, oldest first."""
        return self._ready

    @property
    def major(self) -> int:
        """The major of its computes."""
        return self._major

    @property
    def size(self) -> int:
        """How many it wants to hold."""
        return self._size

    def start(self) -> None:
        """Begin to fill."""
        if self._size:
            self._wanted.set()
            self._tasks.spawn_endless(self._refill, "refill warm pool")

    def put(self, compute: Compute) -> None:
        """Take in a warm compute that an earlier Torpor made."""
        self._ready.append(compute)

    def take(self, major: int) -> Compute | None:
        """A warm compute to claim, None when there is none of that major."""
        self._wanted.set()
        if major != self._major or not self._ready:
            return None
        return self._ready.popleft()

    async def _refill(self) -> None:
        while True:
            await self._wanted.wait()
            while len(self._ready) < self._size:
                while self._busy():
                    await self._clock.sleep(_STEP_BACK_S)
                try:
                    self._ready.append(await self._make(self._major))
                except TorporError as error:
                    level = log.warning if isinstance(error, PoolFull) else log.error
                    level("the warm pool can't be filled", cause=str(error), again_in_s=_AFTER_FAULT_S)
                    await self._clock.sleep(_AFTER_FAULT_S)
            self._wanted.clear()
