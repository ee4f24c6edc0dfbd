"""How many requests may be under way: of one address, and on one database. Who comes later waits, in order, for some seconds.

Concurrency: belongs to one event loop; plain calls but for the waiting, which is safe to cancel.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from torpor.gateway.http.failures import failure

_WAIT_S = 15.0


class Places:
    """The places for requests."""

    def __init__(self, per_address: int = 1_000, per_database: int = 64, waiting: int = 2_000) -> None:
        """`waiting` is how many may wait for one database."""
        self._per_address = per_address
        self._per_database = per_database
        self._most_waiting = waiting
        self._of_address: Counter[str] = Counter()
        self._of_database: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<Places {self._of_database.total()} taken, {sum(map(len, self._waiting.values()))} waiting>"

    @property
    def taken(self) -> int:
        """How many requests are under way."""
        return self._of_database.total()

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, address: str, database: str) -> AsyncIterator[None]:
        """Hold one of each while inside. Raises Failure."""
        if self._of_address[address] >= self._per_address:
            raise failure(429, "53300", f"too many requests from {address} are under way", "ask for less at once", 1)
        self._of_address[address] += 1
        try:
            await self._enter(database)
            try:
                yield
            finally:
                self._leave(database)
        finally:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    async def _enter(self, database: str) -> None:
        if self._of_database[database] < self._per_database and database not in self._waiting:
            self._of_database[database] += 1
            return
        queue = self._waiting.setdefault(database, deque())
        if len(queue) >= self._most_waiting:
            raise failure(429, "53300", f"{len(queue)} requests wait for this database already", "try again in a moment", 1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(_WAIT_S):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave(database)  # our turn came in this very moment
            else:
                with suppress(ValueError):  # it was passed over, as nobody waited for it any more
                    queue.remove(turn)
                if not queue and self._waiting.get(database) is queue:
                    del self._waiting[database]
            if isinstance(error, TimeoutError):
                raise failure(
                    429, "53300", f"{self._per_database} requests to this database are under way, and none ended within {_WAIT_S:g} s",
                    "make them shorter, or fewer at once", 1,
                ) from None  # fmt: skip
            raise

    def _leave(self, database: str) -> None:
        """Pass the place on to who waits longest, or give it back."""
        queue = self._waiting.get(database)
        while queue:
            turn = queue.popleft()
            if not queue:
                del self._waiting[database]
            if not turn.done():
                turn.set_result(None)
                return
        self._of_database[database] -= 1
        if not self._of_database[database]:
            del self._of_database[database]
