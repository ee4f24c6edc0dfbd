"""The relay: carries the bytes of a session where the client's own socket can't be handed over.

Concurrency: one task runs `run`, and two inside it pump one direction each. A direction reads no more before what it read is
written, so that it holds at most 64 KiB and a slow reader slows its writer down. Safe to cancel; both sockets are closed at the end.
"""

import asyncio
import contextlib
import socket

from torpor.door.wire import linger
from torpor.metering.traffic import Traffic

_CHUNK_BYTES = 65_536


class Relay:
    """One relayed session. `far` is the end to hand over; whoever hands it over closes it."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._near.setblocking(False)
        self.far.setblocking(False)
        self._received = 0
        self._sent = 0

    def __repr__(self) -> str:
        return f"<Relay received={self._received} sent={self._sent}{' closed' if self._near.fileno() < 0 else ''}>"

    def traffic(self) -> Traffic:
        """The bytes carried so far."""
        return Traffic(received=self._received, sent=self._sent)

    async def run(self) -> None:
        """Carry bytes until the server's end is closed or the client's connection is lost.

        A client that only closes its own direction still gets what the server has to say.
        """
        from_client = asyncio.ensure_future(self._pump(self._client, self._near))
        from_server = asyncio.ensure_future(self._pump(self._near, self._client))
        pumps = (from_client, from_server)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if from_client.done() and from_client.result():
                await asyncio.wait((from_server,))
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._near.close()
        await linger(self._client)

    def close(self) -> None:
        """Close both ends, also of a relay that never ran. Idempotent."""
        self._near.close()
        self.far.close()

    async def _pump(self, source: socket.socket, sink: socket.socket) -> bool:
        """Carry one direction to its end. Returns whether it ended in good order, rather than with a lost connection."""
        loop = asyncio.get_running_loop()
        try:
            # sock_recv allocates only when bytes are there to be read, so an idle session holds no buffer.
            while part := await loop.sock_recv(source, _CHUNK_BYTES):
                await loop.sock_sendall(sink, part)
                if source is self._client:
                    self._received += len(part)
                else:
                    self._sent += len(part)
        except OSError:
            return False
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        return True
