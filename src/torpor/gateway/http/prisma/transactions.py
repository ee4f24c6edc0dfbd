"""Interactive transactions of Prisma's clients: a connection that stays with them between requests, until they end it or time is up.

Concurrency: belongs to one event loop. The requests of one transaction take turns; when its time is up, what runs in it is given up and
the connection closed, so that PostgreSQL rolls it back. Bounded: each holds one of its database's places, and its time is at most
`MAX_TIMEOUT_S`. One that this process doesn't know any more is told from one that it never knew, for the last `_REMEMBERED`.
"""

import asyncio
import secrets
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from torpor.base.tasks import TaskOwner
from torpor.gateway.http.backend import Backend
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.execution import command
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.prisma.errors import PlanError, database_error

MAX_TIMEOUT_S = 300.0
_DEFAULT_TIMEOUT_S = 5.0
_DEFAULT_WAIT_S = 2.0
_MAX_WAIT_S = 60.0
_REMEMBERED = 1_000
_LEVELS: Final = frozenset({"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"})
_CONFLICT = 409


def refused(what: str) -> PlanError:
    """Prisma's code for all that is wrong with a transaction."""
    return PlanError("P2028", f"Transaction API error: {what}", status=_CONFLICT)


class Transaction:
    """One of them."""

    def __init__(self, client: tuple[str, int], target: Target, backend: Backend, timeout_s: float) -> None:
        self.id = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
        self.client = client
        self.target = target
        self.backend = backend
        self.timeout_s = timeout_s
        self.began_at = asyncio.get_running_loop().time()
        self.turn = asyncio.Lock()
        self.savepoints: list[str] = []
        self.made = 0
        self.held = AsyncExitStack()
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Transaction {self.id} {len(self.savepoints)} deep>"


class Transactions:
    """Those of this process."""

    def __init__(self, kept: Kept, places: Places, tasks: TaskOwner) -> None:
        self._kept = kept
        self._places = places
        self._tasks = tasks
        self._open: dict[str, Transaction] = {}
        self._over: OrderedDict[str, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Transactions {len(self._open)} open>"

    async def start(self, client: tuple[str, int], target: Target, options: dict[str, object]) -> str:
        """Begin one, or a part of one that can be rolled back alone; its id. Raises PlanError."""
        if isinstance(outer := options.get("newTxId"), str):
            async with self.use(outer, target, "start") as transaction:
                name = f"torpor_{transaction.made}"
                await _say(transaction.backend, f"SAVEPOINT {name}")
                transaction.made += 1
                transaction.savepoints.append(name)
            return outer
        level = options.get("isolationLevel")
        if level is not None and level not in _LEVELS:
            raise refused(f"Invalid isolation level: {str(level)[:50]}")
        timeout_s = min(_seconds(options.get("timeout"), _DEFAULT_TIMEOUT_S), MAX_TIMEOUT_S)
        held = AsyncExitStack()
        try:
            async with asyncio.timeout(min(_seconds(options.get("maxWait"), _DEFAULT_WAIT_S), _MAX_WAIT_S)):
                await held.enter_async_context(self._places.place(client[0], f"{target.host}/{target.database}"))
                backend = await self._kept.take(client, target)
                held.callback(self._kept.give_back, backend, client, target)
                await _say(backend, "BEGIN" if level is None else f"BEGIN ISOLATION LEVEL {level}")
        except TimeoutError:
            await held.aclose()
            raise refused("Unable to start a transaction in the given time.") from None
        except BaseException:
            await held.aclose()
            raise
        transaction = Transaction(client, target, backend, timeout_s)
        transaction.held = held
        transaction.timer = asyncio.get_running_loop().call_later(timeout_s, self._time_is_up, transaction)
        self._open[transaction.id] = transaction
        return transaction.id

    @asynccontextmanager
    async def use(self, name: str, target: Target, what: str) -> AsyncIterator[Transaction]:
        """Have a transaction for oneself meanwhile. Raises PlanError. Whoever is interrupted ends it."""
        transaction = self._find(name, target, what)
        async with transaction.turn:
            if self._find(name, target, what).backend.wire.is_lost:
                await self._end(transaction, "lost")
                raise self._explain(name, what)
            try:
                yield transaction
            except (PlanError, Failure):
                if name not in self._open:  # its time was up meanwhile
                    raise self._explain(name, what) from None
                raise
            finally:
                if transaction.backend.is_busy or transaction.backend.wire.is_lost:
                    await self._end(transaction, "lost" if transaction.id in self._open else "timed out")

    async def finish(self, name: str, target: Target, commits: bool) -> None:
        """Commit or roll back; a part of it when it has parts that are not ended. Raises PlanError."""
        async with self.use(name, target, "commit" if commits else "rollback") as transaction:
            if transaction.savepoints:
                savepoint = transaction.savepoints.pop()
                if not commits:
                    await _say(transaction.backend, f"ROLLBACK TO SAVEPOINT {savepoint}")
                await _say(transaction.backend, f"RELEASE SAVEPOINT {savepoint}")
                return
            has_failed = transaction.backend.status == "E"
            try:
                await _say(transaction.backend, "COMMIT" if commits else "ROLLBACK")
                if commits and has_failed:  # PostgreSQL says no error then, but the client must not take it for done
                    raise refused("The transaction was rolled back, as a statement in it had failed.")
            finally:
                await self._end(transaction, "committed" if commits else "rolled back")

    def close(self) -> None:
        """End all: what isn't committed is rolled back. Idempotent."""
        for transaction in list(self._open.values()):
            transaction.backend.wire.close()
            if transaction.timer is not None:
                transaction.timer.cancel()
        self._open.clear()

    def _find(self, name: str, target: Target, what: str) -> Transaction:
        transaction = self._open.get(name)
        if transaction is None or transaction.target != target:  # another's is none
            raise self._explain(name, what)
        return transaction

    def _explain(self, name: str, what: str) -> PlanError:
        match self._over.get(name):
            case "committed":
                return refused(f"Transaction already closed: A {what} cannot be executed on a committed transaction.")
            case "rolled back":
                return refused(f"Transaction already closed: A {what} cannot be executed on a transaction that was rolled back.")
            case "lost":
                return refused(f"A {what} cannot be executed: the transaction's connection was lost, and it is rolled back.")
            case None:
                return refused("Transaction not found. Transaction ID is invalid, or refers to an old closed transaction.")
            case told:
                return refused(f"A {what} cannot be executed on an expired transaction. {told}")

    def _time_is_up(self, transaction: Transaction) -> None:
        with suppress(RuntimeError):  # we are stopping
            self._tasks.spawn(self._expire(transaction), "expire a transaction")

    async def _expire(self, transaction: Transaction) -> None:
        timeout_ms = int(transaction.timeout_s * 1000)
        self._note(
            transaction,
            f"The timeout for this transaction was {timeout_ms} ms. Consider increasing the interactive transaction timeout or doing less "
            "work in the transaction.",
        )
        if transaction.turn.locked():
            await transaction.backend.cancel()
            transaction.backend.wire.close()  # who waits for it is told, and ends it
        async with transaction.turn:
            await transaction.held.aclose()

    def _note(self, transaction: Transaction, how: str) -> None:
        if self._open.pop(transaction.id, None) is None:
            return
        self._over[transaction.id] = how
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    async def _end(self, transaction: Transaction, how: str) -> None:
        self._note(transaction, how)
        if transaction.timer is not None:
            transaction.timer.cancel()
        await transaction.held.aclose()


async def _say(backend: Backend, sql: str) -> None:
    try:
        await command(backend, sql)
    except Failure as refusal:
        raise database_error(refusal) from refusal


def _seconds(milliseconds: object, otherwise: float) -> float:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not milliseconds > 0:
        return otherwise
    return milliseconds / 1000
