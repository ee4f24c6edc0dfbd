"""Passes a client's socket into a compute, where the preloaded library (torpor/native/handover.c) receives it.

Concurrency: one short connection per hand-over; safe to cancel (the library gives up on a half-sent one after a second).
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from torpor.base.processes import ProcessHandle
from torpor.model.errors import ComputeLost

_HEADER = struct.Struct("=8sII")
_MAGIC = b"TORPOR1\0"
_MAGIC_WITH_CLAIMS = b"TORPOR2\0"
_LENGTH = struct.Struct("=I")
_PATIENCE_S = 10.0
_PID_BYTES = 4
_UNIX_FAMILY = struct.pack("=H", socket.AF_UNIX)


def sockaddr(host: str, port: int) -> bytes:
    """The C form of an IP address and port, as accept() returns it."""
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + packed + struct.pack("=I", 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_pton(socket.AF_INET, host) + bytes(8)


class NotDelivered(ComputeLost):
    """Nobody listens: the socket was not given away, so it can be handed over again."""


async def hand_over(listener: Path, client: socket.socket, address: tuple[str, int] | None, startup: bytes, claims: bytes = b"") -> int:
    """Send `client` to the postmaster behind `listener`, which will see it come from `address` (None: from the Unix socket).

    `claims` are those of the token that it logged in by: a library that is too old for them hangs up on the client. Returns the read end
    of the life line, which the caller owns: the backend's pid comes out of it, and it breaks when the backend ends. Raises NotDelivered
    when nobody listens, ComputeLost when PostgreSQL went away with the socket.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        shown = sockaddr(*address) if address is not None else _UNIX_FAMILY
        payload = _HEADER.pack(_MAGIC_WITH_CLAIMS if claims else _MAGIC, len(shown), len(startup)) + shown + startup
        if claims:
            payload += _LENGTH.pack(len(claims)) + claims
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.setblocking(False)
            await _connect(channel, listener)
            # The kernel's buffer is empty and larger than the longest startup packet: this is sent whole.
            sent = socket.send_fds(channel, [payload], [client.fileno(), write_end])
            if sent != len(payload):
                raise ComputeLost("the compute took half a hand-over")
    except BaseException as error:
        os.close(read_end)
        if isinstance(error, OSError):
            raise ComputeLost("PostgreSQL went away while the connection was handed over", "connect again") from error
        raise
    finally:
        os.close(write_end)
    return read_end


async def _connect(channel: socket.socket, listener: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            channel.connect(str(listener))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise NotDelivered("PostgreSQL went away before the connection was handed over", "connect again") from error
        except BlockingIOError:  # its backlog is full: a Unix socket can't be waited for, only tried again
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.002)
        else:
            return


class BackendEnd:
    """Tells once that a backend has ended: to callbacks, which cost no task, and to whoever waits."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.ended = False
        self._callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self.pid}{' ended' if self.ended else ''}>"

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the backend has ended (at once if it has)."""
        if self.ended:
            callback()
        else:
            self._callbacks.append(callback)

    async def wait_ended(self) -> None:
        """Until the backend has ended. Safe to cancel, and for several tasks."""
        if not self.ended:
            event = asyncio.Event()
            self._callbacks.append(event.set)
            await event.wait()

    def close(self) -> None:
        """Stop listening. Idempotent."""

    def end(self) -> None:
        """Note the end, once."""
        if self.ended:
            return
        self.ended = True
        self.close()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class LifeLine(BackendEnd):
    """The read end of a life line: tells the backend's pid, and breaks when it ends.

    Code of the tenant's can write other bytes to it, or close it early: then the session counts as ended, and its connection is cut.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._buffer = b""
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 64)
        except BlockingIOError:
            return
        if not data:
            self.end()
            return
        self._buffer += data
        if len(self._buffer) > _PID_BYTES:
            self.end()  # a tenant's own code: left open it could keep Torpor busy with reading
        elif len(self._buffer) == _PID_BYTES:
            self.pid = int.from_bytes(self._buffer, sys.byteorder)


class AdoptedBackend(BackendEnd):
    """The backend of a session that an earlier Torpor handed over: its life line is gone, so its process is watched."""

    def __init__(self, process: ProcessHandle, inner_pid: int) -> None:
        """`inner_pid` is the pid that the backend itself knows and told its client."""
        super().__init__()
        self.pid = inner_pid
        self._process = process
        process.watch(self.end)

    def close(self) -> None:
        self._process.close()
