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
class PoolPolicy:
    """Who is pooled that doesn't say so himself (`off`: nobody, or `auto`: all), how many connections to PostgreSQL pooled clients share,
    how many of these one role may have (0: as many), and how many clients may wait for one."""

    mode: PoolMode = PoolMode.OFF
    size: int = 20
    role_size: int = 0
    queue: int = 1000

    def __post_init__(self) -> None:
        """Raise InvalidRequest, naming the field, for what is out of range."""
        if self.mode is PoolMode.ON:
            raise InvalidRequest("the pool of a database is off or auto", "who wants pool=on says so by the address that he connects to")
        for name, low, high in (("size", 1, MAX_POOL_SIZE), ("role_size", 0, MAX_POOL_SIZE), ("queue", 0, MAX_POOL_QUEUE)):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"{name} of the pool must be between {low} and {high}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class PoolOverrides:
    """What one database sets for itself of its PoolPolicy; None is the daemon's setting."""

    mode: PoolMode | None = None
    size: int | None = None
    role_size: int | None = None
    queue: int | None = None

    def apply(self, policy: PoolPolicy) -> PoolPolicy:
        """The daemon's policy with these overrides. Raises InvalidRequest for values out of range."""
        if self == NO_POOL_OVERRIDES:
            return policy
        return PoolPolicy(
            policy.mode if self.mode is None else self.mode,
            policy.size if self.size is None else self.size,
            policy.role_size if self.role_size is None else self.role_size,
            policy.queue if self.queue is None else self.queue,
        )


NO_POOL_OVERRIDES = PoolOverrides()
"""Shared: most databases have none."""


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
