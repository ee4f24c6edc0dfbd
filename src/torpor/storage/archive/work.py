"""Work that blocks, and work that overlaps: the threads of the archive, and lanes in which a few things are on their way at a time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from threading import Lock
from typing import Any, Generic, TypeVar

from torpor.base.tasks import TaskOwner

T = TypeVar("T")


async def in_thread(executor: Executor, work: Callable[[], T]) -> T:
    """Call `work` in a thread of the archive. When cancelled, it goes on without us."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


class Pulled(Generic[T]):
    """An iterator that blocks, pulled from threads. Whoever is cancelled may close it while a step is still at work: that ends first."""

    def __init__(self, executor: Executor, iterator: Iterator[T]) -> None:
        self._executor, self._iterator = executor, iterator
        self._lock = Lock()
        self._closed = False

    async def next(self) -> T | None:
        """The next item, None at the end."""
        return await in_thread(self._executor, self._step)

    async def close(self) -> None:
        """Let go of what it has open. Idempotent."""
        await asyncio.shield(in_thread(self._executor, self._close))

    def _step(self) -> T | None:
        with self._lock:
            return None if self._closed else next(self._iterator, None)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if (close := getattr(self._iterator, "close", None)) is not None:
                close()


class Lanes:
    """Runs a few coroutines at a time; the first failure is raised by the next `add`, or at the end, when all others are cancelled.

    Use as an asynchronous context: leaving it waits for all.
    """

    def __init__(self, name: str, turns: asyncio.Semaphore, at_once: int) -> None:
        self._owner = TaskOwner(name)
        self._turns, self._own_turns = turns, asyncio.Semaphore(at_once)
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Lanes":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            while error is None and self._failure is None and self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._owner.stop()
        if error is None and self._failure is not None:
            raise self._failure

    async def add(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` as soon as there is a lane; returns when it has begun."""
        await self._own_turns.acquire()
        try:
            await self._turns.acquire()
        except BaseException:
            self._own_turns.release()
            raise
        if self._failure is not None:
            self._turns.release()
            self._own_turns.release()
            raise self._failure
        task = self._owner.spawn(self._run(work), "lane")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._failure = self._failure or error

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._turns.release()
        self._own_turns.release()
