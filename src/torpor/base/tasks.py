"""The one way to spawn a task: named, owned, awaited.

Concurrency: an owner belongs to one event loop. Its tasks end before its `stop` returns. An endless task that fails is logged and
started again after a pause, so that one fault doesn't end a service for good.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from torpor.base.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
_LONG_RUN_S = 60.0


class TaskOwner:
    """Holds the tasks of one component."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def __repr__(self) -> str:
        return f"<TaskOwner {self._name} tasks={len(self._tasks)}{' stopping' if self._stopping else ''}>"

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `coroutine` as a task of this owner. A failure that nobody awaits is logged. Refused once `stop` was called."""
        if self._stopping:
            coroutine.close()
            raise RuntimeError(f"{self._name} is stopping")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self._name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def spawn_endless(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Run `run` for ever: when it fails it is logged and called again after a pause that doubles up to 30 s.

        One that ran for a minute before it failed begins with the shortest pause again.
        """

        async def guard() -> None:
            loop = asyncio.get_running_loop()
            pause_s = _FIRST_PAUSE_S
            while True:
                began = loop.time()
                try:
                    await run()
                    pause_s = _FIRST_PAUSE_S
                except Exception:
                    if loop.time() - began > _LONG_RUN_S:
                        pause_s = _FIRST_PAUSE_S
                    log.exception("endless task failed", task=f"{self._name}:{name}", again_in_s=pause_s)
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

        self.spawn(guard(), name)

    async def stop(self, grace_s: float = 0.0) -> None:
        """First let tasks end by themselves for `grace_s`, then cancel what is left and wait for it. Idempotent."""
        self._stopping = True
        me = asyncio.current_task()
        tasks = {task for task in self._tasks if task is not me}
        if tasks and grace_s > 0:
            _, tasks = await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", task=task.get_name(), error=repr(error), exc_info=error)
