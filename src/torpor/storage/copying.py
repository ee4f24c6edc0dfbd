"""Copies a directory tree that may be hostile, and may be written to meanwhile: see `native/copier.c`, the program that does it.

One file is copied by a reflink at one instant. Without reflinks a file that is being written may be copied torn, so such a copy is only
good together with the log of what was written.

Concurrency: the copy is a process of its own, so neither the event loop nor the interpreter lock waits for it.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.model.errors import BinariesMissing
from torpor.native import COPIER

_NAMES_AT_ONCE = 1000
_FICLONE = 0x40049409
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAKE_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a tree is copied. `skip` are paths below its root that are left out, `hollow` directories that are copied empty, and
    `skip_prefixes` beginnings of names that are left out anywhere. `live`: files may vanish while they are copied."""

    skip: frozenset[str] = frozenset()
    hollow: frozenset[str] = frozenset()
    skip_prefixes: tuple[str, ...] = ()
    live: bool = False

    def arguments(self) -> list[str]:
        """For the program."""
        rules = [f"-{path}" for path in self.skip] + [f"={path}" for path in self.hollow] + [f"~{name}" for name in self.skip_prefixes]
        return ["live" if self.live else "still", *rules]


async def copy_tree(source: Path, target: Path, uid: int, selection: Selection) -> None:
    """Copy the directory `source` to `target`, which must not exist or hold only an empty `pg_wal`, for the user `uid`.

    All of it is that user's. Raises OSError with the cause. Nothing is synced, and after an error what was copied stays: the caller knows
    where. Safe to cancel: then nothing writes any more.
    """
    program = [str(COPIER), str(os.getpid()), str(source), str(target), str(uid), *selection.arguments()]
    try:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise BinariesMissing(f"the program {COPIER.name} was not built", "run `make setup` (it needs gcc)") from error
    try:
        _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise _failure(said)


def copy_files(root: Path, beneath: Sequence[str], names: Iterable[str], target: Path, uid: int | None = None) -> None:
    """Copy files of one directory of a hostile tree, found from `root` (which is ours) by these names, into a directory of ours. They
    are that user's. Blocking.

    Raises OSError, also for what isn't a regular file, or is a link.
    """
    with contextlib.ExitStack() as opened:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, here)
        for name in beneath:
            here = os.open(name, _OPEN_DIRECTORY, dir_fd=here)
            opened.callback(os.close, here)
        for name in names:
            source = os.open(name, _OPEN_FILE, dir_fd=here)
            try:
                about = os.fstat(source)
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file", name)
                copy = os.open(target / name, _MAKE_FILE, 0o600)
                try:
                    _copy_bytes(source, copy, about.st_size)
                    if uid is not None and uid != os.geteuid():
                        os.fchown(copy, uid, uid)
                finally:
                    os.close(copy)
            finally:
                os.close(source)


def _copy_bytes(source: int, target: int, size: int) -> None:
    """Make the empty file `target` a copy of `source`: by a reflink at one instant, else of its first `size` bytes. Blocking."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        at = 0
        while at < size and (piece := os.pread(source, min(_PIECE_BYTES, size - at), at)):
            at += os.pwrite(target, piece, at)


def clear_tree(directory: Path) -> None:
    """Remove what is in a copy, so that it can be made again; `pg_wal` stays, empty (it may be a subvolume). Blocking."""
    if not directory.is_dir():
        return
    log = directory / "pg_wal"
    inside = [path for path in directory.iterdir() if path != log] + (list(log.iterdir()) if log.is_dir() else [])
    for n in range(0, len(inside), _NAMES_AT_ONCE):
        names = map(str, inside[n : n + _NAMES_AT_ONCE])
        subprocess.run(["rm", "--recursive", "--force", "--", *names], stdin=subprocess.DEVNULL, check=False)


def _failure(said: bytes) -> OSError:
    words = said.decode(errors="replace").strip().splitlines()[-1:] or ["the copy was ended"]
    code, _, path = words[0].partition(" ")
    return OSError(int(code), os.strerror(int(code)), path) if code.isdigit() else OSError(errno.EIO, words[0])
