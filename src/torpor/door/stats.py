"""What the door counts, for the metrics. Plain ints, written on the door's loop."""

from dataclasses import dataclass, field
from enum import StrEnum

from torpor.model.errors import (
    AddressForbidden,
    DatabaseNotFound,
    EncryptionRequired,
    HandshakeFailed,
    LoginForbidden,
    LoginTimeout,
    ProtocolViolation,
    RoutingConflict,
    ShuttingDown,
    TooManyConnections,
    TooManyFailedLogins,
    TooManyFromAddress,
    TooManyInDatabase,
    TooManyWakes,
    TorporError,
    Unavailable,
    WrongPassword,
)


class LoginOutcome(StrEnum):
    """How a connection's time at the door ended."""

    HANDED_OVER = "handed_over"  # its PostgreSQL has it
    POOLED = "pooled"  # the pool has it
    CANCEL = "cancel"  # it was a cancel request
    VANISHED = "vanished"  # the client left before it was logged in
    PROTOCOL = "protocol_violation"  # it didn't speak the protocol
    ROUTING = "routing_conflict"  # it named two databases, or none
    NOT_FOUND = "database_not_found"  # it named a database that doesn't exist
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # or the role doesn't exist, has no password, or an expired one
    ENCRYPTION = "encryption"  # it had to use TLS and did not, or the handshake failed
    FORBIDDEN = "login_forbidden"  # the role may not log in
    ADDRESS = "address_forbidden"  # an access list keeps its address out
    THROTTLED = "too_many_failed_logins"  # its address has given wrong credentials for this database, and must wait
    FROM_ADDRESS = "too_many_from_address"  # its address has as many connections as it may, or as many that are logging in
    IN_DATABASE = "too_many_in_database"  # the database has as many connections as it may
    WAKES = "too_many_wakes"  # the database, or all of them, were woken too often
    TIMEOUT = "login_timeout"  # it took too long
    TOO_MANY = "too_many_connections"  # it gave way to newer ones, too many wait for the database, or there are too many in all
    UNAVAILABLE = "unavailable"  # the compute couldn't be woken, or was lost
    SHUTDOWN = "shutting_down"  # Torpor was stopped
    FAILED = "failed"  # a fault of Torpor's own


_OUTCOMES: tuple[tuple[type[TorporError], LoginOutcome], ...] = (
    (HandshakeFailed, LoginOutcome.ENCRYPTION),
    (ProtocolViolation, LoginOutcome.PROTOCOL),
    (RoutingConflict, LoginOutcome.ROUTING),
    (DatabaseNotFound, LoginOutcome.NOT_FOUND),
    (WrongPassword, LoginOutcome.WRONG_PASSWORD),
    (LoginForbidden, LoginOutcome.FORBIDDEN),
    (EncryptionRequired, LoginOutcome.ENCRYPTION),
    (LoginTimeout, LoginOutcome.TIMEOUT),
    (AddressForbidden, LoginOutcome.ADDRESS),
    (TooManyFailedLogins, LoginOutcome.THROTTLED),
    (TooManyFromAddress, LoginOutcome.FROM_ADDRESS),
    (TooManyInDatabase, LoginOutcome.IN_DATABASE),
    (TooManyWakes, LoginOutcome.WAKES),
    (TooManyConnections, LoginOutcome.TOO_MANY),  # after its own kinds
    (ShuttingDown, LoginOutcome.SHUTDOWN),
    (Unavailable, LoginOutcome.UNAVAILABLE),
)


def outcome_of(error: TorporError) -> LoginOutcome:
    """The outcome that a refusal stands for."""
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), LoginOutcome.FAILED)


@dataclass(slots=True)
class DoorStats:
    """Counters since the door was made, and gauges of now."""

    accepted: int = 0  # connections ever accepted
    pending: int = 0  # now: connections whose client hasn't proven who it is
    waiting: int = 0  # now: logged in, waiting for the wake and the hand-over
    logins: dict[LoginOutcome, int] = field(default_factory=lambda: dict.fromkeys(LoginOutcome, 0))

    def count(self, outcome: LoginOutcome) -> None:
        """One more connection ended so."""
        self.logins[outcome] += 1
