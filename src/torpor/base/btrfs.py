"""What btrfs offers beyond files: subvolumes, groups of them whose bytes are counted and limited, and both by the kernel's own calls.

Counting is meant in the kernel's "simple" mode (Linux 6.7): an extent counts for the subvolume that wrote it, whoever else shares it,
for as long as it exists. It costs the same however many share it, and is never out of step, neither of which the older mode can say. A
subvolume that is made inside of another joins the groups of that one, whoever makes it.

Concurrency: blocking calls, of microseconds, or of as long as a commit of the file system takes. Nothing is kept.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_TREE_ROOT_INODE = 256
_NAME_BYTES = 4088
_MAGIC = 0x94
_SIMPLE = 4  # BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
_LIMIT_REFERENCED = 1
_LEVEL_ONE = 1 << 48
_NO_LIMIT = (1 << 64) - 1


def _write(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _MAGIC << 8 | number


def _read(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _MAGIC << 8 | number


def _both(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _MAGIC << 8 | number


_SUBVOL_CREATE = _write(14, 4096)
_INO_LOOKUP = _both(18, 4096)
_FS_INFO = _read(31, 1024)
_QUOTA_CTL = _both(40, 16)
_QGROUP_ASSIGN = _write(41, 24)
_QGROUP_CREATE = _write(42, 16)
_QGROUP_LIMIT = _read(43, 48)


def counters(directory: Path) -> Path | None:
    """Where the kernel shows the counted bytes of the file system of `directory`; None when it isn't btrfs, or counts nothing."""
    info = bytearray(1024)
    try:
        with _opened(directory) as fd:
            fcntl.ioctl(fd, _FS_INFO, info)
        fsid = info[16:32].hex()
        uuid = f"{fsid[:8]}-{fsid[8:12]}-{fsid[12:16]}-{fsid[16:20]}-{fsid[20:]}"
        found = Path("/sys/fs/btrfs") / uuid / "qgroups"
        simple = (found / "enabled").read_text().strip() == "1" and (found / "mode").read_text().strip() == "squota"
    except OSError:
        return None
    return found if simple else None


def count_simply(directory: Path) -> None:
    """Have a file system that is new count from now on. Raises OSError where the kernel is older than 6.7, or isn't asked by root."""
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _QUOTA_CTL, bytearray(struct.pack("=QQ", _SIMPLE, 0)))


def make_subvolume(path: Path) -> None:
    """A subvolume at `path`, in the groups of the one that it is made in."""
    name = os.fsencode(path.name)
    if len(name) >= _NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    with _opened(path.parent) as fd:
        fcntl.ioctl(fd, _SUBVOL_CREATE, bytearray(struct.pack(f"=q{_NAME_BYTES}s", 0, name)))


def subvolume(path: Path) -> int | None:
    """The number of the subvolume whose root `path` is; None for anything else."""
    try:
        with _opened(path) as fd:
            if os.fstat(fd).st_ino != _TREE_ROOT_INODE:
                return None
            asked = bytearray(struct.pack("=QQ", 0, _TREE_ROOT_INODE) + bytes(4080))
            fcntl.ioctl(fd, _INO_LOOKUP, asked)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", asked)[0])


def make_group(directory: Path, number: int) -> None:
    """A group around subvolume `number`, which counts with all that is made inside of it from now on."""
    with _opened(directory) as fd:
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(fd, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 1, _LEVEL_ONE | number)))
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(fd, _QGROUP_ASSIGN, bytearray(struct.pack("=QQQ", 1, number, _LEVEL_ONE | number)))


def remove_group(directory: Path, number: int) -> bool:
    """Forget the group around a subvolume; False while it has members, which a subvolume is for some seconds after it was removed."""
    with _opened(directory) as fd:
        try:
            fcntl.ioctl(fd, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 0, _LEVEL_ONE | number)))
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


def limit(directory: Path, number: int, own_bytes: int | None, group_bytes: int | None) -> None:
    """How many bytes subvolume `number` may have itself, and with all in its group. None is no limit."""
    with _opened(directory) as fd:
        for group, most in ((number, own_bytes), (_LEVEL_ONE | number, group_bytes)):
            # To lift one, the kernel wants the largest number, not the missing flag.
            wanted = struct.pack("=6Q", group, _LIMIT_REFERENCED, _NO_LIMIT if most is None else most, 0, 0, 0)
            with contextlib.suppress(FileNotFoundError):
                fcntl.ioctl(fd, _QGROUP_LIMIT, bytearray(wanted))


def counted(counters: Path, number: int) -> tuple[int, int | None]:
    """Bytes that a subvolume itself has, metadata included, and its limit. As of the last commit of the file system, which is every 30
    seconds, when anybody syncs, and when the limit is met. Raises OSError when it isn't counted."""
    shown = counters / f"0_{number}"
    limited = (shown / "limit_flags").read_text().strip() != "0"
    most = int((shown / "max_referenced").read_text()) if limited else _NO_LIMIT
    return int((shown / "referenced").read_text()), None if most == _NO_LIMIT else most


def groups(counters: Path) -> list[int]:
    """The subvolumes around which there is a group, whether they are still there or not."""
    return [int(name[2:]) for name in os.listdir(counters) if name.startswith("1_") and name[2:].isdigit()]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
