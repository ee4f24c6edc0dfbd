"""What the use cases answer and the API shows: frozen values, ready to be encoded as JSON. Pure.

Times are seconds since the epoch (`_at`), durations milliseconds (`_ms`) or seconds (`_s`), sizes bytes.
"""

from dataclasses import dataclass, field

from torpor.model.history_views import ShippingView
from torpor.model.names import DatabaseId
from torpor.model.pool import NO_POOL_OVERRIDES, PoolMode, PoolOverrides, PoolPolicy, PoolView
from torpor.model.size import NO_OVERRIDES, Pace, ScaleReason, Size, SizeOverrides
from torpor.model.sleep import AwakeReason, SleepOverrides, SleepPolicy, SleepReason, Tier, WakeReason
from torpor.model.workspace import DEFAULT_WORKSPACE_NAME


@dataclass(frozen=True, slots=True)
class StepView:
    """One timed step of a wake."""

    name: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class WakeView:
    """One wake: when, what woke it, from which tier, how long until it was awake, step by step."""

    at: float
    reason: WakeReason
    tier: Tier
    detail: str
    elapsed_ms: float
    steps: tuple[StepView, ...] = ()


@dataclass(frozen=True, slots=True)
class AwakeCause:
    """One thing that keeps a database awake. `detail` names the session, address or statement."""

    reason: AwakeReason
    detail: str


@dataclass(frozen=True, slots=True)
class NextStep:
    """The step down that is due if nothing happens. `at` is None while something keeps it where it is."""

    tier: Tier
    at: float | None


@dataclass(frozen=True, slots=True)
class DatabaseView:
    """A database as lists show it. `connections` counts open client connections; `cpu_ms`, `memory_bytes` and `swap_bytes`
    are those of the running compute (0 when stopped); `url` carries no password."""

    id: DatabaseId
    name: str
    major: int
    url: str
    tier: Tier
    tier_since: float
    tier_reason: SleepReason | WakeReason | None
    created_at: float
    connections: int
    cpu_ms: float
    memory_bytes: int
    swap_bytes: int
    ingress_bytes: int
    egress_bytes: int
    wakes: int
    last_wake: WakeView | None
    awake_because: tuple[AwakeCause, ...]
    workspace: str = DEFAULT_WORKSPACE_NAME
    superuser: bool = False
    pace: Pace | None = None
    cpu_ceiling: float | None = None
    parent: str | None = None
    """Of which database it is a branch; the id, where that one is gone. Without `branched_at`, what it was on a machine that was lost."""
    branched_at: float | None = None
    expires_at: float | None = None
    pool: PoolView | None = None
    """How its pooled clients are doing; null when it has none."""
    pool_mode: PoolMode = PoolMode.OFF
    """Who is pooled that doesn't say so himself: off, nobody; auto, all."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision on a ceiling: of the `processor` (in processors), the `memory` (in bytes), or the `pace`. `before` and `after` are None
    for no ceiling. `inputs` are the figures that it follows from."""

    at: float
    kind: str
    before: float | None
    after: float | None
    reason: ScaleReason
    pace: Pace
    inputs: dict[str, float]


@dataclass(frozen=True, slots=True)
class SizeView:
    """What a database may use, what it may use now, and why. `cpu_ceiling` is None while there is none (boosted, or asleep); above
    `memory_ceiling_bytes` its memory is taken first when the host is short. Use, average and peak are processors of the last second and the
    last five minutes. `held` says how each limit is held. Of `disk_bytes`, `disk_own_bytes` count for this database: what it shares with
    its template or its parent counts there. None where the file system doesn't say."""

    size: Size
    overrides: SizeOverrides = NO_OVERRIDES
    pace: Pace | None = None
    cpu_ceiling: float | None = None
    cpu_use: float = 0.0
    cpu_average: float = 0.0
    cpu_peak: float = 0.0
    memory_ceiling_bytes: int | None = None
    memory_bytes: int = 0
    disk_bytes: int = 0
    connections: int = 0
    connection_limit: int = 0
    held: dict[str, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    disk_own_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DatabaseDetail:
    """All there is to say about one database."""

    database: DatabaseView
    policy: SleepPolicy
    overrides: SleepOverrides
    next_step: NextStep | None
    disk_bytes: int
    volume: str
    sandbox: str
    last_activity_at: float | None
    broken: str
    recent_wakes: tuple[WakeView, ...]
    size: SizeView | None = None
    sandbox_lacks: str = ""
    history: ShippingView | None = None
    lineage: tuple[str, ...] = ()
    """Of a branch: its parent, the parent of that one, and so on."""
    archived_bytes: int | None = None
    """What it takes in the store, if it is archived."""
    pool_policy: PoolPolicy | None = None
    pool_overrides: PoolOverrides = NO_POOL_OVERRIDES


@dataclass(frozen=True, slots=True)
class DatabasePage:
    """Databases in the order of their names; `next` is the name to continue after, None at the end."""

    databases: tuple[DatabaseView, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A password in the clear, shown this once, and the URL that carries it. `expires_at` is None for a lasting one."""

    role: str
    password: str
    url: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """A new database with its owner's credentials."""

    database: DatabaseView
    credentials: Credentials
    from_warm_pool: bool
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class RefusalView:
    """An address that the door refuses, for one reason: how often since it came among those refused most, and which database it wanted
    last."""

    address: str
    reason: str
    target: str
    count: int
    last_at: float


@dataclass(frozen=True, slots=True)
class HostView:
    """The host at a glance: addresses, counts by tier, memory."""

    version: str
    door: str
    api: str
    data_dir: str
    started_at: float
    databases: int
    tiers: dict[Tier, int]
    warm: int
    connections: int
    memory_total_bytes: int
    memory_used_bytes: int
    swap_used_bytes: int
    pool: str
    sandbox: str = ""
    sandbox_lacks: str = ""
    lacks: tuple[str, ...] = field(default=())
    refused: tuple[RefusalView, ...] = ()
    """Who was refused most in the last ten minutes, the heaviest first."""
    pool_total_bytes: int = 0
    pool_free_bytes: int = 0
    pool_level: str = "room"
    """room; or, the less there is: low (nothing is made, read-only by default), short (writers are ended), out (nothing runs)."""
    pool_door: str = ""
    """Where every connection is pooled; empty where there is no such port."""
