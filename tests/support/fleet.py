"""A Torpor without PostgreSQL: real catalog, volumes, fleet and ladder around computes that only pretend to run."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.support.virtual import VirtualClock
from torpor.base.cgroups import SignalTrees, Trees
from torpor.base.clock import Clock
from torpor.base.memory import HostMemory
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.compute.binaries import Postgres
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.ladder import Ladder
from torpor.compute.lifecycle import ComputeState
from torpor.compute.surroundings import Surroundings
from torpor.model.database import Database, DatabaseState
from torpor.model.names import DatabaseId
from torpor.model.sleep import SleepOverrides, SleepPolicy, SleepReason, Tier
from torpor.storage.volumes import Volumes

PLENTY = HostMemory(100, 10, 0, 0, 0)
SHORT = HostMemory(100, 95, 0, 0, 0)


def make_id(n: int) -> DatabaseId:
    """The id of the n-th database."""
    digits = "".join("abcdefghij"[int(digit)] for digit in f"{n:012d}")
    return DatabaseId(f"d{digits}")


def make_database(n: int, state: DatabaseState = DatabaseState.READY, major: int = 18, overrides: SleepOverrides | None = None) -> Database:
    """The n-th database, called `db<n>` unless it waits in the warm pool."""
    name = None if state is DatabaseState.WARM else f"db{n}"
    return Database(make_id(n), name, state, major, 300_000 + n, 1.0, overrides or SleepOverrides())


class PretendingTrees(SignalTrees):
    """Trees that remember which exist, and can be reclaimed."""

    def __init__(self, can_reclaim: bool = True) -> None:
        super().__init__()
        self.can_reclaim = can_reclaim
        self.left: list[str] = []

    def names(self) -> list[str]:
        return self.left


class House:
    """What a Torpor has on a data directory. `run` it on a loop; `close` it."""

    def __init__(self, root: Path, clock: Clock | None = None, policy: SleepPolicy | None = None, can_reclaim: bool = True) -> None:
        for name in ("run", "logs"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.root = root
        self.clock = clock or VirtualClock()
        self.trees = PretendingTrees(can_reclaim)
        self.volumes = Volumes(root / "volumes")
        self.catalog = Catalog.open(root / "catalog.sqlite")
        self.tasks = TaskOwner("house")
        self.memory = PLENTY
        self.steps: list[tuple[str, Tier, SleepReason]] = []
        trees: Trees = self.trees
        self.around = Surroundings(
            trees=trees,
            volumes=self.volumes,
            catalog=self.catalog,
            clock=self.clock,
            tasks=self.tasks,
            binaries=lambda major: Postgres(major, f"{major}.0", root / "bin"),
            configuration=lambda major: root / "conf",
            run=root / "run",
            logs=root / "logs",
            library=root / "library.so",
            policy=policy or SleepPolicy(),
            starts=asyncio.Semaphore(4),
            start_timeout_s=5.0,
            on_wake=lambda wake: None,
        )
        self.ladder = Ladder(self.clock, self.tasks, lambda: self.memory, 85.0)
        self.fleet = Fleet(self.around, self.ladder)

    def add_sleeper(self, n: int, overrides: SleepOverrides | None = None) -> "Sleeper":
        """A compute that pretends, in the fleet."""
        return Sleeper(make_database(n, overrides=overrides), self)

    def show(self, compute: Compute, state: ComputeState, reason: SleepReason | None = None) -> None:
        """Put a compute into a state, as if it had moved there."""
        before = compute.tier
        compute.state = state
        if compute.tier is not before:
            compute.tier_reason = reason
            if (before, compute.tier) != (Tier.FROZEN, Tier.PAGED):
                compute.tier_since = self.clock.time()
            self.fleet.tier_changed(compute, before)

    async def close(self) -> None:
        """Stop what runs."""
        await self.tasks.stop()
        self.catalog.close()


class Sleeper(Compute):
    """Pretends to run, so that going down the ladder is only noted. Its idle times and next steps are the real ones."""

    def __init__(self, database: Database, house: House) -> None:
        super().__init__(database, house.around, house.fleet)
        self.house = house
        self.open_connections = 0
        self.before_step: Callable[[], None] = lambda: None
        self.while_ending: Callable[[], None] = lambda: None
        house.fleet._by_id[database.id] = self
        house.fleet._by_tier[self.tier][self] = None
        house.fleet.update(database)

    @property
    def connections(self) -> int:
        """As the test says."""
        return self.open_connections

    async def lasting_connections(self) -> int:
        """As the real one, but what happens meanwhile is for the test to say."""
        await asyncio.sleep(0)
        self.while_ending()
        return self.open_connections

    def freeze(self) -> None:
        """Fall asleep."""
        self.house.show(self, ComputeState.FROZEN, SleepReason.IDLE)

    def rouse(self) -> None:
        """Wake up."""
        self.house.show(self, ComputeState.AWAKE)

    async def page_out(self, reason: SleepReason) -> None:
        """As the real one, without memory."""
        self.before_step()
        await asyncio.sleep(0)
        if self.state is ComputeState.FROZEN:
            self.house.steps.append((self.database.label, Tier.PAGED, reason))
            self.house.show(self, ComputeState.PAGED, reason)

    async def stop(self, reason: SleepReason) -> None:
        """As the real one, without processes."""
        self.before_step()
        assert not self.open_connections, "connections would be lost"
        self.house.steps.append((self.database.label, Tier.STOPPED, reason))
        self.house.show(self, ComputeState.STOPPED, reason)
