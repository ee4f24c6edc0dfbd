"""What became of requests with idempotency keys: a file each, with the transaction's id and the answer, written before the COMMIT.

So whoever is killed when, the one that knows whether it was committed is PostgreSQL (`pg_xact_status`), and a second request with the
key asks it. Files are synced before the COMMIT: not even a power cut makes a statement run twice. They are kept for `KEPT_S`, and the
newest `MOST_OF_ONE` of each database; an older key counts as a new one.

Concurrency: belongs to one event loop; files are written in threads. Of two requests with one key at a time the second is refused.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from torpor.gateway.http.credentials import Target
from torpor.gateway.http.execution import Transaction
from torpor.gateway.http.failures import failure

KEPT_S = 3600.0
MOST_OF_ONE = 5_000
MOST = 50_000
_LOOK_S = 60.0
_JSON = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Receipt:
    """One of them: what was asked for (a hash), in which transaction, and what was answered."""

    asked: str
    transaction: Transaction
    answer: bytes


class Receipts:
    """Those in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: set[str] = set()
        self._known: OrderedDict[str, float] = OrderedDict()  # oldest first
        self._by_database: dict[str, OrderedDict[str, None]] = {}

    def __repr__(self) -> str:
        return f"<Receipts {len(self._known)}, {len(self._running)} running>"

    def load(self) -> None:
        """Learn what an earlier process left. Blocking."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for path in self._directory.iterdir():
            if path.name.startswith("."):
                path.unlink(missing_ok=True)  # half written
            else:
                found.append((path.stat().st_mtime, path.name))
        for at, name in sorted(found):
            self._note(name, at)

    @asynccontextmanager
    async def running(self, target: Target, key: str) -> AsyncIterator[str]:
        """Be the only one with that key meanwhile; gives its name. Raises Failure."""
        name = f"{_hash(target.host, target.database)[:16]}-{_hash(target.user, *target.bearer, key)[:40]}"
        if name in self._running:
            raise failure(409, "55006", "a request with this idempotency key is running", "wait for its end, then ask again", 1)
        self._running.add(name)
        try:
            yield name
        finally:
            self._running.discard(name)

    async def find(self, name: str) -> Receipt | None:
        """What is known of a request."""
        if name not in self._known:
            return None
        return await asyncio.to_thread(_read, self._directory / name)

    async def keep(self, name: str, receipt: Receipt) -> None:
        """Write it down, durably. Raises Failure."""
        try:
            await asyncio.to_thread(_write, self._directory / name, receipt)
        except OSError as error:
            raise failure(
                503, "53100", f"the idempotency key can't be recorded: {error.strerror}", "nothing was done; ask without one, or later"
            ) from error
        self._note(name, time.time())

    async def drop(self, name: str) -> None:
        """Its transaction was not committed."""
        self._forget(name)
        await asyncio.to_thread((self._directory / name).unlink, True)

    async def tidy(self) -> None:
        """Remove what is too old, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            old = [name for name, at in self._known.items() if at < time.time() - KEPT_S and name not in self._running]
            for name in old:
                await self.drop(name)

    def _note(self, name: str, at: float) -> None:
        self._forget(name)
        self._known[name] = at
        of_one = self._by_database.setdefault(name.partition("-")[0], OrderedDict())
        of_one[name] = None
        crowded = of_one if len(of_one) > MOST_OF_ONE else self._known if len(self._known) > MOST else None
        if crowded is not None:
            oldest = next(iter(crowded))
            self._forget(oldest)
            with contextlib.suppress(OSError):
                (self._directory / oldest).unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            scope = name.partition("-")[0]
            of_one = self._by_database[scope]
            of_one.pop(name, None)
            if not of_one:
                del self._by_database[scope]


def fingerprint(body: bytes, headers: dict[str, str]) -> str:
    """What tells one request from another: its body, and the headers that change what it means."""
    digest = hashlib.sha256(body)
    for name in sorted(headers):
        if name.startswith(("neon-batch-", "neon-raw-", "neon-array-")):
            digest.update(f"\0{name}\0{headers[name]}".encode())
    return digest.hexdigest()


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, receipt: Receipt) -> None:
    new = path.with_name(f".{path.name}")
    head = _JSON.encode({"asked": receipt.asked, "transaction": asdict(receipt.transaction)})
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
        file.write(head + b"\n" + receipt.answer)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(path: Path) -> Receipt | None:
    try:
        head, _, answer = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    known = msgspec.json.decode(head)
    return Receipt(str(known["asked"]), Transaction(known["transaction"]["xid"], str(known["transaction"]["timeline"])), answer)
