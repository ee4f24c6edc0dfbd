"""Removes databases whose time to live is over, with whatever is connected to them.

When that is, is turned into monotonic time once, when the database is first seen: a wall clock that jumps while Torpor runs removes nothing
early and keeps nothing longer.

Concurrency: one heap of deadlines and one task for all, asleep until the earliest; a database without a time to live costs nothing.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Awaitable, Callable

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import TorporError
from torpor.model.names import DatabaseId

log = get_logger(__name__)

_AGAIN_AFTER_S = 60.0


class Expiry:
    """All databases that have a time to live. `remove` is told which one's is over."""

    def __init__(self, fleet: Fleet, clock: Clock, tasks: TaskOwner, remove: Callable[[Compute], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._tasks = tasks
        self._remove = remove
        self._heap: list[tuple[float, int, DatabaseId, float]] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Expiry {len(self._heap)}>"

    def start(self) -> None:
        """Begin to remove."""
        self._tasks.spawn_endless(self._run, "expire")

    def watch(self, database: Database) -> None:
        """Take note of when a database ends, if ever. An earlier note of another time doesn't count any more."""
        if database.expires_at is not None:
            self._push(database.id, database.expires_at, database.expires_at - self._clock.time())

    def _push(self, id: DatabaseId, expires_at: float, in_s: float) -> None:
        heapq.heappush(self._heap, (self._clock.monotonic() + in_s, next(self._numbers), id, expires_at))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            while self._heap and self._heap[0][0] <= self._clock.monotonic():
                _, _, id, expires_at = heapq.heappop(self._heap)
                compute = self._fleet.get(id)
                if compute is None or compute.database.state is not DatabaseState.READY or compute.database.expires_at != expires_at:
                    continue  # removed already, or it was given another time
                try:
                    await self._remove(compute)
                except TorporError as error:
                    log.warning("what has expired can't be removed yet", database=compute.database.label, cause=error.message)
                    self._push(id, expires_at, _AGAIN_AFTER_S)
            self._changed.clear()
            wait_s = self._heap[0][0] - self._clock.monotonic() if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # `wait_for` of Python 3.11 swallows being cancelled in this very moment
                    await self._changed.wait()
