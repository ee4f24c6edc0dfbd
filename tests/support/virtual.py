"""Time that jumps: an event loop whose clock goes straight to the next timer when nothing is ready, so that hours pass in no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_DEADLOCK_S = 5.0
_TURN_S = 1e-9  # what a turn of the loop takes: timers may fire early by the clock's resolution, and who looks then must not look for ever


class _JumpingSelector(selectors.EpollSelector):
    """Never waits for time, only for other threads and processes, and not for ever."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            ready = super().select(_DEADLOCK_S)
            if not ready:
                raise TimeoutError("nothing will ever happen on this loop")
            return ready
        self.now += max(timeout, _TURN_S)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class VirtualClock:
    """The time of the running loop, as torpor.base.clock.Clock."""

    def time(self) -> float:
        return 1_700_000_000.0 + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own with virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)
