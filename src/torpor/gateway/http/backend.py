"""One logged-in connection to a database, made through the door for one client.

Concurrency: belongs to one task at a time. What comes is cut into messages in batches; when nobody takes them, reading stops, so that
at most `_HIGH_BYTES` and one message are kept, and a result of any size passes. Safe to cancel: whoever is interrupted closes it.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from torpor.gateway.http.credentials import Target
from torpor.gateway.http.failures import Failure, error_fields, failure, gone
from torpor.gateway.http.proxyheader import vouch
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.answers import terminate
from torpor.pgwire.frames import frame
from torpor.pgwire.passwords import make_md5_verifier, md5_answer
from torpor.pgwire.requests import password, sasl_initial, sasl_response
from torpor.pgwire.scram import MECHANISM
from torpor.pgwire.scramclient import ScramClient
from torpor.pgwire.startup import CancelRequest, StartupMessage

MAX_MESSAGE_BYTES = 64 << 20
"""The largest row (or other message) that passes."""

_HIGH_BYTES = 256 * 1024
_HEADER = struct.Struct("!BI")
_HEADER_BYTES = 5
_CONNECT_S = 10.0
_LOGIN_S = 90.0  # the door's own limits are shorter, but for a start that takes long
_AUTHENTICATION, _ERROR, _KEY_DATA, _READY = ord("R"), ord("E"), ord("K"), ord("Z")

Message = tuple[int, int, int]
"""Tag, where its body begins, and where it ends."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where the door is, and what proves to it that we may speak for others."""

    host: str
    port: int
    secret: bytes


class Wire(asyncio.Protocol):
    """The bytes of one connection to the door. Made by `dial`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused = self._full = self.is_lost = False
        self.on_lost: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Wire {len(self._buffer)} bytes{' lost' if self.is_lost else ''}>"

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._full = False
        self._wake()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- for its owner

    @property
    def is_quiet(self) -> bool:
        """Whether it stands, and nothing has come that nobody read."""
        return not self.is_lost and not self._buffer

    def send(self, data: bytes) -> None:
        """Write, without waiting: what is sent was in memory anyway."""
        if self._transport is not None and not self.is_lost:
            self._transport.write(data)

    async def drain(self) -> None:
        """Until the other end has taken enough of what was sent."""
        while self._full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def some(self) -> bytes:
        """Whatever has come, at least a byte. Raises Failure at the end of the connection."""
        while not self._buffer:
            await self._more()
        data = bytes(self._buffer)
        self._buffer.clear()
        self._resume()
        return data

    async def messages(self) -> tuple[bytes, list[Message]]:
        """The messages that are whole, at least one. Raises Failure at the end of the connection."""
        while True:
            buffer, found, at = self._buffer, [], 0
            length, unpack = len(buffer), _HEADER.unpack_from
            while at + _HEADER_BYTES <= length:
                tag, size = unpack(buffer, at)
                end = at + 1 + size
                if end > length:
                    if size > MAX_MESSAGE_BYTES:
                        raise failure(
                            400, "54000", f"a row of {size} bytes is too large: {MAX_MESSAGE_BYTES} are the limit", "fetch it in parts"
                        )
                    break
                found.append((tag, at + _HEADER_BYTES, end))
                at = end
            if found:
                data = bytes(memoryview(buffer)[:at]) if at < length else bytes(buffer)
                del buffer[:at]
                self._resume()
                return data, found
            if self._paused and self._transport is not None:  # one message that is larger than all that we keep otherwise
                self._resume()
            await self._more()

    async def message(self) -> tuple[int, bytes]:
        """One message, and nothing of what follows it. Raises Failure at the end of the connection."""
        while len(self._buffer) < _HEADER_BYTES or len(self._buffer) < 1 + _HEADER.unpack_from(self._buffer)[1]:
            await self._more()
        tag, size = _HEADER.unpack_from(self._buffer)
        body = bytes(self._buffer[_HEADER_BYTES : 1 + size])
        del self._buffer[: 1 + size]
        return tag, body

    def close(self) -> None:
        """End it at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Say goodbye, and end it when that is sent."""
        if self._transport is not None and not self.is_lost:
            self._transport.write(terminate())
            self._transport.close()

    async def _more(self) -> None:
        if self.is_lost:
            raise gone()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self.is_lost:
            self._paused = False
            self._transport.resume_reading()


async def dial(door: Door, client: tuple[str, int], server_name: str, by_token: bool = False) -> Wire:
    """Connect to the door for `client`. Raises Failure."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, wire = await loop.create_connection(Wire, door.host, door.port)
    except OSError as error:
        raise gone("Torpor's door can't be reached just now") from error
    wire.send(vouch(door.secret, client, server_name, by_token))
    return wire


class Backend:
    """A logged-in connection. Made by `log_in`."""

    def __init__(self, door: Door, wire: Wire, client: tuple[str, int], server_name: str) -> None:
        self.wire = wire
        self._door = door
        self._client = client
        self._server_name = server_name
        self._cancel: CancelRequest | None = None
        self.status = "I"
        """As the last ReadyForQuery said."""
        self.is_busy = False
        """Whether something was asked that isn't answered yet."""

    def __repr__(self) -> str:
        return f"<Backend {self._cancel!r} {self.status}>"

    @classmethod
    async def log_in(cls, door: Door, client: tuple[str, int], target: Target) -> "Backend":
        """Connect, and log in as `target` says. Raises Failure, with what the door or PostgreSQL said."""
        wire = await dial(door, client, target.host, target.by_token)
        try:
            self = cls(door, wire, client, target.host)
            wire.send(StartupMessage(target.startup()).encode())
            try:
                async with asyncio.timeout(_LOGIN_S):
                    await self._authenticate(target)
            except TimeoutError:
                raise failure(503, "57P03", "the database did not start in time", "try again in a moment", 5) from None
            return self
        except BaseException:
            wire.close()
            raise

    async def _authenticate(self, target: Target) -> None:
        scram = ScramClient(target.password)
        while True:
            data, messages = await self.wire.messages()
            for tag, start, end in messages:
                body = data[start:end]
                if tag == _ERROR:
                    raise Failure(error_fields(body))
                if tag == _KEY_DATA:
                    self._cancel = CancelRequest(int.from_bytes(body[:4], "big"), body[4:])
                elif tag == _READY:
                    return
                elif tag == _AUTHENTICATION:
                    answer = await respond(body, scram, target.user, target.password)
                    if answer:
                        self.wire.send(answer)

    async def answers(self) -> AsyncIterator[tuple[bytes, int, int, int]]:
        """Message after message, until the one that says that PostgreSQL is ready, with it."""
        while True:
            data, messages = await self.wire.messages()
            for tag, start, end in messages:
                if tag == _READY:
                    self.status = chr(data[start])
                    self.is_busy = False
                yield data, tag, start, end
                if tag == _READY:
                    return

    async def cancel(self) -> None:
        """Ask PostgreSQL to give up what runs. Whether it does shows in its answers."""
        if self._cancel is None:
            return
        with contextlib.suppress(Failure):
            wire = await dial(self._door, self._client, self._server_name)
            wire.send(self._cancel.encode())
            with contextlib.suppress(Failure, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    await wire.some()
            wire.close()


async def respond(body: bytes, scram: ScramClient, user: str, secret: str) -> bytes:
    """What a client answers to an authentication request. Raises Failure."""
    code, data = int.from_bytes(body[:4], "big"), body[4:]
    try:
        match code:
            case 0:
                return b""
            case 3:
                return password(secret)
            case 5:
                return frame(b"p", md5_answer(make_md5_verifier(secret, user), data[:4]))
            case 10:
                if MECHANISM.encode() not in data.split(b"\0"):
                    raise ProtocolViolation("the server offers no SCRAM-SHA-256")
                return sasl_initial(MECHANISM, scram.first())
            case 11:
                return sasl_response(await asyncio.to_thread(scram.final, data))
            case 12:
                if not scram.verify(data):
                    raise ProtocolViolation("the server doesn't know the password")
                return b""
            case _:
                raise ProtocolViolation(f"the server asks for authentication {code}")
    except ProtocolViolation as error:
        raise failure(502, error.sqlstate, error.message) from None
