"""The daemon's end of the cache in the pool's workers: tells them what holds for a database, gives them its counters of writes, has
entries dropped.

The results themselves are with the worker that has the database's clients: one that ends takes them along. So whoever purges asks at most
one worker. In a shared store nothing has to be dropped: with each purge the database gets another secret (`pool.stores`), by which what is
there can't be found.

Concurrency: belongs to the loop of the pools. A purge is a question to a worker; it is answered when it says so, or ends.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from torpor.base.logs import get_logger
from torpor.gateway.pool.messages import ToWorker, pack
from torpor.gateway.pool.stores import SharedStore
from torpor.model.cache import NO_POLICY, CachePolicy, PurgeBy
from torpor.model.errors import Unavailable
from torpor.model.names import DatabaseId

log = get_logger(__name__)

_NO_ANSWER = 0
_MOST_VALUES = 20  # in a packet: 20 names of tables of 128 characters, each written as \uXXXX, are 15 kB


class Told(Protocol):
    """A worker, as far as this module speaks to it."""

    introduced: set[DatabaseId]

    def tell(self, packet: bytes, fd: int = -1) -> None:
        """Send it a packet, with a descriptor that is given away."""
        ...


class Caches:
    """What workers know of the cache. `policy` says what holds for a database; `counters` gives a descriptor of its file, or raises
    OSError."""

    def __init__(self, policy: Callable[[DatabaseId], CachePolicy], counters: Callable[[DatabaseId], int], shared: SharedStore) -> None:
        self._shared = shared
        self._policy, self._counters = policy, counters
        self._tickets = count(_NO_ANSWER + 1)
        self._asked: dict[int, tuple[Told, asyncio.Future[int]]] = {}

    def __repr__(self) -> str:
        return f"<Caches {len(self._asked)} purges asked for>"

    def introduce(self, worker: Told, id: DatabaseId) -> None:
        """Before its first client gets there. Once for each worker."""
        if id not in worker.introduced:
            worker.introduced.add(id)
            self._explain(worker, id, self._policy(id))

    def changed(self, worker: Told | None, id: DatabaseId) -> None:
        """Something else holds for the database from now on."""
        if worker is not None and id in worker.introduced:
            self._explain(worker, id, self._policy(id))

    def forget(self, worker: Told | None, id: DatabaseId) -> None:
        """The database is gone, or holds something else: nothing of it may be served any more."""
        try:
            self._shared.forget(id)
        except OSError as error:
            log.error("results that are shared can't be forgotten", database=id, cause=str(error))
        if worker is not None and id in worker.introduced:
            self._explain(worker, id, self._policy(id))
            worker.tell(_purge(_NO_ANSWER, id, PurgeBy.ALL, ()))

    async def unshare(self, id: DatabaseId) -> None:
        """Before a purge: what the database has in the shared store can't be found any more. Raises Unavailable."""
        try:
            await asyncio.to_thread(self._shared.forget, id)
        except OSError as error:
            raise Unavailable(f"what the cache shares can't be purged: {error.strerror}", "make room in the data directory") from error

    async def purge(self, worker: Told | None, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        """Drop entries; how many there were. When it returns none of them is served."""
        if worker is None or id not in worker.introduced:
            return 0
        if self._shared.address is not None:
            self._explain(worker, id, self._policy(id))
        dropped = 0
        for begin in range(0, max(1, len(values)), _MOST_VALUES):
            ticket = next(self._tickets)
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._asked[ticket] = worker, future
            try:
                worker.tell(_purge(ticket, id, by, values[begin : begin + _MOST_VALUES]))
                dropped += await future
            finally:
                self._asked.pop(ticket, None)
        return dropped

    def purged(self, said: dict[str, Any]) -> None:
        """A worker has answered."""
        _, future = self._asked.get(said["ticket"], (None, None))
        if future is not None and not future.done():
            future.set_result(int(said["dropped"]))

    def gone(self, worker: Told) -> None:
        """A worker has ended, and all its entries are gone: whoever waits for it has what he wanted."""
        for asked, future in list(self._asked.values()):
            if asked is worker and not future.done():
                future.set_result(0)

    def _explain(self, worker: Told, id: DatabaseId, policy: CachePolicy) -> None:
        rules = [[rule.fingerprint, rule.words] for rule in policy.rules]
        worker.tell(pack(ToWorker.CACHE, database=id, rules=rules, on_write=policy.on_write, secret=self._secret(id)))
        if policy.on_write:
            try:
                counters = self._counters(id)
            except OSError as error:  # then the worker keeps nothing
                log.warning("writes of a database can't be counted, so nothing of it is cached", database=id, cause=str(error))
            else:
                worker.tell(pack(ToWorker.WRITES, database=id), counters)

    def _secret(self, id: DatabaseId) -> bytes | None:
        try:
            return self._shared.secret(id)
        except OSError as error:
            log.warning("results of a database can't be shared", database=id, cause=str(error))
            return None


def no_caches() -> Caches:
    """For pools without a house around them: no rules, nothing is dropped by writes, and nothing shared."""

    def none(_id: DatabaseId) -> int:
        raise FileNotFoundError("no counters")

    return Caches(lambda _id: NO_POLICY, none, SharedStore(None, Path("/nonexistent")))


def _purge(ticket: int, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> bytes:
    return pack(ToWorker.PURGE, ticket=ticket, database=id, by=by.value, values=list(values))
