"""Turns computes into what users are shown.

Concurrency: reads memory and a few kernel files; only `detail` waits, for PostgreSQL's own word and a walk of the volume (in a thread).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol
from urllib.parse import quote

from torpor.base.clock import Clock
from torpor.base.memory import HostMemory
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.lifecycle import ComputeState
from torpor.control.scaling import Scaling
from torpor.metering.traffic import Traffic
from torpor.model.database import Wake
from torpor.model.history_views import ShippingView
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolPolicy, PoolView
from torpor.model.sleep import Tier
from torpor.model.views import (
    AwakeCause,
    Credentials,
    DatabaseDetail,
    DatabaseView,
    HostView,
    NextStep,
    RefusalView,
    SizeView,
    StepView,
    WakeView,
)
from torpor.model.workspace import WorkspaceId
from torpor.storage.room import look
from torpor.storage.volumes import Volumes

_RECENT_WAKES = 10


class WakeHistory(Protocol):
    """What is known of past wakes."""

    def recent(self, id: DatabaseId, limit: int) -> tuple[Wake, ...]: ...
    def last(self, id: DatabaseId) -> Wake | None: ...
    def count(self, id: DatabaseId) -> int: ...


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What doesn't change while Torpor runs. `door` and `api` are addresses as people type them."""

    version: str
    door: str
    public_host: str
    public_port: int
    api: str
    data_dir: str
    started_at: float
    sandbox: str
    lacks: tuple[str, ...]
    url_query: str = ""
    sandbox_lacks: str = ""
    held: dict[str, str] = field(default_factory=dict)
    pool_door: str = ""


class Viewer:
    """Makes views."""

    def __init__(
        self,
        facts: Callable[[], HostFacts],
        fleet: Fleet,
        wakes: WakeHistory,
        volumes: Volumes,
        clock: Clock,
        memory: Callable[[], HostMemory],
        past_traffic: Callable[[DatabaseId], Traffic],
        warm: Callable[[], Collection[Compute]],
        workspace_name: Callable[[WorkspaceId | None], str],
        scaling: Scaling,
        refused: Callable[[], tuple[RefusalView, ...]] = tuple,
        shipping: Callable[[DatabaseId], ShippingView | None] = lambda _id: None,
        archived_bytes: Callable[[DatabaseId], int | None] = lambda _id: None,
        pool: Callable[[DatabaseId], PoolView | None] = lambda _id: None,
        pool_policy: PoolPolicy | None = None,
    ) -> None:
        self.pool_policy = pool_policy or PoolPolicy()
        self._pool = pool
        self._archived_bytes = archived_bytes
        self._shipping = shipping
        self._refused = refused
        self._scaling = scaling
        self._make_facts = facts
        self._fleet = fleet
        self._wakes = wakes
        self._volumes = volumes
        self._clock = clock
        self._memory = memory
        self._past_traffic = past_traffic
        self._warm = warm
        self._workspace_name = workspace_name

    def view(self, compute: Compute) -> DatabaseView:
        """One database as lists show it."""
        database, usage = compute.database, compute.usage()
        traffic = self._past_traffic(database.id) + compute.traffic()
        last = self._wakes.last(database.id)
        return DatabaseView(
            id=database.id,
            name=database.label,
            major=database.major,
            url=self._url(database.label, None),
            tier=compute.tier,
            tier_since=compute.tier_since,
            tier_reason=compute.tier_reason,
            created_at=database.created_at,
            connections=compute.connections,
            cpu_ms=usage.cpu_ns / 1e6,
            memory_bytes=usage.memory_bytes,
            swap_bytes=usage.swap_bytes,
            ingress_bytes=traffic.received,
            egress_bytes=traffic.sent,
            wakes=self._wakes.count(database.id),
            last_wake=wake_view(last) if last is not None else None,
            awake_because=compute.known_causes(),
            workspace=self._workspace_name(database.workspace),
            superuser=database.superuser,
            pace=live.pace if (live := self._scaling.live(compute)) is not None else None,
            cpu_ceiling=live.ceiling if live is not None else None,
            parent=next(iter(self._lineage(database.parent)), None),
            branched_at=database.branched_at,
            pool=self._pool(database.id),
            expires_at=database.expires_at,
            pool_mode=database.pool.mode or self.pool_policy.mode,
        )

    def _lineage(self, parent: DatabaseId | None) -> Iterator[str]:
        """From the parent up; it ends with the id of one that is gone."""
        seen = set[DatabaseId]()
        while parent is not None and parent not in seen:
            seen.add(parent)
            compute = self._fleet.get(parent)
            yield compute.database.label if compute is not None else parent
            parent = compute.database.parent if compute is not None else None

    async def detail(self, compute: Compute) -> DatabaseDetail:
        """Everything about one database."""
        causes = await compute.causes()
        disk_bytes, own_bytes = await self._disk(compute)
        view = self.view(compute)
        step = compute.next_step()
        blocked = compute.tier is Tier.AWAKE and any(cause.reason != "recent" for cause in causes)
        now, mono = self._clock.time(), self._clock.monotonic()
        sandbox, lacks = self._sandbox(compute)
        return DatabaseDetail(
            database=view if compute.tier is not Tier.AWAKE else _with_causes(view, causes),
            policy=compute.policy,
            overrides=compute.database.overrides,
            next_step=NextStep(step[0], None if blocked else now + max(0.0, step[1])) if step is not None else None,
            disk_bytes=disk_bytes,
            volume=str(self._volumes.path(compute.database.id)),
            sandbox=sandbox,
            sandbox_lacks=lacks,
            last_activity_at=now - (mono - compute.last_activity) if compute.last_activity is not None else None,
            broken=compute.broken,
            recent_wakes=self.wakes(compute, _RECENT_WAKES),
            size=self._size(compute, disk_bytes, own_bytes),
            history=self._shipping(compute.database.id),
            lineage=tuple(self._lineage(compute.database.parent)),
            archived_bytes=self._archived_bytes(compute.database.id) if compute.archived else None,
            pool_policy=compute.database.pool.apply(self.pool_policy),
            pool_overrides=compute.database.pool,
        )

    def _sandbox(self, compute: Compute) -> tuple[str, str]:
        """The level that it has, or will be started with, and what that lacks."""
        given, _, held_by = self._facts.sandbox.partition(", ")
        level = compute.live().level if compute.state is not ComputeState.STOPPED and not compute.is_moving else None
        if level is None or level == given:
            return self._facts.sandbox, self._facts.sandbox_lacks
        again = f"stop it once: `torpor sleep {compute.database.label} --tier stopped`"
        return f"{level}, {held_by}", f"an earlier Torpor started it; from its next start it has {given}; {again}"

    async def size(self, compute: Compute) -> SizeView:
        """What a database may use, and why. Never wakes it."""
        return self._size(compute, *await self._disk(compute))

    async def _disk(self, compute: Compute) -> tuple[int, int | None]:
        """Bytes of its volume, and how many of them count for it: each byte for whom it came from, as well as that can be told.

        What a database that was copied from no other shares with its branches is its own; what it shares else is the template's.
        """
        database = compute.database
        used = await self._volumes.measure(database.id)
        shared = await self._volumes.shared_bytes(database.id)
        if shared is None:
            return used, None
        if database.parent is None and any(self._fleet.compute(name).database.parent == database.id for name in self._fleet.names()):
            return used, used
        return used, max(0, used - shared)

    def _size(self, compute: Compute, disk_bytes: int, own_bytes: int | None) -> SizeView:
        live, limits = self._scaling.live(compute), compute.shares.limits
        return SizeView(
            size=compute.size,
            overrides=compute.database.size,
            pace=live.pace if live is not None else None,
            cpu_ceiling=live.ceiling if live is not None else None,
            cpu_use=live.cpu.use if live is not None else 0.0,
            cpu_average=live.cpu.average if live is not None else 0.0,
            cpu_peak=live.cpu.peak if live is not None else 0.0,
            memory_ceiling_bytes=limits.memory_soft_bytes if limits is not None else None,
            memory_bytes=compute.usage().memory_bytes,
            disk_bytes=disk_bytes,
            disk_own_bytes=own_bytes,
            connections=compute.connections,
            connection_limit=compute.connection_limit,
            held=self._facts.held,
            decisions=tuple(self._scaling.decisions(compute.database.id)),
        )

    def wakes(self, compute: Compute, limit: int) -> tuple[WakeView, ...]:
        """The newest wakes, newest first."""
        return tuple(wake_view(wake) for wake in self._wakes.recent(compute.database.id, limit))

    def credentials(self, name: str, password: str, expires_at: float | None = None) -> Credentials:
        """An owner's password with the URL that carries it."""
        return Credentials(name, password, self._url(name, password), expires_at)

    def host(self) -> HostView:
        """The host at a glance."""
        memory, facts, warm, room = self._memory(), self._facts, self._warm(), look(self._volumes.root)
        tiers = self._fleet.counts()
        for compute in warm:  # they are nobody's yet
            tiers[compute.tier] -= 1
        return HostView(
            version=facts.version,
            door=facts.door,
            api=facts.api,
            data_dir=facts.data_dir,
            started_at=facts.started_at,
            databases=len(self._fleet),
            tiers=tiers,
            warm=len(warm),
            connections=sum(c.connections for tier in (Tier.AWAKE, Tier.FROZEN, Tier.PAGED) for c in self._fleet.in_tier(tier)),
            memory_total_bytes=memory.total_bytes,
            memory_used_bytes=memory.used_bytes,
            swap_used_bytes=memory.swap_used_bytes,
            pool=self._volumes.description,
            sandbox=facts.sandbox,
            sandbox_lacks=facts.sandbox_lacks,
            lacks=facts.lacks,
            refused=self._refused(),
            pool_total_bytes=room.total_bytes,
            pool_free_bytes=room.free_bytes,
            pool_level=self._volumes.level.name.lower(),
            pool_door=facts.pool_door,
        )

    @cached_property
    def _facts(self) -> HostFacts:
        return self._make_facts()

    def _url(self, name: str, password: str | None) -> str:
        secret = f":{quote(password, safe='')}" if password is not None else ""
        host = f"[{self._facts.public_host}]" if ":" in self._facts.public_host else self._facts.public_host
        query = f"?{self._facts.url_query}" if self._facts.url_query else ""
        return f"postgresql://{name}{secret}@{host}:{self._facts.public_port}/{name}{query}"


def wake_view(wake: Wake) -> WakeView:
    """A wake as users see it."""
    steps = tuple(StepView(step.name, step.elapsed_ms) for step in wake.steps)
    return WakeView(wake.at, wake.reason, wake.tier, wake.detail, wake.elapsed_ms, steps)


def _with_causes(view: DatabaseView, causes: tuple[AwakeCause, ...]) -> DatabaseView:
    return replace(view, awake_because=causes)
