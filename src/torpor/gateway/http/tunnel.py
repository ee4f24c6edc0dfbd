"""`/v2`: a WebSocket that carries the bytes of a PostgreSQL client, as Neon's driver opens it, to the door and back.

The client says its startup message and, without waiting for an answer, its password in the clear and its first query: a round trip over
the internet for each would cost more than all else. So the password is asked for in the clear here, inside of what encrypts the WebSocket,
and we log in at the door with it, by SCRAM; a token in the head of the request takes its place. From then on bytes are passed on as they
are: cancel requests, too.

Concurrency: the request's task, and one more for the way back. Bounded by the limits of both ends: whoever doesn't read slows the other
down. When either end is gone, so is the other.
"""

import asyncio
import contextlib

from websockets.frames import CloseCode

from torpor.gateway.http.backend import Door, Wire, dial, respond
from torpor.gateway.http.connection import ClientGone, Request
from torpor.gateway.http.credentials import token_in
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.websocket import WebSocket
from torpor.model.errors import ProtocolViolation
from torpor.pgwire.frames import MESSAGE_HEADER_BYTES, STARTUP_HEADER_BYTES, frame, message_body_length, startup_body_length
from torpor.pgwire.passwords import PASSWORD_TAG
from torpor.pgwire.replies import ENCRYPTION_REFUSED, error_response
from torpor.pgwire.scramclient import ScramClient
from torpor.pgwire.startup import CancelRequest, EncryptionRequest, StartupMessage, parse_first_packet

_LOGIN_S = 30.0
_MAX_PASSWORD_BYTES = 8_193  # it may be a token
_ASK_PASSWORD = frame(b"R", (3).to_bytes(4, "big"))
_ENCRYPTION_REQUESTS = 2
_AUTHENTICATION, _ERROR = ord("R"), ord("E")
_OK = bytes(4)


async def tunnel(request: Request, door: Door, server_name: str) -> None:
    """Carry one client until it, or its database, has left."""
    socket = WebSocket.accept(request)
    wire: Wire | None = None
    try:
        stream = _Stream(socket)
        async with asyncio.timeout(_LOGIN_S) as limit:
            packet = await _first_packet(socket, stream)
            token = token_in(request.headers.get("authorization", "")) if isinstance(packet, StartupMessage) else None
            wire = await dial(door, request.client, server_name, token is not None)
            wire.send(packet.encode())
            if isinstance(packet, StartupMessage):
                await socket.send(_ASK_PASSWORD)
                tag, body = await stream.message(_MAX_PASSWORD_BYTES)
                if tag != PASSWORD_TAG or body.count(0) != 1 or not body.endswith(b"\0"):
                    raise ProtocolViolation(
                        "expected a password in the clear", "this way in asks for one; the WebSocket has to be encrypted"
                    )
                limit.reschedule(None)  # a start may take its time; the door has limits of its own
                password = token or body[:-1].decode("utf-8", "surrogateescape")
                await _log_in(wire, socket, packet.parameters.get("user", ""), password)
        socket.trust()
        await _carry(socket, stream, wire)
    except ProtocolViolation as error:
        await _tell(socket, error_response(error.sqlstate, error.message, error.hint))
    except Failure as error:
        await _tell(socket, error_response(error.sqlstate, error.message, error.fields.get("H", "")))
    except TimeoutError:
        await _tell(socket, error_response("08006", f"the login took longer than {_LOGIN_S:g} s"))
    except ClientGone:
        pass
    finally:
        if wire is not None:
            wire.close()
    await socket.close()


class _Stream:
    """What a client sends, as if it were no messages of a WebSocket."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.rest = b""

    async def exactly(self, length: int) -> bytes:
        while len(self.rest) < length:
            self.rest += await self.more()
        data, self.rest = self.rest[:length], self.rest[length:]
        return data

    async def message(self, limit_bytes: int) -> tuple[bytes, bytes]:
        tag, length = message_body_length(await self.exactly(MESSAGE_HEADER_BYTES), limit_bytes)
        return tag, await self.exactly(length)

    async def more(self) -> bytes:
        part = await self._socket.receive()
        if part is None:
            raise ClientGone
        if isinstance(part, str):
            raise ProtocolViolation("a PostgreSQL client's messages are binary")
        return part


async def _first_packet(socket: WebSocket, stream: _Stream) -> StartupMessage | CancelRequest:
    for _ in range(_ENCRYPTION_REQUESTS + 1):
        header = await stream.exactly(STARTUP_HEADER_BYTES)
        packet = parse_first_packet(await stream.exactly(startup_body_length(header)))
        if not isinstance(packet, EncryptionRequest):
            return packet
        await socket.send(ENCRYPTION_REFUSED)
    raise ProtocolViolation("the client asks for encryption again and again", "the WebSocket is what encrypts here")


async def _log_in(wire: Wire, socket: WebSocket, user: str, password: str) -> None:
    """Log in for the client; what comes after AuthenticationOk is left in the wire. Raises ClientGone when it was refused, and told so."""
    scram = ScramClient(password)
    while True:
        tag, body = await wire.message()
        if tag == _AUTHENTICATION and body[:4] != _OK:
            wire.send(await respond(body, scram, user, password))
            continue
        await socket.send(frame(bytes((tag,)), body))
        if tag == _AUTHENTICATION:
            return
        if tag == _ERROR:
            raise ClientGone


async def _carry(socket: WebSocket, stream: _Stream, wire: Wire) -> None:
    async def back() -> None:
        with contextlib.suppress(Failure, ClientGone):
            while True:
                await socket.send(await wire.some())

    async def forth() -> None:
        with contextlib.suppress(ClientGone):
            data = stream.rest or await stream.more()
            while True:
                wire.send(data)
                await wire.drain()
                data = await stream.more()

    ways = {asyncio.create_task(back(), name="tunnel back"), asyncio.create_task(forth(), name="tunnel forth")}
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    for way in done:
        way.result()


async def _tell(socket: WebSocket, farewell: bytes) -> None:
    with contextlib.suppress(ClientGone):
        await socket.send(farewell)
        await socket.close(CloseCode.NORMAL_CLOSURE)
