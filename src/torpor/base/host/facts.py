"""Looking at the host: one pass of cheap, harmless probes into one frozen value.

Everything is read or tried for real (a clone of one block, an empty sandbox), because versions and configuration files mislead.
Leaves nothing behind. No tasks; about 30 ms.
"""

import errno
import fcntl
import os
import platform
import re
import resource
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from torpor.base.btrfs import counters
from torpor.base.host.cgroup_facts import CgroupFacts, probe_cgroups
from torpor.base.host.encryption import EncryptionFacts, probe_encryption
from torpor.base.host.machine import Machine

# _IOW(0x94, 9, int): share the blocks of one file with another.
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Swap:
    """One active swap area."""

    device: str
    size_bytes: int
    used_bytes: int
    priority: int

    @property
    def is_zram(self) -> bool:
        """Whether it is compressed memory."""
        return os.path.basename(self.device).startswith("zram")


@dataclass(frozen=True, slots=True)
class ZramFacts:
    """What the kernel offers of zram. `free_device` is one that exists and that nobody has set up."""

    available: bool = False
    free_device: str | None = None
    can_add: bool = False


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """The directory where data is (to be) kept: seen through its nearest existing ancestor."""

    path: str
    exists: bool = False
    writable: bool = False
    free_bytes: int = 0
    total_bytes: int = 0
    filesystem: str = ""
    # None: couldn't be tried, because we may not write there.
    reflinks: bool | None = None
    is_mount: bool = False
    empty: bool = True
    # Whether the kernel holds each volume to its size: btrfs that counts simply.
    quotas: bool = False


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """Whether bubblewrap is there, and what happened when an empty sandbox was started with it by an ordinary user (ourselves, or one
    that root becomes for it), and by root itself. `filters`: whether system calls can be filtered."""

    bwrap: str | None = None
    works: bool = False
    complaint: str = ""
    works_as_root: bool = False
    filters: bool = True


@dataclass(frozen=True, slots=True)
class HostFacts:
    """All that was seen."""

    distribution: str
    distribution_version: str
    kernel: str
    is_root: bool
    memory_bytes: int
    cgroups: CgroupFacts
    swaps: tuple[Swap, ...]
    zram: ZramFacts
    data: DirectoryFacts
    pool: DirectoryFacts
    pool_image_exists: bool
    sandbox: SandboxFacts
    kvm: bool
    max_files: int
    compiler: str | None
    has_mkfs_xfs: bool
    encryption: EncryptionFacts = field(default_factory=EncryptionFacts)
    kernel_settings: dict[str, str] = field(default_factory=dict)
    kernel_settings_file: str | None = None


KERNEL_SETTINGS_FILE = "/etc/sysctl.d/90-torpor.conf"
POOL_IMAGE_NAME = "pool.img"
POOL_DIRECTORY_NAME = "volumes"


def probe(data_dir: Path, machine: Machine | None = None, pool_key_file: Path | None = None) -> HostFacts:
    """Look at everything. Never raises for something that is missing."""
    machine = machine or Machine()
    encryption = probe_encryption(data_dir, machine, pool_key_file)
    kernel = (machine.read("/proc/sys/kernel/osrelease") or platform.release()).strip()
    name, version = _distribution(machine)
    return HostFacts(
        distribution=name,
        distribution_version=version,
        kernel=kernel,
        is_root=machine.is_root,
        memory_bytes=_memory_bytes(machine),
        cgroups=probe_cgroups(machine, kernel_release(kernel)),
        swaps=probe_swaps(machine),
        zram=probe_zram(machine),
        data=probe_directory(data_dir),
        pool=probe_directory(data_dir / POOL_DIRECTORY_NAME),
        pool_image_exists=encryption.sealed or _is_file(data_dir / POOL_IMAGE_NAME),
        sandbox=_sandbox(machine),
        kvm=os.access(machine.path("/dev/kvm"), os.R_OK | os.W_OK),
        max_files=_max_files(),
        compiler=machine.which("gcc") or machine.which("cc"),
        has_mkfs_xfs=machine.which("mkfs.xfs") is not None,
        encryption=encryption,
        kernel_settings={key: (machine.read(f"/proc/sys/vm/{key}") or "").strip() for key in ("page-cluster", "swappiness")},
        kernel_settings_file=machine.read(KERNEL_SETTINGS_FILE),
    )


def kernel_release(text: str) -> tuple[int, int]:
    """(6, 18) for "6.18.44-generic"; (0, 0) for what doesn't look like a release."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def probe_swaps(machine: Machine) -> tuple[Swap, ...]:
    """The active swap areas."""
    result = []
    for line in (machine.read("/proc/swaps") or "").splitlines()[1:]:
        parts = line.split()
        if len(parts) >= 5:
            result.append(Swap(parts[0].replace("\\040", " "), int(parts[2]) * 1024, int(parts[3]) * 1024, int(parts[4])))
    return tuple(result)


def probe_zram(machine: Machine) -> ZramFacts:
    """Whether zram is there, without loading a module."""
    devices = [name for name in machine.names("/sys/block") if name.startswith("zram")]
    free = [name for name in devices if (machine.read(f"/sys/block/{name}/disksize") or "").strip() == "0"]
    can_add = machine.path("/sys/class/zram-control/hot_add").exists()
    return ZramFacts(bool(devices) or can_add, f"/dev/{free[0]}" if free else None, can_add)


def probe_directory(path: Path) -> DirectoryFacts:
    """Size, kind and abilities of the place where `path` is or would be made."""
    there = path
    while not _is_directory(there) and there != there.parent:
        there = there.parent
    try:
        status = os.statvfs(there)
    except OSError:
        return DirectoryFacts(str(path))
    try:
        exists = there == path
        empty = not exists or not any(name != "lost+found" for name in os.listdir(path))
    except OSError:
        empty = False
    return DirectoryFacts(
        path=str(path),
        exists=exists,
        writable=os.access(there, os.W_OK | os.X_OK),
        free_bytes=status.f_bavail * status.f_frsize,
        total_bytes=status.f_blocks * status.f_frsize,
        filesystem=_filesystem(there),
        reflinks=can_reflink(there),
        is_mount=exists and os.path.ismount(path),
        empty=empty,
        quotas=counters(there) is not None,
    )


def can_reflink(directory: Path) -> bool | None:
    """Whether files in `directory` can share blocks, found out by sharing one. None when we may not write there."""
    try:
        with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
            source.write(bytes(4096))
            source.flush()
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError as error:
        return None if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOENT) else False
    return True


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a parent that can't be entered
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _distribution(machine: Machine) -> tuple[str, str]:
    values: dict[str, str] = {}
    for line in (machine.read("/etc/os-release") or machine.read("/usr/lib/os-release") or "").splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key] = value.strip().strip("\"'")
    return values.get("ID", "unknown"), values.get("VERSION_ID", "")


def _memory_bytes(machine: Machine) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", machine.read("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _filesystem(directory: Path) -> str:
    """The type of the file system of `directory`: the longest mount point that contains it; later mounts hide earlier ones."""
    best, kind = "", ""
    resolved = os.path.realpath(directory)
    for line in (Machine().read("/proc/self/mounts") or "").splitlines():
        parts = line.split()
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind


_EMPTY_SANDBOX = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--ro-bind", "/", "/", "true"]
_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
_OURSELVES = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"]


def _sandbox(machine: Machine) -> SandboxFacts:
    program = machine.which("bwrap")
    if program is None:
        return SandboxFacts()
    become = _NOBODY if machine.is_root else _OURSELVES
    output = machine.run([*become, "bwrap", "--unshare-user", *_EMPTY_SANDBOX], timeout_s=5)
    works = output.code == 0
    works_as_root = not works and machine.is_root and machine.run(["bwrap", *_EMPTY_SANDBOX], timeout_s=5).code == 0
    filters = "libseccomp.so.2 " in machine.run(["ldconfig", "-p"], timeout_s=5).out
    return SandboxFacts(program, works, "" if works else output.complaint, works_as_root, filters)


def _max_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard
