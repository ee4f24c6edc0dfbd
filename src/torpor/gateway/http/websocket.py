"""A WebSocket (RFC 6455) on a connection that was an HTTP request: messages in, messages out. `websockets` speaks the protocol.

Concurrency: belongs to the task of its request. Bounded: a message of `MAX_MESSAGE_BYTES`; 1 MiB read ahead, and until the client has
logged in (`trust`) 1 MiB in all, which counts as a body does; of what is sent as an answer is. Pings are answered by themselves;
one that says nothing at all, pings included, for `SILENT_S` is asked for a sign of life.
"""

import asyncio
import contextlib
from collections import deque

from websockets.exceptions import InvalidHandshake
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from torpor.gateway.http.connection import ROOM, ClientGone, Request
from torpor.gateway.http.failures import Failure, failure
from torpor.model.access import address_key

MAX_MESSAGE_BYTES = 16 << 20
SILENT_S = 60.0
_AHEAD_BYTES = 1 << 20
_MESSAGE_BYTES = 64  # that a message takes beside its own, even an empty one
_REASON_BYTES = 120
_CLOSES_S = 5.0
_LINGERS_S = 2.0


class WebSocket:
    """The server's side of one. Made by `accept`."""

    def __init__(self, request: Request, protocol: ServerProtocol) -> None:
        self._connection = request.connection
        self._protocol = protocol
        self._messages: deque[bytes | str] = deque()
        self._ahead = 0
        self._parts = bytearray()  # of the message that is coming: its frames may be a byte each, or none
        self._is_text = False
        self._is_over = False
        self._over = asyncio.Event()
        self._lost = asyncio.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._asked = False
        self._is_strange = True
        self._key = address_key(request.client[0])
        self._held = 0
        self.is_halted = False
        """Whether reading has stopped, as more than enough waits here."""

    def __repr__(self) -> str:
        return f"<WebSocket {self._protocol.state.name} {len(self._messages)} messages>"

    @classmethod
    def accept(cls, request: Request, subprotocol: str | None = None) -> "WebSocket":
        """Open it. Raises Failure when the request asks for none that can be opened."""
        if not request.is_upgrade:
            raise failure(426, "08P01", "this address is a WebSocket's", "connect with wss://")
        subprotocols = [Subprotocol(subprotocol)] if subprotocol is not None else None
        protocol = ServerProtocol(subprotocols=subprotocols, max_size=MAX_MESSAGE_BYTES)
        # The head was read by another parser: it is said again to this one.
        lines = [f"GET {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
        protocol.receive_data("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
        handshake = next((event for event in protocol.events_received() if isinstance(event, Handshake)), None)
        if handshake is None or request.method != "GET":
            raise failure(400, "08P01", "the WebSocket's handshake can't be read")
        response = protocol.accept(handshake)
        if response.status_code != 101 or (subprotocol is not None and protocol.subprotocol != subprotocol):
            cause = protocol.handshake_exc
            raise failure(
                400, "08P01", f"the WebSocket can't be opened: {cause if isinstance(cause, InvalidHandshake) else response.reason_phrase}"
            )
        protocol.send_response(response)
        self = cls(request, protocol)
        rest = request.connection.upgrade(self)
        self._flush()
        self._listen()
        if rest:
            self.data_received(rest)
        return self

    # -- for its connection

    def data_received(self, data: bytes) -> None:
        self._asked = False
        if self._is_strange and not self._is_over:
            try:
                ROOM.take(self._key, len(data))
                self._held += len(data)
            except Failure as refusal:
                self._protocol.fail(CloseCode.TRY_AGAIN_LATER, refusal.message)
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
        self._flush()
        if self._protocol.close_expected():
            self._finish()
        if max(self._ahead, self._held) > _AHEAD_BYTES and not self.is_halted:
            self.is_halted = True
            self._connection.pause_reading()

    def connection_lost(self) -> None:
        self._lost.set()
        self._finish()

    # -- for its owner

    def trust(self) -> None:
        """The client has logged in: it may say more from now on."""
        self._is_strange = False
        self._give_back()
        self._maybe_go_on()

    async def receive(self) -> bytes | str | None:
        """The next message; None at the end."""
        while not self._messages:
            if self._is_over:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        self._ahead -= len(message) + _MESSAGE_BYTES
        self._maybe_go_on()
        return message

    async def wait_over(self) -> None:
        """Until the client has left, as far as that shows: while more than enough of it waits here, nothing more is read."""
        await self._over.wait()

    async def send(self, message: bytes | str) -> None:
        """Send one. Raises ClientGone."""
        if self._is_over:
            raise ClientGone
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()
        await self._connection.drain()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """End it, and the connection. Idempotent."""
        if not self._is_over:
            self._protocol.send_close(code, reason.encode()[:_REASON_BYTES].decode("utf-8", "ignore"))
            self._flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSES_S):
                    while await self.receive() is not None:
                        pass
        if self._protocol.close_rcvd is None and not self._connection.is_lost:
            # It may still be sending: closing now would reset the connection, and it would never read why.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGERS_S):
                    await self._lost.wait()
        self._finish()
        self._connection.close()

    # -- inside

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            self._parts += frame.data
            if len(self._parts) > MAX_MESSAGE_BYTES:
                self._protocol.fail(CloseCode.MESSAGE_TOO_BIG, f"a message may have {MAX_MESSAGE_BYTES} bytes")
                return
            if frame.fin:
                data, self._parts = bytes(self._parts), bytearray()
                try:
                    message = data.decode() if self._is_text else data
                except UnicodeDecodeError:
                    self._protocol.fail(CloseCode.INVALID_DATA, "this text is no UTF-8")
                    return
                self._messages.append(message)
                self._ahead += len(message) + _MESSAGE_BYTES
                self._wake()

    def _maybe_go_on(self) -> None:
        if self.is_halted and max(self._ahead, self._held) <= _AHEAD_BYTES:
            self.is_halted = False
            self._connection.resume_reading()

    def _give_back(self) -> None:
        if self._held:
            ROOM.give_back(self._key, self._held)
            self._held = 0

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.write(data)

    def _listen(self) -> None:
        self._silence = asyncio.get_running_loop().call_later(SILENT_S, self._silent)

    def _silent(self) -> None:
        if self._is_over:
            return
        if self._asked and not self.is_halted:
            self._connection.abort()
            return
        self._asked = True
        self._protocol.send_ping(b"")
        self._flush()
        self._listen()

    def _finish(self) -> None:
        self._is_over = True
        self._give_back()
        self._over.set()
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
