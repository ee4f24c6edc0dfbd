"""The worker's end of the shared store: one connection, on which values are asked for and given. It makes nobody wait for long.

Whatever is asked is answered within `DEADLINE_S`, by the store or, when it doesn't, with nothing: then the connection is closed, all that
was asked is given up, and nothing is asked until a pause is over, which doubles each time. Torpor makes the connection, and has said who we
are (`pool.stores`): this process knows no password.

Memory: `_MOST_UNSENT_BYTES` of what the store is slow to take; what doesn't fit isn't shared. Concurrency: belongs to the worker's thread;
the deadline is a timer among its descriptors.
"""

import contextlib
import ctypes
import os
import select
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from torpor.gateway.cache.resp import Answer, Answers, command
from torpor.gateway.cache.sealed import OVERHEAD_BYTES
from torpor.gateway.pool.links import SocketLink, Sockets
from torpor.gateway.pool.sharing import LARGEST_BYTES, Found

DEADLINE_S = 0.02
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_READ_BYTES = 65_536
_MOST_UNSENT_BYTES = 8 << 20
_MOST_OPEN = 1_000
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC = 1, 0o2004000


class _Numbered:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class Watched(SocketLink):
    """A descriptor among the worker's, whose events go to a function."""

    def __init__(self, sockets: Sockets, file: "_Numbered | socket.socket", hear: Callable[[int], None]) -> None:
        super().__init__(sockets, file)  # type: ignore[arg-type]
        self.hear = hear

    def happened(self, events: int) -> None:
        """The kernel has something for it."""
        try:
            self.hear(events)
        except Exception:  # what serves to make others faster must not end them
            traceback.print_exc()


class RemoteStore:
    """The store of one worker. `want` asks Torpor for a connection."""

    def __init__(self, sockets: Sockets, want: Callable[[], None], now: Callable[[], float]) -> None:
        self._sockets, self._want, self._now = sockets, want, now
        self._sock: socket.socket | None = None
        self._link: Watched | None = None
        self._answers = Answers(LARGEST_BYTES + OVERHEAD_BYTES)
        self._open: deque[tuple[float, Found | None]] = deque()
        self._unsent = b""
        self._is_wanted = False
        self._pause_s, self._again_at = _SHORTEST_PAUSE_S, 0.0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._alarm = Watched(sockets, _Numbered(self._timer), self._rang)

    def __repr__(self) -> str:
        return f"<RemoteStore {'connected' if self._sock is not None else 'not connected'} {len(self._open)} asked>"

    def connected(self, sock: socket.socket | None) -> None:
        """This is the connection that was wanted; None: there is none."""
        self._is_wanted = False
        if sock is None:
            self._pause()
            return
        self._drop()
        self._sock, self._unsent = sock, b""
        self._answers = Answers(LARGEST_BYTES + OVERHEAD_BYTES)
        self._link = Watched(self._sockets, sock, self._happened)

    def close(self) -> None:
        """Ask nothing any more."""
        self._drop()
        if self._timer >= 0:
            self._sockets.remove(self._timer, self._alarm)
            os.close(self._timer)
            self._timer = -1

    def reach(self) -> bool:
        """Whether there is a connection; if not, one is wanted when the pause is over."""
        if self._sock is not None:
            return True
        if not self._is_wanted and self._now() >= self._again_at:
            self._is_wanted = True
            self._want()
        return False

    def get(self, names: Sequence[bytes], found: Found) -> bool:
        if not self.reach() or len(self._open) >= _MOST_OPEN or self._unsent:
            return False
        return self._say(command(b"MGET", *names), found)

    def put(self, name: bytes, value: bytes, life_ms: int) -> None:
        if self.reach() and len(value) <= LARGEST_BYTES + OVERHEAD_BYTES and len(self._unsent) + len(value) <= _MOST_UNSENT_BYTES:
            self._say(command(b"SET", name, value, b"PX", b"%d" % max(1, life_ms)), None)

    # -- inside

    def _say(self, data: bytes, found: Found | None) -> bool:
        now = self._now()
        self._unsent += data
        if not self._flush():
            return False
        self._open.append((now + DEADLINE_S, found))
        if len(self._open) == 1:
            self._set_timer(DEADLINE_S)
        return True

    def _flush(self) -> bool:
        sock, link = self._sock, self._link
        assert sock is not None
        assert link is not None
        try:
            self._unsent = self._unsent[sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # its end is heard as an event: nobody else is answered from here
            self._unsent = b""
            return False
        self._sockets.modify(sock.fileno(), _IN | _OUT if self._unsent else _IN)
        return True

    def _happened(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if events & _OUT and self._unsent and not self._flush():
            return
        if not events & ~_OUT:
            return
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if not data:
                raise ValueError("it has hung up")
            for answer in self._answers.feed(data):
                self._answered(answer)
                if self._sock is not sock:
                    return
        except ValueError:
            self._give_up()

    def _answered(self, answer: Answer) -> None:
        if not self._open:
            raise ValueError("nobody has asked")
        _, found = self._open.popleft()
        if isinstance(answer, Exception):  # it is full, or only to be read, or not what we think it is
            if found is not None:
                found(None)
            return
        self._pause_s = _SHORTEST_PAUSE_S
        if found is not None:
            values = answer if isinstance(answer, list) else []
            found([value if isinstance(value, bytes) else None for value in values])

    def _rang(self, _: int) -> None:
        with contextlib.suppress(OSError):
            os.read(self._timer, 8)
        self._happened(_IN)  # what has come meanwhile isn't late: we are
        if self._open:
            left_s = self._open[0][0] - self._now()
            if left_s <= 0:
                self._give_up()
            else:
                self._set_timer(left_s)

    def _set_timer(self, after_s: float) -> None:
        self._libc.timerfd_settime(self._timer, 0, struct.pack("@4l", 0, 0, 0, max(1, int(after_s * 1e9))), None)

    def _give_up(self) -> None:
        self._drop()
        self._pause()

    def _pause(self) -> None:
        self._again_at = self._now() + self._pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    def _drop(self) -> None:
        if self._sock is not None and self._link is not None:
            self._sockets.remove(self._sock.fileno(), self._link)
            self._sock.close()
            self._sock = self._link = None
        asked, self._open = self._open, deque()
        for _, found in asked:
            if found is not None:
                found(None)
