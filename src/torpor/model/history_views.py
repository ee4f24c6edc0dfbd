"""What is shown of the past of databases. Pure values; times as in `model.views`."""

from dataclasses import dataclass

from torpor.model.drills import DrillView


@dataclass(frozen=True, slots=True)
class WindowView:
    """Moments to which a database can be brought back: any between these, and any position of the log between those."""

    from_at: float
    to_at: float
    from_lsn: str
    to_lsn: str


@dataclass(frozen=True, slots=True)
class BaseView:
    """A base copy: `size_bytes` is what it restores to, `stored_bytes` what had to be stored for it beside what was there."""

    number: int
    at: float
    lsn: str
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class BaseList:
    """The base copies of a database, oldest first."""

    bases: tuple[BaseView, ...]


@dataclass(frozen=True, slots=True)
class RetentionView:
    """What is kept: every moment of the last `keep_s` seconds, unless that takes more than `keep_bases` bases. `own` names what the
    database sets itself."""

    keep_s: float
    keep_bases: int
    own: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShippingView:
    """How far the history is: all that was committed before `shipped_at` is in the store, `behind_bytes` of the log aren't, as far as is
    known. `trouble` says what keeps the log from the store now, `broken` why the newest window doesn't go on from the one before.
    `drill` is the last restore drill that said something, null before the first one."""

    shipped_at: float | None
    behind_bytes: int
    trouble: str = ""
    broken: str = ""
    drill: DrillView | None = None


@dataclass(frozen=True, slots=True)
class HistoryView:
    """What of a database's past can be restored, and what it costs: bytes in the store, compressed."""

    store: str
    windows: tuple[WindowView, ...]
    bases: int
    base_bytes: int
    log_bytes: int
    shipping: ShippingView
    retention: RetentionView
