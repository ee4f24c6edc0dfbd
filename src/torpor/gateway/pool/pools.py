"""The part of the pool that is inside of Torpor: starts workers, gives them clients, and gets them connections to PostgreSQL.

A database's clients are all with one worker, so its limits and its queue are in one place; the first client of a database goes to the
worker with the fewest. A worker is started when the first client comes for it, and started again when it crashes: its clients have lost
their connections then, and nothing of theirs is repeated. Workers end with the Torpor that started them.

Concurrency: belongs to one event loop. Each connection that a worker asks for, and each cancel, is one task.
"""

import asyncio
import contextlib
import mmap
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle
from torpor.base.tasks import TaskOwner
from torpor.compute.census import Census
from torpor.compute.fleet import Fleet
from torpor.gateway.pool.caches import Caches
from torpor.gateway.pool.messages import MAX_PACKET_BYTES, FromWorker, ToWorker, pack, unpack
from torpor.gateway.pool.stores import SharedStore
from torpor.gateway.pool.values import Limits
from torpor.gateway.pool.worker import CONTROL_FD, COUNTERS_FD, SLOT_WORDS
from torpor.metering.traffic import Traffic
from torpor.model.access import AccessBook
from torpor.model.cache import CacheView, PurgeBy
from torpor.model.database import Database
from torpor.model.errors import AddressForbidden, DatabaseNotFound, TooManyInDatabase, TorporError, Unavailable
from torpor.model.names import DatabaseId
from torpor.model.pool import PinnedClient, PoolMode, PoolOverrides, PoolView
from torpor.model.sleep import WakeReason
from torpor.pgwire.replies import error_response
from torpor.pgwire.startup import CancelRequest, StartupMessage

log = get_logger(__name__)

FIRST_NUMBER = 1 << 24
"""Pooled clients are told numbers from here on as their process ids: no process of PostgreSQL has such a one."""

MARK = "-c torpor.pool=on"
"""Among the options of a backend: the library in the compute (native/signs.h) gives signs in it."""

_SLOTS = 4096
_SLOT_BYTES = 8 * SLOT_WORDS
_FIRST_SPARE_FD = 10
_SEND_AGAIN_S = 0.002
_SEND_PATIENCE_S = 5.0
_FINISH_S = 5.0
_CANCEL_S = 10.0
_KEY_BYTES = {False: 4, True: 32}
_LOCAL = ("application_name", "user", "database")


class PooledClient:
    """A client that a worker has."""

    __slots__ = ("database", "host", "number", "worker")

    def __init__(self, number: int, host: str, database: Database, worker: "Worker") -> None:
        self.number, self.host, self.database, self.worker = number, host, database, worker

    def __repr__(self) -> str:
        return f"<PooledClient {self.number} {self.host} {self.database.label}>"

    def cut(self) -> None:
        """Send it away: an access list forbids its address now."""
        text = f"connections from {self.host} are forbidden now"
        farewell = error_response(AddressForbidden.sqlstate, text, "whoever runs it can change that: `torpor access`")
        self.worker.tell(pack(ToWorker.DISMISS, client=self.number, farewell=farewell))


class Slot:
    """Counts the bytes of one backend, in memory that its worker writes to."""

    def __init__(self, counters: mmap.mmap, number: int) -> None:
        self.number = number
        self._counters: mmap.mmap | None = counters
        self._last = Traffic()
        counters[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES] = bytes(_SLOT_BYTES)

    def traffic(self) -> Traffic:
        """What clients have sent it through the pool, and what it has answered."""
        if self._counters is not None:
            at = self.number * _SLOT_BYTES
            received, sent = (int.from_bytes(self._counters[begin : begin + 8], sys.byteorder) for begin in (at, at + 8))
            self._last = Traffic(received=received, sent=sent)
        return self._last

    def in_transit(self) -> int:
        """Nothing that could be lost sight of: what a worker has yet to write wakes the compute when it is written."""
        return 0

    def end(self) -> None:
        """Keep the last count: the slot will be another's."""
        self.traffic()
        self._counters = None


class Ports(Protocol):
    """What the pool asks of the house."""

    def check_wake(self, host: str, database: Database) -> None:
        """Before a client's statement wakes a compute. Raises TooManyWakes."""
        ...


class Worker:
    """One worker process."""

    def __init__(
        self, uid: int, cache_bytes: int, shares: bool, heard: Callable[["Worker", dict[str, Any]], None], gone: Callable[["Worker"], None]
    ) -> None:
        """Start it. Raises OSError."""
        self.clients: dict[int, PooledClient] = {}
        self.slots: dict[int, Slot] = {}
        self.views: dict[str, PoolView] = {}
        self.introduced: set[DatabaseId] = set()
        self.is_gone = False
        self._heard, self._on_gone = heard, gone
        self._free = list(range(_SLOTS - 1, -1, -1))
        self._outbox: list[tuple[bytes, int]] = []
        self._flushing: asyncio.TimerHandle | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("torpor-pool", os.MFD_CLOEXEC)
        spare: list[int] = []
        try:
            os.ftruncate(memory, _SLOTS * _SLOT_BYTES)
            self._counters = mmap.mmap(memory, 0)
            import fcntl

            spare += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_SPARE_FD) for fd in (theirs.fileno(), memory)]
            actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
            actions += [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(spare, (CONTROL_FD, COUNTERS_FD), strict=True)]
            arguments = [sys.executable, "-I", "-m", "torpor.gateway.pool.worker", str(uid), str(cache_bytes)]
            arguments += ["shares"] if shares else []
            pid = os.posix_spawn(sys.executable, arguments, {"LANG": "C.UTF-8"}, file_actions=actions, setsid=True)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
            for fd in spare:
                os.close(fd)
        ours.setblocking(False)
        self._control = ours
        self._process = ProcessHandle(pid)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        self._process.watch(self._ended)

    def __repr__(self) -> str:
        return f"<Worker {self._process.pid} {len(self.clients)} clients{' gone' if self.is_gone else ''}>"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def tell(self, packet: bytes, fd: int = -1) -> None:
        """Send it a packet, with a descriptor that is given away: it is closed here. In order, later if it doesn't keep up."""
        self._outbox.append((packet, fd))
        if len(self._outbox) == 1:
            self._flush()

    def take_slot(self) -> Slot:
        """A place to count in. Raises Unavailable."""
        if not self._free:
            raise Unavailable("a worker of the pool has as many backends as it can count", "raise pool_workers")
        return Slot(self._counters, self._free.pop())

    def give_back(self, slot: Slot) -> None:
        """Its backend is gone."""
        slot.end()
        self._free.append(slot.number)

    async def finish(self, grace_s: float) -> None:
        """End it: clients are told, those in a transaction have `grace_s`."""
        self.tell(pack(ToWorker.FINISH))
        if not await self._process.wait(grace_s):
            self._let_go()  # it says goodbye to all that are left
            if not await self._process.wait(_FINISH_S):
                self._process.signal(signal.SIGKILL)
                await self._process.wait(_FINISH_S)
        self._ended()

    def _let_go(self) -> None:
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()

    def _flush(self) -> None:
        self._flushing = None
        while self._outbox and not self.is_gone:
            packet, fd = self._outbox[0]
            try:
                socket.send_fds(self._control, [packet], [fd] if fd >= 0 else [])
            except BlockingIOError:  # a Unix socket whose other end is slow can't be waited for, only tried again
                self._flushing = asyncio.get_running_loop().call_later(_SEND_AGAIN_S, self._flush)
                return
            except OSError:
                break
            self._outbox.pop(0)
            if fd >= 0:
                os.close(fd)
        self._drop_outbox()

    def _drop_outbox(self) -> None:
        outbox, self._outbox = self._outbox, []
        for _, fd in outbox:
            if fd >= 0:
                os.close(fd)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                packet = self._control.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                asyncio.get_running_loop().remove_reader(self._control.fileno())
                return  # its end is seen by its process
            self._heard(self, unpack(packet))

    def _ended(self) -> None:
        if self.is_gone:
            return
        self.is_gone = True
        if self._flushing is not None:
            self._flushing.cancel()
        self._drop_outbox()
        self._let_go()
        self._process.close()
        self._on_gone(self)


class Pools:
    """All workers of this Torpor."""

    def __init__(
        self,
        fleet: Fleet,
        census: Census,
        limits: Limits,
        *,
        default: PoolMode,
        workers: int,
        max_clients: int,
        uid: int,
        check_wake: Callable[[str, Database], None],
        caches: Caches,
        cache_bytes: int,
        shared: SharedStore,
    ) -> None:
        """`default` is what holds for clients and databases that don't say; `max_clients` are those of one database; `uid` is whom workers
        become (0: they stay who we are)."""
        self.default = default
        self._fleet, self._census, self._limits = fleet, census, limits
        self._wanted, self._max_clients, self._uid = workers, max_clients, uid
        self._check_wake = check_wake
        self._caches, self._cache_bytes, self._shared = caches, cache_bytes, shared
        self._workers: list[Worker] = []
        self._homes: dict[DatabaseId, Worker] = {}
        self._counts: dict[DatabaseId, int] = {}
        self._numbers = count(FIRST_NUMBER)
        self._tasks = TaskOwner("pool")
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Pools {self._workers!r}>"

    @property
    def clients(self) -> int:
        """How many there are."""
        return sum(len(worker.clients) for worker in self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' processes."""
        return tuple(worker.pid for worker in self._workers)

    def view(self, id: DatabaseId) -> PoolView | None:
        """How the pool of a database is doing; None when nobody uses it. Up to a second old."""
        home = self._homes.get(id)
        return home.views.get(id) if home is not None else None

    def views(self) -> list[tuple[str, PoolView]]:
        """All of them, with the names of their databases."""
        found = []
        for worker in self._workers:
            for id, view in worker.views.items():
                compute = self._fleet.get(DatabaseId(id))
                if compute is not None:
                    found.append((compute.database.label, view))
        return found

    def check_room(self, database: Database) -> None:
        """Before a client is let in. Raises TooManyInDatabase."""
        if self._counts.get(database.id, 0) >= self._max_clients:
            raise TooManyInDatabase(
                f'database "{database.label}" has {self._max_clients} pooled clients, and that is the limit (pool_max_clients)',
                "close some, or raise pool_max_clients",
            )

    def admit(self, database: Database, startup: StartupMessage, sock: socket.socket, address: tuple[str, int], auto: bool) -> PooledClient:
        """Give a client that has proven who it is to a worker. The caller keeps and closes its own socket.

        Raises Unavailable, TooManyInDatabase.
        """
        if self._is_closed:
            raise Unavailable("Torpor is shutting down", "connect again once it is back")
        self.check_room(database)
        worker = self._home(database.id)
        self._caches.introduce(worker, database.id)
        number = next(self._numbers)
        client = PooledClient(number, address[0], database, worker)
        parameters = {name: value for name, value in startup.parameters.items() if name not in _LOCAL}
        packet = pack(
            ToWorker.JOIN,
            client=number,
            database=database.id,
            label=database.label,
            role=startup.parameters["user"],
            inner_database=startup.parameters["database"],
            parameters=sorted(parameters.items()),
            application_name=startup.parameters.get("application_name", ""),
            key=secrets.token_bytes(_KEY_BYTES[startup.minor >= 2]),
            auto=auto,
            limits=_limits(self._limits, database.pool),
        )
        worker.tell(packet, os.dup(sock.fileno()))
        worker.clients[number] = client
        self._counts[database.id] = self._counts.get(database.id, 0) + 1
        self._census.add(client, client.host)
        return client

    def cancel(self, host: str, number: int, key: bytes) -> bool:
        """Pass a cancel request on, if it is for a pooled client of that host. Whether it was."""
        if number < FIRST_NUMBER:
            return False
        for worker in self._workers:
            client = worker.clients.get(number)
            if client is not None and client.host == host:
                worker.tell(pack(ToWorker.CANCEL, client=number, key=key))
        return True

    def forget(self, id: DatabaseId) -> None:
        """The database is gone, and its clients have to go."""
        farewell = error_response(DatabaseNotFound.sqlstate, "the database has been removed")
        self.contents_changed(id)
        self.cache_changed(id)  # nothing holds for it any more: its worker lets go of the counters
        for worker in self._workers:
            worker.views.pop(id, None)
            for client in worker.clients.values():
                if client.database.id == id:
                    worker.tell(pack(ToWorker.DISMISS, client=client.number, farewell=farewell))

    async def purge(self, id: DatabaseId, by: PurgeBy, values: Sequence[str]) -> int:
        """Drop what is cached of a database; how many results that were. When it returns none of them is served. Raises Unavailable."""
        await self._caches.unshare(id)
        return await self._caches.purge(self._homes.get(id), id, by, values)

    def cache_changed(self, id: DatabaseId) -> None:
        """Something else holds for its cache."""
        self._caches.changed(self._homes.get(id), id)

    def contents_changed(self, id: DatabaseId) -> None:
        """It holds something else now: nothing that was read before is served."""
        self._caches.forget(self._homes.get(id), id)

    def enforce(self, book: AccessBook) -> None:
        """Send away every client that the access lists forbid now."""
        for worker in self._workers:
            for client in worker.clients.values():
                if book.bars(client.host, client.database.workspace or "", client.database.id) is not None:
                    client.cut()

    async def stop(self, grace_s: float = 0.0) -> None:
        """End all workers; those of their clients that are in a transaction have `grace_s`. Idempotent."""
        self._is_closed = True
        await asyncio.gather(*(worker.finish(grace_s) for worker in list(self._workers)))
        await self._tasks.stop()

    # -- inside

    def _home(self, id: DatabaseId) -> Worker:
        home = self._homes.get(id)
        if home is not None and not home.is_gone:
            return home
        if len(self._workers) < self._wanted:
            try:
                home = Worker(self._uid, self._cache_bytes, self._shared.address is not None, self._heard, self._gone)
            except OSError as error:
                raise Unavailable(f"a worker of the pool can't be started: {error.strerror}", "connect without the pool") from error
            self._workers.append(home)
        else:
            home = min(self._workers, key=lambda worker: len(worker.clients))
        self._homes[id] = home
        return home

    def _heard(self, worker: Worker, said: dict[str, Any]) -> None:
        match said["op"]:
            case FromWorker.OPEN:
                self._tasks.spawn(self._open(worker, said), "open a backend")
            case FromWorker.CANCEL:
                self._tasks.spawn(self._cancel(worker, said), "cancel a backend")
            case FromWorker.CLOSED:
                slot = worker.slots.pop(said["backend"], None)
                if slot is not None:
                    worker.give_back(slot)
            case FromWorker.PURGED:
                self._caches.purged(said)
            case FromWorker.STORE:
                self._tasks.spawn(self._connect_store(worker), "connect to the shared store")
            case FromWorker.LEFT:
                self._left(worker, said["client"])
            case FromWorker.VIEW:
                fields = dict(said["view"])
                pinned = tuple(PinnedClient(**each) for each in fields.pop("pinned_clients"))
                cache = CacheView(**fields.pop("cache", {}))
                worker.views[said["database"]] = PoolView(**fields, pinned_clients=pinned, cache=cache)
            case _:
                pass

    def _left(self, worker: Worker, number: int) -> None:
        client = worker.clients.pop(number, None)
        if client is None:
            return
        self._census.remove(client, client.host)
        id = client.database.id
        self._counts[id] -= 1
        if not self._counts[id]:
            del self._counts[id]

    def _gone(self, worker: Worker) -> None:
        self._workers = [other for other in self._workers if other is not worker]
        self._homes = {id: home for id, home in self._homes.items() if home is not worker}
        if not self._is_closed:
            log.error("a worker of the pool ended, and with it its clients' connections", pid=worker.pid, clients=len(worker.clients))
        self._caches.gone(worker)
        for number in list(worker.clients):
            self._left(worker, number)
        for slot in worker.slots.values():
            slot.end()

    async def _connect_store(self, worker: Worker) -> None:
        sock = await self._shared.connect()
        worker.tell(pack(ToWorker.STORE), sock.detach() if sock is not None else -1)

    async def _open(self, worker: Worker, said: dict[str, Any]) -> None:
        """Have PostgreSQL serve one end of a socket pair, and give the worker the other."""
        backend: int = said["backend"]
        asker = worker.clients.get(said["client"])
        try:
            async with self._awake(said, asker) as compute:
                used, room = self._fleet.room(compute.database)
                if used >= room:
                    raise TooManyInDatabase(
                        f'database "{compute.database.label}" has {used} connections, and {room} are its limit',
                        "lower pool_size, close connections that aren't pooled, or raise its limit",
                    )
                parameters = dict(said["parameters"])
                parameters["options"] = f"{MARK} {parameters.get('options', '')}".rstrip()
                startup = StartupMessage({"user": said["role"], "database": said["inner_database"], **parameters})
                slot = worker.take_slot()
                near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with near, far:
                    try:
                        await compute.hand_over(far, (asker.host if asker is not None else "127.0.0.1", 0), startup.encode(), slot)
                    except BaseException:
                        worker.give_back(slot)
                        raise
                    worker.slots[backend] = slot
                    worker.tell(pack(ToWorker.BACKEND, backend=backend, slot=slot.number), os.dup(near.fileno()))
        except TorporError as error:
            farewell = error_response(error.sqlstate, error.message, error.hint)
            worker.tell(pack(ToWorker.FAILED, backend=backend, farewell=farewell))
        except OSError as error:
            farewell = error_response(Unavailable.sqlstate, f"no connection to PostgreSQL could be made: {error.strerror}")
            worker.tell(pack(ToWorker.FAILED, backend=backend, farewell=farewell))

    @contextlib.asynccontextmanager
    async def _awake(self, said: dict[str, Any], asker: PooledClient | None) -> "AsyncIterator[Any]":
        compute = self._fleet.get(DatabaseId(said["database"]))
        if compute is None:
            raise DatabaseNotFound("the database has been removed", "`torpor ls` lists the databases")
        host = asker.host if asker is not None else ""
        if self._fleet.sleeps(compute.database):
            self._check_wake(host, compute.database)
        context: AbstractAsyncContextManager[Any] = self._fleet.awake(
            compute.database, WakeReason.CONNECTION, f"{said['role']}@{host} pooled"
        )
        async with context as awake:
            yield awake

    async def _cancel(self, worker: Worker, said: dict[str, Any]) -> None:
        compute = self._fleet.get(DatabaseId(said["database"]))
        try:
            if compute is not None and not self._fleet.sleeps(compute.database):
                async with asyncio.timeout(_CANCEL_S), compute.awake(WakeReason.CONNECTION, "cancel"):
                    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                    with near, far:
                        packet = CancelRequest(said["pid"], bytes.fromhex(said["key"])).encode()
                        session = await compute.hand_over(far, ("127.0.0.1", 0), packet)
                        await session.wait_ended()
        except (TorporError, OSError) as error:
            log.info("a cancel did not reach PostgreSQL", cause=str(error))
        finally:
            worker.tell(pack(ToWorker.CANCELED, backend=said["backend"]))


@lru_cache(maxsize=256)
def _limits(usual: Limits, own: PoolOverrides) -> Mapping[str, Any]:
    """What holds for one database, as a packet says it."""
    given = {"size": own.size, "role_size": own.role_size, "queue": own.queue}
    return asdict(replace(usual, **{name: value for name, value in given.items() if value is not None}))
