"""What of a history is needed, what can be restored from it, and which pieces of log lead from here to there. Pure.

Positions in the log (LSNs) are numbers of bytes; moments are seconds since the epoch. Bases count up from 1 in the order of their making,
which is what "newer" means here: clocks jump.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torpor.model.errors import HistoryMissing
from torpor.model.lsn import format_lsn


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What PostgreSQL says of a base copy.

    Replay begins at `start_lsn`, and what it yields is consistent from `stop_lsn` on, which was reached at `ended_at`.
    """

    timeline: int
    start_lsn: int
    stop_lsn: int
    ended_at: float
    major: int


@dataclass(frozen=True, slots=True)
class Base:
    """A base copy that is whole. `size_bytes` is what it restores to, `stored_bytes` what had to be stored anew for it."""

    number: int
    facts: BaseFacts
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class LogPiece:
    """The log of a timeline from `start_lsn` up to `end_lsn`, as it is stored. `at` is when it came to the store."""

    timeline: int
    start_lsn: int
    end_lsn: int
    stored_bytes: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Every moment of the last `window_s` can be restored, unless that takes more than `most_bases` bases: the oldest go then."""

    window_s: float
    most_bases: int


@dataclass(frozen=True, slots=True)
class Span:
    """What one base and the log after it restore to: any position, and any moment, between these."""

    base: int
    timeline: int
    from_lsn: int
    to_lsn: int
    from_at: float
    to_at: float


def chain(pieces: Iterable[LogPiece], timeline: int, from_lsn: int, to_lsn: int | None = None) -> list[LogPiece]:
    """The fewest pieces that hold all of the log between two positions, in order; they may overlap.

    Without `to_lsn` as far as it goes without a gap, which may be nowhere. Raises HistoryMissing, which names the gap.
    """
    on_line = sorted((piece for piece in pieces if piece.timeline == timeline and piece.end_lsn > from_lsn), key=lambda p: p.start_lsn)
    found: list[LogPiece] = []
    reached, index = from_lsn, 0
    while to_lsn is None or reached < to_lsn:
        best: LogPiece | None = None
        while index < len(on_line) and on_line[index].start_lsn <= reached:
            if best is None or on_line[index].end_lsn > best.end_lsn:
                best = on_line[index]
            index += 1
        if best is None or best.end_lsn <= reached:
            if to_lsn is None:
                break
            raise HistoryMissing(f"the log of timeline {timeline} isn't there from {format_lsn(reached)} to {format_lsn(to_lsn)}")
        found.append(best)
        reached = best.end_lsn
    return found


def spans(bases: Iterable[Base], pieces: Sequence[LogPiece]) -> list[Span]:
    """What can be restored, base by base, oldest first. A base whose own log has a gap restores to nothing."""
    found: list[Span] = []
    for base in sorted(bases, key=lambda base: base.number):
        facts = base.facts
        log = chain(pieces, facts.timeline, facts.start_lsn)
        reached = log[-1].end_lsn if log else facts.start_lsn
        if reached >= facts.stop_lsn:
            until = log[-1].at if log and reached > facts.stop_lsn else facts.ended_at
            found.append(Span(base.number, facts.timeline, facts.stop_lsn, reached, facts.ended_at, max(until, facts.ended_at)))
    return found


def base_for(bases: Iterable[Base], *, lsn: int | None = None, at: float | None = None) -> Base | None:
    """The newest base that was whole at that position, or at that moment; the newest of all for neither."""
    fitting = [base for base in bases if (lsn is None or base.facts.stop_lsn <= lsn) and (at is None or base.facts.ended_at <= at)]
    return max(fitting, key=lambda base: base.number, default=None)


def bases_to_keep(bases: Iterable[Base], retention: Retention, now: float, pinned: Collection[int] = ()) -> list[Base]:
    """Those that restore the moments of the window, oldest first, and those that are pinned. The newest one always stays."""
    in_order = sorted(bases, key=lambda base: base.number)
    wanted: set[int] = set()
    for base in reversed(in_order):
        if len(wanted) >= max(1, retention.most_bases):
            break
        wanted.add(base.number)
        if base.facts.ended_at <= now - retention.window_s:
            break  # restores all moments of the window that newer ones don't
    return [base for base in in_order if base.number in wanted or base.number in pinned]


def log_to_drop(pieces: Iterable[LogPiece], kept: Sequence[Base], only_itself: Collection[int] = ()) -> list[LogPiece]:
    """Pieces that no kept base needs. Those in `only_itself` need the log that makes them consistent, the others all that follows.

    Without any base, nothing: the first one is being made.
    """
    if not kept:
        return []
    return [piece for piece in pieces if not any(_needs(base.facts, piece, base.number in only_itself) for base in kept)]


def _needs(facts: BaseFacts, piece: LogPiece, only_itself: bool) -> bool:
    if only_itself:
        return piece.timeline == facts.timeline and piece.end_lsn > facts.start_lsn and piece.start_lsn < facts.stop_lsn
    return piece.timeline > facts.timeline or (piece.timeline == facts.timeline and piece.end_lsn > facts.start_lsn)
