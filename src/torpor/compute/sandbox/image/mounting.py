"""Mounting packed images read-only, taking the mounts away, and who still uses a root.

Synchronous; needs root for all but asking. A mount survives the Torpor that made it, and computes keep what they have mounted even when
the mount point and the file are gone: the kernel frees both with the last of them.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from torpor.base.host.machine import HostActionFailed
from torpor.compute.sandbox.image.packing import Kind

_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # of /dev/loop-control and a loop device
_READ_ONLY_LOOP, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_LOOP_CONFIG = struct.Struct("=II52xI176x64x")  # the file, the block size, flags
_ATTEMPTS = 20
_libc = ctypes.CDLL(None, use_errno=True)


def mount(file: Path, point: Path, kind: Kind) -> None:
    """Mount an image at a directory, which is made. Does nothing when something is mounted there. Raises HostActionFailed."""
    if os.path.ismount(point):
        return
    point.mkdir(exist_ok=True)
    point.chmod(0o755)
    # Past the page cache of the file, which would hold the same bytes once more: EROFS by itself since Linux 6.15, where it also reads
    # less ahead (19 MB of cache after the first start, through a loop device 32), otherwise the loop device.
    if kind is Kind.EROFS and _mount_file(file, point):
        return
    try:
        with _loop_device(file) as device:
            _mount(device, point, kind.value, "")
    except OSError as error:
        raise HostActionFailed(
            f"the kernel doesn't mount {kind} images through a loop device here: {error.strerror}",
            "give this host loop devices (/dev/loop-control) and that file system",
        ) from error


def unmount(point: Path) -> bool:
    """Take a mount away, and its directory. True when nothing is left. False while somebody on the host is in it."""
    if os.path.ismount(point) and _libc.umount2(os.fsencode(point), 0) != 0:
        return False
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        point.rmdir()
    return True


def sync(directory: Path) -> None:
    """Have all that was written to the file system of a directory on disk. Other file systems may go on being slow. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(directory))
    finally:
        os.close(descriptor)


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
    try:
        _mount(str(file), point, Kind.EROFS.value, "directio")
    except OSError:
        return False
    return True


def _mount(source: str, point: Path, kind: str, options: str) -> None:
    flags = _READ_ONLY | _NO_SUID | _NO_DEVICES
    if _libc.mount(os.fsencode(source), os.fsencode(point), kind.encode(), flags, options.encode() or None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(point))


@contextlib.contextmanager
def _loop_device(file: Path) -> Iterator[str]:
    """A loop device that goes away by itself when nobody holds it: neither we, wherever we are killed, nor a mount."""
    with contextlib.ExitStack() as opened:

        def open_(path: str | Path) -> int:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            return descriptor

        control, content = open_("/dev/loop-control"), open_(file)
        for attempt in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            try:
                fcntl.ioctl(open_(path), _CONFIGURE, _LOOP_CONFIG.pack(content, 0, _READ_ONLY_LOOP | _AUTOCLEAR | _DIRECT_IO))
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == _ATTEMPTS - 1:  # somebody else took the same one
                    raise
            else:
                yield path
                return
