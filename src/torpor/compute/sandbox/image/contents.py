"""What goes into the root image, and from where: a list of entries, decided by reading the host. Changes nothing.

Synchronous, about 0.1 s; runs PostgreSQL's own `pg_config` and `ldconfig -p`, and nothing else.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from torpor.compute.binaries import Postgres
from torpor.compute.sandbox.image.icudata import IcuUse
from torpor.compute.sandbox.image.libraries import Closure, Libraries, union
from torpor.model.errors import BinariesMissing, ImageUnusable

MOUNT_POINTS = ("conf", "data", "dev", "proc", "run", "tmp", "torpor")
"""Empty directories of the image, for the sandbox to mount on."""

TOOLS = ("cat", "cp", "gzip", "head", "ls", "mkdir", "mv", "rm", "sleep")
"""Beside the shell, for COPY … PROGRAM and archive commands: 0.85 MB, and 0.9 MB of libraries that cp, ls, mkdir and mv ask for."""

_HOME = PurePosixPath("/opt/postgresql")
"""Where a relocatable PostgreSQL lies in the image: the prefix that the wheels were built for."""

LOCALES = Path("/usr/lib/locale")
_LOCALES_LIMIT_BYTES = 8_000_000
"""Of other locales than C.UTF-8: en_US.UTF-8 takes 3 MB, all there are 220."""

_MERGED = frozenset(["bin", "sbin", "lib", "lib32", "lib64", "libx32"])
_NO_ZONES = re.compile(r"(posix|right)/|localtime$|leap|\+VERSION$|tzdata\.zi$|SECURITY$|.*\.(tab|list)$")
_TOO_LARGE = re.compile(r"lib(LLVM|python|perl|tcl)[-.0-9]")
"""What a module may not ask for: an interpreter or a compiler, each larger than all of the image, most of it files and not libraries."""

_MODULE = re.compile(r"^\s*module_pathname\s*=\s*'(?:\$libdir/)?([^']+)'", re.MULTILINE)
_REQUIRES = re.compile(r"^\s*requires\s*=\s*'([^']*)'", re.MULTILINE)
_SYSTEM_FILES = {
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "usr/bin/gunzip": '#!/bin/sh\nexec gzip -d "$@"\n',
    "usr/bin/zcat": '#!/bin/sh\nexec gzip -cd "$@"\n',
}
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/bin"}


class Part(StrEnum):
    """What a file is there for; the rows of the report."""

    SERVER = "server"  # the program postgres
    MODULES = "extension modules"  # lib/*.so of extensions and languages
    ENCODINGS = "encoding conversions"  # lib/*.so that convert between encodings
    SCRIPTS = "extension scripts"  # share/extension
    SEARCH = "text search"  # share/tsearch_data, and the stemmers
    ZONES = "time zones"  # share/timezonesets and the zones themselves
    LIBRARIES = "shared libraries"  # the C library, OpenSSL and so on, with the loader
    LOCALE = "locales"  # C.UTF-8: what the C library knows of characters; and the host's others
    TOOLS = "shell and tools"  # /bin/sh and TOOLS
    SYSTEM = "system files"  # /etc and links


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the image: a copy of `source`, or `text`, or a symbolic link to `link`. `target` is relative to the root.

    `icu`: it is ICU's data, of which only what this use needs is copied.
    """

    part: Part
    target: PurePosixPath
    source: Path | None = None
    text: str = ""
    link: str = ""
    executable: bool = False
    icu: IcuUse | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The whole image. `bindir`: where `postgres` is inside. `left_out`: extensions that aren't in it, and why."""

    major: int
    version: str
    bindir: PurePosixPath
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where an installed PostgreSQL has its directories on the host, and where they are inside."""

    bindir: Path
    sharedir: Path
    pkglibdir: Path
    prefix: Path | None

    def inside(self, path: Path) -> PurePosixPath | None:
        """The place of a file of PostgreSQL's own; None for others. They stay together: it finds them from where its program is."""
        if self.prefix is None:
            own = any(path.is_relative_to(directory) for directory in (self.bindir, self.sharedir, self.pkglibdir))
            return _merged(path) if own else None
        return _HOME / path.relative_to(self.prefix) if path.is_relative_to(self.prefix) else None


def gather(postgres: Postgres, libraries: Libraries | None = None) -> Contents:
    """Everything that goes into the image of one installed PostgreSQL. Raises ImageUnusable or BinariesMissing for what the host lacks."""
    try:
        return _Gathering(postgres, libraries or Libraries()).run()
    except OSError as error:
        raise ImageUnusable(
            f"the root image of PostgreSQL {postgres.major} can't be put together: {error.filename} can't be read ({error.strerror})",
            f"install PostgreSQL again: `torpor postgres install {postgres.major}`",
        ) from error


class _Gathering:
    def __init__(self, postgres: Postgres, libraries: Libraries) -> None:
        self._postgres = postgres
        self._libraries = libraries
        self._layout = _lay_out(postgres)
        self._entries: dict[PurePosixPath, Entry] = {}
        self._left_out: dict[str, str] = {}

    def run(self) -> Contents:
        server = self._layout.bindir / "postgres"
        closures = [self._needed(server)]
        self._add_own(Part.SERVER, server, executable=True)
        left_out_modules: set[str] = set()
        for module in sorted(self._layout.pkglibdir.glob("*.so")):
            if module.is_symlink():
                continue  # libpq.so and its like, for compilers
            closure = self._libraries.needs(module)
            reason = _obstacle(closure)
            if reason:
                left_out_modules.add(module.stem)
                self._left_out[module.stem] = reason
                continue
            closures.append(closure)
            self._add_own(_module_part(module.stem), module, executable=True)
        self._add_extensions(left_out_modules)
        self._add_share()
        closures += self._add_tools()
        self._add_libraries(union(closures))
        self._add_locales()
        for name, text in _SYSTEM_FILES.items():
            part = Part.TOOLS if name.startswith("usr/bin") else Part.SYSTEM
            self._add(Entry(part, PurePosixPath(name), text=text, executable=part is Part.TOOLS))
        for name, link in _LINKS.items():
            self._add(Entry(Part.SYSTEM, PurePosixPath(name), link=link))
        bindir = self._layout.inside(self._layout.bindir)
        assert bindir is not None, "the programs are PostgreSQL's own"
        entries = tuple(self._entries[target] for target in sorted(self._entries))
        return Contents(self._postgres.major, self._postgres.version, bindir, entries, tuple(sorted(self._left_out.items())))

    def _add(self, entry: Entry) -> None:
        self._entries.setdefault(entry.target, entry)

    def _add_own(self, part: Part, path: Path, executable: bool = False) -> None:
        target = self._layout.inside(path)
        assert target is not None, f"{path} is not below PostgreSQL's directories"
        self._add(Entry(part, _relative(target), source=path, executable=executable))

    def _needed(self, path: Path) -> Closure:
        """What a program needs that the image can't do without."""
        closure = self._libraries.needs(path)
        if closure.missing:
            names = ", ".join(sorted({name for lacking in closure.missing.values() for name in lacking}))
            raise ImageUnusable(f"{path.name} needs {names}, which this host lacks", "`torpor host setup` installs what is missing")
        return closure

    def _add_extensions(self, left_out_modules: set[str]) -> None:
        directory = self._layout.sharedir / "extension"
        controls = {path.stem: path.read_text(errors="replace") for path in sorted(directory.glob("*.control"))}
        out: dict[str, str] = {}
        for name, control in controls.items():
            module = _MODULE.search(control)
            if module is not None and module[1] in left_out_modules:
                out[name] = self._left_out[module[1]]
        # A transform needs its language: once more for each round that left one out.
        grew = True
        while grew:
            grew = False
            for name, control in controls.items():
                requires = _REQUIRES.search(control)
                lacking = [needed for needed in re.split(r"[,\s]+", requires[1]) if needed in out] if requires else []
                if lacking and name not in out:
                    out[name], grew = f"requires {lacking[0]}", True
        for module_name in left_out_modules:
            del self._left_out[module_name]
            if not any((found := _MODULE.search(control)) and found[1] == module_name for control in controls.values()):
                self._left_out[module_name] = "its libraries are too large or missing"
        self._left_out |= out
        for path in _files(directory):
            wanted = path.suffix in (".control", ".sql") or path.parent != directory
            if wanted and path.name.removesuffix(".control").split("--")[0] not in out:
                self._add_own(Part.SCRIPTS, path)

    def _add_share(self) -> None:
        share = self._layout.sharedir
        for path in _files(share / "timezonesets"):
            self._add_own(Part.ZONES, path)
        for path in _files(share / "tsearch_data"):
            self._add_own(Part.SEARCH, path)
        own_zones = share / "timezone"
        if own_zones.is_dir():
            for path in _files(own_zones):
                self._add_own(Part.ZONES, path)
            return
        zones = Path("/usr/share/zoneinfo")
        if not (zones / "UTC").exists():
            raise BinariesMissing("PostgreSQL needs the system's time zones", "install the package tzdata")
        for path in _files(zones):
            name = path.relative_to(zones)
            if _NO_ZONES.match(str(name)):
                continue
            link = os.readlink(path) if path.is_symlink() else ""
            target = PurePosixPath("usr/share/zoneinfo") / name
            if link and "/" not in link:
                self._add(Entry(Part.ZONES, target, link=link))
            else:
                self._add(Entry(Part.ZONES, target, source=path))

    def _add_tools(self) -> list[Closure]:
        closures = []
        for name in ("sh", *TOOLS):
            path = next((found for found in (Path("/bin", name), Path("/usr/bin", name)) if found.exists()), None)
            if path is None:
                if name == "sh":
                    raise ImageUnusable(
                        "this host has no /bin/sh, which COPY … PROGRAM and archive commands need", "install the package dash"
                    )
                continue
            closures.append(self._needed(path))
            self._add(Entry(Part.TOOLS, PurePosixPath("usr/bin") / name, source=path, executable=True))
        return closures

    def _add_libraries(self, closure: Closure) -> None:
        c_library = closure.libraries.get("libc.so.6")
        if c_library is None:
            raise ImageUnusable("this PostgreSQL isn't built for the GNU C library", "install one that is, and set pg_bindir")
        # Wherever the loader finds the C library without a cache, it finds the others.
        home = _relative(_merged(c_library)).parent
        loaders = {PurePosixPath(name).name for name in closure.interpreters}
        for name in closure.interpreters:
            self._add(Entry(Part.LIBRARIES, _relative(_merged(Path(name))), source=Path(name), executable=True))
        for name, path in sorted(closure.libraries.items()):
            if name in loaders:
                continue
            own = self._layout.inside(path)
            target = _relative(own) if own else home / name
            icu = self._icu_use(closure) if name.startswith("libicudata.") else None
            self._add(Entry(Part.LIBRARIES, target, source=path, executable=True, icu=icu))

    def _icu_use(self, closure: Closure) -> IcuUse:
        """Converters only, when nobody but libxml2 asks for ICU itself."""
        programs = {entry.source for entry in self._entries.values() if entry.source is not None and entry.executable}
        for path in programs | set(closure.libraries.values()):
            headers = self._libraries.read(path)
            asks = headers is not None and any(needed.startswith("libicu") for needed in headers.needed)
            if asks and not path.name.startswith(("libicu", "libxml2.")):
                return IcuUse.COLLATION
        return IcuUse.CONVERTERS

    def _add_locales(self) -> None:
        """C.UTF-8, which the C library has as files, and the host's other locales unless they are too many."""
        others = []
        for path in _files(LOCALES):
            if path.relative_to(LOCALES).parts[0] in ("C.utf8", "C.UTF-8"):
                self._add(Entry(Part.LOCALE, PurePosixPath("usr/lib/locale") / path.relative_to(LOCALES), source=path))
            else:
                others.append(path)
        size = sum(path.stat().st_size for path in others)
        if size > _LOCALES_LIMIT_BYTES:
            self._left_out["locales of the host but C.UTF-8"] = f"they take {size / 1e6:.0f} MB"
            return
        for path in others:
            self._add(Entry(Part.LOCALE, PurePosixPath("usr/lib/locale") / path.relative_to(LOCALES), source=path))


def _lay_out(postgres: Postgres) -> _Layout:
    bindir = postgres.bindir.resolve()
    places = {"bindir": bindir, "sharedir": bindir.parent / "share", "pkglibdir": bindir.parent / "lib"}
    program = bindir / "pg_config"
    if program.exists():
        run = subprocess.run(
            [program, "--bindir", "--sharedir", "--pkglibdir"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
        )
        if run.returncode == 0 and len(lines := run.stdout.splitlines()) == len(places):
            places = {name: Path(os.path.realpath(line)) for name, line in zip(places, lines, strict=True)}
    for name in ("sharedir", "pkglibdir"):
        if not places[name].is_dir():
            raise BinariesMissing(
                f"the {name} of PostgreSQL {postgres.major} isn't where it should be ({places[name]})",
                "install PostgreSQL again, with its pg_config beside its other programs",
            )
    common = Path(os.path.commonpath(list(places.values())))
    # A system's PostgreSQL is spread over /usr, and stays where it was built for; anything else moves as a whole.
    relocatable = len(common.parts) > 1 and common != Path("/usr") and not common.is_relative_to("/usr/lib")
    return _Layout(bindir, places["sharedir"], places["pkglibdir"], common if relocatable else None)


def _obstacle(closure: Closure) -> str:
    large = sorted(name for name in closure.libraries if _TOO_LARGE.match(name))
    if large:
        return f"needs {large[0]}, which is larger than the image"
    missing = sorted({name for names in closure.missing.values() for name in names})
    return f"needs {missing[0]}, which this host lacks" if missing else ""


def _module_part(stem: str) -> Part:
    if stem == "dict_snowball":
        return Part.SEARCH
    return Part.ENCODINGS if "_and_" in stem else Part.MODULES


def _files(directory: Path) -> Iterator[Path]:
    """The files below, sorted; links to files too, unless they lead nowhere."""
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield path


def _merged(path: Path | PurePosixPath) -> PurePosixPath:
    """With /lib and its like below /usr, where the image has them whatever the host does."""
    pure = PurePosixPath(path)
    return PurePosixPath("/usr", *pure.parts[1:]) if len(pure.parts) > 1 and pure.parts[1] in _MERGED else pure


def _relative(path: PurePosixPath) -> PurePosixPath:
    return path.relative_to("/")


def sources(entries: Iterable[Entry]) -> Iterator[Path]:
    """The host's files that the image is made of."""
    return (entry.source for entry in entries if entry.source is not None)
