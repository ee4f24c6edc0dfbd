"""What of the cache is given to a store that others can read: under which names, and sealed how. Pure but for random numbers.

A database has a secret for what it shares. The name of a value is a keyed hash of what it is good for, and the value is sealed
(AES-256-GCM) with its name, so a store tells no statement, no result and no tag, and what somebody else puts there is nothing. With a new
secret all that was shared before can be neither found nor read: that is how a purge, and a database with other contents, reach a store that
perhaps can't be reached.

What is unsealed is still read as if it came from a stranger. Times are those of hosts' clocks: an entry from the future is none.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

SECRET_BYTES = 32
OVERHEAD_BYTES = 1 << 16
"""Beside its rows: a value that is longer than these and what an entry may have isn't one."""

_VERSION = 1
_NONCE_BYTES = 12
_MOST_TABLES = 100
_FUTURE_MS = 2_000
_HEAD = struct.Struct("!BQQd")
_LENGTH = struct.Struct("!I")
_NOTHING = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Shared:
    """An entry as it travels: when it was made (milliseconds of the clock), for how long it is good, and what it says."""

    made_ms: int
    life_ms: int
    cost_ms: float
    data: bytes
    columns: bytes | None
    parameters: bytes | None
    tables: tuple[str, ...]


def parts(values: Iterable[bytes]) -> bytes:
    """Several as one, such that no others give the same."""
    return b"".join([_LENGTH.pack(len(value)) + value for value in values])


class Seal:
    """One database's."""

    def __init__(self, secret: bytes) -> None:
        self._naming = hashlib.blake2b(secret, person=b"torpor name").digest()
        from cryptography.exceptions import InvalidTag  # who shares nothing doesn't load it
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._wrong = InvalidTag
        self._cipher = AESGCM(hashlib.blake2b(secret, digest_size=32, person=b"torpor value").digest())

    def name(self, value: bytes) -> bytes:
        """Under which what is good for that is kept."""
        return b"torpor:" + hashlib.blake2b(value, key=self._naming, digest_size=32).hexdigest().encode()

    def close(self, name: bytes, shared: Shared) -> bytes:
        """What the store is given."""
        texts = [table.encode("utf-8", "surrogatepass") for table in shared.tables]
        columns, parameters = _optional(shared.columns), _optional(shared.parameters)
        head = _HEAD.pack(_VERSION, shared.made_ms, shared.life_ms, shared.cost_ms)
        plain = head + columns + parameters + _LENGTH.pack(len(texts)) + parts(texts) + shared.data
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, name)

    def open(self, name: bytes, value: bytes, now_ms: int) -> Shared | None:
        """What was given to it under that name; None when it is something else, or too old."""
        try:
            plain = self._cipher.decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], name)
            return _read(plain, now_ms)
        except (self._wrong, ValueError, struct.error):
            return None


def _optional(value: bytes | None) -> bytes:
    return _LENGTH.pack(_NOTHING) if value is None else parts((value,))


def _read(plain: bytes, now_ms: int) -> Shared | None:
    version, made_ms, life_ms, cost_ms = _HEAD.unpack_from(plain)
    if version != _VERSION or made_ms > now_ms + _FUTURE_MS or now_ms >= made_ms + life_ms or not 0 <= cost_ms < 1e9:
        return None
    columns, at = _take(plain, _HEAD.size)
    parameters, at = _take(plain, at)
    (number,) = _LENGTH.unpack_from(plain, at)
    at += _LENGTH.size
    if number > _MOST_TABLES:
        return None
    tables = []
    for _ in range(number):
        text, at = _take(plain, at)
        tables.append((text or b"").decode("utf-8", "surrogatepass"))
    return Shared(made_ms, life_ms, cost_ms, plain[at:], columns, parameters, tuple(tables))


def _take(plain: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = _LENGTH.unpack_from(plain, at)
    at += _LENGTH.size
    if length == _NOTHING:
        return None, at
    if length > len(plain) - at:
        raise ValueError("cut off")
    return plain[at : at + length], at + length
