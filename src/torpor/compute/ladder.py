"""Takes sleepers down the ladder, frozen to paged to stopped, by their own idle times and when the host is short of memory.

Concurrency: one task for all sleepers, asleep itself until the earliest step is due; a sleeper costs one entry of a heap, no timer. A
second task reads the host's memory once a second. What it decides on is kept in the order in which sleepers froze, so that no
loop over all databases is ever needed.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.memory import HostMemory
from torpor.base.tasks import TaskOwner
from torpor.compute.compute import Compute
from torpor.model.errors import TorporError
from torpor.model.sleep import SleepReason, Tier

log = get_logger(__name__)

_PRESSURE_EVERY_S = 1.0
_PRESSURE_BATCH = 8
_STEPS_AT_ONCE = 2
_OUTDATED_KEPT = 64


class Ladder:
    """All sleepers that are still in memory."""

    def __init__(self, clock: Clock, tasks: TaskOwner, memory: Callable[[], HostMemory], high_percent: float) -> None:
        self._clock = clock
        self._tasks = tasks
        self._memory = memory
        self._high_percent = high_percent
        self._frozen: dict[Compute, None] = {}  # dicts keep the order of insertion: the longest asleep come first
        self._paged: dict[Compute, None] = {}
        self._heap: list[tuple[float, int, Compute]] = []
        self._queued: dict[Compute, float] = {}  # when each is due; entries of the heap that say something else are outdated
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(_STEPS_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Ladder frozen={len(self._frozen)} paged={len(self._paged)} queued={len(self._heap)}>"

    def start(self) -> None:
        """Begin to work."""
        self._tasks.spawn_endless(self._take_due_steps, "take due steps")
        self._tasks.spawn_endless(self._relieve_pressure, "relieve pressure")

    def tier_changed(self, compute: Compute) -> None:
        """Note the new tier of a compute."""
        self._frozen.pop(compute, None)
        self._paged.pop(compute, None)
        if compute.tier is Tier.FROZEN:
            self._frozen[compute] = None
        elif compute.tier is Tier.PAGED:
            self._paged[compute] = None
        else:
            self._queued.pop(compute, None)
            return
        self.reschedule(compute)

    def reschedule(self, compute: Compute) -> None:
        """Look again at when the next step of a sleeper is due (its tier, idle times or connections changed)."""
        if compute not in self._frozen and compute not in self._paged:
            return
        step = compute.next_step()
        if step is None:
            return
        due = self._clock.monotonic() + max(0.0, step[1])
        if compute not in self._queued or due < self._queued[compute]:
            # An entry that is queued for later is left where it is; when it comes up it is found to be outdated.
            self._queued[compute] = due
            heapq.heappush(self._heap, (due, next(self._numbers), compute))
            self._changed.set()
            if len(self._heap) > 2 * len(self._queued) + _OUTDATED_KEPT:
                # Entries of sleepers that woke can be due in a year: each is looked at once for every one that was added.
                self._heap = [entry for entry in self._heap if self._queued.get(entry[2]) == entry[0]]
                heapq.heapify(self._heap)

    async def _take_due_steps(self) -> None:
        while True:
            now = self._clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                due, _, compute = heapq.heappop(self._heap)
                if self._queued.get(compute) == due:
                    del self._queued[compute]
                    await self._look_at(compute)
            self._changed.clear()
            wait_s = self._heap[0][0] - self._clock.monotonic() if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # `wait_for` of Python 3.11 swallows being cancelled in this very moment
                    await self._changed.wait()

    async def _look_at(self, compute: Compute) -> None:
        if compute not in self._frozen and compute not in self._paged:
            return
        step = compute.next_step()
        if step is None:
            return
        tier, in_s = step
        if in_s > 0.001:
            self.reschedule(compute)
            return
        await self._slots.acquire()
        self._tasks.spawn(self._step_down(compute, tier, SleepReason.IDLE), f"step {compute.database.label}")

    async def _step_down(self, compute: Compute, tier: Tier, reason: SleepReason) -> None:
        try:
            if compute.tier is Tier.FROZEN and tier is Tier.PAGED:
                await compute.page_out(reason)
            elif tier is Tier.STOPPED and compute.tier in (Tier.FROZEN, Tier.PAGED) and not compute.connections:
                await compute.stop(reason)
        except TorporError as error:
            log.warning("step down failed", database=compute.database.label, tier=str(tier), cause=error.message)
        finally:
            self._slots.release()

    async def _relieve_pressure(self) -> None:
        while True:
            await self._clock.sleep(_PRESSURE_EVERY_S)
            if not self._frozen and not self._paged:
                continue
            memory = self._memory()
            if memory.used_percent <= self._high_percent:
                continue
            steps = choose_relief(self._relievable(), self._stoppable())
            for compute, tier in steps:
                await self._slots.acquire()
                self._tasks.spawn(self._step_down(compute, tier, SleepReason.PRESSURE), f"relieve {compute.database.label}")
            if steps:
                log.warning("memory is short", used_percent=round(memory.used_percent, 1), steps=len(steps))

    def _relievable(self) -> list[Compute]:
        frozen = (compute for compute in self._frozen if compute.can_page or not compute.connections)
        return list(itertools.islice(frozen, _PRESSURE_BATCH))

    def _stoppable(self) -> list[Compute]:
        return list(itertools.islice((compute for compute in self._paged if not compute.connections), _PRESSURE_BATCH))


def choose_relief(frozen: list[Compute], stoppable: list[Compute]) -> list[tuple[Compute, Tier]]:
    """What goes down a tier under memory pressure: the longest asleep first; memory goes before any compute is stopped. Pure."""
    if frozen:
        if all(compute.can_page for compute in frozen):
            return [(compute, Tier.PAGED) for compute in frozen]
        return [(compute, Tier.STOPPED) for compute in frozen if not compute.connections]
    return [(compute, Tier.STOPPED) for compute in stoppable]
