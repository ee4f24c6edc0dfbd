"""The guard: one object that the listener and the logins ask, and one `Visit` for each connection at the door.

What counts is derived, never kept twice: sessions are counted by whoever has them (`Sessions`), a visit counts where it stands, and
passing from one to the other is one step of the event loop. Concurrency: plain calls on the door's loop; nothing waits.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from torpor.door.guard.offenders import LogBudget, Offender, Offenders
from torpor.door.guard.rates import RateLimit
from torpor.door.guard.throttle import FailedLogins, Remembered
from torpor.door.text import printable
from torpor.model.access import AccessBook, ListScope, NetworkSet, address_key, parse_address
from torpor.model.database import Database
from torpor.model.errors import (
    AddressForbidden,
    TooManyConnections,
    TooManyFailedLogins,
    TooManyFromAddress,
    TooManyInDatabase,
    TooManyWakes,
)
from torpor.model.limits import DoorLimits
from torpor.model.names import DatabaseId

K = TypeVar("K", bound=Hashable)

_ALL = "all"


class Sessions(Protocol):
    """The live sessions of all computes, as they are at this moment."""

    def total(self) -> int:
        """How many there are."""
        ...

    def from_address(self, key: str) -> int:
        """How many come from an address, by its `address_key`."""
        ...

    def room(self, database: Database) -> tuple[int, int]:
        """How many one database has, and how many it may have."""
        ...


class NoSessions:
    """For a door without computes behind it that count."""

    def total(self) -> int:
        return 0

    def from_address(self, key: str) -> int:
        return 0

    def room(self, database: Database) -> tuple[int, int]:
        return 0, 1_000_000


class _Stand(Enum):
    PENDING = "pending"  # nobody knows yet who it is
    ENTERING = "entering"  # proven, on its way into the compute
    GONE = "gone"  # its session counts now, or it left


class Visit:
    """One connection at the door, from accept until its session is counted or it has left. `release` is idempotent, and must come."""

    __slots__ = ("_counted", "_guard", "_is_told", "_stand", "database", "expects_proxy", "host", "key")

    def __init__(self, guard: "Guard", host: str, expects_proxy: bool) -> None:
        self._guard = guard
        self._stand = _Stand.PENDING
        self._counted = not expects_proxy
        self._is_told = False
        self.host = host
        self.key = address_key(host)
        self.expects_proxy = expects_proxy
        self.database: DatabaseId | None = None

    def __repr__(self) -> str:
        return f"<Visit {self.host} {self._stand.value}>"

    def came_from(self, host: str) -> None:
        """The load balancer, or Torpor's own gateway, said whose connection it is. Raises TooManyFromAddress."""
        if self._counted:
            self._leave_pending()
        self.host, self.key = host, address_key(host)
        self.expects_proxy = False
        if self._stand is _Stand.PENDING and not self._counted:
            self._guard.check_pending(self.key)
            self._counted = True
            self._guard.pending[self.key] += 1

    def check_worth(self) -> None:
        """Before a handshake costs anything: an address that no list admits anywhere is led on to where it can read why (libpq shows no
        error that comes in the place of TLS), but not again and again. Raises AddressForbidden."""
        try:
            self._guard.check_access(self.host, None)
        except AddressForbidden:
            if not self._is_told:
                self._is_told = self._guard.courtesy.line(self.key, self._guard.now()) is not None
            if not self._is_told:
                raise

    def check_cancel(self) -> None:
        """Before a cancel request is passed on. Raises AddressForbidden."""
        self._guard.check_access(self.host, None)

    def check(self, target: str, database: Database | None, pooled: bool = False) -> None:
        """Before anything is asked, hashed or woken. Raises AddressForbidden, TooManyFailedLogins, TooManyConnections."""
        self._guard.check_access(self.host, database)
        self._guard.check_failures(self.key, self.host, _target(target, database))
        if database is not None:
            self._guard.check_connections(self.key, database, own=1 if self._counted else 0, pooled=pooled)

    def check_failures(self, target: str, database: Database | None) -> None:
        """Again, right before a password is compared: of many at once only one may be. Raises TooManyFailedLogins."""
        self._guard.check_failures(self.key, self.host, _target(target, database))

    def failed(self, target: str, database: Database | None) -> None:
        """Its credentials were wrong."""
        self._guard.failures.failed(self.key, _target(target, database), self._guard.now())

    def succeeded(self, target: str, database: Database) -> None:
        """Its password was right."""
        self._guard.failures.cleared(self.key, _target(target, database))

    def enter(self, database: Database, pooled: bool = False) -> None:
        """Take a place among the connections of the database. Raises AddressForbidden, TooManyConnections.

        A pooled client takes none of the database's own: the pool has a limit for those."""
        guard = self._guard
        guard.check_access(self.host, database)
        self._leave_pending()
        guard.check_connections(self.key, database, own=0, pooled=pooled)
        self._stand = _Stand.ENTERING
        self.database = None if pooled else database.id
        guard.entering_overall += 1
        guard.entering[self.key] += 1
        if self.database is not None:
            guard.entering_database[self.database] += 1

    def check_wake(self, database: Database) -> None:
        """Before it wakes the database's compute. Raises TooManyWakes."""
        self._guard.check_wake(self.key, database)

    def release(self) -> None:
        """Its session counts from now on, or it has left. In the same step of the loop in which the session begins to count."""
        self._leave_pending()
        if self._stand is _Stand.ENTERING:
            self._guard.entering_overall -= 1
            _less(self._guard.entering, self.key)
            if self.database is not None:
                _less(self._guard.entering_database, self.database)
        self._stand = _Stand.GONE

    def _leave_pending(self) -> None:
        if self._stand is _Stand.PENDING and self._counted:
            self._counted = False
            _less(self._guard.pending, self.key)


class Guard:
    """What all connections of one door are measured against."""

    def __init__(
        self,
        now: Callable[[], float],
        secret: bytes,
        limits: DoorLimits | None = None,
        sessions: Sessions | None = None,
        load_balancers: Sequence[str] = (),
        book: AccessBook | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        """`now` is monotonic; `secret` must not be known to clients; `remembered` is what the last guard on this host released."""
        self.now = now
        self.limits = limits or DoorLimits()
        self.book = book or AccessBook()
        self.failures = FailedLogins(secret, now(), self.limits.failed_login_penalty_s, remembered=remembered)
        self.offenders = Offenders()
        self.log_budget = LogBudget()
        self.courtesy = LogBudget()
        self.pending: Counter[str] = Counter()
        self.entering_overall = 0
        self.entering: Counter[str] = Counter()
        self.entering_database: Counter[DatabaseId] = Counter()
        self._sessions: Sessions = NoSessions() if sessions is None else sessions  # one without databases is false
        self._load_balancers = NetworkSet(load_balancers)
        self._wakes: RateLimit[DatabaseId] = RateLimit(self.limits.wakes_per_database)
        self._address_wakes: RateLimit[str] = RateLimit(self.limits.wakes_per_address)
        self._all_wakes: RateLimit[str] = RateLimit(self.limits.wakes_overall)

    def __repr__(self) -> str:
        return f"<Guard pending={self.pending.total()} entering={self.entering_overall} {self.book!r}>"

    def use(self, book: AccessBook) -> None:
        """Take other access lists: in force with the next question."""
        self.book = book

    def arrive(self, host: str) -> Visit:
        """A connection was accepted. Raises TooManyFromAddress."""
        address = parse_address(host) if self._load_balancers else None
        visit = Visit(self, host, address is not None and self._load_balancers.find(address) is not None)
        if not visit.expects_proxy:
            try:
                self.check_pending(visit.key)
            except TooManyFromAddress:
                visit._counted = False  # a visit is half of its guard
                raise
            self.pending[visit.key] += 1
        return visit

    def check_pending(self, key: str) -> None:
        """Raises TooManyFromAddress when too many of this address are logging in."""
        if self.pending[key] >= self.limits.logins_per_address:
            raise TooManyFromAddress(
                f"too many connections from {key} are logging in at once ({self.limits.logins_per_address})",
                "connect again in a few seconds, with fewer connections at once",
            )

    def check_access(self, host: str, database: Database | None) -> None:
        """Raises AddressForbidden when a list keeps this address out; without a database, of all of them."""
        workspace = (database.workspace or "") if database is not None else ""
        barred = self.book.bars(host, workspace, database.id if database is not None else "")
        if barred is not None:
            what = (
                f'database "{printable(database.label)}"'
                if database is not None and barred.scope is not ListScope.GLOBAL
                else "this Torpor"
            )
            raise AddressForbidden(
                f"connections from {printable(host)} to {what} are forbidden: {barred}", "whoever runs it can change that: `torpor access`"
            )

    def check_failures(self, key: str, host: str, target: str) -> None:
        """Raises TooManyFailedLogins while this address must wait for this database."""
        wait_s = self.failures.blocked_for(key, target, self.now())
        if wait_s:
            raise TooManyFailedLogins(
                f"too many failed logins to this database from {printable(host)}",
                f"try again in {_seconds(wait_s)}, with the right database, user and password",
            )

    def check_connections(self, key: str, database: Database, own: int, pooled: bool) -> None:
        """Raises TooManyConnections when another session would be one too many. `own` of the pending ones is the one who asks."""
        limits = self.limits
        used, room = self._sessions.room(database)
        used += self.entering_database[database.id]
        if used >= room and not pooled:
            raise TooManyInDatabase(
                f'database "{printable(database.label)}" has {used} connections, and {room} are its limit',
                "close some, pool them, or raise its limit; then connect again",
            )
        if self._sessions.from_address(key) + self.entering[key] + self.pending[key] - own >= limits.connections_per_address:
            raise TooManyFromAddress(
                f"there are too many connections from {key} ({limits.connections_per_address})",
                "close some, or pool them; then connect again in a moment",
            )
        if self._sessions.total() + self.entering_overall >= limits.connections_overall:
            raise TooManyConnections(
                f"there are too many connections to all databases ({limits.connections_overall})", "connect again in a moment"
            )

    def check_wake(self, key: str, database: Database) -> None:
        """Before a login wakes a compute; it counts for its address. Raises TooManyWakes."""
        now = self.now()
        if wait_s := self._wakes.wait_s(database.id, now):
            raise TooManyWakes(
                f'database "{printable(database.label)}" was woken too often', f"try again in {_seconds(wait_s)}; keep connections open"
            )
        if wait_s := self._address_wakes.wait_s(key, now):
            raise TooManyWakes(f"logins from {key} wake databases too often", f"try again in {_seconds(wait_s)}; keep connections open")
        if wait_s := self._all_wakes.wait_s(_ALL, now):
            raise TooManyWakes("too many databases of this host are being woken", f"try again in {_seconds(wait_s)}")
        self._address_wakes.note(key, now)

    def woken(self, id: DatabaseId) -> None:
        """A compute was woken, whatever by."""
        now = self.now()
        self._wakes.note(id, now)
        self._all_wakes.note(_ALL, now)

    def refused(self, host: str, reason: str, target: str) -> int | None:
        """Note a refusal. Whether it is worth a line in the log: None for no, else how many lines were left out before."""
        key, now = address_key(host), self.now()
        self.offenders.note(key, reason, target, now)
        return self.log_budget.line(key, now)

    def heaviest(self, limit: int) -> list[Offender]:
        """Who was refused most of late."""
        return self.offenders.heaviest(limit, self.now())

    def release(self) -> Remembered:
        """Who failed to log in, for the next guard. Nothing else may be asked of this one any more."""
        return self.failures.release()

    def close(self) -> None:
        """Give the memory back. Idempotent."""
        self.failures.close()


def _target(target: str, database: Database | None) -> str:
    # By id: failures from before it was made, or of an earlier one of its name, are no failures here.
    return database.id if database is not None else f"?{target}"


def _less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _seconds(wait_s: float) -> str:
    return f"{max(1, -int(-wait_s // 1))} s"
