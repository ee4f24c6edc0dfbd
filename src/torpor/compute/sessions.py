"""The sessions that were handed to a compute: a duplicate of each client's socket, and how each ends.

While the compute runs, the duplicates are only kept, for their counters. While it sleeps they are watched: the first readable byte on any
of them wakes it. Concurrency: belongs to one event loop; watching costs nothing per sleeping session but a place in the kernel's epoll.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Collection, Iterator

from torpor.compute.census import Census
from torpor.compute.handover import BackendEnd
from torpor.metering.traffic import Carrier, Traffic, tcp_traffic
from torpor.pgwire.answers import terminate

_GOODBYE = terminate()
_ENDING_S = 1.0  # a goodbye may be on its way: through a balancer, the relay, a busy host
_LEFT_S = 4.0  # a client is known to have left: its backend only has to get a processor
_GHOST_S = 30.0  # much longer than a login or a goodbye takes
_DROPPED_BYTES = 16_384  # closing a socket with unread bytes resets the connection, and the client might never read its farewell


class Session:
    """One client's session. The duplicate is closed when it ends."""

    __slots__ = ("_carrier", "_duplicate", "_end", "_farewell", "by_token", "client_host", "missed_since")

    def __init__(self, duplicate: socket.socket, end: BackendEnd, client_host: str, carrier: Carrier | None) -> None:
        self._duplicate = duplicate
        self._end = end
        self._carrier = carrier
        self._farewell = b""
        self.client_host = client_host
        self.by_token: bool | None = None  # whether it logged in by a token; of one that an earlier Torpor handed over nobody knows
        self.missed_since: float | None = None  # since when PostgreSQL doesn't know its backend

    def __repr__(self) -> str:
        return f"<Session {self.client_host} {self._end!r}>"

    @property
    def pid(self) -> int | None:
        """The backend's pid as PostgreSQL knows it; None until it has reported."""
        return self._end.pid

    @property
    def ended(self) -> bool:
        """Whether the backend has ended."""
        return self._end.ended

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the backend has ended."""
        self._end.when_ended(callback)

    async def wait_ended(self) -> None:
        """Until the backend has ended. Safe to cancel."""
        await self._end.wait_ended()

    def traffic(self) -> Traffic:
        """Bytes of the session so far."""
        return self._carrier.traffic() if self._carrier is not None else tcp_traffic(self._duplicate)

    def unread_bytes(self) -> int:
        """Bytes that the client sent and the backend has not read. At least 1 when the client has left (over TCP)."""
        # First what is still on its way: it can't have got into the socket's buffer unseen.
        in_transit = self._carrier.in_transit() if self._carrier is not None else 0
        return in_transit + int(struct.unpack("i", fcntl.ioctl(self._duplicate.fileno(), termios.FIONREAD, b"\0\0\0\0"))[0])

    def has_left(self) -> bool:
        """Whether the client has closed its side, reset it, or said goodbye."""
        try:
            return self._duplicate.recv(len(_GOODBYE), socket.MSG_PEEK | socket.MSG_DONTWAIT) in (b"", _GOODBYE)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def fileno(self) -> int:
        return self._duplicate.fileno()

    def dismiss(self, farewell: bytes) -> None:
        """End a session whose backend waits for its client, and tell the client why. Idempotent.

        The backend reads the end of its client, and ends. If a statement came in this very moment, it reads that first and runs it, and the
        client has its answer before the farewell: the farewell is written when the backend is gone.
        """
        if not self._farewell:
            self._farewell = farewell
            with contextlib.suppress(OSError):  # the client has left
                self._duplicate.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """Sever the connection at once, whatever the backend and its client are doing. A frozen backend notices when it is thawed."""
        with contextlib.suppress(OSError):
            self._duplicate.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Note that the backend has ended. Idempotent."""
        self._end.end()

    def close(self) -> None:
        """Let go of the socket. Idempotent."""
        if self._farewell and self._end.ended:
            with contextlib.suppress(OSError):
                self._duplicate.send(self._farewell, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._duplicate.shutdown(socket.SHUT_WR)
                self._duplicate.recv(_DROPPED_BYTES, socket.MSG_DONTWAIT)
        self._farewell = b""
        if self._end.ended:
            self.cut()  # a backend that broke its life line and lives on gets no further: its bytes would not be counted
        self._duplicate.close()
        self._end.close()


class Sessions:
    """All sessions of one compute."""

    def __init__(self, on_traffic: Callable[[Session], None], on_end: Callable[[], None], census: Census | None = None) -> None:
        """`on_traffic` is called (while watching) when a client sent something or left; `on_end` after each session's end.

        `census` counts those of all computes.
        """
        self._census = census or Census()
        self._live: set[Session] = set()
        self._none_live = asyncio.Event()
        self._none_live.set()
        self._watching = False
        self._on_traffic = on_traffic
        self._on_end = on_end
        self._past = Traffic()

    def __repr__(self) -> str:
        return f"<Sessions {len(self._live)}{' watched' if self._watching else ''}>"

    def __len__(self) -> int:
        return len(self._live)

    def add(self, session: Session) -> None:
        """Keep `session` until it ends."""
        self._live.add(session)
        self._none_live.clear()
        self._census.add(session, session.client_host)
        if self._watching:
            self._watch_one(session)
        session.when_ended(lambda: self._ended(session))

    def __contains__(self, session: object) -> bool:
        return session in self._live

    def __iter__(self) -> Iterator[Session]:
        return iter(self._live)

    def pids(self) -> list[int | None]:
        """Backend pids of the live sessions, None for those not reported yet."""
        return [session.pid for session in self._live]

    def has(self, client_host: str, pid: int) -> bool:
        """Whether that client has a live session with that backend."""
        return any(session.pid == pid and session.client_host == client_host for session in self._live)

    def traffic(self) -> Traffic:
        """Bytes of all sessions, ended ones included."""
        return sum((session.traffic() for session in self._live), self._past)

    def received_bytes(self) -> tuple[int, int]:
        """What clients have sent to live sessions in all, and how much of it is unread."""
        return sum(s.traffic().received for s in self._live), sum(s.unread_bytes() for s in self._live)

    async def wait_ending(self) -> None:
        """Until none is left, or those that are left don't look as if they were just ending. Takes seconds at most; safe to cancel.

        Who closes a connection knows of it before its backend does, and Torpor learns of it from the backend's end.
        """
        await self._wait_none(_ENDING_S)
        if all(session.has_left() for session in self._live):
            await self._wait_none(_LEFT_S)

    def watch(self) -> None:
        """Begin to call `on_traffic`. Bytes that are there already count."""
        self._watching = True
        for session in self._live:
            self._watch_one(session)

    def unwatch(self) -> None:
        """Stop calling `on_traffic`. Idempotent."""
        if self._watching:
            self._watching = False
            loop = asyncio.get_running_loop()
            for session in self._live:
                loop.remove_reader(session.fileno())

    def end_ghosts(self, backends: Collection[int], now: float) -> None:
        """End what has been no session for a while: `backends` are all that PostgreSQL knows.

        A process that a tenant's code left behind can hold the life line of a backend that has ended, or its pid may be made up.
        """
        taken: set[int | None] = set()
        for session in list(self._live):
            if session.pid in backends and session.pid not in taken:
                taken.add(session.pid)
                session.missed_since = None
            elif session.missed_since is None:
                session.missed_since = now
            elif now - session.missed_since > _GHOST_S:
                session.end()

    def end_all(self) -> None:
        """Every backend is gone: tell whoever waits."""
        for session in list(self._live):
            session.end()

    def release(self) -> None:
        """Let go of all sessions without ending them: Torpor leaves, PostgreSQL stays."""
        self.unwatch()
        for session in self._live:
            self._census.remove(session, session.client_host)
            session.close()
        self._live.clear()
        self._none_live.set()

    async def _wait_none(self, patience_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._none_live.wait()

    def _watch_one(self, session: Session) -> None:
        asyncio.get_running_loop().add_reader(session.fileno(), self._on_traffic, session)

    def _ended(self, session: Session) -> None:
        if session not in self._live:
            return
        if self._watching:
            asyncio.get_running_loop().remove_reader(session.fileno())
        self._past += session.traffic()
        self._live.discard(session)
        self._census.remove(session, session.client_host)
        session.close()
        if not self._live:
            self._none_live.set()
        self._on_end()
