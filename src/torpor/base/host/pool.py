"""The copy-on-write pool on a loop file: make, mount, unmount.

Each function is idempotent, and may be interrupted at any point and run again: the image gets its name only when its file system is
whole. Needs root for all but asking.
"""

import contextlib
import os
from pathlib import Path

from torpor.base.btrfs import count_simply, counters
from torpor.base.host.facts import POOL_DIRECTORY_NAME, POOL_IMAGE_NAME
from torpor.base.host.machine import HostActionFailed, Machine

_LABEL = "torpor"
# discard: what is deleted in the pool is freed in the sparse file. nodatacow: PostgreSQL has checksums of its own, and writes in place.
_OPTIONS = {"xfs": "loop,noatime,discard", "btrfs": "loop,noatime,discard,nodatacow"}
_MAKE = {"xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single")}
_BTRFS_MAGIC, _BTRFS_MAGIC_AT = b"_BHRfS_M", 0x10040
# Computes run under other users and reach their own volume by its path, but needn't list the others.
_MODE = 0o711


def ensure_pool_mounted(data_dir: Path, machine: Machine | None = None) -> bool:
    """Mount the pool of this data directory if it has one. True when it is mounted (now or already), False when there is none.

    Raises HostActionFailed when there is one and it can't be mounted: going on would show an empty place where volumes should be.
    """
    machine = machine or Machine()
    image, point = data_dir / POOL_IMAGE_NAME, data_dir / POOL_DIRECTORY_NAME
    if not image.is_file():
        return False
    if os.path.ismount(point):
        return True
    if not machine.is_root:
        raise HostActionFailed(
            f"the pool {image} isn't mounted, and only root can mount it", "run `torpor serve` as root, or mount it by hand"
        )
    point.mkdir(mode=_MODE, parents=True, exist_ok=True)
    if os.listdir(point):
        raise HostActionFailed(f"{point} holds files that the pool {image} would hide", f"move them away: `mv {point} {point}.old`")
    kind = _filesystem(image)
    mends = "xfs_repair" if kind == "xfs" else "btrfs check --repair"
    hint = f"look at `dmesg | tail`; loop devices and {kind} must be there; `{mends} {image}` mends a damaged pool"
    machine.must_run(["mount", "-t", kind, "-o", _OPTIONS[kind], str(image), str(point)], hint)
    point.chmod(_MODE)
    if kind == "btrfs" and counters(point) is None:
        try:
            count_simply(point)
        except OSError as error:
            raise HostActionFailed(f"the pool {image} can't count: {error.strerror}", "quotas on btrfs take Linux 6.7") from error
    _tune(image, machine)
    return True


def _filesystem(image: Path) -> str:
    try:
        with image.open("rb") as file:
            file.seek(_BTRFS_MAGIC_AT)
            return "btrfs" if file.read(len(_BTRFS_MAGIC)) == _BTRFS_MAGIC else "xfs"
    except OSError as error:
        raise HostActionFailed(f"the pool {image} can't be read: {error.strerror}") from error


def _tune(image: Path, machine: Machine) -> None:
    """Keep neighbours on the pool apart. Best effort: kernels without it serve, too.

    Without direct I/O each commit writes out whatever anybody has written meanwhile, and all is cached twice. BFQ knows groups: measured
    beside a neighbour that writes 400 MB/s, a commit's 99th percentile is 2 ms with it and 650 ms without.
    """
    for line in machine.run(["losetup", "--noheadings", "--output", "NAME", "--associated", str(image)]).out.splitlines():
        device = line.strip()
        machine.run(["losetup", "--direct-io=on", device])
        with contextlib.suppress(OSError):
            machine.path(f"/sys/block/{device.removeprefix('/dev/')}/queue/scheduler").write_text("bfq")


def make_pool(data_dir: Path, size_bytes: int, machine: Machine, filesystem: str = "xfs") -> None:
    """Make the image (sparse) with an empty file system. The caller has seen that there is none. Raises HostActionFailed."""
    image = data_dir / POOL_IMAGE_NAME
    unfinished = image.with_suffix(".new")
    try:
        data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        with unfinished.open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.truncate(size_bytes)
        package = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[filesystem]
        machine.must_run([*_MAKE[filesystem], "-L", _LABEL, str(unfinished)], f"the package {package} has it", 300)
        unfinished.replace(image)
    except OSError as error:
        raise HostActionFailed(f"{image} can't be made: {error.strerror}", "make room, or give a smaller --pool-size") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def unmount_pool(data_dir: Path, machine: Machine) -> bool:
    """Unmount the pool, and delete its image if nothing was in it. True when the image is gone. Raises HostActionFailed when in use."""
    image, point = data_dir / POOL_IMAGE_NAME, data_dir / POOL_DIRECTORY_NAME
    empty = False
    if os.path.ismount(point):
        empty = not os.listdir(point)
        machine.must_run(["umount", str(point)], "stop Torpor and its databases first (`torpor ls`), or leave that directory")
    elif not image.is_file():
        return True
    if empty:
        image.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            point.rmdir()
    return empty
