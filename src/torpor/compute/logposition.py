"""Where a running PostgreSQL's write-ahead log stands, and the slot that keeps it until Torpor has shipped it.

The slot is an ordinary physical one, so PostgreSQL keeps what is needed through restarts and crashes, and gives it up by itself when it
becomes too much (`max_slot_wal_keep_size`). A tenant may drop or move it: then its own history has a gap, and begins anew.

Concurrency: through Torpor's service session, one short query each. Raises ComputeLost and QueryFailed.
"""

from dataclasses import dataclass

from torpor.compute.service import Row, ServiceSession, sql
from torpor.model.errors import ComputeLost
from torpor.model.lsn import format_lsn, is_segment_size, parse_lsn

SLOT = "torpor_history"
"""The name of the slot."""

_POSITION, _RELEASE = (sql(name).format(slot=SLOT) for name in ("log_position", "release_log"))
_HIGHEST_TIMELINE = (1 << 32) - 1
_HIGHEST_LSN = (1 << 63) - 1  # what the catalog keeps; PostgreSQL would have to write for centuries


@dataclass(frozen=True, slots=True)
class LogPosition:
    """`flushed` is the end of what is durable; `kept_from` where the slot begins to keep the log, None when it keeps nothing."""

    timeline: int
    flushed: int
    segment_bytes: int
    kept_from: int | None
    is_kept: bool


async def log_position(service: ServiceSession) -> LogPosition:
    """Where the log stands now."""
    rows = await service.query(_POSITION)
    if len(rows) != 1:
        raise _nonsense()
    return _position(rows[0])


async def keep_log(service: ServiceSession) -> LogPosition:
    """Where the log stands, with a slot that keeps all of it from the last checkpoint on; one that lost something is made anew."""
    position = await log_position(service)
    if position.is_kept:
        return position
    await release_log(service)
    await service.query(f"SELECT pg_catalog.pg_create_physical_replication_slot('{SLOT}', true)")
    return await log_position(service)


async def release_log(service: ServiceSession) -> None:
    """Drop the slot: nothing more is kept for Torpor. Idempotent."""
    await service.query(_RELEASE)


async def advance_log(service: ServiceSession, lsn: int) -> None:
    """Let PostgreSQL reuse the log before `lsn`, which must be flushed."""
    await service.query(f"SELECT pg_catalog.pg_replication_slot_advance('{SLOT}', '{format_lsn(lsn)}')")


def _position(row: Row) -> LogPosition:
    try:
        flushed, timeline, segment_bytes, kept_from, status = row
        position = LogPosition(
            int(timeline or "", 16),
            parse_lsn(flushed or ""),
            int(segment_bytes or ""),
            parse_lsn(kept_from) if kept_from is not None else None,
            kept_from is not None and status in ("reserved", "extended", "unreserved"),
        )
    except ValueError as error:
        raise _nonsense() from error
    if not (
        is_segment_size(position.segment_bytes) and 0 < position.timeline <= _HIGHEST_TIMELINE and 0 < position.flushed <= _HIGHEST_LSN
    ):
        raise _nonsense()
    return position


def _nonsense() -> ComputeLost:
    return ComputeLost("PostgreSQL answered Torpor with what can't be: its functions were changed")
