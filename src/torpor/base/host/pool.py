"""The copy-on-write pool on a loop file: make, mount, unmount. It lies in the data directory, or on encrypted ground there (`sealed`).

Each function is idempotent, and may be interrupted at any point and run again: the image gets its name only when its file system is
whole. Needs root for all but asking.
"""

import contextlib
import os
from pathlib import Path

from torpor.base.btrfs import count_simply, counters
from torpor.base.host.facts import POOL_DIRECTORY_NAME, POOL_IMAGE_NAME
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.poolkey import KEY_NAME, PoolKey, load
from torpor.base.host.sealed import Sealed

_LABEL = "torpor"
# discard: what is deleted in the pool is freed in the sparse file. nodatacow: PostgreSQL has checksums of its own, and writes in place.
_OPTIONS = {"xfs": "loop,noatime,discard", "btrfs": "loop,noatime,discard,nodatacow"}
_MAKE = {"xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single")}
_BTRFS_MAGIC, _BTRFS_MAGIC_AT = b"_BHRfS_M", 0x10040
# Computes run under other users and reach their own volume by its path, but needn't list the others.
_MODE = 0o711


def ensure_pool_mounted(data_dir: Path, machine: Machine | None = None, key_file: Path | None = None) -> bool:
    """Mount the pool of this data directory if it has one. True when it is mounted (now or already), False when there is none.

    An encrypted one is opened with the key in `key_file` (default: in the data directory); PoolKeyUnusable says that this isn't there, or
    isn't the one. Raises HostActionFailed when there is a pool and it can't be mounted: going on would show an empty place where volumes
    should be.
    """
    machine = machine or Machine()
    image, point, sealed = data_dir / POOL_IMAGE_NAME, data_dir / POOL_DIRECTORY_NAME, Sealed(data_dir)
    if not image.is_file() and not sealed.exists:
        return False
    if os.path.ismount(point):
        return True
    if image.is_file() and sealed.exists:
        raise HostActionFailed(f"there are two pools, {image} and {sealed.image}", "move the one away that isn't wanted")
    if not machine.is_root:
        raise HostActionFailed(
            f"the pool {sealed.image if sealed.exists else image} isn't mounted, and only root can mount it",
            "run `torpor serve` as root, or mount it by hand",
        )
    point.mkdir(mode=_MODE, parents=True, exist_ok=True)
    if os.listdir(point):
        raise HostActionFailed(f"{point} holds files that the pool would hide", f"move them away: `mv {point} {point}.old`")
    if sealed.exists:
        sealed.open(load(key_file or data_dir / KEY_NAME), machine)
        image = sealed.pool_image
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
    if sealed.exists:
        # What is encrypted goes through the cache (the kernel has no other way without hardware for it), what is below needn't do so again.
        _write_directly(sealed.image, machine)
    else:
        _write_directly(image, machine)
    _set_scheduler(image, machine)
    return True


def _filesystem(image: Path) -> str:
    try:
        with image.open("rb") as file:
            file.seek(_BTRFS_MAGIC_AT)
            return "btrfs" if file.read(len(_BTRFS_MAGIC)) == _BTRFS_MAGIC else "xfs"
    except OSError as error:
        raise HostActionFailed(f"the pool {image} can't be read: {error.strerror}") from error


def _devices(image: Path, machine: Machine) -> list[str]:
    lines = machine.run(["losetup", "--noheadings", "--output", "NAME", "--associated", str(image)]).out.splitlines()
    return [line.strip() for line in lines]


def _write_directly(image: Path, machine: Machine) -> None:
    """Best effort: kernels without it serve, too. Without it each commit writes out whatever anybody has written meanwhile, and all is
    cached twice."""
    for device in _devices(image, machine):
        machine.run(["losetup", "--direct-io=on", device])


def _set_scheduler(image: Path, machine: Machine) -> None:
    """Keep neighbours on the pool apart. Best effort. BFQ knows groups: measured beside a neighbour that writes 400 MB/s, a commit's 99th
    percentile is 2 ms with it and 650 ms without."""
    for device in _devices(image, machine):
        with contextlib.suppress(OSError):
            machine.path(f"/sys/block/{device.removeprefix('/dev/')}/queue/scheduler").write_text("bfq")


def make_pool(data_dir: Path, size_bytes: int, machine: Machine, filesystem: str = "xfs", key: PoolKey | None = None) -> None:
    """Make the image (sparse) with an empty file system, encrypted if there is a key. The caller has seen that there is none. Raises
    HostActionFailed."""
    if key is not None:
        Sealed(data_dir).make(key, size_bytes, machine, lambda image: _make_image(image, size_bytes, machine, filesystem))
        return
    image = data_dir / POOL_IMAGE_NAME
    unfinished = image.with_suffix(".new")
    try:
        data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        _make_image(unfinished, size_bytes, machine, filesystem)
        unfinished.replace(image)
    except OSError as error:
        raise HostActionFailed(f"{image} can't be made: {error.strerror}", "make room, or give a smaller --pool-size") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _make_image(image: Path, size_bytes: int, machine: Machine, filesystem: str) -> None:
    with image.open("wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.truncate(size_bytes)
    package = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[filesystem]
    machine.must_run([*_MAKE[filesystem], "-L", _LABEL, str(image)], f"the package {package} has it", 300)


def unmount(data_dir: Path, machine: Machine) -> None:
    """Unmount the pool, and take its key from the kernel. Idempotent. Raises HostActionFailed when it is in use."""
    point, sealed = data_dir / POOL_DIRECTORY_NAME, Sealed(data_dir)
    if os.path.ismount(point):
        machine.must_run(["umount", str(point)], "stop Torpor and its databases first (`torpor ls`), or leave that directory")
    sealed.close(machine)


def unmount_pool(data_dir: Path, machine: Machine) -> bool:
    """Unmount the pool, and delete its image if nothing was in it. True when the image is gone. Raises HostActionFailed when in use."""
    image, point, sealed = data_dir / POOL_IMAGE_NAME, data_dir / POOL_DIRECTORY_NAME, Sealed(data_dir)
    empty = os.path.ismount(point) and not os.listdir(point)
    unmount(data_dir, machine)
    sealed.clear(machine)
    if empty:
        sealed.remove(machine)
        image.unlink(missing_ok=True)
    if image.is_file() or sealed.exists:
        return False
    with contextlib.suppress(OSError):
        point.rmdir()
    return True
