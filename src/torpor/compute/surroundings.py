"""What all computes of one Torpor share, and whom they tell of their sleep. Values and a protocol; no behaviour."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torpor.base.cgroups import Trees
from torpor.base.clock import Clock
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.compute.binaries import Postgres
from torpor.model.database import Wake
from torpor.model.sleep import SleepPolicy, Tier
from torpor.storage.volumes import Volumes

if TYPE_CHECKING:
    from torpor.compute.compute import Compute


class SleepListener(Protocol):
    """Is told of every change of tier: keeps the ladder and the counts."""

    def tier_changed(self, compute: "Compute", before: Tier) -> None: ...


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
