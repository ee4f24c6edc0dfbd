"""The wake log: every wake with its reason, tier and steps, at hand without touching the disk, written behind.

Concurrency: synchronous, on the loop's thread. `record` is on the path of a wake and only appends in memory; the composition root
calls `flush` every few seconds while `pending` is not 0, and once at the end. A crash loses the wakes since the last flush: they
are insight, not state.
Bounded: 20 wakes in memory for each database (older ones are read back), 10,000 not yet flushed.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torpor.base.telemetry import LATENCY_BUCKETS_MS, Histogram
from torpor.model.database import Wake
from torpor.model.names import DatabaseId

KEPT_IN_MEMORY = 20
MAX_PENDING = 10_000


class WakeLog:
    """All wakes. `save` writes a batch of them, `history` reads the newest of a database back (newest first), `known` is what
    was saved before: how often each database was ever woken, and its newest wake."""

    def __init__(
        self,
        save: Callable[[Sequence[Wake]], None],
        history: Callable[[DatabaseId, int], Sequence[Wake]],
        known: Mapping[DatabaseId, tuple[int, Wake]],
    ) -> None:
        self._save = save
        self._history = history
        self._counts = {id: count for id, (count, _) in known.items()}
        self._recent = {id: deque([wake], KEPT_IN_MEMORY) for id, (_, wake) in known.items()}
        self._pending: deque[Wake] = deque(maxlen=MAX_PENDING)
        self.histogram = Histogram(
            "torpor_wake_duration_ms",
            "Milliseconds from the reason to wake until the database was awake, by the tier it came from and the reason.",
            ("tier", "reason"),
            LATENCY_BUCKETS_MS,
        )

    def __repr__(self) -> str:
        return f"<WakeLog of {len(self._counts)} databases, {len(self._pending)} pending>"

    @property
    def pending(self) -> int:
        """How many wakes a flush would write."""
        return len(self._pending)

    def record(self, wake: Wake) -> None:
        """Add a wake."""
        id = wake.database_id
        self._counts[id] = self._counts.get(id, 0) + 1
        self._recent.setdefault(id, deque(maxlen=KEPT_IN_MEMORY)).append(wake)
        self._pending.append(wake)
        self.histogram.observe(wake.elapsed_ms, wake.tier.value, wake.reason.value)

    def flush(self) -> int:
        """Write what is pending and return how many wakes that were. When writing fails they stay pending."""
        batch = list(self._pending)
        if batch:
            self._save(batch)
            self._pending.clear()
        return len(batch)

    def recent(self, id: DatabaseId, limit: int) -> tuple[Wake, ...]:
        """The newest wakes of a database, newest first. Reads the disk only for more than memory holds."""
        held = self._recent.get(id, ())
        if len(held) >= min(limit, self.count(id)):
            return tuple(reversed(held))[: max(limit, 0)]
        self.flush()
        return tuple(self._history(id, limit))

    def last(self, id: DatabaseId) -> Wake | None:
        """The newest wake of a database."""
        held = self._recent.get(id)
        return held[-1] if held else None

    def count(self, id: DatabaseId) -> int:
        """How often a database was ever woken."""
        return self._counts.get(id, 0)

    def forget(self, id: DatabaseId) -> None:
        """Drop a database that is gone. The histogram keeps what it counted."""
        self._counts.pop(id, None)
        self._recent.pop(id, None)
        if any(wake.database_id == id for wake in self._pending):
            self._pending = deque((wake for wake in self._pending if wake.database_id != id), MAX_PENDING)
