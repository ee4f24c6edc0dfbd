"""Object stores for tests: one in memory, one that fails as it is told, and a real S3 server in a process of its own."""

import asyncio
import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torpor.model.errors import HistoryFull, HistoryMissing, HistoryUnreachable
from torpor.storage.archive.bucket import Bucket, Stored

BUCKET = "torpor-history"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}

_S3 = """
import logging, sys, threading
logging.disable(logging.CRITICAL)
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer
# It looks whether an object is there, and stores it then: one request after the other, so that conditions hold as they do at a real store.
turn, call = threading.Lock(), DomainDispatcherApplication.__call__
def called(*arguments):
    with turn:
        return call(*arguments)
DomainDispatcherApplication.__call__ = called
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class MemoryBucket:
    """The twin: objects in a dict."""

    description = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}

    async def put(self, key: str, data: bytes, if_absent: bool) -> bool:
        if if_absent and key in self.objects:
            return False
        self.objects[key] = (bytes(data), time.time())
        return True

    async def get(self, key: str) -> bytes:
        try:
            return self.objects[key][0]
        except KeyError:
            raise HistoryMissing(f"{key} is not in memory") from None

    async def list(self, directory: str) -> list[Stored]:
        return [Stored(key, len(data), at) for key, (data, at) in self.objects.items() if key.startswith(f"{directory}/")]

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Dead(BaseException):
    """Torpor was killed at this call: nothing catches it."""


@dataclass
class FaultyBucket:
    """A bucket that fails as it is told. Each call counts, and is noted as `verb key`."""

    inner: Bucket
    slow_s: float = 0.0
    failures: int = 0
    """How many calls fail, from now on; -1 for all."""
    lost_answers: int = 0
    """How many calls are done, and then fail."""
    room: int | None = None
    """How many more objects fit."""
    damage: Callable[[str, bytes], bytes] | None = None
    """What `get` makes of an object."""
    dies_at: int | None = None
    """The call, counted from 1, before which Torpor is killed."""
    calls: list[str] = field(default_factory=list)

    description = "a store that fails"

    async def put(self, key: str, data: bytes, if_absent: bool) -> bool:
        await self._fail("put", key)
        if self.room is not None:
            if self.room <= 0:
                raise HistoryFull(f"{self.description} is full")
            self.room -= 1
        done = await self.inner.put(key, data, if_absent)
        self._lose_answer()
        return done

    async def get(self, key: str) -> bytes:
        await self._fail("get", key)
        data = await self.inner.get(key)
        self._lose_answer()
        return data if self.damage is None else self.damage(key, data)

    async def list(self, directory: str) -> list[Stored]:
        await self._fail("list", directory)
        return await self.inner.list(directory)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # a kill comes between any two of them
            await self._fail("delete", key)
            await self.inner.delete([key])
        self._lose_answer()

    async def reached(self, call: str) -> None:
        """Wait until a call that begins like that was made."""
        while not any(made.startswith(call) for made in self.calls):  # noqa: ASYNC110  # an event for every call would be more than this
            await asyncio.sleep(0.001)

    async def _fail(self, verb: str, key: str) -> None:
        self.calls.append(f"{verb} {key}")
        if self.dies_at is not None and len(self.calls) >= self.dies_at:
            raise Dead
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.failures:
            self.failures -= 1
            raise HistoryUnreachable(f"{self.description} fails")

    def _lose_answer(self) -> None:
        if self.lost_answers:
            self.lost_answers -= 1
            raise HistoryUnreachable(f"{self.description} didn't answer")


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an S3 server with a bucket named BUCKET; it ends with us, whatever ends us."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _S3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=60) as answer:
                assert answer.status == 200
            yield url
        finally:
            server.kill()
