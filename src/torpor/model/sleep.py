"""Sleep tiers, and the reasons that logs, metrics, the API and `torpor show` share. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from torpor.model.errors import InvalidRequest


class Tier(StrEnum):
    """How deep a database sleeps."""

    AWAKE = "awake"  # everything runs
    FROZEN = "frozen"  # processes and memory stay, no CPU
    PAGED = "paged"  # frozen, and memory reclaimed to swap
    STOPPED = "stopped"  # only the volume
    ARCHIVED = "archived"  # not even that: it is in the store of the history


class WakeReason(StrEnum):
    """Why a compute was woken."""

    CREATED = "created"  # the database was made, or claimed from the warm pool
    CONNECTION = "connection"  # a client logged in
    TRAFFIC = "traffic"  # bytes arrived on an open connection
    CLIENT_LEFT = "client_left"  # an open connection was closed or lost by its client
    API = "api"  # `torpor wake` or POST …/wake
    ROLES = "roles"  # the door couldn't know the roles after an unclean stop and had to ask
    MAINTENANCE = "maintenance"  # Torpor's own work, such as a password reset


class SleepReason(StrEnum):
    """Why a compute went down a tier."""

    IDLE = "idle"  # its own idle time
    PRESSURE = "pressure"  # the machine was short of memory
    API = "api"  # `torpor sleep` or POST …/sleep
    CRASH = "crash"  # PostgreSQL died
    SHUTDOWN = "shutdown"  # Torpor was stopped
    DISK_FULL = "disk_full"  # its volume had grown far beyond its size


class AwakeReason(StrEnum):
    """What keeps a compute awake now."""

    STATEMENT = "statement"  # a statement is running, or its result is being read
    LOCK_WAIT = "lock_wait"  # a session waits for a lock
    VACUUM = "vacuum"  # an autovacuum worker runs
    BACKUP = "backup"  # a base backup runs
    REPLICATION = "replication"  # a walsender or an apply worker is connected
    LOGIN = "login"  # a session is being opened or closed
    RECENT = "recent"  # something ran less than `freeze_after_s` ago
    UNWATCHED = "unwatched"  # an adopted connection can't be watched, so freezing could strand it
    PINNED = "pinned"  # `freeze_after_s` is "never"


@dataclass(frozen=True, slots=True)
class SleepPolicy:
    """Idle seconds before each step down. None means never.

    `freeze_after_s` counts from the last activity, `page_after_s` from the freeze, `stop_after_s` from the freeze too and only
    without open connections.
    """

    freeze_after_s: float | None = 5.0
    page_after_s: float | None = 30.0
    stop_after_s: float | None = 3600.0

    def __post_init__(self) -> None:
        for name in ("freeze_after_s", "page_after_s", "stop_after_s"):
            value = getattr(self, name)
            if value is not None and not 0.1 <= value <= 365 * 86400:
                raise InvalidRequest(f"{name} must be between 0.1 and 31536000 seconds, or never (null)")


@dataclass(frozen=True, slots=True)
class SleepOverrides:
    """What one database sets for itself of its SleepPolicy: a number, `"never"`, or None for the global setting."""

    freeze_after_s: float | str | None = None
    page_after_s: float | str | None = None
    stop_after_s: float | str | None = None

    def apply(self, policy: SleepPolicy) -> SleepPolicy:
        """The policy with these overrides. Raises InvalidRequest for values out of range."""

        def pick(own: float | str | None, inherited: float | None) -> float | None:
            if own is None:
                return inherited
            if isinstance(own, str):
                if own != "never":
                    raise InvalidRequest(f"{own[:40]!r} is not an idle time: give seconds or 'never'")
                return None
            return own

        return SleepPolicy(
            pick(self.freeze_after_s, policy.freeze_after_s),
            pick(self.page_after_s, policy.page_after_s),
            pick(self.stop_after_s, policy.stop_after_s),
        )
