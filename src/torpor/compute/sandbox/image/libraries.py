"""The shared libraries of the host: which file the loader would take for a name, and all that a set of files needs. Reads files only.

Synchronous; one `Libraries` is used by one thread and remembers what it has read.
"""

import mmap
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torpor.compute.sandbox.image import elf
from torpor.compute.sandbox.image.elf import Elf

_CACHED = re.compile(r"^\t(\S+) \(libc6,([^)]*)\) => (/\S+)$", re.MULTILINE)
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_USUAL_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


def cached(listing: str) -> dict[str, list[Path]]:
    """The loader's cache by name, from what `ldconfig -p` says. Variants for newer processors are left out: the plain ones run on all."""
    found: dict[str, list[Path]] = {}
    for name, flags, path in _CACHED.findall(listing):
        if "hwcap" not in flags and "glibc-hwcaps" not in path:
            found.setdefault(name, []).append(Path(path))
    return found


@dataclass(slots=True)
class Closure:
    """What some files need: every library (from which file) by name, the loaders they name, and what this host lacks, by who wants it."""

    libraries: dict[str, Path] = field(default_factory=dict)
    interpreters: set[str] = field(default_factory=set)
    missing: dict[Path, set[str]] = field(default_factory=dict)


class Libraries:
    """The host's libraries."""

    def __init__(self, cache: dict[str, list[Path]] | None = None) -> None:
        """With the loader's own cache, unless another is given."""
        self._cache = _host_cache() if cache is None else cache
        self._read: dict[Path, Elf | None] = {}

    def read(self, path: Path) -> Elf | None:
        """The file's headers; None for what isn't ELF."""
        if path not in self._read:
            with path.open("rb") as stream:
                if stream.read(len(elf.MAGIC)) != elf.MAGIC:
                    self._read[path] = None
                else:
                    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                        self._read[path] = elf.parse(content)
        return self._read[path]

    def needs(self, path: Path) -> Closure:
        """All that one file needs, itself not included."""
        closure = Closure()
        waiting = [path]
        while waiting:
            current = waiting.pop()
            headers = self.read(current)
            if headers is None:
                continue
            if headers.interpreter:
                closure.interpreters.add(headers.interpreter)
            for name in headers.needed:
                if name in closure.libraries:
                    continue
                library = self.find(name, current, headers)
                if library is None:
                    closure.missing.setdefault(current, set()).add(name)
                else:
                    closure.libraries[name] = library
                    waiting.append(library)
        return closure

    def find(self, name: str, user: Path, headers: Elf) -> Path | None:
        """The file that the loader takes for `name` when `user` needs it: from its own directories, then the cache, then the usual ones."""
        own = [Path(part.replace("$ORIGIN", str(user.parent)).replace("${ORIGIN}", str(user.parent))) / name for part in headers.search]
        usual = [Path(directory) / name for directory in _USUAL_DIRECTORIES]
        for candidate in [*own, *self._cache.get(name, []), *usual]:
            if candidate.is_file():
                found = self.read(candidate)
                if found is not None and found.machine == headers.machine:
                    return candidate
        return None


def union(closures: Iterable[Closure]) -> Closure:
    """All of them together."""
    result = Closure()
    for closure in closures:
        result.libraries.update(closure.libraries)
        result.interpreters |= closure.interpreters
        for user, names in closure.missing.items():
            result.missing.setdefault(user, set()).update(names)
    return result


def _host_cache() -> dict[str, list[Path]]:
    ldconfig = shutil.which("ldconfig", path=_PATH)
    if ldconfig is None:
        return {}
    run = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    return cached(run.stdout)
