"""The template cluster of each major, of which all volumes are clones: made once, by initdb, with small WAL segments and checksums.

Concurrency: made in worker processes; one caller at a time per major (the manager holds a lock).
"""

import asyncio
import hashlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from torpor.base.processes import dying_with_us
from torpor.compute.binaries import Postgres
from torpor.compute.service import sql
from torpor.model.errors import HostError
from torpor.model.names import SERVICE_DATABASE, SERVICE_ROLE

_PATIENCE_S = 300.0
_INITDB_OPTIONS = (
    "--wal-segsize=1",
    "--data-checksums",
    "--encoding=UTF8",
    "--auth=trust",
    "--no-instructions",
    f"--username={SERVICE_ROLE}",
)


def locale_options(major: int) -> tuple[str, ...]:
    """The fastest locale that knows UTF-8: PostgreSQL's own since 17, the C library's before."""
    if major >= 17:
        return ("--locale=C.UTF-8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C.UTF-8",)


class Templates:
    """The templates of all majors below one directory. Each is made once; those who ask meanwhile wait for it."""

    def __init__(self, directory: Path, binaries: Callable[[int], Postgres]) -> None:
        self._directory = directory
        self._binaries = binaries
        self._locks: dict[int, asyncio.Lock] = {}

    async def data(self, major: int) -> Path:
        """The PGDATA of a major's template. Raises BinariesMissing or TemplateFailed."""
        postgres = self._binaries(major)
        async with self._locks.setdefault(major, asyncio.Lock()):
            return await ensure_template(self._directory, major, postgres.version, postgres.bindir)

    async def blank(self, major: int) -> Path:
        """The PGDATA of a cluster of that major with nothing in it, as initdb leaves it: what an older one is upgraded into. As `data`."""
        postgres = self._binaries(major)
        async with self._locks.setdefault(major, asyncio.Lock()):
            return await ensure_template(self._directory, major, postgres.version, postgres.bindir, "")


async def ensure_template(directory: Path, major: int, version: str, bindir: Path, statements: str | None = None) -> Path:
    """The PGDATA of the template for this very version and recipe, made if need be. Raises HostError with initdb's own words.

    A directory is a template only under its final name; half-made ones are removed when the next is made. `statements` stand for those of
    template.sql; "": it stays blank.
    """
    statements = sql("template") if statements is None else statements
    recipe = hashlib.sha256(repr((version, _INITDB_OPTIONS, locale_options(major), statements)).encode()).hexdigest()[:12]
    final = directory / f"{major}-{recipe}"
    if not await asyncio.to_thread(final.exists):
        making = directory / f".making-{major}-{recipe}"
        await asyncio.to_thread(_clear, making)
        try:
            await _make(making / "data", major, bindir, statements)
            await asyncio.to_thread(making.rename, final)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, making, ignore_errors=True)
            raise
    return final / "data"


def _clear(making: Path) -> None:
    making.parent.mkdir(parents=True, exist_ok=True)
    making.parent.chmod(0o711)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)


async def _make(data: Path, major: int, bindir: Path, statements: str) -> None:
    uid = _initdb_uid()
    if uid is not None:
        os.chown(data.parent, uid, uid)
    await _run([str(bindir / "initdb"), "-D", str(data), *_INITDB_OPTIONS, *locale_options(major)], uid)
    if statements:
        # One statement a line, in single-user mode: no server, no socket.
        single = [str(bindir / "postgres"), "--single", "-j", "-D", str(data), "-c", "exit_on_error=true", SERVICE_DATABASE]
        await _run(single, uid, statements.replace(";\n", ";\n\n"))
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (data / name).unlink()  # the real ones are shared and lie outside


def _initdb_uid() -> int | None:
    """initdb refuses root, and wants a user with a name."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody").pw_uid


async def _run(command: list[str], uid: int | None, text: str = "") -> None:
    # In a thread: the event loop's own way of starting processes can't change their user.
    done = await asyncio.to_thread(
        subprocess.run,
        dying_with_us(command),
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"},
        user=uid,
        group=uid,
        extra_groups=[] if uid is not None else None,
        timeout=_PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        words = " ".join(done.stdout.decode(errors="replace").split())[-400:]
        raise TemplateFailed(f"the template cluster could not be made by {command[0]}: {words}")


class TemplateFailed(HostError):
    """initdb or its first statements failed; Torpor can't make databases of this major."""

    kind = "template_failed"
