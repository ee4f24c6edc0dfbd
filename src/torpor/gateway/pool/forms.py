"""Two forms of the pool's hot path: compiled to C where the host could do that, and the very same source interpreted everywhere else.

What is compiled is every module here that has a `.pxd` beside it (its types) or a `.pyx` (`wire`), by `hatch_build.py`, into the folder
`compiled`, with a stamp that tells of which sources. Only while all of these are as they were, and the interpreter is the same, is that
folder looked into before this package's own (`__init__`): so there is no such thing as a stale compiled module, nor a mixture. Imports
nothing of Torpor, since the build loads it by its path.
"""

import hashlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

COMPILED = "compiled"
STAMP = "stamp"
INTERPRETED = "TORPOR_INTERPRETED"
"""In the environment: the interpreted form is wanted. For tests, and to find out whether a fault is the compiler's."""


def modules(package: Path) -> dict[str, Path]:
    """What is compiled: the names of modules, with their sources."""
    found = {path.stem: path.with_suffix(".py") for path in package.glob("*.pxd")}
    found.update({path.stem: path for path in package.glob("*.pyx")})
    return dict(sorted(found.items()))


def stamp(package: Path) -> str:
    """What a compiled form of the sources as they are now is marked with."""
    digest = hashlib.sha256(EXTENSION_SUFFIXES[0].encode())
    for path in sorted([*package.glob("*.pxd"), *modules(package).values()]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def compiled(package: Path) -> Path | None:
    """The folder with the compiled form; None when there is none, when it is of other sources, or not wanted."""
    folder = package / COMPILED
    try:
        is_fresh = not os.environ.get(INTERPRETED) and (folder / STAMP).read_text() == stamp(package)
    except OSError:
        return None
    return folder if is_fresh else None
