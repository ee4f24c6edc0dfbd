"""Exchanges of volumes between databases, begun and done. Concurrency: as `catalog`. One goes when either database goes."""

from torpor.catalog.records import Records
from torpor.model.names import DatabaseId


class RewindRecords(Records):
    """The last exchange of each database."""

    def begin(self, id: DatabaseId, kept_id: DatabaseId, is_made: bool, majors: tuple[int, int]) -> None:
        """Note that two are about to exchange their volumes, and of which major each will be then. An older one is forgotten."""
        major, kept_major = majors
        self._write("begin_rewind", {"id": id, "kept_id": kept_id, "is_made": is_made, "major": major, "kept_major": kept_major})

    def finish(self, id: DatabaseId) -> None:
        """Note that it is done."""
        self._write("finish_rewind", {"id": id})

    def forget(self, id: DatabaseId) -> None:
        """It didn't happen."""
        self._write("forget_rewind", {"id": id})

    def kept(self, id: DatabaseId) -> DatabaseId | None:
        """Which database has what that one was before its last exchange."""
        rows = self._read("rewind", {"id": id})
        return rows[0][0] if rows else None

    def unfinished(self) -> list[tuple[DatabaseId, DatabaseId, bool, tuple[int, int] | None]]:
        """Those that were cut off: the database, the other one, whether that was made for it, and the majors that they have once it is done
        (None in what an older Torpor has recorded: those that they have)."""
        return [
            (id, kept_id, bool(is_made), (major, kept_major) if major is not None else None)
            for id, kept_id, is_made, major, kept_major in self._read("unfinished_rewinds")
        ]
