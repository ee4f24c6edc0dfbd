"""What restore drills decide: which database, which moment, what is missing in a history, and what a failure means. Pure.

Chance is given, so that tests know what comes.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.catalog.drills import Candidate
from torpor.compute.checking import Damaged, Overtaxed
from torpor.compute.recovery import MomentNotReached, RecoveryFailed
from torpor.model.drills import FAULTS, DrillCause, DrillResult
from torpor.model.errors import HistoryCorrupt, HistoryError, HistoryMissing, HostError, KeyFileUnusable, PoolFull, TorporError, Unavailable
from torpor.model.history import History, Moment, line_of
from torpor.model.lsn import PAGE_BYTES, format_lsn
from torpor.storage.archive.retention import Base, LogPiece, Span, chain

_NEVER_S = 365 * 86_400.0
"""One that was never verified counts like one that wasn't for so long."""
_PAGE_HEADER, _SEGMENT_HEADER = 24, 40
_RECORD_HEADER, _ALIGNMENT = 24, 8
_HINTS = {
    DrillCause.STORED_DAMAGED: "take a new base with `torpor backup`, and look after the store: what it gives back isn't what it was given",
    DrillCause.STORED_MISSING: "take a new base with `torpor backup`, and look who removes what from the store",
    DrillCause.LOG_GAP: "take a new base with `torpor backup`: from then on all can be restored, and what was before the gap up to that",
    DrillCause.LOG_UNREADABLE: "take a new base with `torpor backup`: a restore to the newest moment ends there, and loses what came after",
    DrillCause.KEY: "the setting key_file must name the master key that this history was begun with",
    DrillCause.RECOVERY: "take a new base with `torpor backup`, and try this moment with `torpor branch --at` to see more",
    DrillCause.CHECKSUMS: "the disk or the memory may be failing: look at the database itself, and restore to a moment before it broke",
    DrillCause.START: "try this moment with `torpor branch --at` to see more, and take a new base with `torpor backup`",
    DrillCause.AMCHECK: "look at the database itself with pg_amcheck: REINDEX mends an index, a table is restored as it was before",
    DrillCause.ROWS: "look at the database itself: VACUUM (DISABLE_PAGE_SKIPPING) and REINDEX mend what is beside the table",
    DrillCause.STORE: "see `torpor history`: it is tried again by itself",
    DrillCause.POOL: "the pool needs room for all of a database that is verified; it is tried again by itself",
    DrillCause.BUSY: "it is tried again by itself",
    DrillCause.MEMORY: "it is tried again by itself",
    DrillCause.TIME: "a drill has a small share of the machine only: verify so large a database with `torpor branch --at`, and drop that",
    DrillCause.HOST: "it is tried again by itself",
}


class Impossible(Unavailable):
    """A drill that can't be done now; `cause` says why."""

    kind = "drill_impossible"

    def __init__(self, cause: DrillCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error in a drill means."""

    result: DrillResult
    cause: DrillCause
    detail: str
    hint: str


def weight(candidate: Candidate, now: float) -> float:
    """How likely one is chosen, beside the others: by the square of how long nothing was said of it."""
    age_s = _NEVER_S if candidate.verified_at is None else abs(now - candidate.verified_at)  # clocks jump back, too
    return (age_s + 1.0) ** 2


def choose(candidates: Sequence[Candidate], chance: random.Random, now: float, again_s: float) -> Candidate | None:
    """Which database is next. What was tried in the last `again_s` and told nothing waits until there is no other."""
    rested = [each for each in candidates if each.tried_at is None or each.tried_at == each.verified_at or now - each.tried_at >= again_s]
    found = rested or candidates
    return chance.choices(found, [weight(each, now) for each in found])[0] if found else None


def choose_moment(found: Sequence[Span], history: History, chance: random.Random) -> Moment:
    """Any moment that can be restored: the end of all, a position in the log, or a time, as those ask for who restore.

    Raises HistoryMissing when there is none. Spans that are longer are likelier.
    """
    if not found:
        raise HistoryMissing("nothing of its history can be restored")
    kind = chance.randrange(3)
    if kind == 0:
        return Moment()
    span = chance.choices(found, [span.to_at - span.from_at + 1.0 for span in found])[0]
    if kind == 1:
        return Moment(lsn=chance.randint(span.from_lsn, span.to_lsn))
    shipped = history.shipped
    is_present = shipped is not None and span.timeline == line_of(history.run, shipped.timeline)
    until = max(span.to_at, shipped.at) if shipped is not None and is_present else span.to_at
    return Moment(at=chance.uniform(span.from_at, until))


def gap(bases: Sequence[Base], pieces: Sequence[LogPiece], history: History) -> str:
    """What is missing of the log that must be there, in words; nothing when all is there.

    All of the present stretch that was shipped must be there since its oldest base, and of an earlier one up to its last base but one: that
    one's log may have been lost before it was stored. `history` must have been read before the pieces were listed.
    """
    for line in sorted({base.facts.timeline for base in bases}):
        on_line = [base.facts for base in bases if base.facts.timeline == line]
        start, stops = min(facts.start_lsn for facts in on_line), sorted(facts.stop_lsn for facts in on_line)
        until = stops[-2] if len(stops) > 1 else start
        shipped = history.shipped
        if shipped is not None and line == line_of(history.run, shipped.timeline):
            until = max(until, shipped.lsn)
        log = chain(pieces, line, start)
        reached = log[-1].end_lsn if log else start
        if reached < until:
            return f"the log is missing from {format_lsn(reached)} on, of which all up to {format_lsn(until)} was stored"
    return ""


def is_cut(head: bytes, at: int, end: int) -> bool:
    """Whether the log, of which `head` is what is at `at`, ends at `end` within the record that begins there: nobody can replay that."""
    in_page = at % PAGE_BYTES
    skip = 0
    if in_page == 0:  # a page's header, which is longer at the beginning of a file
        info = int.from_bytes(head[2:4], "little")
        skip = _SEGMENT_HEADER if info & 0x02 else _PAGE_HEADER
    if end - at < skip + _RECORD_HEADER or len(head) < skip + 4:
        return True
    (length,) = struct.unpack_from("<I", head, skip)
    if length < _RECORD_HEADER:  # zeros to the end of a page
        return end - at < PAGE_BYTES
    # As long as it can be at most, with the longer header on each of its pages: nobody is alarmed for some bytes.
    pages = (in_page + skip + length) // (PAGE_BYTES - _SEGMENT_HEADER) + 1
    return bool(at + skip + length + pages * _SEGMENT_HEADER + _ALIGNMENT > end)


def judge(error: BaseException) -> Verdict:
    """What an error in a drill says of the history."""
    cause, detail = _cause(error)
    result = DrillResult.FAILED if cause in FAULTS else DrillResult.NOT_POSSIBLE
    return Verdict(result, cause, detail, _HINTS[cause])


def _cause(error: BaseException) -> tuple[DrillCause, str]:
    detail = error.message if isinstance(error, TorporError) else str(error)
    match error:
        case Damaged() | Impossible() | Overtaxed():
            return error.cause, detail
        case HistoryCorrupt():
            return DrillCause.STORED_DAMAGED, detail
        case HistoryMissing():
            return DrillCause.STORED_MISSING, detail
        case HistoryError():
            return DrillCause.STORE, detail
        case KeyFileUnusable():
            return DrillCause.KEY, detail
        case MomentNotReached():
            return DrillCause.LOG_UNREADABLE, detail
        case RecoveryFailed():
            return DrillCause.RECOVERY, detail
        case PoolFull():
            return DrillCause.POOL, detail
        case HostError():
            return DrillCause.HOST, detail
        case _:
            return DrillCause.HOST, detail or type(error).__name__
