"""Databases and roles as the catalog keeps them, and wakes as they are traced. Pure values."""

from dataclasses import dataclass, field
from enum import StrEnum

from torpor.model.cache import NO_POLICY, CachePolicy
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolOverrides
from torpor.model.size import NO_OVERRIDES, SizeOverrides
from torpor.model.sleep import SleepOverrides, Tier, WakeReason
from torpor.model.workspace import DEFAULT_WORKSPACE, WorkspaceId


class DatabaseState(StrEnum):
    """Where a database is in its life. Recorded before it is relied on."""

    MAKING = "making"  # its volume is being cloned; removed by the reconciler after a crash
    WARM = "warm"  # waits in the warm pool for a create, has no name
    CLAIMING = "claiming"  # a create is naming it; removed by the reconciler after a crash
    BRANCHING = "branching"  # it is being made as a copy of another; removed by the reconciler after a crash
    READY = "ready"  # a user's
    DELETING = "deleting"  # being removed; the reconciler finishes the removal after a crash


@dataclass(frozen=True, slots=True)
class Database:
    """One database. `uid` is the host user that its compute runs as (the current user's when Torpor isn't root)."""

    id: DatabaseId
    name: str | None
    state: DatabaseState
    major: int
    uid: int
    created_at: float
    overrides: SleepOverrides = field(default_factory=SleepOverrides)
    size: SizeOverrides = NO_OVERRIDES
    workspace: WorkspaceId | None = DEFAULT_WORKSPACE  # None while it waits in the warm pool
    superuser: bool = False  # whether its owner is a real superuser of PostgreSQL
    parent: DatabaseId | None = None  # of which it is a branch, that may be gone; without branched_at, what it was on a lost machine
    branched_at: float | None = None  # which moment of its parent it is a copy of
    expires_at: float | None = None  # when it is removed, whatever it holds
    pool: PoolOverrides = NO_POOL_OVERRIDES
    cache: CachePolicy = NO_POLICY

    @property
    def label(self) -> str:
        """The name for people: its own, or its id while it has none."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Role:
    """What the door must know of a PostgreSQL role to let it in.

    `verifier` is `pg_authid.rolpassword` (SCRAM-SHA-256$… or md5…), None when the role has no password. `valid_until` is in
    seconds since the epoch, None for no limit. `tickets` are further SCRAM verifiers of short life, with the salt and iterations
    of `verifier`: a login is right when its proof fits any of them. `rules` is whether it is a superuser, or can become one.
    """

    name: str
    verifier: str | None
    can_login: bool
    valid_until: float | None = None
    tickets: tuple[str, ...] = ()
    rules: bool = False


@dataclass(frozen=True, slots=True)
class ComputeRecord:
    """A running compute as the catalog remembers it, so that the next Torpor can adopt it.

    A process is this one only if pid, start ticks (field 22 of /proc/pid/stat) and boot id all agree.
    """

    database_id: DatabaseId
    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """One timed step of a wake."""

    name: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Wake:
    """One wake: why, from which tier, by whom, when (seconds since the epoch), how long in all, and its steps."""

    database_id: DatabaseId
    at: float
    reason: WakeReason
    tier: Tier
    detail: str
    elapsed_ms: float
    steps: tuple[Step, ...] = ()
