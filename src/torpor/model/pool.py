"""Who is pooled, and how the pool of connections of one database is doing, as users see it. Values."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.model.cache import NO_CACHE, CacheView
from torpor.model.errors import InvalidRequest

MAX_POOL_SIZE, MAX_POOL_QUEUE = 10_000, 1_000_000


class PoolMode(StrEnum):
    """Whether a client has a backend of its own, or one for each transaction."""

    OFF = "off"  # its own: its socket is handed over
    ON = "on"  # one for each transaction; what a transaction leaves behind is discarded
    AUTO = "auto"  # one for each transaction, until it leaves something behind: then its own


@dataclass(frozen=True, slots=True)
class PinnedClient:
    """A client that has a backend of its own, and why."""

    role: str
    application: str
    because: str


@dataclass(frozen=True, slots=True)
class PoolView:
    """One database's pool, up to a second ago. Counts of what happened are since its worker was started."""

    clients: int
    working: int
    waiting: int
    pinned: int
    backends: int
    transactions: int
    discards: int
    waits: int
    waited_s: float
    longest_wait_s: float
    pinned_clients: tuple[PinnedClient, ...] = ()
    cache: CacheView = NO_CACHE
