"""A worker of the pool: the process that has the sockets of pooled clients and of the backends that serve them.

Started by `pools`, which gives it sockets over the control socket that it has as descriptor 3; descriptor 4 is memory in which it counts
the bytes of each backend, so that Torpor knows what goes on without asking. It has no other file, no password and no key.

Concurrency: one thread around one epoll, no tasks. An event of a connection is at most one read and what follows from it, so everybody
gets a turn. What a connection can't take yet is kept, and whoever it comes from isn't read from until then: at most one read's worth for
each connection. A client that idles costs a socket and one small object. When Torpor is gone the worker tells its clients, and ends.
"""

import contextlib
import ctypes
import gc
import hmac
import mmap
import os
import select
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any

from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.messages import MAX_PACKET_BYTES, FromWorker, ToWorker, pack, unpack
from torpor.gateway.pool.values import Key, Limits, Link
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.replies import error_response

CONTROL_FD, COUNTERS_FD = 3, 4
SLOT_WORDS = 2
"""For each backend: bytes that it was sent, and that it has sent."""

_FIRST_READ_BYTES, _READ_BYTES = 8_192, 65_536
"""Most messages are short, and memory for long ones costs time even when it stays empty."""
_TICK_S = 0.25
_EVENTS = 256
_GOODBYE_S = 5.0
_GARBAGE = 100_000, 50, 100  # nothing on the hot path makes cycles, and to look for them among 10,000 clients takes 10 ms
_MOST_PINNED_SHOWN = 20
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 120), (socket.TCP_KEEPINTVL, 30), (socket.TCP_KEEPCNT, 4))
_IN, _OUT, _HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
_SHUTTING_DOWN = error_response("57P01", "Torpor is shutting down", "connect again once it is back")


class SocketLink:
    """A connection, as the engine writes to it."""

    __slots__ = ("_closing_since", "_fd", "_mask", "_partner", "_pending", "_read_bytes", "_sock", "_wanted", "_worker", "owner", "slot")

    def __init__(self, worker: "Worker", sock: socket.socket, slot: int = -1) -> None:
        self._worker = worker
        self._sock = sock
        self._fd = sock.fileno()
        self._pending: deque[bytes] | None = None
        self._partner: SocketLink | None = None
        self._wanted = True
        self._read_bytes = _FIRST_READ_BYTES
        self._closing_since = 0.0
        self.owner: Client | Backend | None = None
        self.slot = slot
        self._mask = _IN | _HANGUP
        worker.add(self._fd, self, self._mask)

    def send(self, data: bytes) -> None:
        if self._fd < 0 or self._closing_since:
            return
        if self.slot >= 0:
            self._worker.counters[self.slot] += len(data)
        if self._pending is not None:
            self._pending.append(data)
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._worker.broken.append(self)
            return
        if sent < len(data):
            self._pending = deque((data[sent:],))
            self._update()
            if self._partner is not None:
                self._partner._update()

    def close(self) -> None:
        if self._fd < 0 or self._closing_since:
            return
        self.feed(None)
        if self._pending is not None and self._worker.keeps(self):
            self._closing_since = time.monotonic()
            self._update()
        else:
            self._shut()

    def feed(self, other: Link | None) -> None:
        before, self._partner = self._partner, other  # type: ignore[assignment]
        if before is not other and self._fd >= 0 and self._mask & _IN == 0:
            self._update()

    def listen(self, on: bool) -> None:
        self._wanted = on
        self._update()

    # -- for the worker

    def happened(self, events: int) -> None:
        """The kernel has something for it."""
        if events & _OUT and self._pending is not None:
            self._write()
        if events & _IN and self._mask & _IN:
            try:
                data = self._sock.recv(self._read_bytes)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended()
                return
            self._read_bytes = _READ_BYTES if len(data) == self._read_bytes else _FIRST_READ_BYTES
            owner = self.owner
            if self.slot >= 0:
                self._worker.counters[self.slot + 1] += len(data)
            if owner is not None:
                try:
                    owner.received(data)
                except ProtocolViolation:
                    self._ended()
                except Exception:  # one connection's trouble is not to be everybody's
                    traceback.print_exc()
                    self._ended()
        elif events & ~_OUT and not (self._mask & _IN and events & _IN):
            self._ended()  # it has left while nobody listened

    def break_off(self) -> None:
        """It can't be written to."""
        self._pending = None
        self._ended()

    def expire(self, now: float) -> bool:
        """Whether it had long enough to take what it was sent before it was closed."""
        if self._fd >= 0 and now - self._closing_since > _GOODBYE_S:
            self._shut()
        return self._fd < 0

    def _write(self) -> None:
        pending = self._pending
        assert pending is not None
        try:
            while pending:
                part = pending[0]
                sent = self._sock.send(part)
                if sent < len(part):
                    pending[0] = part[sent:]
                    return
                pending.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._worker.broken.append(self)
            return
        self._pending = None
        if self._closing_since:
            self._shut()
            return
        self._update()
        if self._partner is not None:
            self._partner._update()

    def _update(self) -> None:
        if self._fd < 0:
            return
        partner = self._partner
        held = (partner is not None and partner._pending is not None) or (self._pending is not None and self.slot < 0)
        # Hanging up is of interest even while nothing is read, else a client that left would keep its place in the queue. But not while
        # it can't be acted on, since it would be told again and again.
        mask = 0 if self._closing_since else _HANGUP if not self._wanted else 0 if held else _IN | _HANGUP
        if self._pending is not None:
            mask |= _OUT
        if mask != self._mask:
            self._mask = mask
            self._worker.modify(self._fd, mask)

    def _ended(self) -> None:
        owner = self.owner
        if self._closing_since or owner is None:
            self._shut()
        elif isinstance(owner, Client):
            owner.left()
        else:
            owner.left_by_server()

    def _shut(self) -> None:
        if self._fd < 0:
            return
        self._worker.remove(self._fd, self)
        self._fd = -1
        self._pending = None
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.recv(_READ_BYTES)  # closing a socket with unread bytes resets the connection: the client might never read why
        self._sock.close()


class Worker:
    """All that one process does. Also the engine's port to Torpor."""

    def __init__(self, control: socket.socket, counters: "memoryview[int]") -> None:
        self.counters = counters
        self.broken: list[SocketLink] = []
        self._control = control
        self._outbox: deque[bytes] = deque()
        self._epoll = select.epoll()
        self._links: dict[int, SocketLink] = {}
        self._closing: list[SocketLink] = []
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
        self._finishing = self._is_over = False
        control.setblocking(False)
        self._epoll.register(control.fileno(), _IN)

    def run(self) -> None:
        """Until Torpor is gone, or has said that it is enough and the last client has left."""
        poll, links, control = self._epoll.poll, self._links, self._control.fileno()
        while not self._is_over:
            timeout = max(0.0, self._tick_at - time.monotonic()) if self._tick_at else -1
            for fd, events in poll(timeout, _EVENTS):
                if fd == control:
                    self._hear(events)
                    continue
                link = links.get(fd)
                if link is not None:
                    link.happened(events)
            while self.broken:
                self.broken.pop().break_off()
            now = time.monotonic()
            if not self._tick_at:
                self._tick_at = now + _TICK_S
            elif now >= self._tick_at:
                self._tick(now)
        for pool in self._pools.values():
            pool.close(_SHUTTING_DOWN)

    # -- for the links

    def add(self, fd: int, link: SocketLink, mask: int) -> None:
        """Begin to wait for its events."""
        self._links[fd] = link
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for these from now on."""
        self._epoll.modify(fd, mask)

    def keeps(self, link: SocketLink) -> bool:
        """Whether it may still write what it has; it is looked after."""
        self._closing.append(link)
        return not self._is_over

    def remove(self, fd: int, link: SocketLink) -> None:
        """It is closed."""
        self._links.pop(fd, None)
        self._epoll.unregister(fd)
        owner, link.owner = link.owner, None
        if isinstance(owner, Client):
            number = self._numbers.pop(owner, None)
            if number is not None:
                self._clients.pop(number, None)
                self._tell(FromWorker.LEFT, client=number)
        elif owner is not None:
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
        self._closing = [link for link in self._closing if not link.expire(now)]
        if now - self._shown_at >= 1.0 - _TICK_S / 2:
            self._shown_at = now
            self._show()
        again = self._closing or any(pool.next_tick_s() is not None for pool in self._pools.values())
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
            if not self._is_over:
                self._epoll.modify(self._control.fileno(), _IN)
        except BlockingIOError:
            self._epoll.modify(self._control.fileno(), _IN | _OUT)
        except OSError:
            self._is_over = True

    def _hear(self, events: int) -> None:
        if events & _OUT:
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
            sock = socket.socket(fileno=fds[0]) if fds else None
            if sock is not None:
                sock.setblocking(False)
            self._obey(unpack(packet), sock)

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
                link = SocketLink(self, sock, said["slot"] * SLOT_WORDS)
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
            case ToWorker.FINISH:
                self._finishing = True
                for pool in self._pools.values():
                    pool.finish(_SHUTTING_DOWN)
            case _:
                pass

    def _join(self, said: dict[str, Any], sock: socket.socket) -> None:
        database: str = said["database"]
        pool = self._pools.get(database)
        if pool is None:
            pool = self._pools[database] = Pool(said["label"], self, Limits(**said["limits"]), time.monotonic)
            self._names[pool] = database
        if sock.family != socket.AF_UNIX:  # as PostgreSQL does: a client that vanished is noticed
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        link = SocketLink(self, sock)
        parameters = tuple((name, value) for name, value in said["parameters"])
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
        "clients": len(pool.clients),
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
    """Run as a process of its own: the argument is the user to become, 0 for none."""
    control = socket.socket(fileno=CONTROL_FD)
    memory = mmap.mmap(COUNTERS_FD, 0)
    os.close(COUNTERS_FD)
    become(int(sys.argv[1]))
    gc.set_threshold(*_GARBAGE)
    Worker(control, memoryview(memory).cast("Q")).run()


if __name__ == "__main__":
    main()
