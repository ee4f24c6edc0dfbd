"""The key of an encrypted pool: random bytes in a file of its own, outside of the pool.

Made once, durably, before anything is encrypted with it; then only read. Blocking, for moments.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from torpor.base.files import sync_directory
from torpor.base.fscrypt import KEY_BYTES, identifier_of
from torpor.base.host.machine import HostActionFailed

KEY_NAME = "pool.key"


class PoolKeyUnusable(HostActionFailed):
    """The key of the pool isn't there, can't be read, or isn't the one."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """The key that a file holds. `identifier` tells keys apart, and nothing of them."""

    path: Path
    secret: bytes = field(repr=False)

    @property
    def identifier(self) -> bytes:
        """As the kernel calls it."""
        return identifier_of(self.secret)

    def must_be(self, identifier: bytes) -> None:
        """Raise PoolKeyUnusable when the pool is encrypted with another one."""
        if self.identifier != identifier:
            raise PoolKeyUnusable(
                f"the key file {self.path} holds key {self.identifier.hex()}, but the pool is encrypted with {identifier.hex()}",
                "put back the key file that was used before, or set pool_key_file to where it is",
            )


def load(path: Path) -> PoolKey:
    """The key in that file, 128 hexadecimal digits. Raises PoolKeyUnusable, also when others may read it."""
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise PoolKeyUnusable(f"others may read the key file {path} of the pool", f"`chmod 600 {path}`")
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except FileNotFoundError:
        raise PoolKeyUnusable(
            f"the key file {path} of the encrypted pool isn't there",
            "bring it back (mount the disk that it is on), or set pool_key_file to where it is; without it nobody can open the pool",
        ) from None
    except OSError as error:
        raise PoolKeyUnusable(f"the key file {path} of the pool can't be read: {error.strerror}", "look at its owner and mode") from error
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise PoolKeyUnusable(
            f"the key file {path} of the pool doesn't hold {KEY_BYTES * 2} hexadecimal digits", "restore it from where it is kept"
        )
    return PoolKey(path, secret)


def remove(path: Path, unfinished_only: bool) -> None:
    """Remove the file, or only what a `make` that was killed left beside it. Never raises."""
    for file in (_unfinished(path),) if unfinished_only else (_unfinished(path), path):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def make(path: Path) -> PoolKey:
    """A new key in that file, mode 0600, durable. The caller has seen that there is none. Raises PoolKeyUnusable."""
    unfinished = _unfinished(path)
    try:
        unfinished.unlink(missing_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(fd)
        unfinished.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise PoolKeyUnusable(
            f"the key file {path} of the pool can't be made: {error.strerror}",
            "its directory must be there, and root must be able to write it",
        ) from error
    return load(path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
