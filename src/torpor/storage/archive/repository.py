"""The history of one database: its bases and its log.

A base consists of chunks that are named by what they hold, so what didn't change since an older base of the same database isn't stored
again; databases share nothing. Its manifest is stored last: a base is there as a whole or not at all, whenever we are killed. Chunks that
no manifest leads to are removed by `expire`.

The log of one timeline must be one history: whoever gives a database other bytes (not a restart, but a reset) destroys its history and
begins another.

Concurrency: one Repository for each database at a time (`Archive.repository` sees to that). Making bases, expiring and destroying take
turns; everything else may overlap with them and itself. Reading, compressing, encrypting and writing happen in the archive's threads;
memory is bounded by a few chunks of 4 MB, shared by all repositories, and about 200 bytes for each object that is stored. All is safe to
cancel.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torpor.base.logs import get_logger
from torpor.model.errors import Conflict, HistoryCorrupt, HistoryMissing
from torpor.model.names import DatabaseId
from torpor.storage.archive import format, tree
from torpor.storage.archive.format import Content, Index, Keys, Manifest
from torpor.storage.archive.retention import Base, BaseFacts, LogPiece, Retention, bases_to_keep, chain, log_to_drop
from torpor.storage.archive.store import Store
from torpor.storage.archive.vault import Vault
from torpor.storage.archive.work import Lanes, Pulled, in_thread

log = get_logger(__name__)
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and those there are in all, about."""

_LANES = 4  # chunks of one base on their way at a time


def _silent(done: int, total: int) -> None:
    pass


async def _at_once(count: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class StoredSize:
    """What a history takes in the store, compressed."""

    base_bytes: int = 0
    log_bytes: int = 0
    objects: int = 0

    @property
    def all_bytes(self) -> int:
        """All of it."""
        return self.base_bytes + self.log_bytes


@dataclass(frozen=True, slots=True)
class Expired:
    """What `expire` removed."""

    bases: tuple[int, ...] = ()
    objects: int = 0
    stored_bytes: int = 0


class Repository:
    """What is kept of one database."""

    def __init__(self, store: Store, vault: Vault, id: DatabaseId, executor: Executor, turns: asyncio.Semaphore, keys: Keys) -> None:
        """`turns` bounds the chunks in memory, of all repositories that share it; `keys` says where in the store it is."""
        self.id = id
        self._store, self._vault, self._executor, self._turns = store, vault, executor, turns
        self._keys = keys
        self._changing = asyncio.Lock()
        self._held: Counter[int] = Counter()
        self._manifests: dict[int, Manifest] = {}

    def __repr__(self) -> str:
        return f"<Repository {self.id} in {self._store.description}{' changing' if self._changing.locked() else ''}>"

    # --- bases

    async def bases(self) -> list[Base]:
        """All bases that are whole, oldest first. Reads each manifest once. Raises HistoryCorrupt."""
        numbers = sorted(number for stored in await self._store.list(self._keys.bases) if (number := Keys.number(stored)) is not None)
        return [(await self._manifest(number)).base for number in numbers]

    async def put_base(
        self,
        source: Path,
        facts: BaseFacts,
        *,
        leave_out: Callable[[str], bool] = tree.nothing,
        progress: Progress = _silent,
    ) -> Base:
        """Store what is below `source`, which nobody may write meanwhile, as the newest base.

        `leave_out` says of a path, relative to `source`, that it and what is below it isn't wanted. All or nothing.
        """
        async with self._changing:
            number = max((base.number for base in await self.bases()), default=0) + 1
            known = {Keys.digest(stored) for stored in await self._store.list(self._keys.chunks)}
            total = await self._run(lambda: tree.measure(source, leave_out))
            return await _Putting(self, known, progress, total).run(source, leave_out, number, facts)

    async def get_base(
        self, number: int, target: Path, progress: Progress = _silent, pace: Callable[[int], Awaitable[None]] = _at_once
    ) -> Base:
        """Write a base into `target`, a new directory or one with nothing in it but empty directories: as ours, with the modes that it had;
        durable on return. `pace` is awaited before each so many bytes.

        Raises HistoryMissing, HistoryCorrupt, PoolFull; what was written until then is the caller's to remove.
        """
        async with self.hold(number):
            manifest = await self._manifest(number)
            writer, done, total = await self._run(lambda: tree.TreeWriter(target)), 0, manifest.base.size_bytes

            async def fill(content: Content) -> None:
                nonlocal done
                data = await self._chunk(content.digest)
                await self._run(lambda: writer.fill(content.parts, data))
                done += len(data)
                progress(done, total)

            async with self._lanes() as lanes:
                for digest in manifest.index:
                    for batch in _batches(await self._records(digest)):
                        plain = [record for record in batch if not isinstance(record, Content)]
                        await self._run(lambda plain=plain: writer.add(plain))  # type: ignore[misc]
                        for record in batch:
                            if isinstance(record, Content):
                                await pace(sum(length for _, _, length in record.parts))
                                await lanes.add(lambda record=record: fill(record))  # type: ignore[misc]
            await self._run(writer.finish)
            progress(total, total)
            return manifest.base

    async def verify(self, number: int, progress: Progress = _silent) -> Base:
        """Read all of a base, and check that it is what was stored. Raises HistoryMissing and HistoryCorrupt."""
        async with self.hold(number):
            manifest = await self._manifest(number)
            done, total = 0, manifest.base.size_bytes

            async def check(content: Content) -> None:
                nonlocal done
                data = await self._chunk(content.digest)
                if await self._run(lambda: self._vault.digest(data)) != content.digest:
                    raise HistoryCorrupt(f"a chunk of base {number} of {self.id} holds something else")
                done += len(data)
                progress(done, total)

            async with self._lanes() as lanes:
                for digest in manifest.index:
                    for record in await self._records(digest):
                        if isinstance(record, Content):
                            await lanes.add(lambda record=record: check(record))  # type: ignore[misc]
            return manifest.base

    @contextlib.asynccontextmanager
    async def hold(self, number: int) -> AsyncIterator[None]:
        """While inside, `expire` keeps this base, and all log since its start. Hold what is being restored."""
        self._held[number] += 1
        try:
            yield
        finally:
            self._held[number] -= 1

    # --- log

    async def put_wal(self, timeline: int, start_lsn: int, data: bytes) -> int:
        """Store the log that begins at `start_lsn`; up to where it is stored then. Durable on return.

        Idempotent, and pieces may overlap with what is there: after a crash begin again where it is known to be.
        """
        for offset in range(0, len(data), format.CHUNK_BYTES):
            piece, at = data[offset : offset + format.CHUNK_BYTES], start_lsn + offset
            key = self._keys.piece(timeline, at, at + len(piece))
            await self._store.put(key, await self._run(lambda key=key, piece=piece: self._vault.seal(key, piece)))  # type: ignore[misc]
        return start_lsn + len(data)

    async def wal_pieces(self) -> list[LogPiece]:
        """What there is of the log, in no order; `retention.chain` and `retention.spans` say what it is good for."""
        listed = await self._store.list(self._keys.log)
        return [piece for stored in listed if (piece := Keys.log_piece(stored)) is not None]

    async def wal(self, timeline: int, from_lsn: int, to_lsn: int | None = None) -> AsyncIterator[tuple[int, bytes]]:
        """The log between two positions, in order, without gaps or overlaps, in pieces of 4 MB at most.

        Without `to_lsn`, as far as it goes. Raises HistoryMissing before the first piece when it doesn't go that far; HistoryCorrupt.
        Hold the base that it is for.
        """
        reached = from_lsn
        for piece in chain(await self.wal_pieces(), timeline, from_lsn, to_lsn):
            data = await self._fetch(self._keys.piece(timeline, piece.start_lsn, piece.end_lsn))
            if len(data) != piece.end_lsn - piece.start_lsn:
                raise HistoryCorrupt(f"a piece of the log of {self.id} has another length than its name says")
            end = piece.end_lsn if to_lsn is None else min(piece.end_lsn, to_lsn)
            yield reached, data[reached - piece.start_lsn : end - piece.start_lsn]
            reached = end

    # --- keeping and removing

    async def stored(self) -> StoredSize:
        """What it takes, by asking the store."""
        bases = await self._store.list(self._keys.bases) + await self._store.list(self._keys.chunks)
        pieces = await self._store.list(self._keys.log)
        return StoredSize(sum(s.size_bytes for s in bases), sum(s.size_bytes for s in pieces), len(bases) + len(pieces))

    async def expire(self, retention: Retention, now: float, pinned: Collection[int] = ()) -> Expired:
        """Remove what needn't be kept, and what was left half made. Pinned bases stay, with the log that makes them consistent.

        In an order that leaves a valid repository whenever it ends: manifests, then log, then chunks that none leads to.
        """
        async with self._changing:
            bases = await self.bases()
            held = {number for number, count in self._held.items() if count > 0}
            kept = bases_to_keep(bases, retention, now, held | set(pinned))
            gone = sorted({base.number for base in bases} - {base.number for base in kept})
            await self._store.delete([self._keys.base(number) for number in gone])
            for number in gone:
                self._manifests.pop(number, None)
            windowed = {base.number for base in bases_to_keep(bases, retention, now)} | held
            only_itself = {base.number for base in kept} - windowed
            pieces = log_to_drop(await self.wal_pieces(), kept, only_itself)
            await self._store.delete([self._keys.piece(piece.timeline, piece.start_lsn, piece.end_lsn) for piece in pieces])
            needed = await self._needed([base.number for base in kept])
            chunks = [stored for stored in await self._store.list(self._keys.chunks) if Keys.digest(stored) not in needed]
            await self._store.delete([stored.key for stored in chunks])
            removed_bytes = sum(piece.stored_bytes for piece in pieces) + sum(stored.size_bytes for stored in chunks)
            return Expired(tuple(gone), len(gone) + len(pieces) + len(chunks), removed_bytes)

    async def destroy(self) -> None:
        """Remove all of it. Idempotent; call it after the database's key was removed."""
        async with self._changing:
            self._manifests.clear()
            await self._store.delete([stored.key for stored in await self._store.list(self._keys.root)])

    # --- what these have in common

    async def _needed(self, numbers: Sequence[int]) -> set[str]:
        needed: set[str] = set()
        for number in numbers:
            for digest in (await self._manifest(number)).index:
                needed.add(digest)
                needed.update(record.digest for record in await self._records(digest) if isinstance(record, Content))
        return needed

    async def _manifest(self, number: int) -> Manifest:
        if (manifest := self._manifests.get(number)) is None:
            try:
                manifest = format.decode_manifest(await self._fetch(self._keys.base(number)))
            except HistoryMissing:
                raise HistoryMissing(f"{self.id} has no base {number}") from None
            self._manifests[number] = manifest
        return manifest

    async def _records(self, digest: str) -> list[format.Record]:
        data = await self._chunk(digest)
        return await self._run(lambda: format.records(data))

    async def _chunk(self, digest: str) -> bytes:
        return await self._fetch(self._keys.chunk(digest))

    async def _fetch(self, key: str) -> bytes:
        """Read and open; once more when it came damaged, as that may have happened on the way."""
        try:
            return await self._read(key)
        except HistoryCorrupt as error:
            log.warning("what was stored came back damaged", key=key, error=str(error))
        return await self._read(key)

    async def _read(self, key: str) -> bytes:
        sealed = await self._store.get(key)
        return await self._run(lambda: self._vault.open(key, sealed))

    async def _run(self, work: Callable[[], T]) -> T:
        return await in_thread(self._executor, work)

    def _lanes(self) -> Lanes:
        return Lanes(f"archive {self.id}", self._turns, _LANES)

    # --- for _Putting

    async def _store_chunk(self, digest: str, sealed: bytes) -> None:
        await self._store.put(self._keys.chunk(digest), sealed)

    async def _store_manifest(self, base: Base, index: list[str]) -> None:
        key = self._keys.base(base.number)
        sealed = await self._run(lambda: self._vault.seal(key, format.encode_manifest(base, index)))
        if not await self._store.put(key, sealed, if_absent=True) and await self._store.get(key) != sealed:
            raise Conflict(f"another Torpor has stored base {base.number} of {self.id}", "give each its own history_store")

    def _seal(self, data: bytes, known: set[str]) -> tuple[str, bytes | None]:
        """Digest of a chunk, and how it is to be stored, None if it is. Blocking."""
        digest = self._vault.digest(data)
        if digest in known:
            return digest, None
        return digest, self._vault.seal(self._keys.chunk(digest), data)


class _Putting:
    """One base on its way to the store."""

    def __init__(self, repository: Repository, known: set[str], progress: Progress, total: int) -> None:
        self._to, self._known, self._progress, self._total = repository, known, progress, total
        self._index, self._index_digests = Index(), list[str]()
        self._size_bytes = self._stored_bytes = 0

    async def run(self, source: Path, leave_out: Callable[[str], bool], number: int, facts: BaseFacts) -> Base:
        """All of it."""
        steps = Pulled(self._to._executor, iter(tree.read_tree(source, leave_out)))
        try:
            async with self._to._lanes() as lanes:
                while (record := await steps.next()) is not None:
                    if isinstance(record, tree.Bytes):
                        digest = await self._put(lanes, record.data)
                        self._index.add(Content(digest, record.parts))
                        self._size_bytes += len(record.data)
                        self._progress(self._size_bytes, max(self._size_bytes, self._total))
                    else:
                        self._index.add(record)
                    if self._index.full:
                        self._index_digests.append(await self._put(lanes, self._index.take()))
                self._index_digests.append(await self._put(lanes, self._index.take()))
        finally:
            await steps.close()
        base = Base(number, facts, self._size_bytes, self._stored_bytes)
        await self._to._store_manifest(base, self._index_digests)
        self._progress(self._size_bytes, self._size_bytes)
        return base

    async def _put(self, lanes: Lanes, data: bytes) -> str:
        digest, sealed = await self._to._run(lambda: self._to._seal(data, self._known))
        if sealed is not None:
            self._known.add(digest)
            self._stored_bytes += len(sealed)
            await lanes.add(lambda: self._to._store_chunk(digest, sealed))
        return digest


def _batches(records: list[format.Record]) -> list[list[format.Record]]:
    """In order, cut before each directory, file or link that follows content: what content is for is made before it."""
    batches: list[list[format.Record]] = [[]]
    for record in records:
        if batches[-1] and not isinstance(record, Content) and isinstance(batches[-1][-1], Content):
            batches.append([])
        batches[-1].append(record)
    return batches
