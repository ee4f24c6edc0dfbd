"""The connections of a worker: one epoll, and for each connection what the kernel said of it and what it couldn't take yet.

Concurrency: one thread, nothing here waits but `Sockets.turn`. An event of a connection is at most one read and what follows from it, so
everybody gets a turn. What a connection can't take yet is kept, and whoever it comes from isn't read from until then: at most one read's
worth for each connection. The kernel is asked to be silent about a connection only when it has spoken in vain, so that a client that
waits for a backend, and says nothing meanwhile, costs no system call.
"""

import contextlib
import select
import socket
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic

from torpor.gateway.pool.backend import Backend
from torpor.gateway.pool.client import Client
from torpor.gateway.pool.values import Link
from torpor.gateway.pool.wire import READ_BYTES, receive, send, wait, what, who
from torpor.model.errors import ProtocolViolation

_GOODBYE_S = 5.0
_IN, _OUT, _HANGUP = 0x1, 0x4, 0x2000
assert (_IN, _OUT, _HANGUP) == (select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP)


class Sockets:
    """All of them, and the control socket, whose owner hears its events from `turn`."""

    def __init__(self, control_fd: int, counters: "memoryview[int]", closed: "Callable[[Client | Backend], None]") -> None:
        """`closed` is called when a connection is no more."""
        self.counts = counters
        self._control_fd = control_fd
        self._closed = closed
        self._epoll = select.epoll()
        self._links: dict[int, SocketLink] = {}
        self._broken: list[SocketLink] = []
        self._closing: list[SocketLink] = []
        self._is_over = False
        self._epoll.register(control_fd, _IN)

    def turn(self, until: float) -> int:
        """Wait, and do what is to be done, over and over, until the control socket has something, or the clock says `until`; with 0.0 wait
        for anything, once. What the control socket has, as epoll says it: last of all, since a new connection may get a number that an
        event of the same moment still means otherwise."""
        said = 0
        while True:
            left_s = -1.0
            if until:
                left_s = max(0.0, until - monotonic())
            found = wait(self._epoll, left_s)
            for number in range(found):
                fd = who(number)
                if fd == self._control_fd:
                    said = what(number)
                    continue
                link = self._links.get(fd)
                if link is not None:
                    link.happened(what(number))
            self.bury()
            if said or not until or left_s <= 0.0:
                return said

    def bury(self) -> None:
        """End what couldn't be written to."""
        while self._broken:
            self._broken.pop().break_off()

    def expire(self, now: float) -> bool:
        """End what had long enough to take what it was sent before it was closed. Whether there are more that may have to."""
        self._closing = [link for link in self._closing if not link.expire(now)]
        return bool(self._closing)

    def watch_control(self, writable: bool) -> None:
        """Whether it is of interest that the control socket can be written to."""
        self._epoll.modify(self._control_fd, _IN | _OUT if writable else _IN)

    def end(self) -> None:
        """Nothing that is closed from now on may still write what it has."""
        self._is_over = True

    # -- for the links

    def add(self, fd: int, link: "SocketLink", mask: int) -> None:
        """Begin to wait for its events."""
        self._links[fd] = link
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for these from now on."""
        self._epoll.modify(fd, mask)

    def broke(self, link: "SocketLink") -> None:
        """It can't be written to; whoever writes to it goes on first."""
        self._broken.append(link)

    def keeps(self, link: "SocketLink") -> bool:
        """Whether it may still write what it has; it is looked after."""
        self._closing.append(link)
        return not self._is_over

    def remove(self, fd: int, link: "SocketLink") -> None:
        """It is closed."""
        self._links.pop(fd, None)
        self._epoll.unregister(fd)
        owner, link.owner = link.owner, None
        if owner is not None:
            self._closed(owner)


class SocketLink(Link):
    """A connection, as the engine writes to it."""

    __slots__ = ("_closing_since", "_fd", "_mask", "_partner", "_pending", "_sock", "_sockets", "_wanted", "owner", "slot")

    def __init__(self, sockets: Sockets, sock: socket.socket, slot: int = -1) -> None:
        self._sockets = sockets
        self._sock = sock
        self._fd = sock.fileno()
        self._pending: deque[bytes] | None = None
        self._partner: SocketLink | None = None
        self._wanted = True
        self._closing_since = 0.0
        self.owner: Client | Backend | None = None
        self.slot = slot
        self._mask = _IN | _HANGUP
        sockets.add(self._fd, self, self._mask)

    def send(self, data: bytes) -> None:
        if self._fd < 0 or self._closing_since:
            return
        if self.slot >= 0:
            self._sockets.counts[self.slot] += len(data)
        if self._pending is not None:
            self._pending.append(data)
            return
        try:
            sent = send(self._fd, data)
        except OSError:
            self._sockets.broke(self)
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
        if self._pending is not None and self._sockets.keeps(self):
            self._closing_since = monotonic()
            self._update()
        else:
            self._shut()

    def feed(self, other: Link | None) -> None:
        before, self._partner = self._partner, other if isinstance(other, SocketLink) else None
        if before is not self._partner and self._fd >= 0 and self._mask & _IN == 0:
            self._update()

    def listen(self, on: bool) -> None:
        self._wanted = on
        if on and self._mask & _IN == 0:
            self._update()

    # -- for Sockets

    def happened(self, events: int) -> None:
        """The kernel has something for it."""
        if events & _OUT and self._pending is not None:
            self._write()
        if events & _IN and self._mask & _IN:
            if not self._wanted:
                self._update()
                return
            try:
                data = receive(self._fd)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended()
                return
            owner = self.owner
            if self.slot >= 0:
                self._sockets.counts[self.slot + 1] += len(data)
            if owner is not None:
                try:
                    if isinstance(owner, Client):
                        client = owner
                        client.received(data)
                    else:
                        backend = owner
                        backend.received(data)
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
                sent = send(self._fd, part)
                if sent < len(part):
                    if sent:
                        pending[0] = part[sent:]
                    return
                pending.popleft()
        except OSError:
            self._sockets.broke(self)
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
            self._sockets.modify(self._fd, mask)

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
        self._sockets.remove(self._fd, self)
        self._fd = -1
        self._pending = None
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.recv(READ_BYTES)  # closing a socket with unread bytes resets the connection: the client might never read why
        self._sock.close()
