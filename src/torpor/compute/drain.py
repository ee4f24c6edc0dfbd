"""Draining: statements and transactions that run may end, sessions that rest are ended, and computes without sessions are stopped.

Concurrency: one task for the whole and one for each compute that runs, of which a few at a time ask PostgreSQL. A compute that drains is
held awake, so that what it does can be seen. Safe to cancel at any time: then whatever still runs goes on, in the care of whoever
comes next. Nobody may be let in meanwhile but those whose login was under way (`is_busy`).
"""

import asyncio
import secrets
from collections.abc import Callable

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.idleness import Activity, is_resting
from torpor.model.drain import DrainState, DrainView, RunningView
from torpor.model.errors import TorporError
from torpor.model.sleep import SleepReason, Tier, WakeReason
from torpor.pgwire.replies import error_response

log = get_logger(__name__)

_AT_ONCE = 8
_SHORTEST_LOOK_S = 0.02
_LONGEST_LOOK_S = 0.5
_AFTER_FAULT_S = 0.5
FAREWELL = error_response(
    "57P01",
    "terminating connection because Torpor is draining, and the session was idle",
    "connect again: the next Torpor lets you in",
)


class Drain:
    """The draining of one fleet, which happens once. `is_busy` says whether somebody is still being logged in."""

    def __init__(self, fleet: Fleet, clock: Clock, is_busy: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._is_busy = is_busy
        self._name = secrets.token_hex(8)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._left: dict[Compute, tuple[float, list[Activity]]] = {}
        self._began_at: float | None = None
        self._deadline_at: float | None = None
        self._deadline = float("inf")

    def __repr__(self) -> str:
        return f"<Drain {'not begun' if self._began_at is None else f'of {len(self._left)} computes'}>"

    @property
    def view(self) -> DrainView:
        """How far it is."""
        running = [
            RunningView(compute.database.label, row.label, " ".join(row.query.split()), row.state, seen_at - row.running_s)
            for compute, (seen_at, rows) in self._left.items()
            for row in rows
            if not is_resting(row)
        ]
        computes = self._fleet.running()
        return DrainView(
            DrainState.SERVING if self._began_at is None else DrainState.DRAINING,
            self._name,
            self._began_at,
            self._deadline_at,
            len(computes),
            sum(compute.connections for compute in computes),
            tuple(sorted(running, key=lambda one: one.since)),
        )

    @property
    def remaining_s(self) -> float | None:
        """How long what runs may go on; None while nobody asked for a drain."""
        return None if self._began_at is None else max(0.0, self._deadline - self._clock.monotonic())

    def allow(self, timeout_s: float) -> None:
        """What runs may go on for so long from now. Called again it changes the deadline."""
        self._began_at = self._began_at or self._clock.time()
        self._deadline = self._clock.monotonic() + timeout_s
        self._deadline_at = self._clock.time() + timeout_s

    async def run(self) -> bool:
        """Until every compute is stopped; False when the deadline came first. Call `allow` before."""
        tasks: dict[Compute, asyncio.Task[None]] = {}
        try:
            while True:
                tasks = {compute: task for compute, task in tasks.items() if not task.done()}
                for compute in self._fleet.running():
                    if compute not in tasks:
                        tasks[compute] = asyncio.create_task(self._drain(compute), name=f"drain {compute.database.label}")
                if not tasks and not self._is_busy():
                    return True
                if self._deadline <= self._clock.monotonic():
                    return False
                await self._clock.sleep(_SHORTEST_LOOK_S)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _drain(self, compute: Compute) -> None:
        """Until it is stopped. Whatever goes wrong is looked at again by a new task."""
        try:
            if compute.connections or compute.tier is Tier.AWAKE:
                async with compute.awake(WakeReason.MAINTENANCE, "drain"):
                    await self._wait_for_sessions(compute)
            async with self._slots:
                await compute.stop(SleepReason.SHUTDOWN)
        except TorporError as error:
            log.info("draining goes on", database=compute.database.label, cause=error.message)
            await self._clock.sleep(_AFTER_FAULT_S)
        except Exception:
            log.exception("draining failed", database=compute.database.label)
            await self._clock.sleep(_AFTER_FAULT_S)
        finally:
            self._left.pop(compute, None)

    async def _wait_for_sessions(self, compute: Compute) -> None:
        look_s = _SHORTEST_LOOK_S
        while True:
            async with self._slots:
                before = self._left.get(compute, (0.0, []))[1]
                left = await compute.live().dismiss_resting(FAREWELL)
            if not left:
                return
            self._left[compute] = self._clock.time(), left
            # What has just changed changes again soon; a statement that runs for minutes isn't asked for 50 times a second.
            look_s = _SHORTEST_LOOK_S if len(left) != len(before) else min(_LONGEST_LOOK_S, 1.5 * look_s)
            await self._clock.sleep(look_s)
