"""What an S3 store can answer, or not, and which error tells it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support.buckets import CREDENTIALS
from torpor.model.errors import BadSettings, HistoryFull, HistoryRefused, HistoryUnreachable, TorporError
from torpor.storage.archive.s3 import S3Bucket

URL = "s3://bucket/prefix"


@contextlib.asynccontextmanager
async def answering(status: str, code: str) -> AsyncIterator[str]:
    """The URL of a server that gives each request the same answer; a status of "" hangs up, "never" says nothing."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0]) if lengths else 0)
            if status == "never":
                await ended.wait()
            elif status:
                body = f"<Error><Code>{code}</Code><Message>said so</Message></Error>"
                writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


CALLS: dict[str, Callable[[S3Bucket], Awaitable[object]]] = {
    "put": lambda bucket: bucket.put("a/b", b"x", False),
    "get": lambda bucket: bucket.get("a/b"),
    "list": lambda bucket: bucket.list("a"),
    "delete": lambda bucket: bucket.delete(["a/b"]),
}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("403 Forbidden", "AccessDenied", HistoryRefused),
        ("403 Forbidden", "InvalidAccessKeyId", HistoryRefused),
        ("401 Unauthorized", "Unauthorized", HistoryRefused),
        ("404 Not Found", "NoSuchBucket", HistoryRefused),
        ("507 Insufficient Storage", "XMinioStorageFull", HistoryFull),
        ("403 Forbidden", "QuotaExceeded", HistoryFull),
        ("500 Internal Server Error", "InternalError", HistoryUnreachable),
        ("503 Service Unavailable", "SlowDown", HistoryUnreachable),
        ("", "", HistoryUnreachable),
    ],
)
async def test_causes_are_told_apart(status: str, code: str, expected: type[TorporError]) -> None:
    async with answering(status, code) as endpoint:
        bucket = S3Bucket(URL, endpoint, CREDENTIALS)
        for call in CALLS.values():
            with pytest.raises(expected) as caught:
                await call(bucket)
            assert "s3://bucket/prefix at 127.0.0.1" in caught.value.message
            assert "testing" not in str(caught.value)
            if expected is not HistoryFull and status:
                assert caught.value.message.endswith(f": {status} ({code})")


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(HistoryUnreachable):
        await S3Bucket(URL, f"http://127.0.0.1:{port}", CREDENTIALS).get("a/b")


async def test_a_store_that_says_nothing() -> None:
    async with answering("never", "") as endpoint:
        bucket = S3Bucket(URL, endpoint, CREDENTIALS, timeout_s=0.2)
        for call in CALLS.values():
            with pytest.raises(HistoryUnreachable):
                await call(bucket)


async def test_a_request_can_be_cancelled() -> None:
    async with answering("never", "") as endpoint:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await S3Bucket(URL, endpoint, CREDENTIALS).get("a/b")


@pytest.mark.parametrize("missing", list(CREDENTIALS))
def test_credentials_are_asked_for(missing: str) -> None:
    with pytest.raises(BadSettings, match="AWS_ACCESS_KEY_ID"):
        S3Bucket(URL, "", {name: value for name, value in CREDENTIALS.items() if name != missing})


def test_amazon_needs_no_endpoint() -> None:
    assert S3Bucket(URL, "", {**CREDENTIALS, "AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-north-1"}).description == URL
