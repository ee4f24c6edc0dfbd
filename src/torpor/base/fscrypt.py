"""Encryption by file system (fscrypt): directories whose files the kernel encrypts, and the keys that it holds for that, by its own calls.

A key is random bytes; its identifier is derived from them one way, by the kernel and here alike. A directory, once it is told which key
is its own, keeps that for good, with all that is made inside of it. Without the key names are scrambled, files can't be opened or made,
but removed. A key is added to one mounted file system, and gone from it when that is unmounted.

Contents: AES-256-XTS, names: AES-256-CTS, keys of files derived with HKDF-SHA512 (policy version 2, Linux 5.4).
Concurrency: blocking calls, of microseconds; removing a key writes out what it encrypts. Nothing is kept.
"""

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

KEY_BYTES = 64
"""What every kernel that knows the policy takes for AES-256-XTS; since Linux 5.16 half of it is enough."""
_HASH_BYTES = 64
_IDENTIFIER_BYTES = 16
_POLICY_VERSION = 2
_AES_256_XTS, _AES_256_CTS, _PAD_32 = 1, 4, 3
_BY_IDENTIFIER = 2  # FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
_PRESENT, _INCOMPLETELY_REMOVED = 2, 3
_FILES_BUSY = 1

_SET_POLICY = 0x800C6613
_GET_POLICY_EX = 0xC0096616
_ADD_KEY = 0xC0506617
_REMOVE_KEY_ALL_USERS = 0xC0406619
_GET_KEY_STATUS = 0xC080661A


class KeyStatus(Enum):
    """What a mounted file system has of a key."""

    ABSENT = "absent"
    PRESENT = "present"
    LEAVING = "leaving"  # removed, but files that it encrypts are still open


def identifier_of(key: bytes) -> bytes:
    """16 bytes that tell keys apart, and nothing of them. Pure. HKDF-SHA512 without salt, as the kernel does it."""
    secret = hmac.digest(bytes(_HASH_BYTES), key, hashlib.sha512)
    return hmac.digest(secret, b"fscrypt\0\x01\x01", hashlib.sha512)[:_IDENTIFIER_BYTES]


def is_offered(directory: Path) -> bool:
    """Whether the kernel and the file system of `directory` can encrypt; asked without changing anything. Needs no privilege."""
    try:
        return _policy(directory) is None
    except OSError:
        return False


def key_identifier(directory: Path) -> bytes | None:
    """The identifier of the key that what is in `directory` is encrypted with; None when it isn't encrypted, or otherwise than by
    `encrypt`. Raises OSError when it isn't there, or can't be entered."""
    try:
        policy = _policy(directory)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return None
        raise
    return policy


def encrypt(directory: Path, identifier: bytes) -> None:
    """Have all that will be in an empty directory encrypted with that key. Idempotent. Raises OSError, FileExistsError for another key."""
    policy = struct.pack("=BBBBB3x16s", _POLICY_VERSION, _AES_256_XTS, _AES_256_CTS, _PAD_32, 0, identifier)
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _SET_POLICY, bytearray(policy))


def add_key(directory: Path, key: bytes) -> bytes:
    """Give a key to the file system of `directory`; its identifier. Idempotent. Raises OSError."""
    argument = bytearray(struct.pack("=II32xII32x", _BY_IDENTIFIER, 0, len(key), 0) + key)
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _ADD_KEY, argument)
    return bytes(argument[8 : 8 + _IDENTIFIER_BYTES])


def remove_key(directory: Path, identifier: bytes) -> bool:
    """Take a key from the file system of `directory`, whoever gave it; False while files that it encrypts are still open: to be
    called again then. Idempotent. As root. Raises OSError."""
    argument = bytearray(struct.pack("=II16s16xI20x", _BY_IDENTIFIER, 0, identifier, 0))
    with _opened(directory) as fd:
        try:
            fcntl.ioctl(fd, _REMOVE_KEY_ALL_USERS, argument)
        except OSError as error:
            if error.errno == errno.ENOKEY:
                return True
            raise
    return not struct.unpack_from("=I", argument, 40)[0] & _FILES_BUSY


def key_status(directory: Path, identifier: bytes) -> KeyStatus:
    """What the file system of `directory` has of a key. Raises OSError where it can't encrypt."""
    argument = bytearray(struct.pack("=II16s16x24x64x", _BY_IDENTIFIER, 0, identifier))
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _GET_KEY_STATUS, argument)
    status = struct.unpack_from("=I", argument, 64)[0]
    return {_PRESENT: KeyStatus.PRESENT, _INCOMPLETELY_REMOVED: KeyStatus.LEAVING}.get(status, KeyStatus.ABSENT)


def _policy(directory: Path) -> bytes | None:
    argument = bytearray(struct.pack("=Q24x", 24))
    with _opened(directory) as fd:
        try:
            fcntl.ioctl(fd, _GET_POLICY_EX, argument)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise
    return bytes(argument[16:32]) if argument[8] == _POLICY_VERSION else b""


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
