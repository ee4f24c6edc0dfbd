"""File systems of their own, on loop files, for pools that are to be filled, limited, or torn away. Needs root.

What a killed test leaves mounted is taken away by the next one: the directory's name says whose it was.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.server import Server
from torpor.base.btrfs import count_simply
from torpor.base.host import poolkey
from torpor.base.host.encryption import probe_encryption
from torpor.base.host.facts import kernel_release
from torpor.base.host.machine import Machine
from torpor.base.host.pool import ensure_pool_mounted, make_pool
from torpor.base.host.sealed import Sealed
from torpor.base.processes import start_ticks

DISK, MEMORY = Path("/var/tmp"), Path("/dev/shm")
_PREFIX = "torpor-pool-"
_MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-m", "single"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
}
_OPTIONS = {"xfs": "loop,noatime,discard", "btrfs": "loop,noatime,discard,nodatacow", "ext4": "loop,noatime,discard"}


def kinds() -> tuple[str, ...]:
    """The kinds of pool that can be tried here: btrfs is an offer."""
    if kernel_release(os.uname().release) < (6, 7):  # which counts simply
        return ("xfs",)
    has_btrfs = shutil.which("mkfs.btrfs", path="/usr/sbin:/sbin:/usr/bin") and "\tbtrfs\n" in Path("/proc/filesystems").read_text()
    return ("xfs", "btrfs") if has_btrfs else ("xfs",)


@contextlib.contextmanager
def loop_pool(kind: str, size_mb: int, place: Path = DISK) -> Iterator[Path]:
    """A mounted file system; its image lies beside it as `image`. Counts, where it is btrfs."""
    _remove_orphans()
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    directory.chmod(0o711)
    point = directory / "mnt"
    point.mkdir(mode=0o711)
    try:
        make_image(kind, directory / "image", size_mb)
        mount(kind, directory / "image", point)
        yield point
    finally:
        _clear(directory)


def make_image(kind: str, image: Path, size_mb: int) -> None:
    """An empty file system in a sparse file."""
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    subprocess.run([*_MAKE[kind], str(image)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def mount(kind: str, image: Path, point: Path) -> None:
    """Mount it as Torpor would.

    What was unmounted a moment ago may still be mounted for a sandbox that just begins, somewhere on this machine; and of a file system
    and its clone only one can be mounted at a time.
    """
    command = ["mount", "-t", kind, "-o", _OPTIONS[kind], str(image), str(point)]
    deadline = time.monotonic() + 60
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        if time.monotonic() > deadline:
            raise OSError(done.stderr)
        time.sleep(0.1)
    point.chmod(0o711)
    if kind == "btrfs":
        count_simply(point)


def make_encrypted(data_dir: Path, size_mb: int) -> None:
    """An encrypted pool, made and mounted as by `torpor host setup`, but cached on the disk below: Torpor itself writes around that."""
    machine = Machine()
    key = poolkey.make(data_dir / poolkey.KEY_NAME)
    make_pool(data_dir, size_mb << 20, machine, "xfs", key)
    ensure_pool_mounted(data_dir)
    image = str(Sealed(data_dir).image)
    device = machine.must_run(["losetup", "--noheadings", "--output", "NAME", "--associated", image]).strip()
    machine.must_run(["losetup", "--direct-io=off", device])


def lacks_encryption() -> str:
    """Why no encrypted pool can be tried here; empty when one can."""
    if probe_encryption(Path("/"), Machine(), None).offered:
        return ""
    return "this kernel shows no encryption in ext4, or there is no mkfs.ext4"


def unmount(point: Path) -> None:
    """Unmount it, once nobody is in it any more. Idempotent."""
    for _ in range(200):
        if not os.path.ismount(point):
            return
        if subprocess.run(["umount", str(point)], stderr=subprocess.DEVNULL).returncode != 0:
            time.sleep(0.05)
    subprocess.run(["umount", "--lazy", str(point)], check=True)


@contextlib.contextmanager
def server_on(kind: str, size_mb: int, **settings: Any) -> Iterator[Server]:
    """A Torpor whose pool is a file system of its own; the image is `pool.img`, as after `torpor host setup`."""
    server = Server(on_disk=True, **settings)
    point = server.data_dir / "volumes"
    try:
        point.mkdir(mode=0o711)
        make_image(kind, server.data_dir / "pool.img", size_mb)
        mount(kind, server.data_dir / "pool.img", point)
        server.start()
        yield server
    finally:
        server.destroy()  # unmounts it, too


def _remove_orphans() -> None:
    for directory in [path for place in (DISK, MEMORY) for path in place.glob(f"{_PREFIX}*-*")]:
        owner = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and start_ticks(int(owner)) is None:
            _clear(directory)


def _clear(directory: Path) -> None:
    """Unmount what is mounted below, the innermost first."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((one for one in points if one.startswith(f"{directory}/")), key=len, reverse=True):
        unmount(Path(point))
    shutil.rmtree(directory)
