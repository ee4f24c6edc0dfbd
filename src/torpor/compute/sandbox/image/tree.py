"""Writes the contents of an image as a directory tree, and names it by what is in it.

Synchronous; call it in a thread. The caller owns the directory and removes what an interruption leaves.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torpor.compute.sandbox.image.contents import MOUNT_POINTS, Contents, Entry, Part
from torpor.compute.sandbox.image.elf import loaded_part
from torpor.compute.sandbox.image.icudata import trim

_RECIPE = 1
"""Counts changes of how an image is made that its inputs don't show."""

TIMESTAMP = 946684800
"""Of every file: the year 2000. Not 0, which some tools take for "unknown"."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one part takes: how many files, their bytes on the host, unpacked in the image, and packed in it."""

    part: Part
    files: int
    source_bytes: int
    bytes: int
    packed_bytes: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that was written. `digest` names its contents: the same for the same bytes, names and modes."""

    digest: str
    shares: tuple[Share, ...]


def fingerprint(contents: Contents, extra: str = "") -> str:
    """Of the inputs: changes when any file of the host that goes into the image is another. Reads no file, only their states (5 ms)."""
    state = hashlib.sha256(repr((_RECIPE, extra, contents.major, contents.version, contents.bindir, contents.left_out)).encode())
    for entry in contents.entries:
        state.update(repr((str(entry.target), entry.part.value, entry.text, entry.link, entry.executable, entry.icu)).encode())
        if entry.source is not None:
            found = entry.source.stat()
            state.update(repr((str(entry.source), found.st_size, found.st_mtime_ns, found.st_ino)).encode())
    return state.hexdigest()


def write(contents: Contents, root: Path, on_file: Callable[[Entry], None] = lambda _: None) -> Tree:
    """Write the tree to `root`, which doesn't exist yet. Readable by everybody, writable by its owner. Raises OSError."""
    digest = hashlib.sha256(repr((_RECIPE, MOUNT_POINTS)).encode())
    shares: dict[Part, Share] = {}
    root.mkdir()
    directories = {root}
    for name in MOUNT_POINTS:
        _make_directory(root / name, directories)
    for entry in contents.entries:
        on_file(entry)
        path = root / entry.target
        _make_directory(path.parent, directories)
        content, source_bytes = _content(entry)
        mode = 0o755 if entry.executable else 0o644
        if entry.link:
            path.symlink_to(entry.link)
            os.utime(path, (TIMESTAMP, TIMESTAMP), follow_symlinks=False)
        else:
            with path.open("xb") as stream:
                stream.write(content)
                stream.flush()  # a write after it would set the time again
                os.fchmod(stream.fileno(), mode)
                os.utime(stream.fileno(), (TIMESTAMP, TIMESTAMP))
        digest.update(repr((str(entry.target), entry.link, mode, hashlib.sha256(content).hexdigest())).encode())
        before = shares.get(entry.part, Share(entry.part, 0, 0, 0, 0))
        files, unpacked = before.files + 1, before.bytes + len(content)
        shares[entry.part] = Share(entry.part, files, before.source_bytes + source_bytes, unpacked, unpacked)
    for directory in sorted(directories, reverse=True):
        directory.chmod(0o755)
        os.utime(directory, (TIMESTAMP, TIMESTAMP))
    return Tree(digest.hexdigest()[:16], tuple(shares[part] for part in Part if part in shares))


def packed_shares(contents: Contents, shares: tuple[Share, ...], root: Path, packed_bytes: int) -> tuple[Share, ...]:
    """The shares with what each takes of the packed image that is mounted at `root`; in proportion where the file system doesn't tell."""
    parts = {entry.target: entry.part for entry in contents.entries}
    taken = dict.fromkeys(Part, 0)
    for target, part in parts.items():
        found = (root / target).lstat()
        taken[part] += min(found.st_blocks * 512, found.st_size)
    unpacked = sum(share.bytes for share in shares)
    if sum(taken.values()) > packed_bytes:
        return tuple(replace(share, packed_bytes=share.bytes * packed_bytes // unpacked) for share in shares)
    return tuple(replace(share, packed_bytes=taken[share.part]) for share in shares)


def _content(entry: Entry) -> tuple[bytes, int]:
    if entry.source is None:
        return entry.text.encode(), len(entry.text.encode())
    content = entry.source.read_bytes()
    slim = loaded_part(content) if entry.icu is None else trim(content, entry.icu)
    return slim, len(content)


def _make_directory(path: Path, known: set[Path]) -> None:
    if path not in known:
        _make_directory(path.parent, known)
        path.mkdir()
        known.add(path)
