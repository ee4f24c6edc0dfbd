"""All relay workers of this Torpor: started, configured, started again when one crashes, left to the next Torpor or ended.

Concurrency: belongs to one event loop. A session goes to the worker with the fewest. Workers that an earlier Torpor left are taken over
with their sessions; those of the same build go on working, the others end with their last session.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from torpor.base.logs import get_logger
from torpor.base.tasks import TaskOwner
from torpor.door.relayworker import RelayedSession, Worker, WorkerGone, left_behind
from torpor.model.errors import TorporError, Unavailable

log = get_logger(__name__)

_MOST_BY_DEFAULT = 8
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
_LONG_RUN_S = 60.0
_REPLACED_S = 2.0
_LOOK_AGAIN_S = 0.02


def default_workers() -> int:
    """One for two cores: the other half of the work is PostgreSQL's. With more of them each query wakes more processes (decision 9)."""
    return max(1, min(_MOST_BY_DEFAULT, (os.cpu_count() or 1) // 2))


class Relays:
    """The workers. `take_over` first, then `start`."""

    def __init__(self, program: Path, directory: Path, uid: int, wanted: int) -> None:
        """`program` is the compiled worker, `directory` Torpor's own; `uid` is whom workers become (0: they stay who we are), `wanted` how
        many there shall be (0: none, but those of an earlier Torpor go on with what they have).
        """
        self._program = program
        self._directory = directory
        self._uid = uid
        self._wanted = wanted
        self._build = hashlib.sha256(program.read_bytes()).hexdigest()[:16] if program.exists() else ""
        self._workers: list[Worker] = []
        self._retired: list[Worker] = []  # of an earlier build: no new sessions
        self._configuration = b""
        self._tasks = TaskOwner("relay")
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0

    def __repr__(self) -> str:
        return f"<Relays {self._workers!r}{f' retired {self._retired!r}' if self._retired else ''}>"

    @property
    def sessions(self) -> int:
        """How many sessions are carried now."""
        return sum(len(worker.sessions) for worker in self._all())

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' processes, retired ones last."""
        return tuple(worker.pid for worker in self._all())

    @property
    def is_running(self) -> bool:
        """Whether there is a worker that takes sessions."""
        return bool(self._workers)

    async def take_over(self) -> None:
        """Find the workers of earlier Torpors, with what they carry."""
        for path in left_behind(self._directory):
            worker = await Worker.take_over(path)
            if worker is not None:
                worker.watch(self._gone)
                (self._workers if worker.build == self._build else self._retired).append(worker)
        if self._workers or self._retired:
            log.info("relay workers taken over", workers=len(self._workers), older=len(self._retired), sessions=self.sessions)

    def find(self, name: object) -> RelayedSession | None:
        """The session that was taken over and whose worker's end has this Unix address."""
        if not isinstance(name, bytes):
            return None
        return next((worker.by_name[name] for worker in self._all() if name in worker.by_name), None)

    async def start(self, configuration: bytes) -> None:
        """Have as many workers as wanted, all with this configuration and at work. Raises BadSettings, or Unavailable."""
        self._configuration = configuration
        self._started_at = asyncio.get_running_loop().time()
        while len(self._workers) > self._wanted:
            self._retired.append(self._workers.pop())
        await _all_of(self._configure(worker) for worker in list(self._workers))
        await _all_of(self._add() for _ in range(self._wanted - len(self._workers)))

    async def reconfigure(self, configuration: bytes) -> None:
        """Use another configuration for new sessions. Raises BadSettings, and then all goes on with the one before."""
        workers = list(self._workers)
        results = await asyncio.gather(*(worker.configure(configuration) for worker in workers), return_exceptions=True)
        refusal = next((result for result in results if isinstance(result, TorporError)), None)
        if refusal is not None and not isinstance(refusal, Unavailable):  # one that just ended gets it when it is started again
            raise refusal
        self._configuration = configuration

    async def carry(
        self, client: socket.socket, address: tuple[str, int], *, prefix: bytes = b"", tls: bool
    ) -> tuple[RelayedSession, socket.socket]:
        """Have `client` carried. The other socket is the plain end of it, from which the client's bytes are read.

        When all workers have just ended it waits up to 2 s for one that was started again. Raises Unavailable.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _REPLACED_S
        while True:
            for worker in sorted(self._workers, key=lambda worker: len(worker.sessions)):
                with contextlib.suppress(WorkerGone):
                    return await worker.carry(client, address, prefix, tls)
            if not self._wanted or loop.time() > deadline:
                raise Unavailable("no relay worker runs just now", "connect again in a moment")
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def stop(self, leave: bool) -> None:
        """End all workers; with `leave` they go on with their sessions, for the next Torpor. Idempotent."""
        await self._tasks.stop()
        workers, self._workers, self._retired = list(self._all()), [], []
        if leave:
            for worker in workers:
                worker.let_go()
        else:
            await asyncio.gather(*(worker.finish() for worker in workers))

    def _all(self) -> list[Worker]:
        return [*self._workers, *self._retired]

    async def _add(self) -> None:
        worker = Worker.spawn(self._program, self._directory, self._uid, self._build)
        worker.watch(self._gone)
        try:
            await self._configure(worker)
        except BaseException:
            await worker.finish()
            raise
        self._workers.append(worker)

    async def _configure(self, worker: Worker) -> None:
        await worker.configure(self._configuration)

    def _gone(self, worker: Worker) -> None:
        """A worker ended, or serves another Torpor now."""
        was_working = worker in self._workers
        self._workers = [other for other in self._workers if other is not worker]
        self._retired = [other for other in self._retired if other is not worker]
        if was_working and not worker.was_taken:
            log.error("a relay worker ended, and with it its sessions; it is started again", pid=worker.pid)
            with contextlib.suppress(RuntimeError):  # we are stopping
                self._tasks.spawn(self._replace(), "start again")

    async def _replace(self) -> None:
        """Start one more, after a pause that grows while they don't last."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() - self._started_at > _LONG_RUN_S:
                self._pause_s = _FIRST_PAUSE_S
            self._started_at = loop.time()
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            try:
                await self._add()
            except (OSError, TorporError) as error:
                log.error("a relay worker could not be started", cause=str(error), again_in_s=self._pause_s)
            else:
                return


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do them at once, and when one fails the others to their end, too: nobody else would wait for them. Raises what the first one did."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
