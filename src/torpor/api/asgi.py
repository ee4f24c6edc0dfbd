"""Requests and answers over bare ASGI.

Concurrency: one task a request, made by the server. A body is read up to a limit and a deadline; a stream ends when its client
goes away, when its source ends, or when its task is cancelled.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from torpor.api.faults import RequestTimeout, RequestTooLarge
from torpor.model.errors import InvalidRequest

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10.0
_MAX_DISCARDED_BYTES = 4 << 20  # read and dropped, since a client that is still sending wouldn't see the refusal
_MAX_QUERY_FIELDS = 50
_JSON = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose end isn't known yet. `close` is called once at the end, also when no part was asked for."""

    parts: AsyncGenerator[bytes, None]
    media: str
    close: Callable[[], None]


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """`value` as JSON."""
    return Answer(_JSON.encode(value), status, headers=headers or {})


def read_header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header, by its name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def query_pairs(scope: Scope) -> list[tuple[str, str]]:
    """The parameters of the query. Raises InvalidRequest for what is no query."""
    try:
        text = scope["query_string"].decode("ascii")
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise InvalidRequest("the query can't be read", "write it as name=value, joined by &") from error


async def read_whole(scope: Scope, receive: Receive, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body. Raises RequestTooLarge, RequestTimeout; InvalidRequest when the client went away in the middle."""
    announced = read_header(scope, b"content-length")
    if announced is not None and int(announced) > _MAX_DISCARDED_BYTES:
        raise _too_large(limit_bytes)
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise InvalidRequest("the request body ended early")
                part = message.get("body", b"")
                received += len(part)
                if received <= limit_bytes:
                    body += part
                elif received > _MAX_DISCARDED_BYTES:
                    raise _too_large(limit_bytes)
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise RequestTimeout(f"the request body did not arrive within {BODY_TIMEOUT_S:g} s") from error
    if received > limit_bytes:
        raise _too_large(limit_bytes)
    return bytes(body)


async def send_answer(answer: Answer, send: Send, more: Mapping[str, str]) -> None:
    """Send a whole answer, with `more` headers."""
    headers = [*_headers(answer.media, {**more, **answer.headers}), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def send_stream(
    stream: Stream, receive: Receive, send: Send, more: Mapping[str, str], until: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Send a stream part by part, until it ends, the client goes away, or `until` is over."""
    try:
        headers = _headers(stream.media, {**more, "X-Accel-Buffering": "no"})
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(_send_parts(stream, send))
        ending = asyncio.ensure_future(until())
        try:
            await asyncio.wait((leaving, sending, ending), return_when=asyncio.FIRST_COMPLETED)
            ended = ending.done() and not sending.done() and not leaving.done()
        finally:
            for task in (leaving, sending, ending):
                task.cancel()
            results = await asyncio.gather(leaving, sending, ending, return_exceptions=True)
        if ended:
            await send({"type": "http.response.body", "body": b""})
    finally:
        stream.close()
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _send_parts(stream: Stream, send: Send) -> None:
    async with aclosing(stream.parts) as parts:
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(media: str, more: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    fixed = {
        "content-type": media,
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
    }
    fixed.update({name.lower(): value for name, value in more.items()})
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fixed.items()]


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is larger than {limit_bytes} bytes")
