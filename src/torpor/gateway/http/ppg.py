"""`/v0/statement` and `/v0/session`: a statement over HTTP, a session over a WebSocket. The protocol that @prisma/ppg speaks.

What PostgreSQL refuses is told in a frame, with 200: only that is an error of the database to the client. Concurrency: the request's
task. Bounded: a statement of `MAX_BODY_BYTES` with all its parameters; of a result what the client has not read yet, some 100 KiB.
"""

import asyncio
from collections.abc import Awaitable, Callable

from websockets.frames import CloseCode

from torpor.gateway.http.backend import Backend, Door
from torpor.gateway.http.cached import Status, has_own_words, in_words_of_client, pooled, words_of
from torpor.gateway.http.connection import ClientGone, Reply, Request
from torpor.gateway.http.cors import admit
from torpor.gateway.http.credentials import Target, from_basic, from_login, from_token, token_in
from torpor.gateway.http.failures import Failure, bad_request, error_fields, failure
from torpor.gateway.http.kept import Kept
from torpor.gateway.http.places import Places
from torpor.gateway.http.ppgframes import (
    BINARY_PARAMETER,
    COMPLETE,
    DESCRIPTION,
    DESCRIPTOR,
    ERROR,
    MEDIA,
    ROW,
    SUBPROTOCOL,
    TEXT_PARAMETER,
    Statement,
    bytea_columns,
    complete,
    counted,
    description,
    error,
    read_descriptor,
    read_login,
    read_multipart,
    row,
)
from torpor.gateway.http.results import read_columns, read_row, split_tag
from torpor.gateway.http.sql import MAX_BODY_BYTES, Answer
from torpor.gateway.http.websocket import WebSocket
from torpor.pgwire.answers import query
from torpor.pgwire.requests import SYNC, statement

_LOGIN_S = 30.0
_FORBIDDEN = 403
_ROW, _COLUMNS, _COMPLETE, _ERROR, _READY, _NOTICE, _COPY_IN, _COPY_OUT, _COPY_BOTH = map(ord, "DTCEZNGHW")

Tell = Callable[[list[tuple[str, bytes]]], Awaitable[None]]
"""Takes frames: URN and content."""


class Ppg:
    """The handlers."""

    def __init__(self, door: Door, kept: Kept, places: Places) -> None:
        self._door = door
        self._kept = kept
        self._places = places

    async def statement(self, request: Request, reply: Reply) -> None:
        """One statement. Raises Failure for what can't be understood, or is too much."""
        target = from_basic(request.headers.get("authorization", ""), request.parameters.get("db", ""), request.host, in_percents=True)
        asked = read_multipart(request.headers.get("content-type", ""), await request.body(MAX_BODY_BYTES))
        words, status = words_of(request.headers, target), Status()
        if words is not None or has_own_words(asked.sql, target):
            status.expect(words)
        if words is not None:
            target = pooled(target)
            asked.sql = words.in_front_of(asked.sql)
        answer = Answer(reply, MEDIA, status)

        async def tell(frames: list[tuple[str, bytes]]) -> None:
            await answer.write(b"".join(content + b"\n" for _, content in frames))

        async with self._places.place(request.client[0], f"{target.host}/{target.database}"):
            try:
                backend = await self._kept.take(request.client, target)
                try:
                    reply.headers |= await admit(backend, request.headers)
                    with in_words_of_client(words):
                        await _run(backend, asked, tell, status)
                finally:
                    is_untouched = status.is_served and "origin" not in request.headers
                    self._kept.give_back(backend, request.client, target, is_untouched)
            except Failure as refusal:
                if refusal.status == _FORBIDDEN:
                    raise
                await tell([(ERROR, error(refusal))])
        answer.finish()

    async def session(self, request: Request) -> None:
        """A session, until its client leaves."""
        socket = WebSocket.accept(request, SUBPROTOCOL)
        backend: Backend | None = None
        try:
            async with asyncio.timeout(_LOGIN_S):
                login = await socket.receive()
            if login is None:
                raise ClientGone
            told = read_login(login)
            database, header = request.parameters.get("db", ""), request.headers.get("authorization", "")
            if token_in(header) is not None:
                target = from_token(header, database=database, host=request.host)
            else:
                target = from_login(told.get("username", ""), told.get("password", ""), database, request.host)
            backend = await self._converse(socket, request, target)
        except (ClientGone, TimeoutError):
            pass
        except Failure as refusal:
            await socket.close(CloseCode.POLICY_VIOLATION, refusal.message)
        finally:
            if backend is not None:
                backend.wire.leave()
        await socket.close()

    async def _converse(self, socket: WebSocket, request: Request, target: Target) -> Backend | None:
        async def tell(frames: list[tuple[str, bytes]]) -> None:
            for urn, content in frames:
                await socket.send(urn)
                await socket.send(content.decode())

        backend: Backend | None = None
        try:
            try:
                backend = await Backend.log_in(self._door, request.client, target)
            except Failure as refusal:
                if await socket.receive() is not None:  # told in answer to the first statement: else the client takes it for no error
                    await tell([(ERROR, error(refusal))])
                return None
            socket.trust()
            while (asked := await _next_statement(socket)) is not None:
                try:
                    await _converse_once(backend, asked, socket, tell)
                except Failure as refusal:
                    await tell([(ERROR, error(refusal))])
                    if backend.is_busy or backend.wire.is_lost:
                        break
            return backend
        except BaseException:
            if backend is not None:
                if backend.is_busy:
                    await backend.cancel()
                backend.wire.close()
            raise


async def _converse_once(backend: Backend, asked: Statement, socket: WebSocket, tell: Tell) -> None:
    """Run a statement, unless the client leaves meanwhile: then what runs is given up."""
    running = asyncio.create_task(_run(backend, asked, tell), name="statement of a session")
    gone = asyncio.create_task(socket.wait_over(), name="end of a session")
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        running.result()
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _next_statement(socket: WebSocket) -> Statement | None:
    """The next statement with all its parameters; None at the end. Raises Failure."""
    found: Statement | None = None
    size = 0
    while found is None or found.missing:
        urn = await socket.receive()
        content = await socket.receive() if urn is not None else None
        if urn is None or content is None:
            return None
        size += len(content)
        if size > MAX_BODY_BYTES:
            raise failure(413, "54000", f"a statement is larger than {MAX_BODY_BYTES} bytes with its parameters")
        if urn == DESCRIPTOR and found is None:
            found = read_descriptor(content)
        elif urn in (TEXT_PARAMETER, BINARY_PARAMETER) and found is not None:
            found.take(content.encode() if isinstance(content, str) else content)
        else:
            raise bad_request("this frame isn't expected here")
    return found


async def _run(backend: Backend, asked: Statement, tell: Tell, status: Status | None = None) -> None:
    """Run one statement. Raises Failure. `status` hears what the cache says."""
    # Without parameters as a simple query: that may be a script.
    is_script = not asked.values
    sent = query(asked.sql) if is_script else statement(asked.sql, asked.values, asked.binary) + SYNC
    backend.is_busy = True
    backend.wire.send(sent)
    refusal: Failure | None = None
    bytea: list[int] = []
    results, count = 0, 0
    while backend.is_busy:
        data, messages = await backend.wire.messages()
        frames: list[tuple[str, bytes]] = []
        for tag, start, end in messages:
            if tag == _ROW and not results and not asked.counts:
                frames.append((ROW, row(read_row(data, start), bytea)))
            elif tag == _COLUMNS and not results and not asked.counts:
                columns = read_columns(data[start:end])
                bytea = bytea_columns(columns)
                frames.append((DESCRIPTION, description(columns)))
            elif tag == _COMPLETE:
                results += 1
                count = split_tag(data[start : end - 1].decode("utf-8", "replace"))[1] or 0
            elif tag == _ERROR:
                refusal = refusal or Failure(error_fields(data[start:end]))
                if refusal.is_last:
                    raise refusal
            elif tag == _NOTICE and status is not None:
                status.hear(error_fields(data[start:end]))
            elif tag == _READY:
                backend.status = chr(data[start])
                backend.is_busy = False
            elif tag in (_COPY_IN, _COPY_OUT, _COPY_BOTH):
                raise failure(400, "0A000", "COPY from and to the client doesn't go this way", "use a connection")
        if frames:
            await tell(frames)
    if refusal is not None:
        raise refusal
    if asked.counts:
        columns_frame, row_frame = counted(count)
        await tell([(DESCRIPTION, columns_frame), (ROW, row_frame)])
    await tell([(COMPLETE, complete())])
