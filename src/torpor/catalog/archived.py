"""What the catalog keeps of archived databases. Concurrency: as `catalog`. A row goes, with its key, as soon as its database is to go."""

from typing import Any

from torpor.catalog.records import Records
from torpor.model.archived import Archived, ArchivedState
from torpor.model.names import DatabaseId


class ArchivedRecords(Records):
    """All databases that are archived, are being archived, or came back a moment ago."""

    def get(self, id: DatabaseId) -> Archived | None:
        """One of them."""
        rows = self._read("archived", {"id": id})
        return _archived(rows[0]) if rows else None

    def all(self) -> list[Archived]:
        """Every one, in no order."""
        return [_archived(row) for row in self._read("all_archived")]

    def begin(self, id: DatabaseId, wrapped_key: bytes, store: str, at: float) -> None:
        """It is going to be stored."""
        self._write("add_archived", {"id": id, "wrapped_key": wrapped_key, "store": store, "at": at})

    def set_archived(self, id: DatabaseId, at: float, size_bytes: int, stored_bytes: int) -> None:
        """It is in the store, and its volume isn't needed any more."""
        self._write("set_archived", {"id": id, "at": at, "size_bytes": size_bytes, "stored_bytes": stored_bytes})

    def set_back(self, id: DatabaseId) -> None:
        """Its volume is on the pool again, and is used."""
        self._write("set_back", {"id": id})

    def forget(self, id: DatabaseId) -> None:
        """Nothing of it is in the store any more."""
        self._write("forget_archived", {"id": id})


def _archived(row: Any) -> Archived:
    id, key, state, store, at, size_bytes, stored_bytes = row
    return Archived(id, key, ArchivedState(state), store, at, size_bytes, stored_bytes)
