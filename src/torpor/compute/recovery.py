"""Brings a restored volume to its moment: PostgreSQL replays the log that lies in its pg_wal, up to a target, and is stopped again.

A sandbox has no network, nor may what a tenant could reach hold the keys of a store: so nothing is fetched by a command while PostgreSQL
recovers, and all of the log is there before. It starts as a standby, which replays what is there and then waits; told to become a primary
it does so when all is replayed, or at its target. Nobody can connect before. What a tenant may have set for recovery (ALTER SYSTEM) is
overridden on the command line.

Concurrency: one task, on a volume that has no compute. Safe to cancel, and to kill: what ran is ended by who comes next, and the volume is
thrown away.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from torpor.base.cgroups import Tree
from torpor.base.limits import Limits
from torpor.compute import logfile
from torpor.compute.postmaster import Postmaster
from torpor.compute.shares import Shares
from torpor.compute.starting import plan_launch
from torpor.compute.surroundings import Surroundings
from torpor.model.database import Database
from torpor.model.errors import ComputeStartFailed, Unavailable
from torpor.model.history import Moment
from torpor.model.lsn import format_lsn
from torpor.model.names import DatabaseId

STANDBY_FILE = "standby.signal"
_PROMOTE_FILE = "promote"
_LOOK_EVERY_S = 0.1
_PATIENCE_S = 6 * 3600.0
_MOST_BUFFERS_MB = 256  # nothing else needs the memory of the database that isn't there yet
_NOT_REACHED = "before configured recovery target was reached"
_SEGMENT_DIGITS = 24


class MomentNotReached(Unavailable):
    """The log that was laid down ends before the moment."""

    kind = "moment_not_reached"


class RecoveryFailed(Unavailable):
    """PostgreSQL could not be brought to the moment; the cause is in the text."""

    kind, sqlstate = "recovery_failed", "58000"


@dataclass(frozen=True, slots=True)
class Manner:
    """How a recovery is run that isn't urgent: within which limits, with which memory for PostgreSQL, where its log goes, and what is
    around its replay (that may hold its processes up for as long as it likes)."""

    limits: Limits
    buffers_mb: int
    log: Path
    replaying: Callable[[Tree], AbstractAsyncContextManager[None]]


def recovery_options(moment: Moment) -> tuple[tuple[str, str], ...]:
    """The settings of a recovery to that moment. Every setting that has to do with it is named, so that no other value reaches it. Pure."""
    targets = {
        "recovery_target": "",
        "recovery_target_name": "",
        "recovery_target_time": datetime.fromtimestamp(moment.at, UTC).isoformat() if moment.at is not None else "",
        "recovery_target_lsn": format_lsn(moment.lsn) if moment.lsn is not None else "",
        "recovery_target_xid": str(moment.before_transaction) if moment.before_transaction is not None else "",
    }
    return (
        ("hot_standby", "off"),  # else it would want as many connections as were allowed when the log was written
        ("restore_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("recovery_min_apply_delay", "0"),
        *sorted(targets.items(), key=lambda item: bool(item[1])),  # PostgreSQL takes none for a second one when it comes after the one
        ("recovery_target_inclusive", "off" if moment.before_transaction is not None else "on"),
        ("recovery_target_action", "promote"),
        ("recovery_target_timeline", "current"),
        ("wal_retrieve_retry_interval", "100ms"),
        ("archive_mode", "off"),
        ("max_logical_replication_workers", "0"),  # a subscriber of the past must not take the changes that are the present's
        ("autovacuum", "off"),
        ("fsync", "off"),  # killed in the middle of it, all is thrown away; once whole, all is synced
        ("max_wal_size", "1GB"),  # fewer restart points on the way
    )


async def recover(
    source: Database,
    id: DatabaseId,
    data: Path,
    uid: int,
    around: Surroundings,
    moment: Moment,
    replaying: Callable[[str], None],
    manner: Manner | None = None,
) -> None:
    """Recover the cluster in `data`, a copy of what `source` was, to `moment`, and stop it in order. It must be `uid`'s, as the directories
    above must let it through; `id` is that of the database that will have it. `replaying` is told the file of the log that is replayed.

    Raises MomentNotReached where the log ends before it: more log may be laid down then, or the newest moment asked for, and it goes on
    from there. Raises RecoveryFailed with PostgreSQL's own words. Nothing is synced.
    """
    log_file = around.logs / f"{id}.log" if manner is None else manner.log
    size = source.size.apply(around.size)
    plan = await plan_launch(source, size, around, log_file, data)
    buffers_mb = min(_MOST_BUFFERS_MB, size.max_memory_bytes // 4 >> 20) if manner is None else manner.buffers_mb
    buffers = ("shared_buffers", f"{buffers_mb}MB")
    plan = replace(plan, uid=uid, options=(*plan.options, buffers, *recovery_options(moment)))
    _touch(data / STANDBY_FILE, uid)
    shares = Shares()
    tree = shares.open(around.trees.open(id), size)
    if manner is not None:
        tree.limit(manner.limits)
    postmaster = Postmaster(tree, around.run / id / "door.sock", lambda _: None, lambda: None)
    try:
        await postmaster.clear_remains(data)
        postmaster.launch(plan)
        await postmaster.enter_tree()
        async with manner.replaying(tree) if manner is not None else nullcontext():
            await _wait_promoted(postmaster, data, uid, replaying)
        await postmaster.shut_down()
    except ComputeStartFailed as error:
        words = logfile.last_words(log_file)
        if _NOT_REACHED in words:
            raise MomentNotReached(f"the log ends before {moment}") from error
        raise RecoveryFailed(f"PostgreSQL could not be brought to {moment}: {words}", "another moment may do: `torpor history`") from error
    finally:
        await postmaster.bury()
        shares.close()
        with contextlib.suppress(OSError):
            (data / _PROMOTE_FILE).unlink(missing_ok=True)
    if (data / STANDBY_FILE).exists():
        raise RecoveryFailed("PostgreSQL did not come to the end of its recovery")


async def _wait_promoted(postmaster: Postmaster, data: Path, uid: int, replaying: Callable[[str], None]) -> None:
    """Until it has replayed all and accepts connections. Raises ComputeStartFailed."""
    ready = asyncio.ensure_future(postmaster.wait_ready(_PATIENCE_S, lambda: None))
    try:
        while not ready.done():
            if (startup := _startup_process(postmaster.tree.pids())) is not None:
                parent, doing = startup
                replaying(doing)
                if not (data / _PROMOTE_FILE).exists():
                    _touch(data / _PROMOTE_FILE, uid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(parent, signal.SIGUSR1)
            await asyncio.wait([ready], timeout=_LOOK_EVERY_S)
        if not ready.result():
            raise ComputeStartFailed(f"it was not ready after {_PATIENCE_S:.0f} s")
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)


def _startup_process(pids: list[int]) -> tuple[int, str] | None:
    """The parent of PostgreSQL's process that replays the log, which is the postmaster, and the file that it is at."""
    known = set(pids)
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended since
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(200).rstrip(b"\0 ").decode(errors="replace")
            if not title.startswith("postgres: startup"):
                continue
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read(1000).rpartition(b")")[2].split()[1])
            if parent in known:
                last = title.split()[-1]
                return parent, last if len(last) == _SEGMENT_DIGITS else ""
    return None


def _touch(path: Path, uid: int) -> None:
    """Make an empty file of the compute's user, in a volume in which nobody has run yet but PostgreSQL itself."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, uid, uid)
    finally:
        os.close(fd)
