"""The size of a database: what it may use of the host, at least and at most; and the words for why a ceiling changed. Pure."""

from dataclasses import dataclass, fields
from enum import StrEnum

from torpor.model.errors import InvalidRequest

MIB, GIB = 1 << 20, 1 << 30

MIN_CPU, MAX_CPU = 0.05, 1024.0
MIN_MEMORY_BYTES, MAX_MEMORY_BYTES = 64 * MIB, 1 << 45
MIN_CONNECTIONS, MAX_CONNECTIONS = 5, 10_000
MIN_DISK_BYTES, MAX_DISK_BYTES = 64 * MIB, 1 << 50
_PROCESSES_BESIDE_BACKENDS = 64  # PostgreSQL's own, parallel and background workers, and programs that a tenant runs


class Pace(StrEnum):
    """How fast a database may run now."""

    BOOSTED = "boosted"  # it woke a moment ago: the full processor, whatever its size
    NORMAL = "normal"  # up to its ceiling
    YIELDING = "yielding"  # up to its ceiling, but it uses more than its fair share: those who use less go first


class ScaleReason(StrEnum):
    """Why a ceiling was set."""

    WOKE = "woke"  # a wake: no ceiling for a moment
    BOOST_OVER = "boost_over"  # the moment after the wake is over
    SATURATED = "saturated"  # it was held back by its ceiling
    DEMAND = "demand"  # average or peak of the last five minutes ask for more
    QUIET = "quiet"  # they ask for less, and have for a while
    WORKING_SET = "working_set"  # memory: what it uses again and again has grown or shrunk
    SHORT = "short"  # memory: it reads again what was dropped, or is at its ceiling
    OUT_OF_MEMORY = "out_of_memory"  # at its maximum the kernel ended one of its processes
    UNFAIR = "unfair"  # it uses more than its fair share
    FAIR = "fair"  # it uses no more than its fair share again
    RESIZED = "resized"  # its size was changed
    ADOPTED = "adopted"  # an earlier Torpor left it running


@dataclass(frozen=True, slots=True)
class Size:
    """What a database may use. Processors count as 1 each; the minimum is kept for it, the maximum is never passed.

    Memory is everything: processes, page cache, /tmp and /dev/shm, swap. `connections` are of clients, at once.
    """

    min_cpu: float = 0.25
    max_cpu: float = 2.0
    min_memory_bytes: int = 128 * MIB
    max_memory_bytes: int = 1 * GIB
    connections: int = 100
    disk_bytes: int = 10 * GIB

    def __post_init__(self) -> None:
        """Raise InvalidRequest, naming the field, for what is out of range."""
        for name, low, high in (
            ("max_cpu", MIN_CPU, MAX_CPU),
            ("min_cpu", MIN_CPU, MAX_CPU),
            ("max_memory_bytes", MIN_MEMORY_BYTES, MAX_MEMORY_BYTES),
            ("min_memory_bytes", MIN_MEMORY_BYTES, MAX_MEMORY_BYTES),
            ("connections", MIN_CONNECTIONS, MAX_CONNECTIONS),
            ("disk_bytes", MIN_DISK_BYTES, MAX_DISK_BYTES),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also for NaN
                raise InvalidRequest(
                    f"{name} must be between {low:g} and {high:g}, not {value:g}"
                    if isinstance(low, float)
                    else f"{name} must be between {low} and {high}, not {value}"
                )
        if self.min_cpu > self.max_cpu:
            raise InvalidRequest(f"min_cpu ({self.min_cpu:g}) is more than max_cpu ({self.max_cpu:g})", "give both")
        if self.min_memory_bytes > self.max_memory_bytes:
            raise InvalidRequest(
                f"min_memory_bytes ({self.min_memory_bytes}) is more than max_memory_bytes ({self.max_memory_bytes})", "give both"
            )

    @property
    def processes(self) -> int:
        """How many processes it may have: a fork bomb ends here."""
        return self.connections + _PROCESSES_BESIDE_BACKENDS


@dataclass(frozen=True, slots=True)
class SizeOverrides:
    """What one database sets for itself of its Size; None is the daemon's setting."""

    min_cpu: float | None = None
    max_cpu: float | None = None
    min_memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    connections: int | None = None
    disk_bytes: int | None = None

    def beyond(self, size: Size) -> str:
        """The name of a field that asks for more than `size` has; empty when none does."""
        return next((f.name for f in fields(self) if (own := getattr(self, f.name)) is not None and own > getattr(size, f.name)), "")

    def apply(self, size: Size) -> Size:
        """The daemon's size with these overrides. Raises InvalidRequest for values out of range, and for a minimum over its maximum.

        Where only one end of a range is its own, the inherited end gives way: with a maximum of 0.1 the minimum is 0.1 as well.
        """
        if self == NO_OVERRIDES:
            return size
        min_cpu, max_cpu = _range(self.min_cpu, self.max_cpu, size.min_cpu, size.max_cpu)
        min_memory, max_memory = _range(self.min_memory_bytes, self.max_memory_bytes, size.min_memory_bytes, size.max_memory_bytes)
        return Size(
            min_cpu,
            max_cpu,
            int(min_memory),
            int(max_memory),
            size.connections if self.connections is None else self.connections,
            size.disk_bytes if self.disk_bytes is None else self.disk_bytes,
        )


NO_OVERRIDES = SizeOverrides()
"""Shared: most databases have none."""


def _range(own_min: float | None, own_max: float | None, min_: float, max_: float) -> tuple[float, float]:
    low, high = min_ if own_min is None else own_min, max_ if own_max is None else own_max
    if own_min is None:
        low = min(low, high)
    elif own_max is None:
        high = max(low, high)
    return low, high
