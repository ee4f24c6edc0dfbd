"""Reading and following the log of a database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from torpor.api import logtail
from torpor.api.server import ApiServer

PATH = "/v1/databases/shop/logs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtail, "POLL_S", 0.01)


@pytest.fixture
async def log(databases: Any, tmp_path: Path) -> Path:
    await databases.create("shop", None, None)
    return tmp_path / "dshop.log"


def write(log: Path, content: bytes) -> None:
    """Replace what is in the log, keeping the file."""
    log.write_bytes(content)


def rotate(log: Path, n: int) -> None:
    log.rename(log.with_suffix(f".{n}"))


class Following:
    def __init__(self, answer: httpx.Response) -> None:
        self._parts = answer.aiter_raw()
        self.held = b""

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(30):
            while wanted not in self.held:
                self.held += await anext(self._parts)

    async def end(self) -> None:
        async with asyncio.timeout(30):
            async for part in self._parts:
                self.held += part


@asynccontextmanager
async def following(client: httpx.AsyncClient, lines: int = 0) -> AsyncIterator[Following]:
    async with client.stream("GET", PATH, params={"follow": "true", "lines": lines}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        yield Following(answer)


async def nobody_follows(server: ApiServer) -> None:
    for _ in range(500):
        if not server.services.followers:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("somebody still follows")


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", 5, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 200, b"a\nb\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"a\r\rb\n\xff\x85c\n", 1, b"\xff\x85c\n"),
        (b"a\nb\n", 0, b""),
        (b"".join(b"line %d\n" % n for n in range(50_000)), 10_000, b"".join(b"line %d\n" % n for n in range(40_000, 50_000))),
    ],
)
async def test_tail(client: httpx.AsyncClient, log: Path, content: bytes, lines: int, expected: bytes) -> None:
    write(log, content)
    answer = await client.get(PATH, params={"lines": lines})
    assert (answer.status_code, answer.content) == (200, expected)


async def test_tail_of_one_endless_line_is_bounded(client: httpx.AsyncClient, log: Path) -> None:
    write(log, b"x" * 20_000_000)
    assert len((await client.get(PATH)).content) <= 8 * 1024 * 1024


async def test_a_log_that_is_not_there_is_empty(client: httpx.AsyncClient, log: Path) -> None:
    assert (await client.get(PATH)).content == b""


async def test_follow_shows_old_lines_then_new_ones(client: httpx.AsyncClient, log: Path, server: ApiServer) -> None:
    write(log, b"one\ntwo\n")
    async with following(client, lines=1) as follower:
        await follower.until(b"two\n")
        with log.open("ab") as file:
            file.write(b"three\n")
        await follower.until(b"three\n")
        assert follower.held == b"two\nthree\n"
    await nobody_follows(server)


async def test_follow_waits_for_a_file(client: httpx.AsyncClient, log: Path) -> None:
    async with following(client) as follower:
        write(log, b"born\n")
        await follower.until(b"born\n")


async def test_follow_survives_rotation_and_loses_nothing(client: httpx.AsyncClient, log: Path) -> None:
    write(log, b"")
    async with following(client) as follower:
        for n in range(5):
            with log.open("ab") as file:
                file.write(b"before %d\n" % n * 100)
                rotate(log, n)
                file.write(b"last words %d\n" % n)
            await asyncio.sleep(0.03)
            write(log, b"after %d\n" % n)
            await follower.until(b"after %d\n" % n)
            assert b"last words %d\n" % n in follower.held


async def test_follow_survives_truncation(client: httpx.AsyncClient, log: Path) -> None:
    write(log, b"much that was written before\n")
    async with following(client, lines=5) as follower:
        await follower.until(b"before\n")
        write(log, b"anew\n")
        await follower.until(b"anew\n")


async def test_follow_ends_when_the_database_goes(client: httpx.AsyncClient, log: Path, databases: Any) -> None:
    async with following(client) as follower:
        del databases.views["shop"]
        await follower.end()


async def test_follow_ends_when_torpor_stops(client: httpx.AsyncClient, log: Path, server: ApiServer) -> None:
    async with following(client) as follower:
        await server.stop()
        await follower.end()


async def test_follow_of_a_stranger(client: httpx.AsyncClient) -> None:
    answer = await client.get(PATH, params={"follow": "true"})
    assert answer.status_code == 404


async def test_followers_are_bounded(client: httpx.AsyncClient, log: Path, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.api.calls.MAX_FOLLOWERS", 1)
    write(log, b"x\n")
    async with following(client, lines=1) as follower:
        await follower.until(b"x")
        answer = await client.get(PATH, params={"follow": "true"})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "too_many_connections")
    await nobody_follows(server)
