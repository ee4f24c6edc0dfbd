"""Relay workers and certificates for tests: real processes, and a development authority made once for all of them."""

import asyncio
import atexit
import contextlib
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from torpor.base.clock import SystemClock
from torpor.door.authority import DevelopmentAuthority
from torpor.door.encryption import Encryption, OwnCertificates
from torpor.door.relays import Relays
from torpor.door.relayworker import RelayedSession
from torpor.model.encryption import TlsMode
from torpor.native import RELAY

NAMES = ("localhost", "127.0.0.1", "db.test", "*.db.test")


@cache
def authority() -> DevelopmentAuthority:
    """One for all tests of this process."""
    directory = tempfile.TemporaryDirectory(prefix="torpor-tls-", dir="/var/tmp")
    atexit.register(directory.cleanup)
    made = DevelopmentAuthority(Path(directory.name) / "tls")
    made.ensure(NAMES, time.time())
    return made


def client_context(alpn: bool = True) -> ssl.SSLContext:
    """What a client needs to trust the authority."""
    context = ssl.create_default_context(cafile=str(authority().certificate))
    if alpn:
        context.set_alpn_protocols(["postgresql"])
    return context


@asynccontextmanager
async def encryption(mode: TlsMode = TlsMode.ALLOW, workers: int = 1) -> AsyncIterator[Encryption]:
    """TLS with workers of its own; nothing of them is left at the end."""
    with tempfile.TemporaryDirectory(prefix="torpor-relay-", dir="/var/tmp") as directory:
        source = OwnCertificates(authority(), NAMES, SystemClock()) if mode is not TlsMode.OFF else None
        made = Encryption(mode, Relays(RELAY, Path(directory), 0, workers), source, SystemClock())
        await made.start()
        try:
            yield made
        finally:
            await made.relays.stop(leave=False)
            assert os.listdir(directory) == []


class TlsClient:
    """A TLS client over a socket of the test's, which it can drive piece by piece."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext | None = None, name: str = "localhost", session: ssl.SSLSession | None = None
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(self._in, self._out, server_hostname=name, session=session)

    async def shake_hands(self) -> "TlsClient":
        """Until TLS is spoken. Raises ssl.SSLError for what the server refuses, ConnectionError when it just leaves."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._fill():
                    raise ConnectionError("the server left in the middle of the handshake") from None
            else:
                await self.flush()
                return self

    async def send(self, data: bytes) -> None:
        """All of `data`."""
        self.tls.write(data)
        await self.flush()

    async def recv(self, limit: int = 65_536) -> bytes:
        """What there is next; nothing at the end, when it was told in order."""
        while True:
            try:
                return self.tls.read(limit)
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._fill():
                    raise ConnectionError("the end was not told") from None
            except ssl.SSLZeroReturnError:
                return b""

    async def recv_exactly(self, length: int) -> bytes:
        """`length` bytes."""
        data = b""
        while len(data) < length:
            part = await self.recv()
            if not part:
                raise EOFError(f"{len(data)} of {length} bytes came")
            data += part
        return data

    async def end_direction(self) -> None:
        """Say that nothing more comes from us, and go on reading."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self.flush()

    async def flush(self) -> None:
        if pending := self._out.read():
            await asyncio.get_running_loop().sock_sendall(self.sock, pending)

    async def _fill(self) -> bool:
        part = await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
        self._in.write(part)
        return bool(part)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A client's socket, and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


class Carried:
    """A session that a worker carries, both ends in the test's hands."""

    def __init__(self, client: TlsClient | socket.socket, server: socket.socket, session: RelayedSession) -> None:
        self.client = client
        self.server = server
        self.session = session

    @property
    def socket(self) -> socket.socket:
        return self.client.sock if isinstance(self.client, TlsClient) else self.client

    async def send(self, data: bytes) -> None:
        if isinstance(self.client, TlsClient):
            await self.client.send(data)
        else:
            await asyncio.get_running_loop().sock_sendall(self.client, data)

    async def recv(self) -> bytes:
        if isinstance(self.client, TlsClient):
            return await self.client.recv()
        return await asyncio.get_running_loop().sock_recv(self.client, 65_536)

    async def end_direction(self) -> None:
        if isinstance(self.client, TlsClient):
            await self.client.end_direction()
        else:
            self.client.shutdown(socket.SHUT_WR)

    async def serve(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.server, data)

    async def hear(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.server, 65_536)


ADDRESS = ("192.0.2.1", 4711)


@asynccontextmanager
async def carried(
    relays: Relays, tls: bool = True, context: ssl.SSLContext | None = None, name: str = "localhost"
) -> AsyncIterator[Carried]:
    """A session between two sockets of the test's."""
    ours, theirs = tcp_pair()
    with ours:
        with theirs:
            session, server = await relays.carry(theirs, ADDRESS, tls=tls)
        with server:
            client: TlsClient | socket.socket = ours
            if tls:
                client = TlsClient(ours, context, name)
                await asyncio.gather(client.shake_hands(), session.handshake)
            yield Carried(client, server, session)


async def until(condition: Callable[[], bool], patience_s: float = 90.0) -> None:
    """Wait until something that another process does has happened."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.005)
