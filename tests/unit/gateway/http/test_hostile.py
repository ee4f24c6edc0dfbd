"""Hostile HTTP and WebSockets: requests inside of requests, depth, bytes that are no text, frames against the rules, bombs."""

import asyncio
import gzip
import json
import struct

import pytest

from tests.unit.gateway.http.test_connection import Client, serving
from torpor.gateway.http import websocket
from torpor.gateway.http.connection import Reply, Request
from torpor.gateway.http.failures import Failure
from torpor.gateway.http.ppgframes import read_descriptor, read_login, read_multipart
from torpor.gateway.http.queries import read
from torpor.gateway.http.websocket import WebSocket

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 0",
        b"Content-Length: 3, 0",
        b"Content-Length: +3",
        b"Content-Length: -3",
        b"Content-Length: 0x3",
        b"Content-Length: 3 3",
        b"Content-Length: 99999999999999999999999",
        b"Content-Length : 0",
        b"Content-Length\x00: 0",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding:\x0bchunked",
        b"X: a\rTransfer-Encoding: chunked",
        b"X: a\x00b",
        b" Transfer-Encoding: chunked",
    ],
)
async def test_no_request_hides_in_another(head: bytes) -> None:
    """It is refused, or read as one request; what follows it is never taken for another where heads disagree about its length."""
    paths: list[str] = []

    async def handle(request: Request, reply: Reply) -> None:
        paths.append(request.path)
        await request.body(1000)
        reply.whole(200, b"")

    async with serving(handle) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        writer.write_eof()
        await reader.read()
    assert "/smuggled" not in paths


async def test_chunks_that_are_none() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        reply.whole(200, await request.body(1000))

    for chunks in (
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"ffffffffffffffffff\r\n",
        b"3\r\nabcd\r\n",
        b"3;" + b"x" * 200_000,
        b"3\r\nabc\n0\r\n\r\n\x00",
    ):
        async with serving(handle) as connect:
            reader, writer = await connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            writer.write_eof()
            assert b"HTTP/1.1 500" not in await reader.read()


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"query": ' + DEEP,
        b'{"query": "SELECT $1", "params": [' + DEEP + b"]" * 200_000 + b"]}",
        b'{"queries": [' + b'{"queries": [' * 50_000,
        b'{"query": "\xff\xfe"}',
        b'{"query": "\xed\xa0\x80"}',
        b"\xff",
        b'{"query": "SELECT 1\x00"}',
        gzip.compress(json.dumps({"query": "SELECT 1" + " " * 1_000_000}).encode()),
    ],
)
def test_bodies_that_are_no_queries(body: bytes) -> None:
    with pytest.raises(Failure) as refused:
        read({"content-encoding": "gzip"}, body)
    assert refused.value.status == 400
    for reader in (
        lambda: read_descriptor(body),
        lambda: read_login(body),
        lambda: read_multipart("multipart/form-data; boundary=x", body),
    ):
        with pytest.raises(Failure):
            reader()


def framed(opcode: int, data: bytes = b"", fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A frame, as a client sends it or must not."""
    length = len(data)
    size = (
        bytes((length,)) if length < 126 else b"\x7e" + struct.pack("!H", length) if length < 65536 else b"\x7f" + struct.pack("!Q", length)
    )
    mask = b"\1\2\3\4" if masked else b""
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)) if masked else data
    return bytes((fin << 7 | reserved << 4 | opcode,)) + bytes((size[0] | masked << 7,)) + size[1:] + mask + body


OPEN = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


async def echo(request: Request, _reply: Reply) -> None:
    one = WebSocket.accept(request)
    one.trust()
    while (message := await one.receive()) is not None:
        await one.send(message)
    await one.close()


async def opened(client: Client) -> None:
    client[1].write(OPEN)
    head = await client[0].readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"deflate" not in head.lower(), "what nobody unpacks is no bomb"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (framed(1, b"hello", masked=False), 1002),
        (framed(1, b"hello", reserved=4), 1002),  # as if it were compressed
        (framed(0, b"hello"), 1002),
        (framed(1, b"a", fin=False) + framed(1, b"b"), 1002),
        (framed(9, b"ping", fin=False), 1002),
        (framed(9, b"x" * 126), 1002),
        (framed(3), 1002),
        (framed(11), 1002),
        (framed(8, b"\0"), 1002),
        (framed(8, struct.pack("!H", 999)), 1002),
        (framed(1, b"\xff\xfe"), 1007),
        (framed(1, b"\xc3", fin=False) + framed(0, b"("), 1007),
        (b"\x82\xff" + struct.pack("!Q", 1 << 62), 1009),
        (b"\x82\xff" + struct.pack("!Q", 17 << 20), 1009),
    ],
)
async def test_frames_against_the_rules_end_it_with_a_word(frames: bytes, code: int) -> None:
    async with serving(echo) as connect:
        client = await connect()
        await opened(client)
        client[1].write(frames)
        heard = b""
        while struct.pack("!H", code) not in heard:
            part = await client[0].read(1000)
            assert part, heard
            heard += part
        client[1].close()


async def test_what_is_in_pieces_is_put_together() -> None:
    async with serving(echo) as connect:
        client = await connect()
        await opened(client)
        client[1].write(framed(2, b"he", fin=False) + framed(9, b"amid") + framed(0, b"l", fin=False))
        client[1].write(framed(0, b"", fin=False) * 5_000)
        assert await client[0].readexactly(6) == b"\x8a\x04amid"
        client[1].write(framed(0, b"lo"))
        assert await client[0].readexactly(7) == b"\x82\x05hello"
        client[1].write(framed(8, struct.pack("!H", 1000)))
        await client[0].read()


async def test_messages_that_are_empty_are_no_way_to_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_AHEAD_BYTES", 64 * 100)
    made: list[WebSocket] = []
    go_on = asyncio.Event()

    async def slow(request: Request, _reply: Reply) -> None:
        one = WebSocket.accept(request)
        one.trust()
        made.append(one)
        await go_on.wait()
        count = 0
        while (message := await one.receive()) != "":
            assert message == b""
            count += 1
        await one.send(str(count))
        await one.close()

    async with serving(slow) as connect:
        client = await connect()
        await opened(client)
        sent = 101
        client[1].write(framed(2) * sent)
        while not made or not made[0].is_halted:  # noqa: ASYNC110  # it has no word for that
            await asyncio.sleep(0.01)
        client[1].write(framed(1))
        go_on.set()
        await client[0].readuntil(str(sent).encode())
        client[1].write(framed(8, struct.pack("!H", 1000)))


async def test_many_pings_are_answered_and_keep_no_more_than_asked_for() -> None:
    async with serving(echo) as connect:
        client = await connect()
        await opened(client)
        client[1].write(framed(9, b"x" * 125) * 200)
        assert await client[0].readexactly(127 * 200) == (b"\x8a\x7d" + b"x" * 125) * 200
        client[1].write(framed(8, struct.pack("!H", 1000)))
        async with asyncio.timeout(60):
            await client[0].read()
