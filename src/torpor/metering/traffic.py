"""The bytes of one connection, as the kernel counts them.

A handed-over session passes no byte through Torpor, so the only honest counter is the kernel's `struct tcp_info`, which any
duplicate of the socket can read. Concurrency: stateless, one system call, never blocks; callable from any task or thread.
"""

import socket
import struct
from typing import Protocol

from torpor.model.traffic import Traffic

__all__ = ["Carrier", "Traffic", "tcp_traffic"]

_BYTES_ACKED_AND_RECEIVED = struct.Struct("@QQ")
_BYTES_ACKED_OFFSET = 120  # tcpi_bytes_acked; tcpi_bytes_received follows at 128 (include/uapi/linux/tcp.h, since Linux 4.1)
_TCP_INFO_BYTES = _BYTES_ACKED_OFFSET + _BYTES_ACKED_AND_RECEIVED.size


class Carrier(Protocol):
    """Who carries the bytes of a session whose client's own socket PostgreSQL doesn't have."""

    def traffic(self) -> Traffic:
        """What it has carried so far."""
        ...

    def in_transit(self) -> int:
        """Bytes of the client that it has taken, and not yet delivered."""
        ...


def tcp_traffic(sock: socket.socket) -> Traffic:
    """The bytes that `sock` received, and those it sent that the other side acknowledged, since the connection was made.

    Still right after the connection has ended, for as long as the socket is open (SYN and FIN may count as one byte each).
    Traffic(0, 0) when the socket isn't TCP or is closed.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return Traffic()
    if len(info) < _TCP_INFO_BYTES:
        return Traffic()
    acked, received = _BYTES_ACKED_AND_RECEIVED.unpack_from(info, _BYTES_ACKED_OFFSET)
    return Traffic(received=received, sent=acked)
