"""What the catalog keeps of restore drills: the last few of each database. Concurrency: as `catalog`. They go with their database."""

from dataclasses import dataclass
from typing import Any

from torpor.catalog.records import Records
from torpor.model.drills import DrillCause, DrillResult, DrillView
from torpor.model.names import DatabaseId

KEPT = 10
"""How many are kept of one database."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A database with a history: when a drill on it last said something, and when one was last tried; None for never."""

    id: DatabaseId
    verified_at: float | None = None
    tried_at: float | None = None


class DrillRecords(Records):
    """The drills on all databases."""

    def add(self, id: DatabaseId, drill: DrillView) -> bool:
        """Note what became of one; older ones go. False for a database that was removed meanwhile."""
        values = {
            "id": id,
            "result": str(drill.result),
            "began_at": drill.began_at,
            "ended_at": drill.ended_at,
            "moment": drill.moment,
            "base": drill.base,
            "size_bytes": drill.size_bytes,
            "log_bytes": drill.log_bytes,
            "tables": drill.tables,
            "rows": drill.rows,
            "checked": ",".join(drill.checked),
            "cause": str(drill.cause) if drill.cause is not None else None,
            "detail": drill.detail,
            "hint": drill.hint,
        }
        with self.transaction():
            added = self._write("add_drill", values) > 0
            self._write("forget_old_drills", {"id": id, "keep": KEPT})
        return added

    def of(self, id: DatabaseId, name: str) -> list[DrillView]:
        """Those on one database, which is called `name`, the newest first."""
        return [_drill(name, row) for row in self._read("drills_of_database", {"id": id})]

    def last(self, id: DatabaseId, name: str) -> DrillView | None:
        """The last one on a database that said something."""
        rows = self._read("last_drill", {"id": id})
        return _drill(name, rows[0]) if rows else None

    def last_of_all(self) -> list[tuple[DatabaseId, DrillView]]:
        """The last one on each database, without its name, the newest first."""
        return [(DatabaseId(row[0]), _drill("", row[1:])) for row in self._read("last_drills")]

    def results(self) -> dict[DatabaseId, DrillResult]:
        """What the last drill that said something has said of each database."""
        return {DatabaseId(id): DrillResult(result) for id, result in self._read("drill_results")}

    def candidates(self) -> list[Candidate]:
        """All databases that could be restored."""
        return [Candidate(DatabaseId(id), verified_at, tried_at) for id, verified_at, tried_at in self._read("drill_candidates")]


def _drill(name: str, row: Any) -> DrillView:
    result, began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows, checked, cause, detail, hint = row
    return DrillView(
        name, DrillResult(result), began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows,
        tuple(filter(None, checked.split(","))), DrillCause(cause) if cause is not None else None, detail, hint,
    )  # fmt: skip
