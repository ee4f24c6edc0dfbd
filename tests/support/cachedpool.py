"""A pool over twins of PostgreSQL (`pooling`) whose cache can be looked at."""

import struct

from tests.support.pooling import House, S, Talker, b, d, e, p
from torpor.gateway.cache.store import Store
from torpor.gateway.pool.caching import Caching
from torpor.gateway.pool.engine import Pool
from torpor.gateway.pool.values import Limits

T60 = "/* ttl=60 */ select 1"
T60S = "/* ttl=60 swr=300 tags=a,b status */ select 1"
ROW = "T D(select 1) C(SELECT 1) ZI"


class Shop(House):
    """A pool whose cache can be looked at."""

    def __init__(self, limits: Limits | None = None, signs: bool = True, cache_bytes: int = 1 << 20) -> None:
        super().__init__(limits, signs)
        self.pool = Pool("shop", self, limits or Limits(), lambda: self.now, Store(cache_bytes))

    @property
    def cache(self) -> Caching:
        return self.pool.caching

    @property
    def ran(self) -> list[str]:
        """What PostgreSQL ran so far, but for what the pool itself asked."""
        return [text for twin in self.twins.values() for text in twin.ran if "set_config" not in text]

    def opened_one(self, **named: object) -> Talker:
        """A client that has been greeted."""
        talker = self.join(**named)  # type: ignore[arg-type]
        self.settle()
        talker.heard()
        return talker

    def close_all(self) -> None:
        """PostgreSQL ends."""
        for backend in list(self.twins):
            self.kill(backend)

    def all_idle(self) -> bool:
        return not any((self.cache._flights, self.cache._running, self.cache._resumable, self.cache.refreshing, self.pool.waiting))


def status(heard: bytes) -> str:
    """What the notices among these messages say of the cache."""
    found = []
    at = 0
    while at < len(heard):
        (length,) = struct.unpack_from("!I", heard, at + 1)
        body = heard[at + 5 : at + 1 + length]
        if heard[at : at + 1] == b"N":
            fields = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
            assert (fields[b"C"], fields[b"S"]) == ("00000", "INFO")
            found.append(fields[b"M"].removeprefix("cache: ") + (f" {fields[b'D']}" if b"D" in fields else ""))
        at += 1 + length
    return ", ".join(found)


def unit(text: str, name: str = "") -> bytes:
    return p(name, text) + b(name) + d("", "P") + e() + S


UNIT = "1 2 T D(select 1) C(SELECT 1) ZI"
