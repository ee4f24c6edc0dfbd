"""Volumes as directories of the pool: cloned with reflinks where the file system has them, copied in full where not.

A volume appears under its final name only when it is whole: it is made beside it and renamed. Its bytes live in `<root>/<id>/data`.
Three kinds of pool keep one contract (`tests/unit/storage/test_contract.py`): XFS with reflinks, btrfs, and any other file system, where
each copy is a full one. What differs is behind `Quotas` (how a directory is made, held to its size, and counted), and there only.

A volume is attached to one Torpor: whoever runs computes on volumes `hold`s their pool, which the kernel gives to one process at a time,
and takes back at its end, however it ends. A volume that could be attached to another host would be fenced at that very place.

Concurrency: the copy runs in a process of its own (`cp`), so neither the event loop nor the interpreter lock waits for it; calls for
different volumes may overlap. How large a volume is, however many ask, is found out by one walk at a time, and those that take long, of
which a tenant can make as many as it has files, wait for each other only.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torpor.base.files import sync_directory
from torpor.base.host.facts import can_reflink
from torpor.base.processes import dying_with_us
from torpor.base.tasks import TaskOwner
from torpor.model.errors import AlreadyRunning, DataDirectoryUnusable, PoolFull, Unavailable
from torpor.model.names import DatabaseId, is_database_id
from torpor.storage.extents import shared_bytes
from torpor.storage.haste import Haste
from torpor.storage.quotas import NoQuotas, find_quotas
from torpor.storage.room import FULL_HINT, PoolLevel, Room, look

_MAKING = ".making-"
_REMOVING = ".removing-"
INODE_BYTES = 4096
"""What a file, directory or link counts at least: the host's file system has only so many, about one for every 16 kB."""
_SLOW_S = 1.0  # a walk that takes longer is a tenant's doing: 500,000 files
_HOLD_AGAIN_S = 0.05
_SHARED_PATIENCE_S = 2.0
_TIDY_AFTER = 64
_REST = 10.0  # times as long as it took a volume isn't walked again: a tenth of a processor is spent on each at most
_libc = ctypes.CDLL(None, use_errno=True)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@dataclass(slots=True)
class _Measured:
    used_bytes: int = 0
    took_s: float = 0.0
    again_at: float = 0.0
    walk: asyncio.Task[None] | None = None
    shared_bytes: int | None = None
    share_again_at: float = 0.0


class Volumes:
    """All volumes below one directory."""

    def __init__(self, root: Path) -> None:
        """Raises DataDirectoryUnusable when the directory can't be made or written."""
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o711)  # computes run as other users and must reach theirs, not list all
            reflinks = can_reflink(root)
        except OSError as error:
            raise DataDirectoryUnusable(f"the volumes directory {root} can't be used: {error.strerror}") from error
        if reflinks is None:
            raise DataDirectoryUnusable(f"the volumes directory {root} can't be written", "look at its owner, mode and free space")
        self.reflinks = reflinks
        self.quotas = find_quotas(root) if os.geteuid() == 0 else NoQuotas()
        self.level = PoolLevel.ROOM
        """As it was when somebody looked last."""
        self.hasty: dict[DatabaseId, Haste] = {}
        """Those that are thrown away after any crash, until they are settled."""
        self._held = -1
        self._removed = 0
        self._measured: dict[DatabaseId, _Measured] = {}
        self.exchanged: Callable[[DatabaseId], None] = lambda _id: None
        """Is called with each database whose volume is another one now."""
        self._tasks = TaskOwner("volumes")
        self._quick_walks, self._slow_walks = asyncio.Semaphore(1), asyncio.Semaphore(1)

    def __repr__(self) -> str:
        return f"<Volumes {self.root} {self.description}>"

    @property
    def description(self) -> str:
        """How clones are made here, for people."""
        return (
            "reflinks" if self.reflinks else "full copies (no reflinks on this file system: `torpor host setup` makes a pool that has them)"
        )

    @property
    def held_by(self) -> str:
        """What holds a volume to its size, for people."""
        if self.quotas.holds:
            return "held by the kernel: PostgreSQL says that the disk is full"
        return "watched: measured while awake, then read-only, then stopped"

    def hold(self, patience_s: float = 0.0) -> None:
        """Be the one who runs computes on these volumes, until `release` or the end of this process. Blocking.

        Raises AlreadyRunning when another process is, `patience_s` long. It needs no file, and is the same under every path.
        """
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(_HOLD_AGAIN_S)
                    continue
                os.close(fd)
                raise AlreadyRunning(
                    f"another Torpor runs the databases in {self.root}", "stop that one: two would destroy each other's data"
                ) from error
            except OSError as error:
                os.close(fd)
                raise DataDirectoryUnusable(f"the volumes directory {self.root} can't be locked: {error.strerror}") from error
            self._held = fd
            return

    def release(self) -> None:
        """Let another one hold them. Idempotent."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def room(self) -> Room:
        """How much room the pool has now. Sets `level`."""
        room = look(self.root)
        self.level = room.level(self.level)
        return room

    def check_room(self, for_bytes: int = 0) -> None:
        """Raises PoolFull when nothing may be made any more, or nothing that takes so much: what is kept is for those that are there."""
        room = self.room()
        if self.level is not PoolLevel.ROOM or room.free_bytes - room.kept_bytes < for_bytes:
            raise PoolFull(
                f"the storage pool is full: {room.free_bytes >> 20} MB are free, of which {room.kept_bytes >> 20} MB are kept", FULL_HINT
            )

    def path(self, id: DatabaseId) -> Path:
        """The volume's directory; its PostgreSQL cluster is `data` below it."""
        return self.root / id

    def data(self, id: DatabaseId) -> Path:
        """PGDATA of the volume."""
        return self.root / id / "data"

    async def clone(self, source: Path, id: DatabaseId, uid: int) -> None:
        """Make volume `id` with a copy of `source` (a PGDATA that nobody writes), owned by `uid`. As `make`."""
        await self.make(id, uid, lambda data: _clone(source, data))

    async def make(self, id: DatabaseId, uid: int, fill: Callable[[Path], Awaitable[None]], is_hasty: bool = False) -> None:
        """Make volume `id`, owned by `uid`, of what `fill` writes: it gets the path of a PGDATA that doesn't exist yet, or has nothing
        in it but an empty `pg_wal`, which must stay (it may be a subvolume). With `is_hasty` what it writes is that user's already, and
        nothing is durable before `settle`.

        All or nothing, also under kill -9: a half-made one has another name and is removed by `sweep`. Raises PoolFull, what `fill`
        raises, and Unavailable for what else the file system says. Whole, it is durable.
        """
        self.check_room()
        making = self.root / f"{_MAKING}{id}"
        try:
            await asyncio.to_thread(self._remove, making)
            await asyncio.to_thread(self.quotas.make, making)
            await fill(making / "data")
            if uid != os.geteuid():
                if is_hasty:
                    os.chown(making, uid, uid)
                else:
                    await asyncio.to_thread(give_to, making, uid)
            making.rename(self.path(id))
            if is_hasty:
                self.hasty[id] = Haste()
                return
            # PostgreSQL syncs only what it writes itself: files that stay as copied must be durable before the first commit.
            await asyncio.to_thread(self._sync)
        except BaseException as error:
            await asyncio.to_thread(self._remove, making)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PoolFull("the storage pool is full", FULL_HINT) from error
            if isinstance(error, OSError):
                raise Unavailable(f"making a volume failed: {error}") from error
            raise

    async def settle(self, id: DatabaseId) -> None:
        """Make one that was made in haste durable, with all that was written to it since; in use or not. Raises Unavailable."""
        self._end_haste(id)
        try:
            await asyncio.to_thread(self._sync)
        except OSError as error:
            raise Unavailable(f"making a volume failed: {error}") from error

    def _end_haste(self, id: DatabaseId) -> None:
        if (haste := self.hasty.pop(id, None)) is not None:
            haste.end()

    @contextlib.asynccontextmanager
    async def scratch(self, name: str, size_bytes: int | None = None) -> AsyncIterator[Path]:
        """A directory on the pool for files that are read and then removed; a killed Torpor's is removed by `sweep`. Raises PoolFull.

        With a size it is made as a volume is, and held to that where the kernel does it.
        """
        self.check_room()
        directory = self.root / f"{_MAKING}{name}"
        try:
            await asyncio.to_thread(self._remove, directory)
            if size_bytes is None:
                directory.mkdir(mode=0o700)
            else:
                await asyncio.to_thread(self.quotas.make, directory)
                await asyncio.to_thread(self.quotas.limit, directory, size_bytes)
            yield directory
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PoolFull("the storage pool is full", FULL_HINT) from error
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(self._remove, directory))

    async def limit(self, id: DatabaseId, size_bytes: int, is_full: bool = False) -> bool:
        """Have the kernel hold a volume to a size from now on, in use or not; whether it does. See `Quotas.limit`."""
        if not self.quotas.holds:
            return False
        return await asyncio.to_thread(self.quotas.limit, self.path(id), size_bytes, is_full)

    async def give(self, id: DatabaseId, uid: int) -> None:
        """Make a volume that nobody uses that user's."""
        if os.geteuid() == 0:
            await asyncio.to_thread(give_to, self.path(id), uid)

    def exchange(self, one: DatabaseId, other: DatabaseId) -> None:
        """Let two volumes that nobody uses, which are whole and synced, swap places: atomically and durably. Blocking, for moments."""
        if _libc.renameat2(_HERE, bytes(self.path(one)), _HERE, bytes(self.path(other)), _EXCHANGE) < 0:
            code = ctypes.get_errno()
            raise Unavailable(f"exchanging two volumes failed: {os.strerror(code)}")
        sync_directory(self.root)
        for id in (one, other):
            self._measured.pop(id, None)
            self.exchanged(id)

    async def remove(self, id: DatabaseId) -> None:
        """Remove a volume for good. Idempotent; after a kill -9 `sweep` finishes it."""
        self._end_haste(id)
        removing = self.root / f"{_REMOVING}{id}"
        try:
            self.path(id).rename(removing)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            removing = self.path(id)  # btrfs without any room can remove files, but not rename them
        self._measured.pop(id, None)
        await asyncio.to_thread(self._remove_for_good, removing)
        self._removed += 1
        if self._removed % _TIDY_AFTER == 0:
            await asyncio.to_thread(self.quotas.tidy)

    def ids(self) -> set[DatabaseId]:
        """Whole volumes on disk."""
        return {DatabaseId(name) for name in os.listdir(self.root) if is_database_id(name)}

    async def sweep(self) -> int:
        """Remove what a killed Torpor left half made or half removed; how many."""
        leftovers = [name for name in os.listdir(self.root) if name.startswith((_MAKING, _REMOVING))]
        for name in leftovers:
            await asyncio.to_thread(self._remove, self.root / name)
        await asyncio.to_thread(self.quotas.tidy)
        return len(leftovers)

    async def measure(self, id: DatabaseId) -> int:
        """`disk_bytes` for whoever asks: they share a walk, and its result for ten times as long as it took. Safe to cancel."""
        measured = self._measured.setdefault(id, _Measured())
        if measured.walk is None and time.monotonic() >= measured.again_at:
            measured.walk = self._tasks.spawn(self._measure(id, measured), f"measure {id}")
        if measured.walk is not None:
            await asyncio.shield(measured.walk)
        return measured.used_bytes

    async def shared_bytes(self, id: DatabaseId) -> int | None:
        """How much of a volume others have, too (its template, its parent, its branches), as the file system says. None when it doesn't."""
        if not self.reflinks:
            return 0
        measured = self._measured.setdefault(id, _Measured())
        async with self._slow_walks:
            if (began := time.monotonic()) >= measured.share_again_at:
                measured.shared_bytes = await asyncio.to_thread(shared_bytes, self.data(id), _SHARED_PATIENCE_S)
                measured.share_again_at = time.monotonic() + (time.monotonic() - began) * _REST
        return measured.shared_bytes

    async def _measure(self, id: DatabaseId, measured: _Measured) -> None:
        try:
            async with self._slow_walks if measured.took_s > _SLOW_S else self._quick_walks:
                began = time.monotonic()
                measured.used_bytes = await asyncio.to_thread(self.disk_bytes, id)
                measured.took_s = time.monotonic() - began
        finally:
            measured.again_at = time.monotonic() + measured.took_s * _REST
            measured.walk = None

    def disk_bytes(self, id: DatabaseId) -> int:
        """Bytes of the volume's files as allocated, those shared with other volumes included, and 4 kB an inode at least. Blocking; walks
        the volume.

        A tenant's directories can be deeper than any path is long, and have millions of files: `du` minds neither.
        """
        return max(self._walk(id, "--block-size=1"), self._walk(id, "--inodes") * INODE_BYTES)

    def scratch_bytes(self, name: str) -> int:
        """As `disk_bytes`, of a scratch directory."""
        return self._walk(f"{_MAKING}{name}", "--block-size=1")

    def _walk(self, name: str, unit: str) -> int:
        run = subprocess.run(
            ["du", "--summarize", unit, *self._boundary, "--", str(self.root / name)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # PostgreSQL removes files while it looks
            check=False,
        )
        figure = run.stdout.split(b"\t")[0]
        return int(figure) if figure.isdigit() else 0

    @property
    def _boundary(self) -> tuple[str, ...]:
        """Nothing is mounted in a volume. But a subvolume looks like a mount."""
        return () if self.quotas.holds else ("--one-file-system",)

    def _remove(self, directory: Path) -> None:
        """Remove a directory whatever a tenant has put there: deeper than Python's own way can go, links, pipes. Idempotent."""
        if directory.exists():
            self.quotas.release(directory)
            subprocess.run(
                dying_with_us(["rm", "--recursive", "--force", *self._boundary, "--", str(directory)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )

    def _remove_for_good(self, directory: Path) -> None:
        """XFS gives what was freed to nobody before that is on the disk: whoever made the next volume would wait for it, 20 to 50 ms."""
        self._remove(directory)
        with contextlib.suppress(OSError):
            sync_directory(self.root)

    def _sync(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(fd) < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            os.close(fd)


async def _clone(source: Path, data: Path) -> None:
    arguments = ["cp", "--archive", "--no-target-directory", "--no-preserve=ownership", "--reflink=auto", "--", str(source), str(data)]
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(arguments),
        env={**os.environ, "LC_ALL": "C"},  # its words are read below
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        text = stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        if "No space left" in text[0] or "Disk quota exceeded" in text[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise Unavailable(f"cloning a volume failed: {text[0]}")


def _walk(directory: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def give_to(directory: Path, uid: int) -> None:
    os.chown(directory, uid, uid)
    for entry in _walk(directory):
        if entry.stat(follow_symlinks=False).st_uid != uid:
            os.chown(entry.path, uid, uid, follow_symlinks=False)
