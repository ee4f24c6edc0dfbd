"""A worker of the pool: the process that has the sockets of pooled clients and of the backends that serve them.

Started by `pools`, which gives it sockets over the control socket that it has as descriptor 3; descriptor 4 is memory in which it counts
the bytes of each backend, so that Torpor knows what goes on without asking. It has no other file, no password and no key.

Concurrency: one thread around one epoll (`links`), no tasks. A client that idles costs a socket and one small object. When Torpor is gone
the worker tells its clients, and ends.
"""

import ctypes
import gc
import hmac
import mmap
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any

from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.cachedesk import CacheDesk, take_option
from torpor.gateway.pool.caching import DEFAULT_BYTES
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.links import SocketLink, Sockets
from torpor.gateway.pool.messages import MAX_PACKET_BYTES, FromWorker, ToWorker, pack, unpack
from torpor.gateway.pool.shared import RemoteStore
from torpor.gateway.pool.values import Key, Limits
from torpor.pgwire.replies import error_response

CONTROL_FD, COUNTERS_FD = 3, 4
SLOT_WORDS = 2
"""For each backend: bytes that it was sent, and that it has sent."""

_TICK_S = 0.25
_GARBAGE = 100_000, 50, 100  # nothing on the hot path makes cycles, and to look for them among 10,000 clients takes 10 ms
_MOST_PINNED_SHOWN = 20
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 120), (socket.TCP_KEEPINTVL, 30), (socket.TCP_KEEPCNT, 4))
_SHUTTING_DOWN = error_response("57P01", "Torpor is shutting down", "connect again once it is back")


class Worker:
    """All that one process does. Also the engine's port to Torpor."""

    def __init__(self, control: socket.socket, counters: "memoryview[int]", cache_bytes: int = DEFAULT_BYTES, shares: bool = False) -> None:
        control.setblocking(False)
        self._control = control
        self._sockets = Sockets(control.fileno(), counters, self._closed)
        self._shared = RemoteStore(self._sockets, lambda: self._tell(FromWorker.STORE), time.monotonic) if shares else None
        self._desk = CacheDesk(cache_bytes, self._shared)
        self._outbox: deque[bytes] = deque()
        self._pools: dict[str, Pool] = {}
        self._names: dict[Pool, str] = {}
        self._clients: dict[int, Client] = {}
        self._numbers: dict[Client, int] = {}
        self._backends: dict[int, Backend] = {}
        self._asked: dict[Backend, int] = {}
        self._next_backend = 0
        self._shown: dict[str, object] = {}
        self._shown_at = 0.0
        self._tick_at = 0.0
        self._finishing = self._is_over = self._is_behind = False

    def run(self) -> None:
        """Until Torpor is gone, or has said that it is enough and the last client has left."""
        while not self._is_over:
            events = self._sockets.turn(self._tick_at)
            if events:
                self._hear(events)
            now = time.monotonic()
            if not self._tick_at:
                self._tick_at = now + _TICK_S
            elif now >= self._tick_at:
                self._tick(now)
            self._sockets.bury()
        self._sockets.end()
        for pool in self._pools.values():
            pool.close(_SHUTTING_DOWN)

    # -- for the connections

    def _closed(self, owner: Client | Backend) -> None:
        if isinstance(owner, Client):
            number = self._numbers.pop(owner, None)
            if number is not None:
                self._clients.pop(number, None)
                self._tell(FromWorker.LEFT, client=number)
        else:
            number = self._asked.pop(owner, None)
            if number is not None:
                self._backends.pop(number, None)
                self._tell(FromWorker.CLOSED, backend=number)

    # -- for the engine

    def open(self, backend: Backend) -> None:
        """Ask Torpor for it."""
        self._next_backend += 1
        self._backends[self._next_backend] = backend
        self._asked[backend] = self._next_backend
        key = backend.group.key
        pool = backend.pool
        asker = next((client for client in pool.waiting if client.group is backend.group), None)
        self._tell(
            FromWorker.OPEN,
            backend=self._next_backend,
            client=self._numbers.get(asker, 0) if asker is not None else 0,
            database=self._names[pool],
            role=key.role,
            inner_database=key.inner_database,
            parameters=key.parameters,
        )

    def cancel(self, backend: Backend) -> None:
        """Ask Torpor to have it cancelled."""
        database = self._names[backend.pool]
        self._tell(FromWorker.CANCEL, backend=self._asked.get(backend, 0), database=database, pid=backend.pid, key=backend.key)

    # -- inside

    def _tick(self, now: float) -> None:
        for pool in self._pools.values():
            pool.tick()
        self._desk.expire(now)
        closing = self._sockets.expire(now)
        if now - self._shown_at >= 1.0 - _TICK_S / 2:
            self._shown_at = now
            self._show()
        again = closing or any(pool.next_tick_s() is not None for pool in self._pools.values())
        self._tick_at = now + _TICK_S if again or self._shown_at != now else 0.0
        if self._finishing and not self._clients:
            self._is_over = True

    def _show(self) -> None:
        for database, pool in self._pools.items():
            view = _view(pool)
            if self._shown.get(database) != view:
                self._shown[database] = view
                self._tell(FromWorker.VIEW, database=database, view=view)

    def _tell(self, op: FromWorker, **fields: object) -> None:
        self._outbox.append(pack(op, **fields))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._control.send(self._outbox[0])
                self._outbox.popleft()
            if self._is_behind and not self._is_over:
                self._is_behind = False
                self._sockets.watch_control(writable=False)
        except BlockingIOError:
            if not self._is_behind:
                self._is_behind = True
                self._sockets.watch_control(writable=True)
        except OSError:
            self._is_over = True

    def _hear(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        for _ in range(64):
            try:
                packet, fds, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                self._is_over = True
                return
            said = unpack(packet)
            if said["op"] == ToWorker.WRITES:
                self._ask_desk(said, fds[0] if fds else -1)
                continue
            sock = socket.socket(fileno=fds[0]) if fds else None
            if sock is not None:
                sock.setblocking(False)
            self._obey(said, sock)

    def _obey(self, said: dict[str, Any], sock: socket.socket | None) -> None:
        match said["op"]:
            case ToWorker.JOIN if sock is not None:
                self._join(said, sock)
            case ToWorker.BACKEND if sock is not None:
                backend = self._backends.get(said["backend"])
                if backend is None or backend not in backend.pool.backends:
                    sock.close()
                    self._tell(FromWorker.CLOSED, backend=said["backend"])
                    return
                link = SocketLink(self._sockets, sock, said["slot"] * SLOT_WORDS)
                link.owner = backend
                backend.pool.opened(backend, link)
            case ToWorker.FAILED:
                backend = self._backends.pop(said["backend"], None)
                if backend is not None:
                    self._asked.pop(backend, None)
                    backend.pool.open_failed(backend, bytes.fromhex(said["farewell"]))
            case ToWorker.CANCEL:
                client_or_none = self._clients.get(said["client"])
                if client_or_none is not None and hmac.compare_digest(client_or_none.key.hex(), said["key"]):
                    client_or_none.pool.cancel(client_or_none)
            case ToWorker.CANCELED:
                backend = self._backends.get(said["backend"])
                if backend is not None:
                    backend.pool.cancel_done(backend)
            case ToWorker.DISMISS:
                client_or_none = self._clients.get(said["client"])
                if client_or_none is not None:
                    client_or_none.dismiss(bytes.fromhex(said["farewell"]))
            case ToWorker.STORE if self._shared is not None:
                self._shared.connected(sock)
            case ToWorker.CACHE | ToWorker.PURGE:
                self._ask_desk(said, -1)
            case ToWorker.FINISH:
                self._finishing = True
                for pool in self._pools.values():
                    pool.finish(_SHUTTING_DOWN)
            case _:
                pass

    def _ask_desk(self, said: dict[str, Any], fd: int) -> None:
        dropped = self._desk.obey(said, fd)
        if dropped is not None and said["ticket"]:
            self._tell(FromWorker.PURGED, ticket=said["ticket"], dropped=dropped)

    def _join(self, said: dict[str, Any], sock: socket.socket) -> None:
        database: str = said["database"]
        pool, limits = self._pools.get(database), Limits(**said["limits"])
        if pool is None:
            pool = self._pools[database] = Pool(said["label"], self, limits, time.monotonic, self._desk.store)
            self._names[pool] = database
            self._desk.add(database, pool)
        pool.limits = limits
        if sock.family != socket.AF_UNIX:  # as PostgreSQL does: a client that vanished is noticed
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        link = SocketLink(self._sockets, sock)
        asked, words = take_option(said["parameters"])
        parameters = tuple((name, value) for name, value in asked)
        number: int = said["client"]
        client = Client(
            pool,
            pool.group(Key(said["role"], said["inner_database"], parameters)),
            link,
            pid=number,
            key=bytes.fromhex(said["key"]),
            application_name=said["application_name"].encode("utf-8", "surrogateescape"),
            auto=said["auto"],
        )
        if words is not None:
            pool.caching.start_with(client, words)
        link.owner = client
        self._clients[number] = client
        self._numbers[client] = number
        pool.join(client)
        if self._finishing:
            client.dismiss(_SHUTTING_DOWN)


def _view(pool: Pool) -> dict[str, object]:
    working = sum(client.backend is not None for client in pool.clients) if pool.backends else 0
    pinned = [
        {"role": client.group.key.role, "application": client.application_name.decode("utf-8", "replace"), "because": client.pinned_by}
        for client, _ in zip(pool.pinned, range(_MOST_PINNED_SHOWN), strict=False)
    ]
    return {
        "clients": len(pool.clients) - pool.caching.refreshing,
        "working": working,
        "waiting": len(pool.waiting),
        "pinned": len(pool.pinned),
        "backends": len(pool.backends),
        "transactions": pool.transactions,
        "discards": pool.discards,
        "waits": pool.waits,
        "waited_s": round(pool.waited_s, 6),
        "longest_wait_s": round(pool.longest_wait_s, 6),
        "pinned_clients": pinned,
        "cache": pool.caching.view(),
    }


def become(uid: int) -> None:
    """Give up what isn't needed, for good."""
    libc = ctypes.CDLL(None)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def main() -> None:
    """Run as a process of its own: the arguments are the user to become, 0 for none, the bytes that the cache may have, and whether
    it shares them."""
    control = socket.socket(fileno=CONTROL_FD)
    memory = mmap.mmap(COUNTERS_FD, 0)
    os.close(COUNTERS_FD)
    shares = sys.argv[3:] == ["shares"]
    if shares:  # while it can be read for certain
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
    become(int(sys.argv[1]))
    cache_bytes = int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_BYTES
    gc.set_threshold(*_GARBAGE)
    Worker(control, memoryview(memory).cast("Q"), cache_bytes, shares).run()


if __name__ == "__main__":
    main()
