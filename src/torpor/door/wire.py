"""Reading and writing a client's raw socket before it is handed over.

Concurrency: coroutines of the one task that owns the socket; safe to cancel. Never reads past a message, because what follows it
belongs to PostgreSQL. Sending never waits: all that the door says in one login fits an empty send buffer several times over.
"""

import asyncio
import contextlib
import socket

from torpor.model.errors import TorporError
from torpor.pgwire.frames import MESSAGE_HEADER_BYTES, message_body_length
from torpor.pgwire.replies import error_response

_LINGER_S = 0.5
_LINGER_BYTES = 65_536
_CHUNK_BYTES = 16_384


class ClientGone(Exception):
    """The client closed the connection, lost it, or doesn't read what it is sent."""


async def read_exactly(sock: socket.socket, length: int, head: bytes = b"") -> bytes:
    """`length` bytes, of which `head` has come already. Raises ClientGone."""
    loop = asyncio.get_running_loop()
    data = head
    while len(data) < length:
        wanted = length - len(data)
        try:
            try:
                part = sock.recv(wanted, socket.MSG_DONTWAIT)  # mostly it is there: to have the loop wait for it takes a dozen system calls
            except (BlockingIOError, InterruptedError):
                part = await loop.sock_recv(sock, wanted)
        except OSError as error:
            raise ClientGone from error
        if not part:
            raise ClientGone
        data += part
    return data


async def read_line(sock: socket.socket, limit_bytes: int, head: bytes) -> bytes:
    """Up to and with the next newline, of which `head` has come already; at most `limit_bytes`, then without it. Raises ClientGone.

    Byte by byte, as nobody knows where it ends: for the rare and short line.
    """
    line = head
    while not line.endswith(b"\n") and len(line) < limit_bytes:
        line = await read_exactly(sock, len(line) + 1, line)
    return line


async def read_message(sock: socket.socket, limit_bytes: int) -> tuple[bytes, bytes]:
    """The tag and body of the next message. Raises ClientGone, and ProtocolViolation above `limit_bytes`."""
    tag, length = message_body_length(await read_exactly(sock, MESSAGE_HEADER_BYTES), limit_bytes)
    return tag, await read_exactly(sock, length)


def send(sock: socket.socket, data: bytes) -> None:
    """Hand all of `data` to the kernel now. Raises ClientGone when it can't take it."""
    try:
        sent = sock.send(data)
    except OSError as error:  # BlockingIOError too: a client that lets this little pile up doesn't read
        raise ClientGone from error
    if sent < len(data):
        raise ClientGone


def say_farewell(sock: socket.socket, farewell: bytes | TorporError) -> None:
    """Tell the client why it has to leave, if it still listens, and that nothing follows. Leaves the socket open."""
    if isinstance(farewell, TorporError):
        farewell = error_response(farewell.sqlstate, farewell.message, farewell.hint)
    with contextlib.suppress(ClientGone, OSError):
        if farewell:
            send(sock, farewell)
        sock.shutdown(socket.SHUT_WR)


async def linger(sock: socket.socket) -> None:
    """Read and drop what the client still sends, for half a second and 64 KiB at most.

    Closing a socket with unread bytes resets the connection, and the client might never read the farewell.
    """
    loop = asyncio.get_running_loop()
    dropped_bytes = 0
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(_LINGER_S):
            while dropped_bytes < _LINGER_BYTES and (part := await loop.sock_recv(sock, _CHUNK_BYTES)):
                dropped_bytes += len(part)
