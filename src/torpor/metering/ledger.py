"""Adds up each database's traffic over all its computes and all runs of Torpor.

Concurrency: belongs to one event loop; memory is one entry per database that was ever awake. What was noted and not flushed is lost when
Torpor is killed: at most the traffic of sessions since their database last fell asleep.
"""

from collections.abc import Callable, Mapping

from torpor.metering.traffic import Traffic
from torpor.model.names import DatabaseId


class TrafficLedger:
    """Totals by database. `save` adds amounts to what is kept on disk, `known` is what is there already."""

    def __init__(self, save: Callable[[Mapping[DatabaseId, Traffic]], None], known: Mapping[DatabaseId, Traffic]) -> None:
        self._save = save
        self._past = dict(known)
        self._noted: dict[DatabaseId, Traffic] = {}
        self._pending: dict[DatabaseId, Traffic] = {}

    def __repr__(self) -> str:
        return f"<TrafficLedger of {len(self._noted)} databases, {len(self._pending)} pending>"

    def past(self, id: DatabaseId) -> Traffic:
        """Traffic of earlier runs of Torpor."""
        return self._past.get(id, Traffic())

    def note(self, id: DatabaseId, total: Traffic) -> None:
        """Take note of a database's traffic since this Torpor started."""
        added = total - self._noted.get(id, Traffic())
        if added != Traffic():
            self._noted[id] = total
            self._pending[id] = self._pending.get(id, Traffic()) + added

    def flush(self) -> int:
        """Save what is pending; how many databases. When saving fails it stays pending."""
        count = len(self._pending)
        if count:
            self._save(self._pending)
            self._pending = {}
        return count

    def forget(self, id: DatabaseId) -> None:
        """Drop a database that is gone. Idempotent."""
        for entries in (self._past, self._noted, self._pending):
            entries.pop(id, None)
