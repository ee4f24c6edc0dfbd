"""The connection of one client as the door reads it: the client's own socket, or the plain end of one that a relay worker carries.

Concurrency: belongs to the task of one login. Whoever holds it closes it; a session that was handed over by then has its own duplicates.
"""

import socket

from torpor.door.relays import Relays
from torpor.door.relaywire import Handshake
from torpor.door.relayworker import RelayedSession


class Channel:
    """One connection. `sock` is what the door reads and hands over; it changes when a relay steps in between.

    Where the kernel could encrypt by itself (kernel TLS), `encrypt` would end with the client's own socket and without a carrier, and
    nothing else would have to know.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.carrier: RelayedSession | None = None
        self.tls: Handshake | None = None

    def __repr__(self) -> str:
        return f"<Channel {self.tls.version if self.tls else 'plain'} {self.carrier!r}>"

    async def encrypt(self, relays: Relays, address: tuple[str, int], prefix: bytes) -> Handshake:
        """Have TLS spoken with the client, of whom `prefix` was read already. Raises HandshakeFailed, or Unavailable."""
        carrier = await self._give_to(relays, address, prefix, tls=True)
        self.tls = await carrier.handshake
        return self.tls

    async def relay(self, relays: Relays, address: tuple[str, int]) -> None:
        """Have the bytes carried as they are, unless they are carried already. Raises Unavailable."""
        if self.carrier is None:
            await self._give_to(relays, address, b"", tls=False)

    def close(self) -> None:
        """Close our end. Idempotent."""
        self.sock.close()

    async def _give_to(self, relays: Relays, address: tuple[str, int], prefix: bytes, tls: bool) -> RelayedSession:
        self.carrier, plain = await relays.carry(self.sock, address, prefix=prefix, tls=tls)
        self.sock.close()
        self.sock = plain
        return self.carrier
