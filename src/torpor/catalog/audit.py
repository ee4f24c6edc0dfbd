"""The audit log in the catalog. Concurrency: as `catalog`; a record is durable when the call that wrote it returns.

The table itself refuses changes, and removals of what wasn't moved to a file (triggers in 0003_workspaces.sql).
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from typing import Any

from torpor.catalog.records import Records
from torpor.model.audit import Anchor, AuditFilter, AuditRecord, AuditResult


class AuditRecords(Records):
    """The records, and the anchor: the newest of those that were moved to a file."""

    def append(self, make: Callable[[Anchor], AuditRecord]) -> AuditRecord:
        """Add the record that `make` makes to follow the newest one."""
        with self.transaction():
            record = make(self.head())
            self._write("add_audit", astuple(record))
        return record

    def head(self) -> Anchor:
        """Where the chain ends now."""
        return Anchor(*self._read("audit_head")[0])

    def anchor(self) -> Anchor:
        """After which record the table begins."""
        return Anchor(*self._read("audit_anchor")[0])

    def down(self, low: int, high: int, limit: int, wanted: AuditFilter) -> list[AuditRecord]:
        """The newest of those numbered `low` to `high`, newest first. Looks at each of them at most once."""
        return self._between("audit_down", low, high, limit, wanted)

    def up(self, low: int, high: int, limit: int, wanted: AuditFilter) -> list[AuditRecord]:
        """The oldest of those numbered `low` to `high`, oldest first. Looks at each of them at most once."""
        return self._between("audit_up", low, high, limit, wanted)

    def unfinished(self) -> list[AuditRecord]:
        """Those that say that something was begun, of which no other says what became of it."""
        return [_record(row) for row in self._read("audit_unfinished")]

    def move_anchor(self, anchor: Anchor) -> None:
        """Let go of all records up to `anchor`, which must be one of them."""
        with self.transaction():
            self._write("move_audit_anchor", {"number": anchor.number, "hash": anchor.hash})
            self._write("drop_audit", {"number": anchor.number})

    def _between(self, statement: str, low: int, high: int, limit: int, wanted: AuditFilter) -> list[AuditRecord]:
        values = {
            "low": low,
            "high": high,
            "limit": limit,
            "workspace": wanted.workspace,
            "action": wanted.action,
            "target": wanted.target,
            "actor": wanted.actor,
            "since": wanted.since,
            "until": wanted.until,
            "outcomes": wanted.outcomes,
        }
        return [_record(row) for row in self._read(statement, values)]


def _record(row: Sequence[Any]) -> AuditRecord:
    values = list(row)
    if values[_RESULT] in _RESULTS:  # a changed record must still be read, to be found
        values[_RESULT] = AuditResult(values[_RESULT])
    return AuditRecord(*values)


_RESULT = [field.name for field in fields(AuditRecord)].index("result")
_RESULTS = frozenset(AuditResult)
