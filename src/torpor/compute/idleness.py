"""Whether a compute may freeze, decided from what PostgreSQL says of its sessions and what the kernel says of their sockets. Pure.

Freezing strands a client if its backend has something left to do: unread bytes, a statement, an unsent answer. A backend has nothing
left to do exactly when it waits for its client (wait event ClientRead) outside of a statement. So every session that Torpor handed
over must be seen in that state, and no byte may have arrived between before the question and after the freeze
(docs/decisions/0003-when-a-compute-may-freeze.md).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torpor.model.sleep import AwakeReason, SleepPolicy
from torpor.model.views import AwakeCause

_QUIET_STATES = frozenset({"idle", "idle in transaction", "idle in transaction (aborted)"})
_SESSION_TYPES = frozenset({"client backend", "walsender"})
_REPLICATION_TYPES = frozenset({"logical replication apply worker", "logical replication parallel worker",
                                "logical replication tablesync worker", "walreceiver",
                                "logical replication worker"})  # fmt: skip
"""The last one is what PostgreSQL 16 calls its apply and tablesync workers."""


@dataclass(frozen=True, slots=True)
class Activity:
    """One row of pg_stat_activity (activity.sql)."""

    pid: int
    backend_type: str
    state: str
    wait_event_type: str
    wait_event: str
    user: str
    client: str
    application: str
    running_s: float
    query: str
    backup: bool

    @property
    def label(self) -> str:
        """Names the session for people."""
        whom = f"{self.user}@{self.client}" if self.client else self.user or self.backend_type
        return f"{whom} {self.application}".strip()


def awake_causes(rows: Sequence[Activity], sessions: Collection[int | None]) -> tuple[AwakeCause, ...]:
    """What keeps the compute awake; nothing: it may freeze.

    `sessions` are the backend pids of all handed-over sessions; None stands for one that has not reported its pid yet.
    """
    causes = [cause for row in rows if (cause := _cause(row)) is not None]
    seen = {row.pid for row in rows if row.backend_type in _SESSION_TYPES}
    known = {pid for pid in sessions if pid is not None}
    if None in sessions or not known <= seen:
        causes.append(AwakeCause(AwakeReason.LOGIN, "a session is being opened or closed"))
    causes.extend(
        AwakeCause(AwakeReason.UNWATCHED, row.label)
        for row in rows
        if row.backend_type in _SESSION_TYPES and row.pid not in known and row.state in _QUIET_STATES
    )
    return tuple(causes)


def _cause(row: Activity) -> AwakeCause | None:
    statement = " ".join(row.query.split())[:80]
    match row.backend_type:
        case "client backend":
            if row.backup:
                return AwakeCause(AwakeReason.BACKUP, row.label)
            if row.state in _QUIET_STATES and row.wait_event == "ClientRead":
                return None
            if row.wait_event_type == "Lock":
                return AwakeCause(AwakeReason.LOCK_WAIT, f"{row.label}, {row.running_s:.0f} s: {statement}")
            if row.state in ("", "starting", "disabled"):
                return AwakeCause(AwakeReason.LOGIN, row.label)
            return AwakeCause(AwakeReason.STATEMENT, f"{row.label}, {row.running_s:.0f} s: {statement}")
        case "walsender":
            if row.backup:
                return AwakeCause(AwakeReason.BACKUP, row.label)
            # One that was opened for commands only and waits for the next is as quiet as any session.
            if row.state in _QUIET_STATES and row.wait_event == "ClientRead":
                return None
            return AwakeCause(AwakeReason.REPLICATION, row.label)
        case "autovacuum worker":
            return AwakeCause(AwakeReason.VACUUM, statement or "autovacuum")
        case "parallel worker" | "startup":
            return AwakeCause(AwakeReason.STATEMENT, f"{row.backend_type}: {statement}")
        case kind if kind in _REPLICATION_TYPES:
            return AwakeCause(AwakeReason.REPLICATION, kind)
        case _:
            return None


def is_resting(row: Activity) -> bool:
    """Whether a session waits for its client outside of a transaction, so that ending it interrupts nothing."""
    return row.backend_type == "client backend" and row.state == "idle" and row.wait_event == "ClientRead" and not row.backup


def spell(causes: Sequence[AwakeCause]) -> str:
    """The first few causes in words."""
    return "; ".join(f"{cause.reason}: {cause.detail}" for cause in causes[:3])


def only_recent(causes: Sequence[AwakeCause]) -> bool:
    """Whether nothing runs now, though something did a moment ago."""
    return all(cause.reason in (AwakeReason.RECENT, AwakeReason.PINNED) for cause in causes)


def usual_cause(policy: SleepPolicy) -> AwakeCause:
    """What keeps a compute awake in which nothing in particular goes on."""
    if policy.freeze_after_s is None:
        return AwakeCause(AwakeReason.PINNED, "freeze_after_s is never")
    return AwakeCause(AwakeReason.RECENT, f"something ran less than {policy.freeze_after_s:g} s ago")
