"""Copies a directory tree that may be hostile, and may be written to meanwhile: see `copier`, the program that does it.

One file is copied by a reflink at one instant. Without reflinks a file that is being written may be copied torn, so such a copy is only
good together with the log of what was written.

Concurrency: the copy is a process of its own, so neither the event loop nor the interpreter lock waits for it.
"""

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.base.processes import dying_with_us
from torpor.storage import copier

_NAMES_AT_ONCE = 1000


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
        rules = [f"{copier.SKIP}{path}" for path in self.skip] + [f"{copier.HOLLOW}{path}" for path in self.hollow]
        return [copier.LIVE if self.live else copier.STILL, *rules, *(f"{copier.SKIP_PREFIX}{name}" for name in self.skip_prefixes)]


async def copy_tree(source: Path, target: Path, uid: int, selection: Selection) -> None:
    """Copy the directory `source` to `target`, which must not exist or hold only an empty `pg_wal`, for the user `uid`.

    Raises OSError with the cause. Nothing is synced, and after an error what was copied stays: the caller knows where. Safe to cancel:
    then nothing writes any more.
    """
    program = [sys.executable, "-I", "-S", copier.__file__, str(source), str(target), str(uid), *selection.arguments()]
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(program), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise _failure(said)


def copy_files(root: Path, beneath: Sequence[str], names: Iterable[str], target: Path) -> None:
    """Copy files of one directory of a hostile tree, found from `root` (which is ours) by these names, into a directory of ours. Blocking.

    Raises OSError, also for what isn't a regular file, or is a link.
    """
    with contextlib.ExitStack() as opened:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, here)
        for name in beneath:
            here = os.open(name, copier.OPEN_DIRECTORY, dir_fd=here)
            opened.callback(os.close, here)
        for name in names:
            source = os.open(name, copier.OPEN_FILE, dir_fd=here)
            try:
                about = os.fstat(source)
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file", name)
                copy = os.open(target / name, copier.MAKE_FILE, 0o600)
                try:
                    copier.copy_bytes(source, copy, about.st_size)
                finally:
                    os.close(copy)
            finally:
                os.close(source)


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
