"""Failed logins, remembered per address and database: after each the next try is refused for 1 s, 2 s, 4 s … up to an hour. Pure.

Memory is bounded and mostly untouched: a table of 2^20 places of 16 bytes (16 MiB), of which the kernel gives only the pages that are
written to. The place of a pair is chosen by a hash with a secret key, in a set of eight. Where a set is full the weakest entry leaves:
the fewest failures, then the oldest. So an entry of n failures stays until seven others of its set have as many: who wants to be rid of
his own must fail about a million times n from other addresses, without knowing which of them count.

The table is a file without a name, so that the next Torpor can inherit it: nobody waits for an upgrade to be forgiven.
"""

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from hashlib import blake2b

LONGEST_PENALTY_S = 3600.0
FORGIVEN_EVERY_S = 3600.0
"""After a penalty is over, one failure is forgiven for each hour without another."""

_ENTRY = struct.Struct("<QIHH")  # tag (0: free), end of the penalty in tenths of a second, failures, unused
_WAYS = 8
_FIELDS = 4
_SET = struct.Struct("<" + "QIHH" * _WAYS)
_SET_BYTES = _SET.size
_MAX_FAILURES = 1000
_TENTHS = 10
_HASH = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Remembered:
    """A table that passes from one Torpor to the next on the same host: its file, when its time begins, how it is laid out."""

    fd: int
    epoch: float
    layout: str


class FailedLogins:
    """The table. `capacity` is rounded up to whole sets; `secret` keeps strangers from choosing places. No first penalty: no penalties."""

    def __init__(
        self, secret: bytes, now: float, first_penalty_s: float = 1.0, capacity: int = 1 << 20, remembered: Remembered | None = None
    ) -> None:
        """Goes on with what is `remembered`, and owns it, unless that is laid out differently: then it begins anew."""
        self._secret = secret[:64]
        self._first_penalty_s = first_penalty_s
        self._sets = max(1, -(-capacity // _WAYS))
        if remembered is not None and (remembered.layout, os.fstat(remembered.fd).st_size) != (self._layout, self.size_bytes):
            os.close(remembered.fd)
            remembered = None
        self._epoch = now - 1 if remembered is None else remembered.epoch
        self._fd = os.memfd_create("torpor failed logins") if remembered is None else remembered.fd
        try:
            os.ftruncate(self._fd, self.size_bytes)
            self._table = mmap.mmap(self._fd, self.size_bytes)
        except BaseException:
            os.close(self._fd)
            raise
        self.evicted = 0
        """Entries that had to leave before their time."""

    def __repr__(self) -> str:
        return f"<FailedLogins {self._sets * _WAYS} places, {self.evicted} evicted>"

    @property
    def size_bytes(self) -> int:
        """What the table takes at most."""
        return self._sets * _SET_BYTES

    def blocked_for(self, address: str, target: str, now: float) -> float:
        """Seconds until this pair may try again; 0 when it may now. Some 3 µs, the same for pairs that are known and those that aren't."""
        start, tag = self._place(address, target)
        row = _SET.unpack_from(self._table, start)
        tags = row[::_FIELDS]
        if tag not in tags:
            return 0.0
        until: int = row[tags.index(tag) * _FIELDS + 1]
        return max(0.0, until / _TENTHS - (now - self._epoch))

    def failed(self, address: str, target: str, now: float) -> float:
        """Note a failure; the penalty in seconds."""
        if not self._first_penalty_s:
            return 0.0
        start, tag = self._place(address, target)
        elapsed = now - self._epoch
        row = _SET.unpack_from(self._table, start)
        tags = row[::_FIELDS]
        if tag in tags:
            way = tags.index(tag)
            known = _remembered(row[way * _FIELDS + 2], elapsed - row[way * _FIELDS + 1] / _TENTHS)
        elif 0 in tags:
            way, known = tags.index(0), 0
        else:
            untils = row[1::_FIELDS]
            left = [_remembered(failures, elapsed - until / _TENTHS) for failures, until in zip(row[2::_FIELDS], untils, strict=True)]
            weakest, _, way = min(zip(left, untils, range(_WAYS), strict=True))
            known = 0
            self.evicted += weakest > 0
        failures = min(known + 1, _MAX_FAILURES)
        penalty = min(self._first_penalty_s * 2.0 ** min(failures - 1, 32), LONGEST_PENALTY_S)
        _ENTRY.pack_into(self._table, start + way * _ENTRY.size, tag, _tenths(elapsed + penalty), failures, 0)
        return penalty

    def cleared(self, address: str, target: str) -> None:
        """Forget a pair: its password was right. Idempotent."""
        start, tag = self._place(address, target)
        tags = _SET.unpack_from(self._table, start)[::_FIELDS]
        if tag in tags:
            _ENTRY.pack_into(self._table, start + tags.index(tag) * _ENTRY.size, 0, 0, 0, 0)

    def entries(self, now: float) -> int:
        """How many pairs are remembered. Reads the whole table (0.3 s when it is full): for tests and people."""
        elapsed = now - self._epoch
        rows = _ENTRY.iter_unpack(self._table[:])
        return sum(1 for tag, until, failures, _ in rows if tag and _remembered(failures, elapsed - until / _TENTHS))

    def release(self) -> Remembered:
        """The table, the caller's from now on; nothing else may be asked of this any more."""
        self._table.close()
        fd, self._fd = self._fd, -1
        return Remembered(fd, self._epoch, self._layout)

    def close(self) -> None:
        """Give the memory back, unless it was released. Idempotent."""
        self._table.close()
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)

    @property
    def _layout(self) -> str:
        return f"{_SET.format} x {self._sets}"

    def _place(self, address: str, target: str) -> tuple[int, int]:
        text = f"{len(address)}:{address}{target}".encode("utf-8", "surrogateescape")
        place, tag = _HASH.unpack(blake2b(text, digest_size=_HASH.size, key=self._secret).digest())
        return place % self._sets * _SET_BYTES, tag or 1


def _remembered(failures: int, since_s: float) -> int:
    return max(0, failures - int(since_s / FORGIVEN_EVERY_S)) if since_s > 0 else failures


def _tenths(elapsed_s: float) -> int:
    return min(int(elapsed_s * _TENTHS + 0.999), 0xFFFFFFFF)
