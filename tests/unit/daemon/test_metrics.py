"""What /metrics shows of the whole, read back by another implementation."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support import virtual
from tests.support.fleet import House, Sleeper
from torpor.base.telemetry import Telemetry
from torpor.compute.lifecycle import ComputeState
from torpor.compute.warmpool import WarmPool
from torpor.daemon.metrics import register
from torpor.door.stats import DoorStats, LoginOutcome
from torpor.insights.wakes import WakeLog
from torpor.model.sleep import Tier

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(telemetry: Telemetry) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(telemetry.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def show(tmp_path: Path, arrange: Callable[[House, DoorStats], None]) -> Samples:
    async def main() -> Samples:
        house, door, telemetry = House(tmp_path), DoorStats(), Telemetry()
        pool = WarmPool(4, 18, lambda major: asyncio.Future(), lambda: False, house.clock, house.tasks)
        register(telemetry, house.fleet, door, pool, WakeLog(lambda wakes: None, lambda id, limit: (), {}), lambda: house.memory, lambda: 3)
        arrange(house, door)
        try:
            return samples(telemetry)
        finally:
            await house.close()

    return virtual.run(main())


def test_an_empty_house(tmp_path: Path) -> None:
    found = show(tmp_path, lambda house, door: None)
    assert found["torpor_databases", ()] == 0
    assert {labels[0][1]: value for (name, labels), value in found.items() if name == "torpor_computes"} == dict.fromkeys(Tier, 0)
    assert found["torpor_host_memory_total_bytes", ()] == 100
    assert found["torpor_host_memory_used_bytes", ()] == 10


def test_only_what_is_awake_has_series_of_its_own(tmp_path: Path) -> None:
    def arrange(house: House, door: DoorStats) -> None:
        sleepers = [house.add_sleeper(n) for n in range(500)]
        sleepers[0].freeze()
        for sleeper in sleepers[1:3]:
            house.show(sleeper, ComputeState.AWAKE)
            sleeper.open_connections = 7

    found = show(tmp_path, arrange)
    assert found["torpor_databases", ()] == 500
    assert {labels[0][1]: value for (name, labels), value in found.items() if name == "torpor_computes"} == {
        Tier.AWAKE: 2, Tier.FROZEN: 1, Tier.PAGED: 0, Tier.STOPPED: 497, Tier.ARCHIVED: 0,
    }  # fmt: skip
    named = {labels for _, labels in found if labels and labels[0][0] == "database"}
    assert named == {(("database", "db1"),), (("database", "db2"),)}
    assert found["torpor_database_connections", (("database", "db1"),)] == 7
    assert len([1 for _, labels in found if labels == (("database", "db1"),)]) == 5


def test_the_door(tmp_path: Path) -> None:
    def arrange(house: House, door: DoorStats) -> None:
        door.accepted, door.pending, door.waiting = 9, 1, 2
        door.count(LoginOutcome.WRONG_PASSWORD)
        door.count(LoginOutcome.WRONG_PASSWORD)

    found = show(tmp_path, arrange)
    assert [found[f"torpor_door_{name}", ()] for name in ("accepted_total", "pending", "waiting", "relayed")] == [9, 1, 2, 3]
    outcomes = {labels[0][1]: value for (name, labels), value in found.items() if name == "torpor_door_logins_total"}
    assert set(outcomes) == set(LoginOutcome), "a series is there before its first event"
    assert outcomes[LoginOutcome.WRONG_PASSWORD] == 2
    assert sum(outcomes.values()) == 2


def test_warm_ones_are_no_databases(tmp_path: Path) -> None:
    def arrange(house: House, door: DoorStats) -> None:
        warm = Sleeper(replace(house.add_sleeper(1).database, name=None), house)
        assert warm.database.label == warm.database.id

    assert show(tmp_path, arrange)["torpor_databases", ()] == 1
