"""A TCP load balancer that speaks the PROXY protocol, for tests: real sockets, a thread for each direction."""

import contextlib
import ipaddress
import socket
import struct
import threading
from types import TracebackType

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_CHUNK_BYTES = 65_536


def header(source: str, port: int) -> bytes:
    """A PROXY header of version 2, for a client from `source`."""
    address = ipaddress.ip_address(source)
    rest = address.packed + address.packed + struct.pack("!HH", port, 7432)
    return _SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if address.version == 4 else 0x21, len(rest)) + rest


class Balancer:
    """Passes connections on to a door, as those of `source`, from an address of its own. Use as a context manager."""

    def __init__(self, door: tuple[str, int], own: str, source: str) -> None:
        self._door = door
        self._own = own
        self._source = source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Balancer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def url(self, url: str) -> str:
        """The URL of a database, through here."""
        head, _, tail = url.rpartition("@")
        return f"{head}@127.0.0.1:{self.port}/{tail.partition('/')[2]}"

    def _accept(self) -> None:
        while True:
            try:
                client, address = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            try:
                door = socket.create_connection(self._door, source_address=(self._own, 0))
                self._open.append(door)
                door.sendall(header(self._source, address[1]))
            except OSError:  # nobody is there, or sends everybody away: so it is for the client
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                continue
            for source, sink in ((client, door), (door, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(_CHUNK_BYTES):
                sink.sendall(part)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
