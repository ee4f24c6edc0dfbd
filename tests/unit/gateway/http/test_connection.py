"""Connections of HTTP clients over real sockets, without a database behind: what is slow, too much, or gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from torpor.base.tasks import TaskOwner
from torpor.gateway.http import connection as module
from torpor.gateway.http.connection import Handler, Reply, Request, Room
from torpor.gateway.http.failures import Failure, bad_request
from torpor.gateway.http.server import Server

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """A server with that handler; gives what connects to it. At the end nothing may be left of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = listener.getsockname()
    tasks = TaskOwner("test")
    server = Server(listener, handler, tasks)
    server.start()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        await server.stop(1.0)
        await tasks.stop()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    assert repr(server) == "<Server 0 connections, 0 silent>"


async def hello(_request: Request, reply: Reply) -> None:
    reply.whole(200, b"hello", "text/plain")


async def echo(request: Request, reply: Reply) -> None:
    reply.whole(200, await request.body(1000), "text/plain")


async def test_requests_one_after_the_other_and_at_once() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(3) == b"abc"
        chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        writer.write(chunked * 20)
        for _ in range(20):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(3) == b"abc"
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        assert (await reader.read()).endswith(b"x")


async def test_bodies_that_are_too_large_or_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DISCARD_S", 0.05)
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 2000\r\n\r\n" + bytes(2000))
        assert b" 413 " in await reader.readuntil(b"\r\n")
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n" + bytes(5000))
        assert b" 413 " in (await reader.read()).split(b"\r\n")[0]
        monkeypatch.setattr(module, "BODY_S", 0.05)
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nabc")
        assert b" 408 " in (await reader.read()).split(b"\r\n")[0]


async def test_heads_that_are_slow_or_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.1)
    async with serving(hello) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HT")
        assert await reader.read() == b""
        reader, writer = await connect()
        writer.write(GET)
        await reader.readuntil(b"hello")
        writer.write(b"GET /")  # the second head has its deadline, too
        assert await reader.read() == b""
        reader, writer = await connect()
        writer.write(b"GET /" + b"x" * 70_000)
        assert b" 431 " in (await reader.read()).split(b"\r\n")[0]


async def test_who_is_idle_for_long_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    async with serving(hello) as connect:
        reader, writer = await connect()
        writer.write(GET)
        assert (await reader.read()).endswith(b"hello")


async def test_who_leaves_cancels_its_request() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request, _reply: Reply) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(slow) as connect:
        _, writer = await connect()
        writer.write(GET)
        await begun.wait()
        writer.transport.abort()
        await cancelled.wait()


async def test_at_the_end_requests_are_told_why() -> None:
    begun = asyncio.Event()

    async def slow(_request: Request, _reply: Reply) -> None:
        begun.set()
        await asyncio.Event().wait()

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    tasks = TaskOwner("test")
    server = Server(listener, slow, tasks)
    server.start()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(GET)
    await begun.wait()
    await server.stop(0.0)
    assert b'"code":"57P01"' in await reader.read()
    writer.close()
    await writer.wait_closed()
    await tasks.stop()


async def test_who_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNREAD_S", 0.05)
    ended = asyncio.Event()

    async def endless(_request: Request, reply: Reply) -> None:
        try:
            await reply.begin("text/plain")
            while True:
                await reply.send(bytes(100_000))
        finally:
            ended.set()

    async with serving(endless) as connect:
        _, writer = await connect()
        writer.write(GET)
        await ended.wait()


async def test_failures_before_and_after_the_beginning() -> None:
    async def failing(request: Request, reply: Reply) -> None:
        if request.path == "/after":
            await reply.begin("text/plain")
            await reply.send(b"some")
        if request.path == "/fault":
            raise RuntimeError("what a fault is")
        raise bad_request("no")

    async with serving(failing) as connect:
        reader, writer = await connect()
        writer.write(b"GET /before HTTP/1.1\r\n\r\n")
        assert b" 400 " in await reader.readuntil(b"\r\n")
        assert b'"message":"no"' in await reader.readuntil(b"}")
        writer.write(b"GET /after HTTP/1.1\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"0\r\n\r\n")
        reader, writer = await connect()
        writer.write(b"GET /fault HTTP/1.1\r\n\r\n")
        told = await reader.read()
        assert b" 500 " in told and b"what a fault is" not in told


async def test_nobody_is_let_in_above_the_limit_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.gateway.http.server.MOST_OF_ADDRESS", 1)
    async with serving(hello) as connect:
        reader, writer = await connect()
        writer.write(GET)
        await reader.readuntil(b"hello")
        other, _ = await connect()
        assert await other.read() == b""
        writer.write(GET)
        await reader.readuntil(b"hello")


async def test_bodies_have_so_much_room_and_give_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(400)
    monkeypatch.setattr(module, "ROOM", room)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        reply.whole(200, await request.body(1000))
        begun.set()
        await go_on.wait()

    ask = b"POST / HTTP/1.1\r\nContent-Length: 80\r\n\r\n" + bytes(80)
    async with serving(slow) as connect:
        _, writer = await connect()
        writer.write(ask)
        await begun.wait()
        reader, writer = await connect()
        writer.write(ask)
        assert b" 503 " in await reader.readuntil(b"\r\n")
        go_on.set()
    assert repr(room) == "<Room 0 of 400 bytes>"
    room.take("a", 100)
    for key, size in (("a", 1), ("b", 101)):  # an address has a quarter
        with pytest.raises(Failure, match="too many large"):
            room.take(key, size)
    room.take("b", 100)
    room.give_back("a", 100)
    room.take("a", 100)


def test_a_failure_says_when_to_come_again() -> None:
    assert Failure({"C": "53300"}, 429, 1).as_json()["retryable"] is True
