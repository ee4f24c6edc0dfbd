"""Mounting packed images read-only, taking the mounts away, and who still uses a root.

Synchronous; needs root for all but asking. A mount survives the Torpor that made it, and computes keep what they have mounted even when
the mount point and the file are gone: the kernel frees both with the last of them.
"""

import contextlib
import ctypes
import os
from pathlib import Path

from torpor.base.host.machine import Machine
from torpor.compute.sandbox.image.packing import Kind

_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4
_OPTIONS = "ro,nosuid,nodev"
_libc = ctypes.CDLL(None, use_errno=True)


def mount(file: Path, point: Path, kind: Kind, machine: Machine) -> None:
    """Mount an image at a directory, which is made. Does nothing when something is mounted there. Raises HostActionFailed."""
    if os.path.ismount(point):
        return
    point.mkdir(exist_ok=True)
    point.chmod(0o755)
    # Past the page cache of the file, which would hold the same bytes once more: EROFS by itself since Linux 6.15, where it also reads
    # less ahead (19 MB of cache after the first start, through a loop device 32), otherwise the loop device.
    if kind is Kind.EROFS and _mount_file(file, point):
        return
    device = _loop_device(file, machine)
    try:
        hint = f"the kernel must have {kind} and loop devices; without, a plain directory is used"
        machine.must_run(["mount", "-t", kind.value, "-o", _OPTIONS, device, str(point)], hint)
    finally:
        machine.run(["losetup", "-d", device])  # goes away by itself with its last mount


def unmount(point: Path) -> bool:
    """Take a mount away, and its directory. True when nothing is left. False while somebody on the host is in it."""
    if os.path.ismount(point) and _libc.umount2(os.fsencode(point), 0) != 0:
        return False
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        point.rmdir()
    return True


def users(root: Path) -> int:
    """How many mount namespaces have this directory, a mount or a plain one, as their `/`: the sandboxes that run on it."""
    try:
        status = os.stat(root)
    except FileNotFoundError:
        return 0
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    inner = "/" if os.path.ismount(root) else _path_in_filesystem(root)
    seen: set[str] = set()
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(line[2:5] == [device, inner, "/"] for line in _mounts(f"/proc/{name}/mountinfo")):
                count += 1
    return count


def _path_in_filesystem(path: Path) -> str:
    """Where a directory is in the file system that it is on, as mount tables tell it."""
    resolved = os.path.realpath(path)
    best = max(
        (line for line in _mounts("/proc/self/mountinfo") if resolved == line[4] or resolved.startswith(line[4].rstrip("/") + "/")),
        key=lambda line: len(line[4]),
    )
    return os.path.join(best[3], os.path.relpath(resolved, best[4])) if resolved != best[4] else best[3]


def _mounts(table: str) -> list[list[str]]:
    with open(table, encoding="utf-8", errors="surrogateescape") as stream:
        return [[part.replace("\\040", " ") for part in line.split(" ")] for line in stream]


def _mount_file(file: Path, point: Path) -> bool:
    flags = _READ_ONLY | _NO_SUID | _NO_DEVICES
    return bool(_libc.mount(os.fsencode(file), os.fsencode(point), b"erofs", flags, b"directio") == 0)


def _loop_device(file: Path, machine: Machine) -> str:
    """A loop device for the file: the one that there is, as each has a cache of its own."""
    present = machine.run(["losetup", "-j", str(file), "-n", "-O", "NAME"]).out.split()
    if present:
        return present[0]
    command = ["losetup", "--read-only", "--find", "--show", str(file)]
    direct = machine.run([*command[:-1], "--direct-io=on", str(file)])
    if direct.code == 0:
        return direct.out.strip()
    return machine.must_run(command, "are there loop devices (/dev/loop-control)?").strip()
