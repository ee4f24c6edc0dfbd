"""The relay: bytes arrive whole and are counted, slow readers slow writers down, either end can leave."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.unit.door.test_login import log_in
from tests.unit.door.twin import Twin, client_of, open_door, until
from torpor.door.relay import Relay
from torpor.metering.traffic import Traffic
from torpor.pgwire.answers import CommandComplete, Notice, query, terminate


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, socket.socket, socket.socket, "asyncio.Task[None]"]]:
    """A relay at work, the client's own end, the server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    client.setblocking(False)
    accepted.setblocking(False)
    relay = Relay(accepted)
    running = asyncio.ensure_future(relay.run())
    try:
        yield relay, client, relay.far, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        relay.close()
        client.close()
        accepted.close()


async def test_bytes_go_both_ways_and_are_counted() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (relay, client, server, running):
        await loop.sock_sendall(client, b"ping")
        assert await loop.sock_recv(server, 100) == b"ping"
        await loop.sock_sendall(server, b"pong!")
        assert await loop.sock_recv(client, 100) == b"pong!"
        await until(lambda: relay.traffic() == Traffic(received=4, sent=5))
        assert repr(relay) == "<Relay received=4 sent=5>"
        assert not running.done()


async def test_a_client_that_closes_its_direction_still_hears_the_server_out() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (_, client, server, running):
        client.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(server, 100) == b""
        await loop.sock_sendall(server, b"last words")
        server.close()
        assert await loop.sock_recv(client, 100) == b"last words"
        assert await loop.sock_recv(client, 100) == b""
        client.close()
        await asyncio.wait_for(running, 2)


async def test_a_server_that_ends_ends_the_session_though_the_client_stays() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (_, client, server, running):
        await loop.sock_sendall(client, b"unread")
        await loop.sock_sendall(server, b"bye")
        server.close()
        assert await loop.sock_recv(client, 100) == b"bye"
        assert await loop.sock_recv(client, 100) == b""
        await asyncio.wait_for(running, 2)


async def test_a_client_that_is_lost_ends_the_session() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (_, client, server, running):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await asyncio.wait_for(running, 2)
        assert await loop.sock_recv(server, 100) == b""


async def test_a_client_that_does_not_read_slows_the_server_down() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (relay, client, server, _):
        total = 0

        async def pour() -> None:
            nonlocal total
            while True:
                await loop.sock_sendall(server, bytes(65_536))
                total += 65_536

        pouring = asyncio.ensure_future(pour())
        await asyncio.sleep(0.3)
        stuck_at = total
        await asyncio.sleep(0.2)
        assert total == stuck_at
        for _ in range(50):
            await loop.sock_recv(client, 1 << 20)
            await asyncio.sleep(0)
        await until(lambda: total > stuck_at)
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        assert relay.traffic().received == 0


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_relayed_session_works_end_to_end_and_its_traffic_is_known(size: int) -> None:
    twin = Twin()
    async with open_door(twin, relay=True) as door, client_of(door) as client:
        await log_in(client)
        (session,) = twin.shop.sessions
        assert session.traffic is not None
        client.say(query("x" * size))
        echo = await client.hear()
        assert isinstance(echo, Notice)
        assert echo.message == "x" * size
        assert await client.hear() == CommandComplete("ECHO")
        await until(lambda: session.traffic is not None and session.traffic().sent > size)
        assert session.traffic().received == len(query("x" * size))
        assert door.stats.relayed == 1
        client.say(terminate())
        await client.reader.read()
        await session.wait_ended()
        await until(lambda: door.stats.relayed == 0)


async def test_closing_the_door_cuts_relayed_sessions() -> None:
    twin = Twin()
    async with open_door(twin, relay=True) as door, client_of(door) as client:
        await log_in(client)
        await door.close()
        await client.reader.read()
        await twin.shop.sessions[0].wait_ended()
