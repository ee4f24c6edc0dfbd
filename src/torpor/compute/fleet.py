"""All computes of this Torpor: found by name and id, counted by tier, adopted from an earlier Torpor. The port of the door.

Concurrency: belongs to one event loop. Looking up is a dict; nothing here loops over all databases but start and stop.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torpor.base.clock import Clock
from torpor.base.logs import get_logger
from torpor.base.processes import ProcessHandle, boot_id
from torpor.compute.compute import Compute
from torpor.compute.ladder import Ladder
from torpor.compute.lifecycle import ComputeState
from torpor.compute.postmaster import accepts_connections
from torpor.compute.surroundings import Surroundings
from torpor.model.database import ComputeRecord, Database, DatabaseState, Role
from torpor.model.errors import ComputeLost, DatabaseNotFound, TorporError
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepReason, Tier, WakeReason
from torpor.model.workspace import WorkspaceId

log = get_logger(__name__)

_STOPS_AT_ONCE = 8
_STOP_TURN_S = 2.0  # then others are stopped beside it
_STOPPED_WITHIN_S = 60.0
_KILLS_AT_ONCE = 32
_ROLE_ATTEMPTS = 3
_SETTLED_LOOK_S = 0.005


class Tickets:
    """Passwords of short life for owners: kept in memory only, as verifiers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_database: dict[DatabaseId, list[tuple[float, str, str]]] = {}

    def add(self, id: DatabaseId, role: str, verifier: str, ttl_s: float) -> None:
        """Accept `verifier` for `role` for `ttl_s` seconds. Forgets those that have run out."""
        now = self._clock.monotonic()
        live = [ticket for ticket in self._by_database.get(id, ()) if ticket[0] > now]
        self._by_database[id] = [*live[-15:], (now + ttl_s, role, verifier)]

    def of(self, id: DatabaseId, role: str) -> tuple[str, ...]:
        """The verifiers that are valid now."""
        tickets = self._by_database.get(id)
        if not tickets:
            return ()
        now = self._clock.monotonic()
        return tuple(verifier for until, name, verifier in tickets if until > now and name == role)

    def forget(self, id: DatabaseId) -> None:
        """Drop those of a database. Idempotent."""
        self._by_database.pop(id, None)

    def release(self) -> list[list[Any]]:
        """All that are valid, for `add` of the next Torpor."""
        now = self._clock.monotonic()
        every = [(id, *ticket) for id, tickets in self._by_database.items() for ticket in tickets]
        return [[id, role, verifier, until - now] for id, until, role, verifier in every if until > now]


class Fleet:
    """Every compute, one per database, stopped ones included."""

    def __init__(self, around: Surroundings, ladder: Ladder) -> None:
        self._around = around
        self._ladder = ladder
        self._by_id: dict[DatabaseId, Compute] = {}
        self._by_name: dict[str, Compute] = {}
        self._by_workspace: dict[WorkspaceId | None, dict[str, Compute]] = {}
        self._by_tier: dict[Tier, dict[Compute, None]] = {tier: {} for tier in Tier}
        self.on_update: Callable[[DatabaseId], None] = lambda _id: None
        """Is told of each database whose name, state or overrides change."""
        self.tickets = Tickets(around.clock)

    def __repr__(self) -> str:
        return f"<Fleet {len(self._by_id)} {dict(self.counts())}>"

    # -- who is there

    def add(self, database: Database) -> Compute:
        """Take in a database; it is stopped until somebody wakes it."""
        compute = Compute(database, self._around, self)
        self._by_id[database.id] = compute
        self._by_tier[compute.tier][compute] = None
        self._index(compute)
        return compute

    def update(self, database: Database) -> Compute:
        """Take note of a database's new name, state or overrides."""
        compute = self._by_id[database.id]
        self._unindex(compute)
        compute.database = database
        self._index(compute)
        self._ladder.reschedule(compute)
        self.on_update(database.id)
        return compute

    def set_archived(self, id: DatabaseId, archived: bool, since: float) -> None:
        """Note that the volume of a database is in the store now, or on the pool."""
        if (compute := self._by_id.get(id)) is None or compute.archived is archived:
            return
        before = compute.tier
        compute.archived = archived
        compute.moves += 1  # its volume goes, or has come: a copy that was begun isn't whole
        if compute.tier is not before:
            compute.tier_since, compute.tier_reason = since, SleepReason.API
            self.tier_changed(compute, before)

    def remove(self, id: DatabaseId) -> None:
        """Forget a database, which must be discarded. Idempotent."""
        compute = self._by_id.pop(id, None)
        if compute is not None:
            self._by_tier[compute.tier].pop(compute, None)
            self._ladder.tier_changed(compute)
            self._unindex(compute)
        self.tickets.forget(id)
        if self._around.writes is not None:
            self._around.writes.forget(id)

    def compute(self, name: str) -> Compute:
        """The compute of the user's database of that name. Raises DatabaseNotFound."""
        compute = self._by_name.get(name)
        if compute is None:
            raise no_database(name)
        return compute

    def get(self, id: DatabaseId | None) -> Compute | None:
        """The compute of that id; None when there is none any more."""
        return self._by_id.get(id) if id is not None else None

    def by_id(self, id: DatabaseId) -> Compute:
        """The compute of that id, whatever its state."""
        return self._by_id[id]

    def names(self, workspace: WorkspaceId | None = None) -> Collection[str]:
        """Names of all users' databases, or of those of one workspace."""
        return (self._by_name if workspace is None else self._by_workspace.get(workspace, {})).keys()

    def in_tier(self, tier: Tier) -> Iterator[Compute]:
        """The computes in a tier, those that entered it first first."""
        return iter(self._by_tier[tier])

    def counts(self) -> dict[Tier, int]:
        """How many computes are in each tier, warm ones included."""
        return {tier: len(computes) for tier, computes in self._by_tier.items()}

    def __len__(self) -> int:
        return len(self._by_name)

    def with_sessions(self) -> Iterator[Compute]:
        """The computes that have sessions of clients. Costs a look at each that isn't stopped."""
        return (compute for tier in (Tier.AWAKE, Tier.FROZEN, Tier.PAGED) for compute in list(self._by_tier[tier]) if compute.connections)

    # -- the port of the door

    def find(self, name: str) -> Database | None:
        """The user's database of that name."""
        compute = self._by_name.get(name)
        return compute.database if compute is not None else None

    async def role(self, database: Database, name: str) -> Role | None:
        """What the door must know of a role: as saved when its compute fell asleep, or asked of PostgreSQL while it runs.

        Wakes nothing that fell asleep in order. After an unclean stop nobody knows the roles: then it starts the compute.
        """
        compute = self._by_id[database.id]
        for attempt in range(_ROLE_ATTEMPTS):
            try:
                role = await self._ask_role(compute, name)
                break
            except ComputeLost:  # PostgreSQL died under the question: asking again starts it again
                if attempt == _ROLE_ATTEMPTS - 1:
                    raise
        tickets = self.tickets.of(database.id, name)
        return _with_tickets(role, tickets) if role is not None and tickets else role

    async def _ask_role(self, compute: Compute, name: str) -> Role | None:
        await compute.settled()  # one that is falling asleep has its roles saved in a moment
        if compute.tier is not Tier.AWAKE and self._around.catalog.knows_roles(compute.database.id):
            return self._around.catalog.role(compute.database.id, name)
        async with compute.awake(WakeReason.ROLES, name):
            return await compute.role(name)

    @contextlib.asynccontextmanager
    async def awake(self, database: Database, reason: WakeReason, detail: str) -> AsyncIterator[Compute]:
        """The database's compute, awake and held so while inside. Raises Unavailable errors."""
        async with self._by_id[database.id].awake(reason, detail) as compute:
            yield compute

    def sleeps(self, database: Database) -> bool:
        """Whether a login now would wake its compute."""
        compute = self._by_id[database.id]
        return compute.tier is not Tier.AWAKE and not compute.is_being_woken

    async def turn(self, database: Database) -> None:
        """Wait for the turn of a login. At once, as long as its database takes no more than its fair share."""
        await self._by_id[database.id].turnstile.turn()

    def total(self) -> int:
        """How many sessions there are."""
        return self._around.census.total()

    def from_address(self, key: str) -> int:
        """How many sessions come from an address, by its `address_key`."""
        return self._around.census.from_address(key)

    def addresses(self) -> int:
        """How many addresses have sessions."""
        return self._around.census.addresses()

    def room(self, database: Database) -> tuple[int, int]:
        """How many sessions a database has, and how many it may have."""
        compute = self._by_id[database.id]
        return compute.connections, compute.connection_limit

    def cancel(self, client_host: str, pid: int) -> Sequence[Compute]:
        """The awake computes in which that client has a live session with that backend."""
        return [compute for compute in self._by_tier[Tier.AWAKE] if compute.has_session(client_host, pid)]

    # -- changes of tier

    def tier_changed(self, compute: Compute, before: Tier) -> None:
        """Called by computes."""
        if self._by_id.get(compute.database.id) is not compute:
            return
        self._by_tier[before].pop(compute, None)
        self._by_tier[compute.tier][compute] = None
        self._ladder.tier_changed(compute)
        if compute.tier_reason is not None:
            log.info("tier", database=compute.database.label, tier=str(compute.tier), before=str(before), reason=str(compute.tier_reason))

    # -- beginning and end

    def adopt(self, record: ComputeRecord, door_port: int) -> bool:
        """Take over a compute that an earlier Torpor left running; False when it isn't there any more, or not ready."""
        compute = self._by_id.get(record.database_id)
        if compute is None or record.boot_id != boot_id():
            return False
        try:
            process = ProcessHandle(record.pid)
        except (ProcessLookupError, OSError):
            return False
        # One that still starts or stops would refuse clients: it is ended like any remains, and started when it is wanted.
        if process.start_ticks != record.start_ticks or not accepts_connections(self._around.volumes.data(record.database_id)):
            process.close()
            return False
        compute.adopt(process, door_port)
        log.info("adopted", database=compute.database.label, tier=str(compute.tier), connections=compute.connections)
        return True

    async def stop_all(self) -> None:
        """End every compute in order, several at once, in about a minute at most, however many don't want to end.

        One that takes its time holds up no other. What still runs after a minute is killed: it recovers at its next start.
        """
        computes, slots, stops = self.running(), asyncio.Semaphore(_STOPS_AT_ONCE), list[asyncio.Task[None]]()

        async def stop(compute: Compute) -> None:
            try:
                await compute.stop(SleepReason.SHUTDOWN)
            except TorporError as error:
                log.warning("stop failed", database=compute.database.label, cause=error.message)

        async def take_turn(compute: Compute) -> None:
            async with slots:
                stopping = self._around.tasks.spawn(stop(compute), f"shut down {compute.database.label}")
                stops.append(stopping)
                await asyncio.wait([stopping], timeout=_STOP_TURN_S)
            await asyncio.wait([stopping])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOPPED_WITHIN_S):
                await asyncio.gather(*map(take_turn, computes))
                return
        for stopping in stops:
            stopping.cancel()
        await asyncio.gather(*stops, return_exceptions=True)
        await self._kill([compute for compute in computes if compute.state is not ComputeState.STOPPED or compute.is_moving])

    async def _kill(self, computes: Collection[Compute]) -> None:
        log.warning("killing what doesn't end", computes=len(computes))
        slots = asyncio.Semaphore(_KILLS_AT_ONCE)

        async def kill(compute: Compute) -> None:
            async with slots:
                await compute.kill(SleepReason.SHUTDOWN)

        await asyncio.gather(*map(kill, computes))

    async def settle(self, patience_s: float) -> None:
        """Until nothing starts, stops or changes tier, and every session has shown its backend; but not longer than `patience_s`."""
        deadline = self._around.clock.monotonic() + patience_s
        while any(map(_is_unsettled, self.running())) and self._around.clock.monotonic() < deadline:
            await self._around.clock.sleep(_SETTLED_LOOK_S)

    async def leave_all(self) -> None:
        """Let go of every compute for the next Torpor to adopt."""
        await asyncio.gather(*(compute.leave() for compute in self.running()))

    def running(self) -> list[Compute]:
        """All that aren't stopped, or won't be in a moment."""
        return [compute for tier in (Tier.AWAKE, Tier.FROZEN, Tier.PAGED) for compute in self._by_tier[tier]] + [
            compute for tier in (Tier.STOPPED, Tier.ARCHIVED) for compute in self._by_tier[tier] if compute.is_moving
        ]

    def _index(self, compute: Compute) -> None:
        if compute.database.state is DatabaseState.READY and compute.database.name is not None:
            self._by_name[compute.database.name] = compute
            self._by_workspace.setdefault(compute.database.workspace, {})[compute.database.name] = compute

    def _unindex(self, compute: Compute) -> None:
        name, workspace = compute.database.name, compute.database.workspace
        if name is not None and self._by_name.get(name) is compute:
            del self._by_name[name]
            del self._by_workspace[workspace][name]
            if not self._by_workspace[workspace]:
                del self._by_workspace[workspace]


def no_database(name: str) -> DatabaseNotFound:
    """The refusal of a name; the same for one that doesn't exist and for one that isn't for the asker to know of."""
    return DatabaseNotFound(f'database "{name[:63]}" does not exist', "`torpor ls` shows those that do")


def _is_unsettled(compute: Compute) -> bool:
    if compute.is_moving:
        return True
    try:
        return None in compute.live().sessions.pids()
    except ComputeLost:
        return False


def _with_tickets(role: Role, tickets: tuple[str, ...]) -> Role:
    return replace(role, tickets=tickets)
