"""What all computes of one Torpor share. Values; no behaviour."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torpor.base.cgroups import Trees
from torpor.base.clock import Clock
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.compute.binaries import Postgres
from torpor.compute.census import Census
from torpor.compute.sandbox.sandbox import Sandbox, no_sandbox
from torpor.compute.service import ServiceSession
from torpor.metering.traffic import Carrier
from torpor.model.database import Database, Wake
from torpor.model.size import Size
from torpor.model.sleep import SleepPolicy, Tier
from torpor.storage.volumes import Volumes
from torpor.storage.writes import WriteCounters

if TYPE_CHECKING:
    from torpor.compute.compute import Compute


class SleepListener(Protocol):
    """Is told of every change of tier: keeps the ladder and the counts."""

    def tier_changed(self, compute: "Compute", before: Tier) -> None: ...


async def _nothing_is_archived(_database: Database, _let_others: Callable[[], Awaitable[None]]) -> None:
    pass


async def _nobody_asks(_database: Database, _service: ServiceSession) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all computes of one Torpor share."""

    trees: Trees
    volumes: Volumes
    catalog: Catalog
    clock: Clock
    tasks: TaskOwner
    binaries: Callable[[int], Postgres]
    configuration: Callable[[int], Path]
    run: Path
    logs: Path
    library: Path
    policy: SleepPolicy
    starts: asyncio.Semaphore
    start_timeout_s: float
    on_wake: Callable[[Wake], None]
    size: Size = field(default_factory=Size)
    sandbox: Sandbox = field(default_factory=no_sandbox)
    census: Census = field(default_factory=Census)
    writes: WriteCounters | None = None
    relayed: Callable[[object], Carrier | None] = lambda _name: None
    """Finds who carries an adopted session, by the Unix address of the carrier's end."""
    falling_asleep: Callable[[Database, ServiceSession], Awaitable[None]] = _nobody_asks
    """Is called right before a freeze or a stop, while PostgreSQL can still be asked."""
    bring_back: Callable[[Database, Callable[[], Awaitable[None]]], Awaitable[None]] = _nothing_is_archived
    """Is called before the start of what is archived, and fetches its volume; what it is given it calls first, so that others may start."""
