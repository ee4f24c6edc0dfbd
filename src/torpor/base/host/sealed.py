"""The encrypted ground of a pool: ext4 in a sparse file, with one directory that the kernel encrypts, for the pool's image.

    <data_dir>/sealed.img            ext4; its UUID is the identifier of the key, so a wrong one is refused before anything is mounted
    <data_dir>/sealed/               where it is mounted, while the pool is open
    <data_dir>/sealed/pool/pool.img  the pool's image: scrambled names and AES-256-XTS in sealed.img

No file system of the user's gets another feature by it. Why two loops, and not device mapper: docs/decisions/0023.

Each function is idempotent, and may be interrupted at any point and run again: `sealed.img` gets its name only when the pool in it is
whole. Blocking; as root. One at a time: the lock of `torpor host`, or of the data directory.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.base import fscrypt
from torpor.base.files import sync_directory
from torpor.base.host.machine import HostActionFailed, Machine
from torpor.base.host.poolkey import PoolKey

SEALED_IMAGE_NAME = "sealed.img"
_POINT_NAME, _DIRECTORY_NAME, _POOL_NAME = "sealed", "pool", "pool.img"
# minixdf: what the file system needs itself counts as used, as in the image. noexec and so on: nothing but the pool's image is in it.
_OPTIONS = "loop,noatime,discard,minixdf,nosuid,nodev,noexec"
_JOURNAL_MB = 64
_MAKE = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "encrypt", "-m", "0", "-N", "128", "-J", f"size={_JOURNAL_MB}", "-e", "remount-ro")
# Extents of an image that is in pieces of 4 kB all over take 0.3 % of it; bitmaps and descriptors 0.02 %.
_SPARE_SHARE, _SPARE_BYTES = 100, 192 << 20
MAX_POOL_BYTES = 15 << 40
"""ext4 has no larger files, but for some GB."""
_SUPERBLOCK_AT, _MAGIC_AT, _UUID_AT = 1024, 56, 104
_MAGIC = b"\x53\xef"
_PATIENCE_S = 30.0
_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Sealed:
    """The encrypted ground in a data directory, whether there is one or not."""

    data_dir: Path

    @property
    def image(self) -> Path:
        """The file that holds it."""
        return self.data_dir / SEALED_IMAGE_NAME

    @property
    def point(self) -> Path:
        """Where it is mounted."""
        return self.data_dir / _POINT_NAME

    @property
    def pool_image(self) -> Path:
        """The pool's image, while it is mounted."""
        return self.point / _DIRECTORY_NAME / _POOL_NAME

    @property
    def exists(self) -> bool:
        """Whether the pool is an encrypted one. False also where we may not look."""
        with contextlib.suppress(OSError):
            return self.image.is_file()
        return False

    @property
    def is_open(self) -> bool:
        """Whether it is mounted."""
        return os.path.ismount(self.point)

    @property
    def identifier(self) -> bytes:
        """Of the key that it is encrypted with; nothing needs to be mounted for that. Raises HostActionFailed."""
        try:
            with self.image.open("rb") as file:
                file.seek(_SUPERBLOCK_AT)
                superblock = file.read(1024)
        except OSError as error:
            raise HostActionFailed(f"{self.image} can't be read: {error.strerror}", "run as root") from error
        if superblock[_MAGIC_AT : _MAGIC_AT + 2] != _MAGIC:
            raise HostActionFailed(f"{self.image} is damaged: there is no file system in it", f"try `e2fsck -b 32768 {self.image}`")
        return superblock[_UUID_AT : _UUID_AT + 16]

    def make(self, key: PoolKey, pool_bytes: int, machine: Machine, fill: Callable[[Path], None]) -> None:
        """Make it, with a pool's image of that size at most, which `fill` makes at the path that it is given. The caller has seen that
        there is none. Raises HostActionFailed; then nothing of it is left."""
        unfinished = self.image.with_suffix(".new")
        self.clear(machine)
        try:
            self.data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            with unfinished.open("wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.truncate(pool_bytes + pool_bytes // _SPARE_SHARE + _SPARE_BYTES)
            machine.must_run([*_MAKE, "-U", str(uuid.UUID(bytes=key.identifier)), str(unfinished)], "the package e2fsprogs has it", 300)
            self._mount(unfinished, key, machine)
            directory = self.pool_image.parent
            directory.mkdir(mode=0o700)
            fscrypt.encrypt(directory, key.identifier)
            fill(self.pool_image)
            self.close(machine)
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
            unfinished.rename(self.image)
            sync_directory(self.data_dir)
        except OSError as error:
            raise HostActionFailed(
                f"an encrypted pool can't be made in {self.data_dir}: {error.strerror}", "make room, or give a smaller --pool-size"
            ) from error
        finally:
            if not self.exists:
                self.clear(machine)

    def open(self, key: PoolKey, machine: Machine) -> None:
        """Mount it and give the kernel the key. Raises PoolKeyUnusable for a wrong one, before anything is mounted, or HostActionFailed."""
        identifier = self.identifier
        key.must_be(identifier)
        try:
            self._mount(self.image, key, machine)
            if fscrypt.key_identifier(self.pool_image.parent) != identifier:
                raise HostActionFailed(f"what is in {self.image} isn't encrypted with that key", "somebody has exchanged it")
        except (OSError, HostActionFailed) as error:
            self.close(machine)
            if isinstance(error, OSError):
                raise HostActionFailed(f"{self.image} holds no pool: {error.strerror}", f"look at `e2fsck -n {self.image}`") from error
            raise

    def close(self, machine: Machine) -> bool:
        """Take the key from the kernel and unmount it; whether there was anything to do. Raises HostActionFailed while it is used."""
        if not self.is_open:
            return False
        identifier: bytes | None = None
        with contextlib.suppress(OSError):
            identifier = fscrypt.key_identifier(self.pool_image.parent)
        # The loop device of a pool that was unmounted a moment ago may still hold its image.
        deadline, left = time.monotonic() + _PATIENCE_S, "it is used"
        while time.monotonic() < deadline:
            gone = True
            if identifier:
                with contextlib.suppress(OSError):
                    gone = fscrypt.remove_key(self.point, identifier)
            if gone:
                output = machine.run(["umount", str(self.point)])
                if output.code == 0:
                    while self._is_attached(machine) and time.monotonic() < deadline:  # whoever mounts it next meets no half gone device
                        time.sleep(_AGAIN_S)
                    return True
                left = output.complaint
            time.sleep(_AGAIN_S)
        raise HostActionFailed(f"{self.point} can't be unmounted: {left}", f"leave that directory; `losetup` shows what uses {self.image}")

    def clear(self, machine: Machine) -> None:
        """Take away what a `make` that was killed left. Raises HostActionFailed."""
        if not self.exists:
            self.close(machine)
            with contextlib.suppress(OSError):
                self.image.with_suffix(".new").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.point.rmdir()

    def remove(self, machine: Machine) -> None:
        """Remove it with all that is in it. Raises HostActionFailed while it is used."""
        self.close(machine)
        self.image.unlink(missing_ok=True)
        self.clear(machine)

    def _is_attached(self, machine: Machine) -> bool:
        return self.image.exists() and bool(machine.run(["losetup", "--noheadings", "--associated", str(self.image)]).out.strip())

    def _mount(self, image: Path, key: PoolKey, machine: Machine) -> None:
        try:
            if not self.is_open:
                self.point.mkdir(mode=0o700, exist_ok=True)
                hint = f"look at `dmesg | tail`; loop devices and ext4 must be there; `e2fsck -f {image}` mends a damaged one"
                machine.must_run(["mount", "-t", "ext4", "-o", _OPTIONS, str(image), str(self.point)], hint)
                self.point.chmod(0o700)
            if not fscrypt.is_offered(self.point):
                raise HostActionFailed("this kernel can't encrypt files of ext4", "it takes one with CONFIG_FS_ENCRYPTION, since 5.4")
            fscrypt.add_key(self.point, key.secret)
        except OSError as error:
            raise HostActionFailed(f"the kernel doesn't take the key of the pool: {error.strerror}", "run as root, on Linux 5.4") from error
