"""Restore drills: what became of a database that was brought back for a trial, to a moment chosen by chance. Pure values.

Times are seconds since the epoch.
"""

from dataclasses import dataclass
from enum import StrEnum


class DrillResult(StrEnum):
    """What a drill says of a history."""

    PASSED = "passed"  # it was brought back to the moment, and all that was checked is right
    FAILED = "failed"  # it can't be brought back to the moment, or what comes of it is damaged
    NOT_POSSIBLE = "not_possible"  # nothing is known: something else kept it from being tried, and it is tried again


class DrillCause(StrEnum):
    """Why a drill failed, or was not possible. The texts say what and where."""

    STORED_DAMAGED = "stored_damaged"  # what is in the store isn't what was stored there
    STORED_MISSING = "stored_missing"  # a base, a part of it, or a piece of the log isn't in the store
    LOG_GAP = "log_gap"  # log that was stored isn't there any more between two that are
    LOG_UNREADABLE = "log_unreadable"  # PostgreSQL can't replay the log behind a position, although it goes on
    KEY = "key"  # the master key doesn't open it
    RECOVERY = "recovery"  # PostgreSQL could not recover
    CHECKSUMS = "checksums"  # pages don't have their checksum
    START = "start"  # PostgreSQL doesn't start on what was restored
    AMCHECK = "amcheck"  # pg_amcheck found tables or indexes that are damaged
    ROWS = "rows"  # a table can't be read to its end, or has other rows than its index says

    STORE = "store"  # the store doesn't answer, or refuses
    POOL = "pool"  # there is no room in the pool for it
    BUSY = "busy"  # the host was short of memory or disks for too long
    MEMORY = "memory"  # it takes more memory than a drill may have
    TIME = "time"  # it takes longer than a drill may
    HOST = "host"  # the host lacks something, or PostgreSQL was ended from outside


FAULTS = frozenset(
    {
        DrillCause.STORED_DAMAGED,
        DrillCause.STORED_MISSING,
        DrillCause.LOG_GAP,
        DrillCause.LOG_UNREADABLE,
        DrillCause.KEY,
        DrillCause.RECOVERY,
        DrillCause.CHECKSUMS,
        DrillCause.START,
        DrillCause.AMCHECK,
        DrillCause.ROWS,
    }
)
"""The causes of a failure; the others say nothing of the history."""


@dataclass(frozen=True, slots=True)
class DrillView:
    """A drill on a database. `moment` says to what it was brought back, in words; `base` is the base copy that was used.

    `checked` says what was looked at, `tables` and `rows` what was counted in all its databases. `cause`, `detail` and `hint` are empty
    for one that passed.
    """

    database: str
    result: DrillResult
    began_at: float
    ended_at: float
    moment: str = ""
    base: int | None = None
    size_bytes: int = 0
    log_bytes: int = 0
    tables: int = 0
    rows: int = 0
    checked: tuple[str, ...] = ()
    cause: DrillCause | None = None
    detail: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class DrillList:
    """Drills, the newest first. `every_s` is how often one is begun by itself, null for never; `verified` and `failing` count databases
    by their last drill that said something, `unverified` those with a history of which none has yet."""

    drills: tuple[DrillView, ...]
    every_s: float | None = None
    verified: int = 0
    failing: int = 0
    unverified: int = 0
