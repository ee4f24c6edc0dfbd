"""Packs a tree into one file that the kernel mounts: EROFS where its tools are, else squashfs. Deterministic: same tree, same bytes.

Synchronous; each function is one process of some tenths of a second (squashfs: seconds).
"""

import uuid
from enum import StrEnum
from pathlib import Path

from torpor.base.host.machine import Machine
from torpor.compute.sandbox.image.tree import TIMESTAMP

LIMIT_BYTES = 30_000_000
"""What an image may have; a larger one is packed more tightly."""


class Kind(StrEnum):
    """How an image is kept."""

    EROFS = "erofs"  # one file, mounted; compressed so that a page is read and unpacked fast
    SQUASHFS = "squashfs"  # one file, mounted; smaller, and slower to read the first time
    TREE = "tree"  # a plain directory


PACKED = (Kind.EROFS, Kind.SQUASHFS)
_PROGRAMS = {Kind.EROFS: "mkfs.erofs", Kind.SQUASHFS: "mksquashfs"}
_PACKAGES = {Kind.EROFS: "erofs-utils", Kind.SQUASHFS: "squashfs-tools"}
_PATIENCE_S = 300.0


def obstacle(kind: Kind, machine: Machine) -> str:
    """Why this host can't have images of a kind; nothing when it seems that it can. Mounting may be refused all the same."""
    if kind is Kind.TREE:
        return ""
    if not machine.is_root:
        return "only root can mount images"
    if machine.which(_PROGRAMS[kind]) is None:
        return f"{_PROGRAMS[kind]} is not installed (package {_PACKAGES[kind]})"
    return ""


def pack(tree: Path, file: Path, kind: Kind, digest: str, machine: Machine) -> None:
    """Pack a tree. Everything in the file belongs to root. Raises HostActionFailed."""
    program = _PROGRAMS[kind]
    if kind is Kind.EROFS:
        # 32 kB clusters: 25.8 MB for PostgreSQL 18 where the usual 4 kB give 27.2, and a cold start takes 0.09 s instead of 0.11. The
        # high compression of lz4hc would take 6 to 15 s instead of 0.2, for 2 MB.
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, digest))
        options = ["-d1", "-zlz4", "-C32768", f"-T{TIMESTAMP}", "-U", name, "--all-root", "-x-1", str(file), str(tree)]
    else:
        when = str(TIMESTAMP)
        # Level 6 takes 1.1 s for Debian's PostgreSQL 15, the usual 15 takes 8; they differ by a tenth in size.
        options = [str(tree), str(file), "-comp", "zstd", "-Xcompression-level", "6", "-noappend", "-all-root", "-no-xattrs"]
        options += ["-mkfs-time", when, "-all-time", when, "-quiet", "-no-progress"]
    machine.must_run([program, *options], f"is the package {_PACKAGES[kind]} whole?", _PATIENCE_S)
