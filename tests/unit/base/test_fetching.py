"""Fetching from where a tenant says: from nowhere inside, no more than asked for, and no longer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from torpor.base import fetching
from torpor.base.fetching import Fetcher, FetchFailed

INSIDE = [
    "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://169.254.169.254/latest/meta-data/",
    "https://10.0.0.1/", "https://192.168.1.1/", "https://172.16.0.1/", "https://100.64.0.1/", "https://[fe80::1]/", "https://[fd00::1]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
    "https://2130706433/", "https://0x7f000001/", "https://127.1/", "https://224.0.0.1/", "https://255.255.255.255/",
]  # fmt: skip


@pytest.mark.parametrize("url", INSIDE)
async def test_nobody_inside_is_asked(url: str) -> None:
    with pytest.raises(FetchFailed, match=r"isn't public|can't be found"):
        await Fetcher(lambda _address: False).fetch(url, 1000)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com/",
        "https://",
        "https://a b/",
        "https://u:p@example.com/",
        "https://x/#f",
        "https://x:99999/",
        "https://x/\r\nA: b",
    ],
)
async def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(FetchFailed):
        await Fetcher(lambda _address: True).fetch(url, 1000)


async def test_beyond_this_machine_only_with_tls() -> None:
    with pytest.raises(FetchFailed, match="https://"):
        await Fetcher(lambda _address: False).fetch("http://8.8.8.8/", 1000)


async def fetched(answer: bytes, limit_bytes: int = 1000, then: Callable[[], Awaitable[None]] | None = None) -> bytes:
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await (then or writer.drain)()
        except OSError:
            pass  # who asked has left
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        try:
            return await Fetcher(lambda address: address == "127.0.0.1").fetch(f"http://127.0.0.1:{port}/keys?a=b", limit_bytes)
        finally:
            await served.wait()


async def test_answers() -> None:
    assert await fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") == b"hi"
    assert await fetched(b"HTTP/1.0 200 OK\r\n\r\nto the end") == b"to the end"
    assert await fetched(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n!!!\r\n0\r\n\r\n") == b"hi!!!"
    for answer, why in (
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", "cut off"),
        (b"", "cut off"),
        (b"SSH-2.0-x\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "larger"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n", "larger"),
    ):
        with pytest.raises(FetchFailed, match=why):
            await fetched(answer)


async def test_who_is_slow_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.1)
    with pytest.raises(FetchFailed, match="no answer within"):
        await fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", then=lambda: asyncio.sleep(0.3))
    with pytest.raises(FetchFailed, match="can't be reached"):
        await Fetcher(lambda _address: True).fetch("http://127.0.0.1:1/", 10)
