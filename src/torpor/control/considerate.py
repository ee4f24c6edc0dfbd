"""Keeps work that nobody waits for out of everybody's way: slowly, held up while the host is short of something, and given up rather than
in the way.

Concurrency: one task for each such work, which looks once a second. What is held up are its processes (`held`) and whoever asks for leave
to go on (`pace`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from torpor.base.cgroups import Tree
from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.pressure import Pressure
from torpor.base.tasks import TaskOwner
from torpor.model.errors import Unavailable

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
MOST_MEMORY_PRESSURE, MOST_DISK_PRESSURE = 20.0, 40.0
"""Percent of the last ten seconds, above which the work waits."""


def is_pressed(pressure: Pressure) -> bool:
    """Whether work that nobody waits for is to wait. Pure."""
    return pressure.memory >= MOST_MEMORY_PRESSURE or pressure.disk >= MOST_DISK_PRESSURE


class Considerate:
    """The way in which one such work is done. Do it inside: `async with`."""

    def __init__(
        self,
        pressure: Callable[[], Pressure],
        refuse: Callable[[], Awaitable[Unavailable | None]],
        clock: Clock,
        bytes_per_s: float,
        longest_s: float,
        longest_wait_s: float,
        too_long: Unavailable,
        too_busy: Unavailable,
    ) -> None:
        """`refuse` is asked once a second, and says why the work is to be given up at once, if it is. `too_long` is raised
        after `longest_s`, `too_busy` after `longest_wait_s` of waiting in all."""
        self._pressure, self._refuse, self._clock = pressure, refuse, clock
        self._bytes_per_s = bytes_per_s
        self._ends_at = clock.monotonic() + longest_s
        self._wait_left_s = longest_wait_s
        self._too_long, self._too_busy = too_long, too_busy
        self._tasks = TaskOwner("considerate")
        self._calm = asyncio.Event()
        self._calm.set()
        self._held: set[Tree] = set()
        self._reason: Unavailable | None = None
        self._limit = asyncio.timeout(None)
        self._free_at = 0.0
        self.waited_s = 0.0

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._tasks.spawn_endless(self._watch, "keep out of the way")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._tasks.stop()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._reason is not None:
                raise self._reason from None
            raise

    async def pace(self, count: int) -> None:
        """Wait until it may go on by `count` bytes."""
        await self._calm.wait()
        now = self._clock.monotonic()
        at, self._free_at = max(now, self._free_at), max(now, self._free_at) + count / self._bytes_per_s
        if at > now:
            await self._clock.sleep(at - now)

    @contextlib.asynccontextmanager
    async def held(self, tree: Tree) -> AsyncIterator[None]:
        """While inside, the processes of `tree` are held up when the host is short of something."""
        await self._calm.wait()
        self._held.add(tree)
        try:
            yield
        finally:
            self._held.discard(tree)
            tree.thaw()

    async def _watch(self) -> None:
        while True:
            reason = await self._refuse()
            if self._clock.monotonic() >= self._ends_at:
                reason = reason or self._too_long
            if is_pressed(self._pressure()):
                if self._calm.is_set():
                    log.info("waiting until the host is less busy")
                self._calm.clear()
                await self._hold_up()
                self._wait_left_s -= LOOK_EVERY_S
                self.waited_s += LOOK_EVERY_S
                if self._wait_left_s < 0:
                    reason = reason or self._too_busy
            elif not self._calm.is_set():
                for tree in self._held:
                    tree.thaw()
                self._calm.set()
            if reason is not None:
                self._reason = reason
                self._calm.set()
                self._limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.Event().wait()  # until the work has ended
            await self._clock.sleep(LOOK_EVERY_S)

    async def _hold_up(self) -> None:
        for tree in tuple(self._held):
            with contextlib.suppress(OSError, TimeoutError):  # it is tried again in a second
                await tree.freeze()
            if tree not in self._held:  # it was let go meanwhile
                tree.thaw()
