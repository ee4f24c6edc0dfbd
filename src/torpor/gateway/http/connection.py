"""One connection of an HTTP/1.1 client: requests in, answers out, one after the other; or a WebSocket, when a request asks for one.

Concurrency: callbacks of the event loop, and one task while a request is answered. Bounded: a head of 64 KiB that must arrive within
`HEAD_S`; a body of as much as its handler asks for, of which 256 KiB are read ahead, and all bodies together of `ROOM`; of an answer
what the kernel takes and 64 KiB more. A client that takes nothing of its answer for `UNREAD_S` is cut off; one that vanishes
cancels its request.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, cast
from urllib.parse import parse_qsl

import httptools
import msgspec

from torpor.base.logs import get_logger
from torpor.gateway.http.failures import Failure, failure
from torpor.gateway.http.figures import COUNT
from torpor.model.access import address_key

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
HEAD_S = 10.0
IDLE_S = 75.0
BODY_S = 30.0
UNREAD_S = 60.0
_AHEAD_BYTES = 256 * 1024
_DISCARDED_BYTES = 1 << 20
_DISCARD_S = 2.0
_CHUNKS_AHEAD = 1024
_PIPELINED = 8
_SHARE = 4
_SWITCHED = 101
_MAX_PARAMETERS = 50
_JSON = msgspec.json.Encoder()
_REASONS = {
    200: b"OK", 204: b"No Content", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict", 413: b"Content Too Large", 415: b"Unsupported Media Type",
    421: b"Misdirected Request", 422: b"Unprocessable Content", 426: b"Upgrade Required", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 502: b"Bad Gateway", 503: b"Service Unavailable",
}  # fmt: skip
_ALWAYS = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"


class Room:
    """The memory that bodies may take of all requests together, and a quarter of it those of one address: who sends them may be nobody."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: Counter[str] = Counter()
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"<Room {self._held_bytes} of {self._limit_bytes} bytes>"

    def take(self, key: str, size: int) -> None:
        """Hold some more. Raises Failure when there is no more."""
        if self._held_bytes + size > self._limit_bytes or self._held[key] + size > self._limit_bytes // _SHARE:
            raise failure(503, "53200", "too many large requests are under way", "try again in a moment, with less at once", 1)
        self._held_bytes += size
        self._held[key] += size

    def give_back(self, key: str, size: int) -> None:
        """Hold less."""
        self._held_bytes -= size
        self._held[key] -= size
        if not self._held[key]:
            del self._held[key]


ROOM = Room(512 << 20)
"""Of this process."""


class ClientGone(Exception):
    """The client closed the connection, or takes nothing."""


class Upgraded(Protocol):
    """What takes over a connection after an upgrade."""

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self) -> None: ...


class Request:
    """One request. Its body is read once, by its handler."""

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        self.client = connection.client
        """Whose it is: of what a trusted proxy brings, whom that names."""
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.keep_alive = True
        self.is_upgrade = False
        self._held: list[tuple[str, int]] = []
        self._parts: list[bytes] = []
        self._ahead = 0
        self._is_whole = False
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path} of {self.connection.client[0]}>"

    @property
    def host(self) -> str:
        """The name by which the client calls this server, without the port."""
        text = self.headers.get("host", "")
        return text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the address. Raises Failure."""
        try:
            return dict(parse_qsl(self.query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
        except ValueError:
            raise failure(400, "22023", "the query of the address can't be read") from None

    async def body(self, limit_bytes: int) -> bytes:
        """All of the body. Raises Failure when it is larger or doesn't come, ClientGone."""
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit_bytes:
            raise self._too_large(limit_bytes)
        whole: list[bytes] = []
        size = 0
        while part := await self.part():
            size += len(part)
            if size > limit_bytes:
                raise self._too_large(limit_bytes)
            key = address_key(self.client[0])
            ROOM.take(key, len(part))
            self._held.append((key, len(part)))
            whole.append(part)
        return b"".join(whole)

    async def part(self) -> bytes:
        """What has come of the body; nothing at its end. Raises Failure, ClientGone."""
        while not self._parts:
            if self._is_whole:
                return b""
            if self.connection.is_lost:
                raise ClientGone
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(BODY_S):
                    await self._waiter
            except TimeoutError:
                raise failure(408, "08006", f"nothing of the body came within {BODY_S:g} s") from None
            finally:
                self._waiter = None
        data = b"".join(self._parts)
        self._parts.clear()
        self._ahead = 0
        self.connection.want_body()
        return data

    async def discard(self) -> None:
        """Read and drop what is left, so that the client, still sending, gets to read the answer."""
        left = _DISCARDED_BYTES
        try:
            async with asyncio.timeout(_DISCARD_S):
                while left > 0 and (part := await self.part()):
                    left -= len(part)
        except (TimeoutError, Failure):
            pass
        if not self._is_whole:
            self.keep_alive = False

    # -- for the connection

    def over(self) -> None:
        """It is answered: its body is no more. Idempotent."""
        while self._held:
            ROOM.give_back(*self._held.pop())

    def feed(self, data: bytes) -> bool:
        """A part of the body came; whether there is room for more."""
        self._parts.append(data)
        self._ahead += len(data)
        self.wake()
        return self._ahead < _AHEAD_BYTES and len(self._parts) < _CHUNKS_AHEAD

    def end(self) -> None:
        """The body is whole."""
        self._is_whole = True
        self.wake()

    def wake(self) -> None:
        """Have the handler look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _too_large(self, limit_bytes: int) -> Failure:
        return failure(413, "54000", f"the body is larger than {limit_bytes} bytes", "send less at once")


class Reply:
    """The answer to one request."""

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self._request = request
        self.headers: dict[str, str] = {}
        """What goes with whatever is answered."""
        self.status = 0
        self.is_begun = False
        self.is_ended = False
        self._chunked = False

    def whole(self, status: int, body: bytes, media: str = "application/json", more: Mapping[str, str] | None = None) -> None:
        """All of it at once."""
        headers = {**self.headers, **(more or {})}
        if body or status != 204:
            headers |= {"content-type": media, "content-length": str(len(body))}
        self._head(status, headers)
        self._connection.write(body)
        self.is_ended = True

    def failed(self, error: Failure) -> None:
        """The error as JSON."""
        more = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
        if error.status == 401:
            more["www-authenticate"] = 'Basic realm="Torpor", charset="UTF-8", Bearer realm="Torpor"'
        self.whole(error.status, _JSON.encode(error.as_json()), more=more)

    async def begin(self, media: str) -> None:
        """Begin an answer whose length isn't known yet."""
        self._chunked = True
        self._head(200, {**self.headers, "content-type": media, "transfer-encoding": "chunked"})

    async def send(self, data: bytes) -> None:
        """One more piece. Raises ClientGone."""
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._connection.drain()

    def end(self) -> None:
        """All was sent."""
        self._connection.write(b"0\r\n\r\n")
        self.is_ended = True

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.is_begun = True
        self.status = status
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"")), _ALWAYS]
        lines += [f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in headers.items()]
        if not self._request.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._connection.write(b"".join(lines))


Handler = Callable[[Request, Reply], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, client: tuple[str, int], encrypted: bool, on_lost: "Callable[[Connection], None]") -> None:
        self.client = client
        self.encrypted = encrypted
        self.is_lost = False
        self.idle_since = 0.0
        self._handler = handler
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._request: Request | None = None
        self._waiting: list[Request] = []
        self._head_bytes = 0
        self._url = b""
        self._method = b""
        self._headers: dict[str, str] = {}
        self._in_head = True
        self._reading = True
        self._full = False
        self._drained: asyncio.Future[None] | None = None
        self._upgraded: Upgraded | None = None
        self._left_over = b""
        self._stays = False
        self._progress = 0
        self._is_last = False
        self._is_dismissed = False
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.client[0]} {self._request or 'idle'}>"

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.idle_since = self._loop.time()
        self._await_head(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._set_deadline(None)
        if self._unread is not None:
            self._unread.cancel()
        self._full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._upgraded is not None:
            self._upgraded.connection_lost()
        elif self._task is not None:
            self._task.cancel()
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self._upgraded is not None:
            COUNT.received += len(data)
            self._upgraded.data_received(data)
            return
        if self._request is not None and self._request.is_upgrade:
            self._left_over += data  # of the WebSocket that is being opened
            if len(self._left_over) > MAX_HEAD_BYTES:
                self.abort()
            return
        self._head_bytes += len(data)
        COUNT.received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if not self._stays:
                self._left_over = rest
            else:
                # It asks to become what isn't spoken here (HTTP/2, mostly), and may be answered as if it hadn't. But what follows its
                # head counts as the other protocol's to this parser: another gets it, with a head that doesn't ask.
                self._parser = httptools.HttpRequestParser(self)
                self.data_received(self._head_again() + rest)
        except httptools.HttpParserError as error:
            self._garbage(error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error)
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._garbage(failure(431, "54000", f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._full = True
        self._watch_unread(None)

    def resume_writing(self) -> None:
        self._full = False
        self._progress += 1
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- httptools' callbacks

    def on_message_begin(self) -> None:
        self._headers, self._url, self._in_head = {}, b"", True
        if self.is_idle:
            self._await_head(HEAD_S)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= MAX_HEADERS:
            raise failure(431, "54000", f"the request has more than {MAX_HEADERS} headers")
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._set_deadline(None)
        self._stays = bool(self._parser.should_upgrade()) and self._headers.get("upgrade", "").lower() != "websocket"
        self._method = self._parser.get_method()
        if self._stays:
            return
        request = Request(self)
        request.method = self._method.decode("latin-1")
        path, _, request.query = self._url.decode("latin-1").partition("?")
        request.path, request.headers = path, self._headers
        request.keep_alive = self._parser.should_keep_alive() and not self._is_last
        request.is_upgrade = bool(self._parser.should_upgrade())
        if request.is_upgrade:
            request.keep_alive = False  # unless it becomes a WebSocket
        if request.headers.get("expect", "").lower() == "100-continue" and self._request is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._waiting.append(request)
        self._next()

    def on_body(self, body: bytes) -> None:
        newest = self._newest()
        if newest is not None and not newest.feed(body):
            self._stop_reading()

    def on_message_complete(self) -> None:
        self._head_bytes, self._in_head = 0, True
        if self._stays:
            return
        newest = self._newest()
        if newest is not None:
            newest.end()
        if len(self._waiting) >= _PIPELINED:  # not earlier: who doesn't read doesn't see that the client has left
            self._stop_reading()

    # -- for handlers

    def want_body(self) -> None:
        """The handler has taken what there was of the body."""
        if not self._in_head or self._request is None:
            self._go_on_reading()

    def write(self, data: bytes) -> None:
        """Without waiting."""
        if self._transport is not None and not self.is_lost:
            COUNT.sent += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Until the client has taken enough. Raises ClientGone."""
        while self._full and not self.is_lost:
            self._drained = self._loop.create_future()
            await self._drained
        if self.is_lost:
            raise ClientGone

    def upgrade(self, to: Upgraded) -> bytes:
        """Give the bytes to come to another; what has come is returned."""
        self._upgraded = to
        rest, self._left_over = self._left_over, b""
        self._go_on_reading()
        return rest

    def pause_reading(self) -> None:
        """After an upgrade: take no more for now."""
        self._stop_reading()

    def resume_reading(self) -> None:
        """After an upgrade: go on."""
        self._go_on_reading()

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked that isn't answered."""
        return self._request is None and not self._waiting

    def shut(self) -> None:
        """End it after the request that is under way; at once when there is none."""
        self._is_last = True
        if self.is_idle:
            self.close()
        for request in (self._request, *self._waiting):
            if request is not None:
                request.keep_alive = False

    def dismiss(self) -> None:
        """End it now; a request whose answer hasn't begun is told why."""
        self._is_dismissed = True
        if self._task is not None:
            self._task.cancel()
        else:
            self.abort()

    def close(self) -> None:
        """End it when all that was written is sent."""
        if self._transport is not None:
            self._transport.close()
            self._watch_unread(None)

    def abort(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside

    def _head_again(self) -> bytes:
        """The head that was read last, without its wish to become something else."""
        words = [word.strip() for word in self._headers.pop("connection", "").lower().split(",")]
        kept = [f"{name}: {text}" for name, text in self._headers.items() if name != "upgrade"]
        kept += ["connection: close"] if "close" in words else []
        method = self._method.decode("latin-1")
        return "\r\n".join([f"{method} {self._url.decode('latin-1')} HTTP/1.1", *kept, "", ""]).encode("latin-1")

    def _newest(self) -> Request | None:
        return self._waiting[-1] if self._waiting else self._request

    def _next(self) -> None:
        if self._request is None and self._waiting and not self.is_lost:
            self._request = self._waiting.pop(0)
            self._task = self._loop.create_task(self._answer(self._request), name=f"request of {self.client[0]}")

    async def _answer(self, request: Request) -> None:
        reply, begun = Reply(self, request), self._loop.time()
        try:
            try:
                await self._handler(request, reply)
            except Failure as error:
                if reply.is_begun:
                    log.info(
                        "an answer was cut off", client=self.client[0], path=request.path, sqlstate=error.sqlstate, error=error.message
                    )
                else:
                    await request.discard()
                    reply.failed(error)
            if self._upgraded is not None:
                return
            if not reply.is_ended:  # what was begun can't be taken back: the client must see that it is not whole
                self.abort()
                return
            await request.discard()
            await self.drain()
        except (ClientGone, asyncio.CancelledError):
            if self._is_dismissed and self._upgraded is None and not reply.is_begun and not self.is_lost:
                request.keep_alive = False
                reply.failed(failure(503, "57P01", "Torpor is shutting down", "ask again once it is back", 1))
                self.close()
            else:
                self.abort()
            return
        except Exception:
            log.exception("a request failed", client=self.client[0], path=request.path)
            if not reply.is_begun:
                request.keep_alive = False
                reply.failed(failure(500, "XX000", "internal error in the gateway", "Torpor's log says more"))
            self.close()
            return
        finally:
            request.over()
            if self._upgraded is not None:
                COUNT.answered(request.path, _SWITCHED, True, None)
            else:
                COUNT.answered(request.path, reply.status, reply.is_ended, self._loop.time() - begun)
            self._request = self._task = None
        if not request.keep_alive:
            self.close()
            return
        self.idle_since = self._loop.time()
        if not self._waiting:
            self._await_head(IDLE_S)
        self._next()
        self._go_on_reading()

    def _garbage(self, error: BaseException | None) -> None:
        """What can't be read ends the connection, with a word."""
        if self.is_idle:
            request = Request(self)
            request.keep_alive = False
            told = error if isinstance(error, Failure) else failure(400, "08P01", "this is no HTTP/1.1 request that is understood here")
            Reply(self, request).failed(told)
            self.close()
        else:
            self.abort()

    def _stop_reading(self) -> None:
        if self._reading and self._transport is not None and not self.is_lost:
            self._reading = False
            self._transport.pause_reading()

    def _go_on_reading(self) -> None:
        if not self._reading and self._transport is not None and not self.is_lost:
            self._reading = True
            self._transport.resume_reading()

    def _await_head(self, patience_s: float) -> None:
        self._set_deadline(self._loop.call_later(patience_s, self.close))

    def _set_deadline(self, deadline: asyncio.TimerHandle | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = deadline

    def _watch_unread(self, before: tuple[int, int] | None) -> None:
        """A client that takes nothing would hold its request, and what that holds, for ever."""
        if self._transport is None or self.is_lost:
            return
        unread = self._transport.get_write_buffer_size()
        if unread and before is not None and unread >= before[0] and self._progress == before[1]:
            self.abort()
        elif unread and (before is not None or self._unread is None):
            self._unread = self._loop.call_later(UNREAD_S, self._watch_unread, (unread, self._progress))
        elif before is not None:
            self._unread = None
