"""The past of a database: to which moments it can be brought back. Pure values."""

from dataclasses import dataclass
from datetime import UTC, datetime

from torpor.model.errors import InvalidRequest
from torpor.model.lsn import format_lsn, parse_lsn
from torpor.model.names import DatabaseId

_HIGHEST_TRANSACTION = (1 << 64) - 1
_RUN_BITS = 32


@dataclass(frozen=True, slots=True)
class Shipped:
    """How far the log is in the store: up to `lsn`, with all that was committed before `at`. `tail` is the fingerprint of its last page."""

    timeline: int
    segment_bytes: int
    lsn: int
    at: float
    tail: bytes


@dataclass(frozen=True, slots=True)
class History:
    """The past of one database as it stands. `shipped` is None until the present run has its first base.

    A run is a stretch of log without a break: bases and log of one never go with those of another. `end_lsn` is where the log ended as
    the database fell asleep, while that isn't in the store. `trouble` says why the present run doesn't go on from the one before.
    """

    id: DatabaseId
    wrapped_key: bytes
    run: int = 0
    shipped: Shipped | None = None
    end_lsn: int | None = None
    base_at: float | None = None
    base_lsn: int | None = None
    trouble: str = ""
    keep_s: float | None = None
    keep_bases: int | None = None


def line_of(run: int, timeline: int) -> int:
    """What stands for a timeline in the store: timelines of different runs can hold different log at the same position."""
    return run << _RUN_BITS | timeline


def timeline_of(line: int) -> int:
    """PostgreSQL's own number of it."""
    return line & ((1 << _RUN_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a database's past; the newest one that is kept when nothing is given. At most one of them is given.

    `at` is in seconds since the epoch: all that was committed until then. `lsn` is a position in the log, `before_transaction` the
    number of the first transaction that is not wanted.
    """

    at: float | None = None
    lsn: int | None = None
    before_transaction: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidRequest for more than one, or a number that can't be."""
        if sum(value is not None for value in (self.at, self.lsn, self.before_transaction)) > 1:
            raise InvalidRequest("only one of at, lsn and before_transaction can be given")
        if self.before_transaction is not None and not 3 <= self.before_transaction <= _HIGHEST_TRANSACTION:
            raise InvalidRequest("before_transaction is the number of a transaction, from 3 up", "SELECT pg_current_xact_id() tells one")

    def __str__(self) -> str:
        if self.at is not None:
            return datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
        if self.lsn is not None:
            return f"position {format_lsn(self.lsn)}"
        return f"before transaction {self.before_transaction}" if self.before_transaction is not None else "the newest"


def read_moment(at: float | None, lsn: str | None, before_transaction: int | None) -> Moment:
    """What a request says. Raises InvalidRequest."""
    try:
        return Moment(at, parse_lsn(lsn) if lsn is not None else None, before_transaction)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
