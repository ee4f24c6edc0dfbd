"""Connections that have said nothing yet, kept so that thousands of them cost next to nothing.

Each is a socket, one slotted object and a reader on the event loop: no task, no timer. All have the same time limit, so the queue
is in the order of their deadlines and one timer serves it. Concurrency: plain calls on the event loop, nothing waits.
"""

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable

from torpor.door.guard.guard import Visit
from torpor.door.wire import say_farewell
from torpor.model.errors import TorporError
from torpor.pgwire.frames import STARTUP_HEADER_BYTES


class Silent:
    """A connection without a word."""

    __slots__ = ("address", "deadline", "sock", "visit")

    def __init__(self, sock: socket.socket, address: tuple[str, int], deadline: float, visit: Visit) -> None:
        self.sock = sock
        self.address = address
        self.deadline = deadline
        self.visit = visit

    def __repr__(self) -> str:
        return f"<Silent {self.address[0]} until={self.deadline:.1f}>"


class Silence:
    """The queue of silent connections. The visits of those that leave it without a word are released.

    `spoke` gets a connection with its first bytes and owns it from then on, `left` is told of one that went away, `expired` makes the
    farewell of one that was silent for too long.
    """

    def __init__(
        self,
        timeout_s: float,
        spoke: Callable[[Silent, bytes], None],
        left: Callable[[Silent], None],
        expired: Callable[[Silent], TorporError],
    ) -> None:
        self._timeout_s = timeout_s
        self._spoke = spoke
        self._left = left
        self._expired = expired
        self._queue: OrderedDict[Silent, None] = OrderedDict()  # a dict finds its oldest slowly once many have left
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._queue)

    def __repr__(self) -> str:
        return f"<Silence {len(self._queue)} connections>"

    def add(self, sock: socket.socket, address: tuple[str, int], visit: Visit) -> None:
        """Wait for the first bytes of a new connection."""
        silent = Silent(sock, address, self._loop.time() + self._timeout_s, visit)
        self._queue[silent] = None
        self._loop.add_reader(sock.fileno(), self._readable, silent)
        if self._timer is None:
            self._timer = self._loop.call_at(silent.deadline, self._due)

    def dismiss_oldest(self, farewell: TorporError) -> bool:
        """Close the one that was silent longest. False when there is none."""
        oldest = next(iter(self._queue), None)
        if oldest is None:
            return False
        self._dismiss(oldest, farewell)
        return True

    def dismiss_all(self, farewell: TorporError) -> int:
        """Close all; returns how many there were."""
        count = len(self._queue)
        while self.dismiss_oldest(farewell):
            pass
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return count

    def pause(self) -> None:
        """Read no more and wait no more, until `release` or `dismiss_all`. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for silent in self._queue:
            self._loop.remove_reader(silent.sock.fileno())

    def release(self) -> list[socket.socket]:
        """All connections, oldest first; nothing was read from them. They are the caller's from now on."""
        self.pause()
        silent, self._queue = self._queue, OrderedDict()
        for one in silent:
            one.visit.release()
        return [one.sock for one in silent]

    def _readable(self, silent: Silent) -> None:
        try:
            head = silent.sock.recv(STARTUP_HEADER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            head = b""
        self._forget(silent)
        if head:
            self._spoke(silent, head)
        else:
            silent.sock.close()
            silent.visit.release()
            self._left(silent)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while (oldest := next(iter(self._queue), None)) is not None:
            if oldest.deadline > now:
                self._timer = self._loop.call_at(oldest.deadline, self._due)
                return
            self._dismiss(oldest, self._expired(oldest))

    def _dismiss(self, silent: Silent, farewell: TorporError) -> None:
        self._forget(silent)
        silent.visit.release()
        say_farewell(silent.sock, farewell)
        with contextlib.suppress(OSError):
            silent.sock.close()

    def _forget(self, silent: Silent) -> None:
        del self._queue[silent]
        self._loop.remove_reader(silent.sock.fileno())
