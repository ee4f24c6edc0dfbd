"""Brings a copy of a cluster to a newer major: pg_upgrade in a sandbox that has the programs of both, and finds nothing else.

The shape of a `work` directory, which lies beside where the cluster is to be (on the same file system, as pg_upgrade links files):

    old   a copy of the cluster (`compute/snapshot.py`), as after a crash or as it was stopped; worth nothing afterwards
    new   a copy of the newer major's blank cluster; afterwards the upgraded one
    s     sockets

What is upgraded is a tenant's, whose functions and triggers may run on the way: so all of it runs as the compute would, in its sandbox,
under its user and within its share of the machine, and what it says is bounded and believed by nobody else. What a tenant has set by
ALTER SYSTEM doesn't hold meanwhile, and is carried over as far as the new major knows the settings.

Concurrency: one task. Safe to cancel, and to kill: what ran ends with the sandbox, and the directory is thrown away.
"""

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from torpor.base.files import read_untrusted
from torpor.base.logs import get_logger
from torpor.base.processes import dying_with_us
from torpor.compute.binaries import Postgres
from torpor.compute.launch import enter
from torpor.compute.postmaster import Postmaster
from torpor.compute.sandbox.command import CONFIGURATION, DATA, LIBRARY_DIRECTORY, LOCKED_FILE, Confinement, confined, dropped, tool
from torpor.compute.sandbox.image.images import Root
from torpor.compute.sandbox.image.libraries import Libraries, union
from torpor.compute.service import sql
from torpor.compute.shares import Shares
from torpor.compute.surroundings import Surroundings
from torpor.compute.upgradelog import Account, carried
from torpor.model.database import Database
from torpor.model.errors import BinariesMissing, Conflict, PoolFull, Unavailable
from torpor.model.names import DatabaseId
from torpor.model.sandbox import SandboxLevel
from torpor.storage.room import FULL_HINT, PoolLevel

log = get_logger(__name__)

_OLD_PROGRAMS = ("postgres", "pg_controldata", "pg_ctl", "pg_resetwal", "psql")
_NEW_PROGRAMS = (*_OLD_PROGRAMS, "pg_upgrade", "initdb", "pg_dump", "pg_dumpall", "pg_restore", "vacuumdb", "pg_amcheck")
_AUTO_CONF = "postgresql.auto.conf"
_PASSWD = "passwd"  # noqa: S105  # a file: PostgreSQL's programs want a user with a name
_PATIENCE_S = 12 * 3600.0
_LOOK_EVERY_S = 0.5
_MOST_FILE_BYTES = 1088 << 20  # as of a compute (handover.c)
_READ_BYTES = 65_536
_LONGEST_LINE = 65_536
_MOST_OUTPUT_BYTES = 512 << 20
_LEAST_LOCKS, _FILES_A_LOCK = 1024, 16
_CONNECTIONS = 16
_LOGIN_TRIGGERS_SINCE, _TRANSACTION_TIMEOUT_SINCE = 17, 17
_OLD_ROOT, _OLD_CONFIGURATION, _MORE_LIBRARIES = PurePath("/run/old"), PurePath("/run/conf"), PurePath("/run/lib")


class UpgradeRefused(Conflict):
    """The database can't be upgraded as it is; the text says what stands against it."""

    kind = "upgrade_refused"


class UpgradeFailed(Unavailable):
    """It ended in the midst, or the upgraded cluster isn't what the old one was; nothing was changed."""

    kind, sqlstate = "upgrade_failed", "58000"


@dataclass(frozen=True, slots=True)
class Manner:
    """How thoroughly: `count` the rows of all tables before and after, `check` every page and index."""

    count: bool
    check: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: settings that the new major doesn't know, and what was said of extensions that stay as they are."""

    settings_left_out: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where things are, as the programs see them."""

    work: PurePath
    old: PurePath
    new: PurePath
    old_configuration: PurePath
    new_configuration: PurePath


def refuse_tablespaces(cluster: Path) -> None:
    """Raises UpgradeRefused where it has any: pg_upgrade would look for them where they are not. Blocking; nobody may write to it."""
    if any((cluster / "pg_tblspc").iterdir()):
        raise UpgradeRefused(
            "it has tablespaces", "ALTER DATABASE … SET TABLESPACE pg_default, DROP TABLESPACE, and ask again: a database has one volume"
        )


async def upgrade(
    source: Database, id: DatabaseId, to: int, work: Path, uid: int, around: Surroundings, manner: Manner, tell: Callable[[int, str], None]
) -> Outcome:
    """Upgrade `work`/old into `work`/new, for the database `id`, which is of `source`'s size. All of `work` must be `uid`'s, as the
    directories above must let it through. `tell` is told how many steps are done, and what goes on.

    Raises UpgradeRefused with what stands against it, UpgradeFailed, PoolFull, BinariesMissing. Nothing is synced.
    """
    programs = around.binaries(source.major), around.binaries(to)
    await asyncio.to_thread(_check_programs, *programs)
    settings = await asyncio.to_thread(_prepare, work, uid)
    with contextlib.ExitStack() as opened:
        line, environment, fds = await _command(source, to, work, uid, around, manner, opened)
        account = await _run(line, environment, fds, source, id, work, around, tell)
    if not account.is_done or account.failed:
        raise _failure(account)
    if found := account.differences():
        log.error("an upgraded cluster isn't what it was", database=source.label, differences=found[:20])
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise UpgradeFailed(f"the upgraded cluster isn't what it was: {'; '.join(found[:3])}{more}", "nothing was changed; report this")
    left_out = await asyncio.to_thread(_carry_settings, work / "new", settings, account.settings)
    return Outcome(tuple(left_out), tuple(account.troubles))


def _failure(account: Account) -> Exception:
    message, hint = account.cause()
    if account.has_no_room:
        return PoolFull(f"there is no room for the upgrade ({message})", FULL_HINT)
    if account.failed and not account.failed.endswith("server"):
        return UpgradeRefused(message, hint or "mend that in the database, and ask again: nothing was changed")
    return UpgradeFailed(f"the upgrade was cut off ({message})", "nothing was changed; ask again")


async def _run(
    line: list[str],
    environment: dict[str, str],
    fds: list[int],
    source: Database,
    id: DatabaseId,
    work: Path,
    around: Surroundings,
    tell: Callable[[int, str], None],
) -> Account:
    account, shares = Account(), Shares()
    tree = shares.open(around.trees.open(id), source.size.apply(around.size))
    remains = Postmaster(tree, around.run / id / "door.sock", lambda _: None, lambda: None)
    # Spawned by the loop's own thread, and no other: what dies with its parent dies with the thread that made it.
    process = await asyncio.create_subprocess_exec(
        *(tool("prlimit"), "--core=0", f"--fsize={_MOST_FILE_BYTES}", *line),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
        pass_fds=fds,
    )
    try:
        tree.adopt(process.pid)
        with contextlib.suppress(ProcessLookupError):  # it has ended, and says why
            await asyncio.to_thread(enter, process.pid, tree.entrances())
        assert process.stdout is not None
        watching = asyncio.ensure_future(_watch_room(around))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await _either(_listen(process.stdout, account, tell), watching)
                await process.wait()
        finally:
            watching.cancel()
    except TimeoutError as error:
        raise UpgradeFailed(f"it had not ended after {_PATIENCE_S / 3600:.0f} hours", "nothing was changed") from error
    finally:
        tree.kill()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for cluster in ("old", "new"):  # outside of a sandbox a server would outlive them
            await remains.clear_remains(work / cluster)
        await remains.bury()
        shares.close()
    return account


async def _either(work: Coroutine[Any, Any, None], watching: "asyncio.Future[None]") -> None:
    """Until the work is done; raises what either raises."""
    working = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _watch_room(around: Surroundings) -> None:
    """No database is held to its size meanwhile: what a tenant's own code writes there must not take the others' room. Raises PoolFull."""
    while around.volumes.level < PoolLevel.SHORT:
        await around.clock.sleep(_LOOK_EVERY_S)
    raise PoolFull("there is no room for the upgrade", FULL_HINT)


async def _listen(stream: asyncio.StreamReader, account: Account, tell: Callable[[int, str], None]) -> None:
    held, heard = b"", 0
    while part := await stream.read(_READ_BYTES):
        heard += len(part)
        if heard > _MOST_OUTPUT_BYTES:
            raise UpgradeFailed("its programs said more than anybody can read", "nothing was changed")
        *lines, held = (held + part).split(b"\n")
        for line in lines:
            account.hear(line[:_LONGEST_LINE].decode(errors="replace"))
        held = held[-_LONGEST_LINE:]
        account.hear_beginning(held.decode(errors="replace"))
        tell(account.steps, account.stage)
        await asyncio.sleep(0)
    if held:
        account.hear(held.decode(errors="replace"))


# -- what is run


async def _command(
    source: Database, to: int, work: Path, uid: int, around: Surroundings, manner: Manner, opened: contextlib.ExitStack
) -> tuple[list[str], dict[str, str], list[int]]:
    """The command line, its environment, and the descriptors that it needs."""
    level, old, new = around.sandbox.level, around.binaries(source.major), around.binaries(to)
    configurations = around.configuration(source.major), around.configuration(to)
    locks = max(_LEAST_LOCKS, await asyncio.to_thread(_count_files, work / "old" / "base") // _FILES_A_LOCK)
    if not level.is_sandbox:
        place = _Place(work, old.bindir, new.bindir, *configurations)
        environment = _environment(place, source.major, to, locks, manner)
        inside = ["/bin/sh", str(work / "upgrade.sh")]
        if level is not SandboxLevel.OWN_USER:
            return dying_with_us(inside), environment, []
        # Its user has no name on the host, and PostgreSQL's programs want one: so it gets a file of users of its own.
        named = ["/bin/sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"', str(work / _PASSWD), *dropped(uid), *inside]
        return dying_with_us([tool("unshare"), "--ipc", "--mount", "--pid", "--fork", "--kill-child", *named]), environment, []
    old_root, new_root = await around.sandbox.root(source.major), await around.sandbox.root(to)
    assert old_root is not None
    assert new_root is not None
    assert around.sandbox.filter is not None
    within_old = _OLD_ROOT / old_root.bindir.relative_to("/")
    place = _Place(DATA, within_old, new_root.bindir, _OLD_CONFIGURATION, CONFIGURATION)
    libraries = await asyncio.to_thread(_more_libraries, old, new, old_root, new_root)
    environment = _environment(place, source.major, to, locks, manner) | {
        # Without /proc the loader doesn't find what lies beside a program.
        "LD_LIBRARY_PATH": f"{new_root.bindir.parent / 'lib'}:{_MORE_LIBRARIES}"
    }
    if level is SandboxLevel.NO_USER_NAMESPACE:
        environment["LD_PRELOAD"] = str(LIBRARY_DIRECTORY / around.library.name)  # becomes the compute's user there
    more = ["--die-with-parent", "--tmpfs", "/run", "--ro-bind", str(old_root.path), str(_OLD_ROOT)]
    more += ["--ro-bind", str(old.bindir), str(within_old), "--ro-bind", str(new.bindir), str(new_root.bindir)]
    more += ["--ro-bind", str(configurations[0]), str(_OLD_CONFIGURATION), "--ro-bind", str(work / _PASSWD), "/etc/passwd"]
    more += ["--perms", "0755", "--dir", str(_MORE_LIBRARIES)]
    for name, path in libraries:
        more += ["--ro-bind", str(path), str(_MORE_LIBRARIES / name)]
    filter_fd = os.open(around.sandbox.filter, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, filter_fd)
    given = Confinement(level, uid, new_root.path, work, configurations[1], around.library, filter_fd)
    return confined(given, environment, ["/bin/sh", str(DATA / "upgrade.sh")], more), {}, [filter_fd]


def _environment(place: _Place, old: int, to: int, locks: int, manner: Manner) -> dict[str, str]:
    """What upgrade.sh is told. Pure."""
    # Nothing that a tenant has set for roles or databases may reach these sessions.
    options = (
        "-c search_path=pg_catalog -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 -c role=none "
        "-c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c session_preload_libraries= -c local_preload_libraries= "
        "-c client_min_messages=warning -c row_security=on"
    )
    if old >= _TRANSACTION_TIMEOUT_SINCE:
        options += " -c transaction_timeout=0"
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "LC_MESSAGES": "C",
        "TZ": "UTC",
        "PGSSLMODE": "disable",
        "PGGSSENCMODE": "disable",
        "PGCLIENTENCODING": "UTF8",
        "PGOPTIONS": options,
        "WORK": str(place.work),
        "OLD": str(place.old),
        "NEW": str(place.new),
        "OLD_OPTIONS": _server_options(place.old_configuration, old, locks),
        "NEW_OPTIONS": _server_options(place.new_configuration, to, locks),
        "COUNT": str(int(manner.count)),
        "CHECK": str(int(manner.check)),
        "JOBS": str(max(1, min(4, os.cpu_count() or 1))),
    }


def _server_options(configuration: PurePath, major: int, locks: int) -> str:
    """For a server that nobody uses but PostgreSQL's own programs, on a cluster that is thrown away unless it becomes whole. Pure."""
    settings = {
        "config_file": f"'{configuration}/postgresql.conf'",
        "hba_file": f"'{configuration}/pg_hba.conf'",
        "ident_file": f"'{configuration}/pg_ident.conf'",
        "max_connections": _CONNECTIONS,
        "max_locks_per_transaction": locks,
        "shared_buffers": "64MB",
        "max_wal_size": "1GB",
        "fsync": "off",
        "autovacuum": "off",
        "archive_mode": "off",
        "max_logical_replication_workers": 0,
        "log_statement": "none",
    }
    if major >= _LOGIN_TRIGGERS_SINCE:
        settings["event_triggers"] = "off"
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _check_programs(old: Postgres, new: Postgres) -> None:
    for postgres, names in ((old, _OLD_PROGRAMS), (new, _NEW_PROGRAMS)):
        if lacking := [name for name in names if not (postgres.bindir / name).exists()]:
            raise BinariesMissing(
                f"PostgreSQL {postgres.major} in {postgres.bindir} lacks {', '.join(lacking)}",
                f"`torpor postgres install {postgres.major}`, or install the package that has them",
            )


@lru_cache(maxsize=8)
def _more_libraries(old: Postgres, new: Postgres, old_root: Root, new_root: Root) -> tuple[tuple[str, Path], ...]:
    """What the programs of both majors, and the old one's modules, are linked to and the new one's root image lacks. Reads files."""
    wanted = dict(_libraries_in(old_root.path))
    libraries = Libraries()
    programs = [*(old.bindir / name for name in _OLD_PROGRAMS), *(new.bindir / name for name in _NEW_PROGRAMS)]
    wanted |= union(libraries.needs(program) for program in programs).libraries
    there = {name for name, _ in _libraries_in(new_root.path)}
    there |= set(os.listdir(new_root.path / new_root.bindir.relative_to("/").parent / "lib"))
    return tuple(sorted((name, path) for name, path in wanted.items() if name not in there and not name.startswith("ld-")))


def _libraries_in(root: Path) -> Iterator[tuple[str, Path]]:
    for directory in (root / "usr/lib", root / "usr/lib64", *(root / "usr/lib").glob("*-linux-gnu")):
        if directory.is_dir():
            yield from ((path.name, path) for path in directory.iterdir() if ".so" in path.name and path.is_file())


# -- the directory


def _prepare(work: Path, uid: int) -> str:
    """Lay what is run beside the clusters; what was set by ALTER SYSTEM, which is put aside."""
    settings = ""
    with contextlib.suppress(OSError):
        settings = read_untrusted(work / "old" / _AUTO_CONF)
    for cluster in ("old", "new"):
        (work / cluster / _AUTO_CONF).unlink(missing_ok=True)
    own = uid if os.geteuid() == 0 else os.geteuid()
    users = f"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ntorpor:x:{own}:{own}::/:/bin/sh\n"
    texts = {
        "upgrade.sh": (files("torpor.compute") / "sh" / "upgrade.sh").read_text(),
        "facts.sql": sql("facts"),
        _PASSWD: users,
        LOCKED_FILE: "",
    }
    for name, text in texts.items():
        (work / name).write_text(text)
        (work / name).chmod(0o644)
        if os.geteuid() == 0:
            os.chown(work / name, uid, uid)
    return settings


def _carry_settings(cluster: Path, settings: str, known: set[str]) -> list[str]:
    """Set in the new cluster what was set in the old one; the names of what the new major doesn't know. It is the tenant's: no link is
    followed."""
    fd = os.open(cluster, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        text, left_out = carried(settings, known)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_AUTO_CONF, dir_fd=fd)
        made = os.open(_AUTO_CONF, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            os.write(made, b"# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n" + text.encode())
        finally:
            os.close(made)
        return left_out
    finally:
        os.close(fd)


def lay(work: Path, data: Path) -> None:
    """Move the upgraded cluster to `data`, which doesn't exist or has nothing in it but an empty `pg_wal` (a subvolume, perhaps), and
    remove `work`. Nothing may run in it any more. Blocking.
    """
    new = work / "new"
    for directory in (new, new / "pg_wal"):
        if not stat.S_ISDIR(directory.lstat().st_mode):
            raise UpgradeFailed("the upgraded cluster isn't one: it was tampered with", "nothing was changed")
    if not data.exists():
        new.rename(data)
    else:
        for path in list(new.iterdir()):
            if path.name != "pg_wal":
                path.rename(data / path.name)
        for path in (new / "pg_wal").iterdir():
            _move_file(path, data / "pg_wal" / path.name)
    # Not in Python, which goes no deeper than a thousand directories: a tenant may.
    subprocess.run(dying_with_us(["rm", "--recursive", "--force", "--", str(work)]), stdin=subprocess.DEVNULL, check=True)


def _move_file(path: Path, target: Path) -> None:
    """Across subvolumes, where nothing can be renamed. Of a directory its name is enough: they are empty in a new log."""
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        target.mkdir(mode=0o700)
    elif stat.S_ISREG(mode):
        shutil.copyfile(path, target, follow_symlinks=False)
        target.chmod(0o600)


def _count_files(base: Path) -> int:
    """How many files the databases of a cluster have."""
    return sum(len(os.listdir(one.path)) for one in os.scandir(base) if one.is_dir(follow_symlinks=False))
