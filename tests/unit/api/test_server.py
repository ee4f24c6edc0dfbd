"""Starting, stopping, and clients that behave badly."""

import asyncio
import contextlib
import copy
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.pace import in_time
from tests.unit.api.conftest import Desk
from torpor.api import asgi
from torpor.api import server as module
from torpor.api.server import ApiServer
from torpor.model.errors import AddressInUse, BadSettings


def new(desk: Desk, host: str = "127.0.0.1", port: int = 0, grace_s: float = 0.2) -> ApiServer:
    services = copy.copy(desk.services)
    services.stopping = asyncio.Event()
    return ApiServer(services, "t" * 20, host, port, Path("/x/token"), grace_s)


async def test_a_taken_port_is_one_clear_sentence(server: ApiServer, desk: Desk) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(AddressInUse, match=f"can't listen on 127.0.0.1:{port}, another program does") as caught:
        await new(desk, port=port).start()
    assert caught.value.exit_code == 11


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_that_is_not_ours(desk: Desk, host: str) -> None:
    with pytest.raises(BadSettings, match=r"api_host|can't listen"):
        new(desk, host).bind()


async def test_ipv6(desk: Desk) -> None:
    server = new(desk, "::1")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:  # a host without IPv6: then it says so
        with pytest.raises(BadSettings):
            await server.start()
        return
    await server.start()
    assert server.url.startswith("http://[::1]:")
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        assert (await client.get(f"{server.url}/healthz")).status_code == 200
    await server.stop()


async def test_clients_wait_between_bind_and_start(desk: Desk) -> None:
    server = new(desk)
    server.bind()
    server.bind()
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        waiting = asyncio.ensure_future(client.get(f"{server.url}/healthz"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await server.start()
        assert (await waiting).status_code == 200
    await server.stop()


async def test_signal_handlers_stay_ours(desk: Desk) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    server = new(desk)
    await server.start()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    await server.stop()


async def test_stopping_before_starting_and_twice(desk: Desk) -> None:
    server = new(desk)
    await server.stop()
    started = new(desk)
    await started.start()
    assert "serving" in repr(started)
    await started.stop()
    await started.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(started.url.rpartition(":")[2])))


@pytest.mark.parametrize("turns", range(5))
async def test_who_is_accepted_while_it_stops_is_not_left_open(desk: Desk, turns: int) -> None:
    started = new(desk)
    await started.start()
    with contextlib.ExitStack() as opened:
        late = [opened.enter_context(socket.create_connection(("127.0.0.1", int(started.url.rpartition(":")[2])))) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await started.stop()
        for sock in late:
            sock.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(sock.recv, 1) == b""


async def test_a_request_in_progress_is_finished_by_a_stop(server: ApiServer, client: httpx.AsyncClient, databases: Any) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await may_end.wait()

    databases.trouble = slow
    request = asyncio.ensure_future(client.post("/v1/databases"))
    await begun.wait()
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0.05)
    may_end.set()
    await stopping
    assert (await request).status_code == 201


async def test_a_request_that_hangs_is_cut_off_by_a_stop(server: ApiServer, client: httpx.AsyncClient, databases: Any) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(1000)

    databases.trouble = hang
    request = asyncio.ensure_future(client.post("/v1/databases"))
    await begun.wait()
    start = time.monotonic()
    await server.stop()
    assert in_time(time.monotonic() - start, 2)
    answer = await request
    assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "shutting_down")


async def test_a_client_that_does_not_read_cannot_hold_up_a_stop(server: ApiServer, databases: Any, tmp_path: Path) -> None:
    await databases.create("shop", None, None)
    (tmp_path / "dshop.log").write_bytes(b"x" * 99 + b"\n" + b"y" * 8_000_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1024)
    writer.write(b"GET /v1/databases/shop/logs?follow=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer test-token-0123456789\r\n\r\n")
    await reader.readline()
    start = time.monotonic()
    await server.stop()
    assert in_time(time.monotonic() - start, 2.5)
    writer.close()


async def test_a_client_that_leaves_does_not_cancel_its_request(server: ApiServer, databases: Any) -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.1)
        done.set()

    databases.trouble = slow
    _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(
        b"POST /v1/databases HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer test-token-0123456789\r\nContent-Length: 0\r\n\r\n"
    )
    await begun.wait()
    writer.close()
    await asyncio.wait_for(done.wait(), 30)


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
async def test_a_head_that_does_not_come_is_not_waited_for(server: ApiServer, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(first)
    with pytest.raises((ConnectionResetError, EOFError)):
        await asyncio.wait_for(reader.readexactly(1), 30)
    writer.close()


async def test_the_second_head_has_a_deadline_too(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert b"200" in await reader.readline()
    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 0.1)
    await asyncio.sleep(0.05)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    with pytest.raises((ConnectionResetError, EOFError)):
        await asyncio.wait_for(reader.readexactly(10_000), 30)
    writer.close()


async def test_an_endless_head_is_cut_off(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    with pytest.raises((ConnectionResetError, BrokenPipeError, EOFError)):
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        for _ in range(2000):
            writer.write(b"x" * 4096)
            await writer.drain()
        await reader.readexactly(1)
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(
        b"POST /v1/databases HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer test-token-0123456789\r\nContent-Length: 9\r\n\r\n{"
    )
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 30)
    writer.close()


async def test_garbage_is_refused_quietly(server: ApiServer, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    for garbage in (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(garbage)
        assert b"400" in await asyncio.wait_for(reader.readline(), 30)
        writer.close()
    assert (await client.get("/v1/host")).status_code == 200
    assert capsys.readouterr().err == ""
