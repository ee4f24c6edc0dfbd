"""A copy of a database's cluster as it is at one moment, taken while it is used, or asleep: what branches and base backups begin with.

The shape, for all who want one:

    async def fill(data: Path) -> None:
        taken = await snapshot(compute, volumes, data, uid)
    await volumes.make(id, uid, fill)               # or any directory of ours on the pool, for files that are read and then removed

What lies in `data` then is a whole PGDATA of its own, which shares every unchanged byte with its source where the pool has reflinks (else
it is a full copy), and from which PostgreSQL starts by itself: it recovers to a state that has every commit acknowledged before
`snapshot` was called, and of those acknowledged meanwhile those before one moment of the log. Unlogged tables are empty in a copy of a
database that isn't stopped. Replication slots aren't in it. It isn't synced yet (`Volumes.make` does that).

How, by what the compute does:
- asleep (stopped, frozen or paged): copied as it is, like a disk after a power cut. Nobody is kept from waking it meanwhile, not for
  a moment: a compute counts its moves, and if it has moved when the copy is done, the copy is thrown away, and the second way taken.
- awake, where files are copied by reflinks: as after a power cut, from which PostgreSQL recovers with its log since its last checkpoint.
  After a power cut each page on the disk is as it was at that checkpoint or at any moment since, for nothing was synced since; the log
  has the whole page from the first change of each on, and all that the pages hold. So that is what is copied, in this order: the files
  but for the log, each at some moment after the checkpoint; then the log from there, up to a record that was written and flushed after
  the last file was copied. If another checkpoint has ended meanwhile, all is thrown away, and the next way taken. The parent does
  nothing for it but write that record. `full_page_writes` is on the command line, where no tenant can change it. What lies far
  behind its last checkpoint gets one first: to replay takes as long as to write.
- awake elsewhere, or for `base`: PostgreSQL's backup mode, in a session of Torpor's own. A checkpoint (fast), then all files but the
  log, then the log from that checkpoint to the end of the backup mode, with the label from which PostgreSQL finds both. Files may be
  copied torn; the log mends each. It takes longer, and only such a copy can be recovered to a moment of later log. A temporary slot keeps
  the log; where a tenant has used up all slots, a copy whose log is gone fails.

In both of these no file is locked, and nothing waits for the copy but for whoever writes to the very file that is being copied; the
compute is held awake. A branch must have recovered as far as the log of its copy goes (`check_whole`): a torn one is never used.

The volume is the tenant's, and hostile: no link is followed out of it (`native/copier.c`), and PostgreSQL's answers are the tenant's word.
What comes of a lie is a copy that doesn't start.

Concurrency: any number at once, of one compute too. Safe to cancel: PostgreSQL leaves its backup mode when the session ends; the caller
removes what was copied.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torpor.compute.compute import Compute
from torpor.compute.lifecycle import ComputeState
from torpor.compute.sandbox.command import DATA
from torpor.compute.service import QueryFailed, Row, ServiceSession
from torpor.model.database import DatabaseState
from torpor.model.errors import ComputeLost, Conflict, ShuttingDown, Unavailable
from torpor.model.lsn import is_segment_size, parse_lsn, segment_name
from torpor.model.sleep import Tier, WakeReason
from torpor.storage.copying import Selection, clear_tree, copy_files, copy_tree
from torpor.storage.volumes import Volumes

_CHECKPOINT_PATIENCE_S = 600.0
_LABEL = "backup_label"
_OF_A_PROCESS = {"postmaster.pid", "postmaster.opts", ".s.PGSQL.5432", ".s.PGSQL.5432.lock", "current_logfiles"}
_OF_A_RECOVERY = {_LABEL, "backup_label.old", "tablespace_map", "tablespace_map.old", "standby.signal", "recovery.signal"}
# As pg_basebackup: what PostgreSQL makes anew at each start. Slots would keep the log of the copy for readers that it doesn't have.
_HOLLOW = frozenset({"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"})
_TEMPORARY = ("pgsql_tmp",)
_STILL = Selection(frozenset(_OF_A_PROCESS), _HOLLOW, _TEMPORARY)
_LIVE = Selection(frozenset(_OF_A_PROCESS | _OF_A_RECOVERY), _HOLLOW | {"pg_wal"}, _TEMPORARY, live=True)
_MOST_LOG_BYTES = 4 << 20  # since the last checkpoint, which a branch replays: about 10 ms for each
_WHERE = """SELECT control.checkpoint_lsn, control.redo_lsn, to_hex(control.timeline_id),
    pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')), pg_catalog.pg_current_wal_insert_lsn(),
    pg_catalog.current_setting('wal_level') <> 'minimal' AND pages.setting = 'on' AND pages.source = 'command line'
  FROM pg_catalog.pg_control_checkpoint() AS control, pg_catalog.pg_settings AS pages WHERE pages.name = 'full_page_writes'"""
# A record of Torpor's own, flushed, without waiting for any standby.
_MARK = "SET LOCAL synchronous_commit = local; SELECT pg_catalog.pg_logical_emit_message(true, 'torpor', '')"
_CHECKPOINT_AT = "SELECT checkpoint_lsn FROM pg_catalog.pg_control_checkpoint()"
_BEGIN = """SELECT lsn, left(pg_catalog.pg_walfile_name(lsn), 8), pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))
  FROM pg_catalog.pg_backup_start('torpor', true) AS lsn"""
_END = "SELECT lsn, labelfile FROM pg_catalog.pg_backup_stop(false)"
_SLOT = "SELECT pg_catalog.pg_create_physical_replication_slot('torpor_{}', true, true)"


@dataclass(frozen=True, slots=True)
class LogSpan:
    """The log that a copy of one that is awake holds, and needs: its recovery begins at `start` and goes to `stop` at least."""

    timeline: int
    start: int
    stop: int
    segment_bytes: int

    def files(self) -> Iterator[str]:
        """The files of pg_wal that hold it."""
        for at in range(self.start - self.start % self.segment_bytes, self.stop, self.segment_bytes):
            yield segment_name(self.timeline, at, self.segment_bytes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a copy was made: the tier that the database was in, and when it was awake the log that came with it (else all of pg_wal did)."""

    tier: Tier
    log: LogSpan | None = None


async def snapshot(compute: Compute, volumes: Volumes, data: Path, uid: int, base: bool = False) -> Snapshot:
    """Copy the cluster of `compute` to `data`, as `Volumes.make` gives it, for the user `uid`. What the copy is, see above. `base`: it is
    to be recovered to moments of later log, unless the database is asleep.

    All of the copy belongs to that user. Wakes a sleeper only when somebody else has woken it meanwhile. Raises OSError of the file system
    (ENOSPC when the pool is full), and Unavailable errors of the compute.
    """
    await compute.settled()
    taken = await _as_it_is(compute, volumes, data, uid)
    if taken is None:
        async with compute.awake(WakeReason.MAINTENANCE, "a copy is taken"):
            if volumes.reflinks and not base:
                taken = await _as_after_a_crash(compute, volumes, data, uid)
            taken = taken or await _in_backup_mode(compute, volumes, data, uid)
    await asyncio.to_thread(_keep_tablespaces_inside, volumes.data(compute.database.id), data, uid)
    return taken


async def check_whole(compute: Compute, taken: Snapshot) -> None:
    """Whether a branch that has recovered and runs has all that its copy must hold; only within `awake`. Raises Unavailable."""
    if taken.log is None:
        return
    # A recovery ends with a checkpoint, where the log ended that was found.
    ((ended,),) = await (await compute.live().service()).query(_CHECKPOINT_AT)
    if _lsn(ended) < taken.log.stop:
        raise Unavailable("the copy wasn't whole: its log ended too early", "try again")


async def _as_it_is(compute: Compute, volumes: Volumes, data: Path, uid: int) -> Snapshot | None:
    """None when it isn't asleep, or didn't stay so."""
    tier, moves = compute.tier, compute.moves
    asleep = compute.state in (ComputeState.FROZEN, ComputeState.PAGED)
    if not asleep and (compute.state is not ComputeState.STOPPED or compute.is_moving or compute.archived):
        return None
    try:
        await copy_tree(volumes.data(compute.database.id), data, uid, _STILL)
    except FileNotFoundError as error:
        if compute.database.state is DatabaseState.DELETING:
            raise ShuttingDown(f"database {compute.database.label} is being removed") from error
        if compute.moves == moves:
            raise
    if compute.moves == moves:
        return Snapshot(tier)
    await asyncio.to_thread(clear_tree, data)
    return None


async def _as_after_a_crash(compute: Compute, volumes: Volumes, data: Path, uid: int) -> Snapshot | None:
    """None when it can't be taken that way, or a checkpoint came in between."""
    service = await compute.live().service()
    checkpoint, log, distance, is_safe = _found(await service.query(_WHERE))
    if is_safe and distance > _MOST_LOG_BYTES:
        await _checkpoint(compute)
        checkpoint, log, distance, is_safe = _found(await service.query(_WHERE))
    if not is_safe:
        return None
    await copy_tree(volumes.data(compute.database.id), data, uid, _LIVE)
    ((mark,),) = await service.query(_MARK)
    log = replace(log, stop=_lsn(mark))
    try:
        await asyncio.to_thread(_lay_log, volumes, compute, data, uid, log)
        ((after,),) = await service.query(_CHECKPOINT_AT)
        if _lsn(after) == checkpoint:
            return Snapshot(Tier.AWAKE, log)
    except FileNotFoundError:  # reused after another checkpoint
        pass
    await asyncio.to_thread(clear_tree, data)
    return None


async def _checkpoint(compute: Compute) -> None:
    """In a session of its own: others of Torpor's questions don't wait for it."""
    service = await compute.live().another_service()
    try:
        await service.query("SET statement_timeout = 0")
        await service.query("CHECKPOINT", patience_s=_CHECKPOINT_PATIENCE_S)
    finally:
        await service.close()


def _found(rows: list[Row]) -> tuple[int, LogSpan, int, bool]:
    """The last checkpoint, the log that a recovery from it begins with, how much that is, and whether every page in it is whole."""
    try:
        ((checkpoint, redo, timeline, segment_bytes, end, is_safe),) = rows
        log = LogSpan(int(timeline or "", 16), parse_lsn(redo or ""), 0, int(segment_bytes or ""))
    except ValueError as error:
        raise _nonsense() from error
    if not is_segment_size(log.segment_bytes) or not 0 < log.timeline < 1 << 32:
        raise _nonsense()
    return _lsn(checkpoint), log, _lsn(end) - log.start, is_safe == "t"


def _lsn(text: str | None) -> int:
    try:
        return parse_lsn(text or "")
    except ValueError as error:
        raise _nonsense() from error


async def _in_backup_mode(compute: Compute, volumes: Volumes, data: Path, uid: int) -> Snapshot:
    id = compute.database.id
    service = await compute.live().another_service()
    try:
        await service.query("SET statement_timeout = 0")
        with contextlib.suppress(QueryFailed):
            await service.query(_SLOT.format(secrets.token_hex(8)))
        start, timeline, segment_bytes = _begun(await service.query(_BEGIN, patience_s=_CHECKPOINT_PATIENCE_S))
        await copy_tree(volumes.data(id), data, uid, _LIVE)
        stop, label = await _stopped(service)
        log = LogSpan(timeline, start, stop, segment_bytes)
        await asyncio.to_thread(_lay_label, data, uid, label)
        try:
            await asyncio.to_thread(_lay_log, volumes, compute, data, uid, log)
        except FileNotFoundError as error:
            raise Unavailable(
                f"the log of database {compute.database.label} was reused while it was copied", "try again; replication slots keep it"
            ) from error
    finally:
        await service.close()
    return Snapshot(Tier.AWAKE, log)


def _begun(rows: list[Row]) -> tuple[int, int, int]:
    try:
        ((lsn, timeline, segment_bytes),) = rows
        found = parse_lsn(lsn or ""), int(timeline or "", 16), int(segment_bytes or "")
    except ValueError as error:
        raise _nonsense() from error
    if not is_segment_size(found[2]):
        raise _nonsense()
    return found


async def _stopped(service: ServiceSession) -> tuple[int, str]:
    rows = await service.query(_END, patience_s=_CHECKPOINT_PATIENCE_S)
    try:
        ((lsn, label),) = rows
        return parse_lsn(lsn or ""), label or ""
    except ValueError as error:
        raise _nonsense() from error


def _nonsense() -> ComputeLost:
    return ComputeLost("PostgreSQL answered Torpor with what can't be: its functions were changed")


def _lay_log(volumes: Volumes, compute: Compute, data: Path, uid: int, log: LogSpan) -> None:
    """Raises FileNotFoundError when a file of it is gone."""
    beneath, target = (compute.database.id, "data", "pg_wal"), data / "pg_wal"
    copy_files(volumes.root, beneath, log.files(), target, uid)
    if log.timeline > 1:
        copy_files(volumes.root, beneath, (f"{n:08X}.history" for n in range(2, log.timeline + 1)), target, uid)


def _lay_label(data: Path, uid: int, label: str) -> None:
    file = data / _LABEL
    file.write_text(label, errors="surrogateescape")
    file.chmod(0o600)
    if uid != os.geteuid():
        os.chown(file, uid, uid)


def _keep_tablespaces_inside(source: Path, data: Path, uid: int) -> None:
    """A tablespace inside of a volume that isn't in a sandbox is known by its path on the host: in a copy that must not be the source's.

    Blocking. `data` is ours still, so its links are only read. Raises Conflict for a tablespace on the host outside of the volume.
    """
    for link in (data / "pg_tblspc").iterdir():
        if not link.is_symlink():
            continue
        place = Path(os.path.normpath(DATA / "pg_tblspc" / os.readlink(link)))  # one of ours is relative
        if place.is_relative_to(source):
            link.unlink()
            link.symlink_to(Path("..") / place.relative_to(source))
            if uid != os.geteuid():
                os.chown(link, uid, uid, follow_symlinks=False)
        elif not place.is_relative_to(DATA):
            raise Conflict(f"it has a tablespace outside of its volume ({str(place)[:200]!r})", "move its tables to pg_default")
