"""Values that a plan asks to be made: identifiers, the moment, and pairs. Pure, but for chance and the clock."""

import hashlib
import secrets
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from torpor.gateway.http.prisma.errors import malformed

_MAX_PAIRS = 100_000
_MAX_LENGTH = 1_000
_NANOID = "useandom-26T198340PX75pxJACKVERYMINDBUSHWOLF_GQZbfghjklqvwyzrict"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_HOST = hashlib.sha256(uuid.getnode().to_bytes(8, "big")).hexdigest()


class Generators:
    """Of one plan: `now` is the same moment throughout."""

    def __init__(self) -> None:
        self._now = ""

    def make(self, name: str, args: Sequence[object]) -> object:
        """Make a value. Raises PlanError."""
        match name, *args:
            case ["now"]:
                self._now = self._now or datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                return self._now
            case ["uuid", 4]:
                return str(uuid.uuid4())
            case ["uuid", 7]:
                return _uuid7()
            case ["cuid", 1]:
                return "c" + _base36(int(time.time() * 1000), 8) + _base36(secrets.randbelow(36**4), 4) + _HOST[:4] + _random36(8)
            case ["cuid", 2]:
                return secrets.choice(_BASE36[10:]) + _random36(23)
            case ["ulid"]:
                return _ulid()
            case ["nanoid"]:
                return _nanoid(21)
            case ["nanoid", int(length)] if 0 < length <= _MAX_LENGTH:
                return _nanoid(length)
            case ["product", left, right]:
                lefts = left if isinstance(left, list) else [left]
                rights = right if isinstance(right, list) else [right]
                if len(lefts) * len(rights) > _MAX_PAIRS:
                    raise malformed(f"it makes more than {_MAX_PAIRS} pairs")
                return [[one, other] for one in lefts for other in rights]
        raise malformed(f"the generator {name!r} isn't known, or not with these arguments")


def _uuid7() -> str:
    stamp = int(time.time() * 1000)
    number = (stamp << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return str(uuid.UUID(int=number))


def _ulid() -> str:
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def _nanoid(length: int) -> str:
    return "".join(_NANOID[byte & 63] for byte in secrets.token_bytes(length))


def _base36(number: int, length: int) -> str:
    digits = ""
    while len(digits) < length:
        number, rest = divmod(number, 36)
        digits = _BASE36[rest] + digits
    return digits


def _random36(length: int) -> str:
    return "".join(secrets.choice(_BASE36) for _ in range(length))
