"""What the catalog keeps of the past of databases. Concurrency: as `catalog`.

A history goes, with its key, as soon as its database is to go.
"""

from collections.abc import Iterable

from torpor.catalog.records import Records
from torpor.model.history import History, Shipped
from torpor.model.names import DatabaseId


class HistoryRecords(Records):
    """The histories of all databases."""

    def get(self, id: DatabaseId) -> History | None:
        """That of a database; None when none has begun."""
        rows = self._read("history", {"id": id})
        if not rows:
            return None
        _, key, run, timeline, segment_bytes, lsn, at, tail, end_lsn, base_at, base_lsn, trouble, keep_s, keep_bases = rows[0]
        shipped = Shipped(timeline, segment_bytes, lsn, at, tail) if lsn is not None else None
        return History(id, key, run, shipped, end_lsn, base_at, base_lsn, trouble, keep_s, keep_bases)

    def ids(self) -> list[DatabaseId]:
        """Of which databases there is one."""
        return [row[0] for row in self._read("history_ids")]

    def add(self, id: DatabaseId, wrapped_key: bytes) -> None:
        """Begin one, with the key that opens it."""
        self._write("add_history", {"id": id, "wrapped_key": wrapped_key})

    def save(self, histories: Iterable[History]) -> None:
        """Note how far these are, in one transaction. Those that are gone are left out."""
        with self.transaction():
            for history in histories:
                shipped = history.shipped
                values = {
                    "timeline": shipped.timeline if shipped is not None else None,
                    "segment_bytes": shipped.segment_bytes if shipped is not None else None,
                    "lsn": shipped.lsn if shipped is not None else None,
                    "at": shipped.at if shipped is not None else None,
                    "tail": shipped.tail if shipped is not None else None,
                }
                own = {"end_lsn": history.end_lsn, "base_at": history.base_at, "base_lsn": history.base_lsn, "trouble": history.trouble}
                self._write("set_shipped", {"id": history.id, "run": history.run, **values, **own})

    def set_retention(self, id: DatabaseId, keep_s: float | None, keep_bases: int | None) -> None:
        """Replace a database's own retention."""
        self._write("set_retention", {"id": id, "keep_s": keep_s, "keep_bases": keep_bases})

    def set_expiry(self, id: DatabaseId, at: float | None) -> None:
        """Note when something of a history needn't be kept any more."""
        self._write("set_history_expiry", {"id": id, "at": at})

    def to_expire(self, now: float, limit: int) -> list[DatabaseId]:
        """Those of which something needn't be kept any more, the oldest first."""
        return [row[0] for row in self._read("histories_to_expire", {"now": now, "limit": limit})]

    def behind(self) -> list[DatabaseId]:
        """Those that fell asleep with log that isn't in the store yet."""
        return [row[0] for row in self._read("histories_behind")]

    def doomed(self) -> list[tuple[DatabaseId, float]]:
        """Those of databases that are gone, and since when, whose objects may still be in the store."""
        return [(id, at) for id, at in self._read("doomed_histories")]

    def doom(self, id: DatabaseId, at: float) -> None:
        """Have all that is in the store of a database that isn't in the catalog removed. Idempotent."""
        self._write("doom_history", {"id": id, "at": at})

    def forget_doomed(self, id: DatabaseId) -> None:
        """Nothing of it is in the store any more."""
        self._write("forget_doomed_history", {"id": id})
