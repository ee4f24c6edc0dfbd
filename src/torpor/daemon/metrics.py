"""What /metrics shows of the whole: readings of the fleet, the door, the warm pool and the host. Per database only while it is awake,
so that the page grows with what runs, never with what sleeps.

Concurrency: callbacks on the loop, from memory and a few kernel files.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from torpor.base.memory import HostMemory
from torpor.base.telemetry import Reading, Readings, Telemetry
from torpor.compute.compute import Compute
from torpor.compute.fleet import Fleet
from torpor.compute.warmpool import WarmPool
from torpor.control.scaling import Live, Scaling
from torpor.door.guard.guard import Guard
from torpor.door.stats import DoorStats
from torpor.insights.wakes import WakeLog
from torpor.model.sleep import Tier
from torpor.storage.room import look
from torpor.storage.volumes import Volumes


def register(
    telemetry: Telemetry,
    fleet: Fleet,
    door: DoorStats,
    warm_pool: WarmPool,
    wakes: WakeLog,
    memory: Callable[[], HostMemory],
    relayed: Callable[[], int],
) -> None:
    """Add all families to `telemetry`."""

    def awake(value: Callable[[Compute], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: (((compute.database.label,), value(compute)) for compute in fleet.in_tier(Tier.AWAKE))

    def one(value: Callable[[], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: [((), value())]

    telemetry.add(wakes.histogram)
    for readings in (
        Readings("torpor_databases", "Databases of users.", one(lambda: len(fleet))),
        Readings(
            "torpor_computes", "Computes by sleep tier, warm ones included.",
            lambda: (((str(tier),), count) for tier, count in fleet.counts().items()), ("tier",),
        ),
        Readings("torpor_warm_computes", "Computes that wait for a create.", one(lambda: len(warm_pool))),
        Readings("torpor_door_accepted_total", "Connections accepted by the door.", one(lambda: door.accepted), type="counter"),
        Readings("torpor_door_pending", "Connections whose client has not proven who it is.", one(lambda: door.pending)),
        Readings("torpor_door_waiting", "Clients that are logged in and wait for their compute.", one(lambda: door.waiting)),
        Readings("torpor_door_relayed", "Sessions whose bytes pass through relay workers, the encrypted ones among them.", one(relayed)),
        Readings(
            "torpor_door_logins_total", "Connections at the door by how they ended there.",
            lambda: (((str(outcome),), count) for outcome, count in door.logins.items()), ("outcome",), "counter",
        ),
        Readings("torpor_database_connections", "Open connections of awake databases.", awake(lambda c: c.connections), ("database",)),
        Readings(
            "torpor_database_cpu_seconds_total", "Processor time of awake databases since Torpor started.",
            awake(lambda c: c.usage().cpu_ns / 1e9), ("database",), "counter",
        ),
        Readings("torpor_database_memory_bytes", "Memory of awake databases.", awake(lambda c: c.usage().memory_bytes), ("database",)),
        Readings(
            "torpor_database_received_bytes_total", "Bytes from clients of awake databases since Torpor started.",
            awake(lambda c: c.traffic().received), ("database",), "counter",
        ),
        Readings(
            "torpor_database_sent_bytes_total", "Bytes to clients of awake databases since Torpor started.",
            awake(lambda c: c.traffic().sent), ("database",), "counter",
        ),
        Readings("torpor_host_memory_used_bytes", "Memory of the host that can't be given back.", one(lambda: memory().used_bytes)),
        Readings("torpor_host_memory_total_bytes", "Memory of the host.", one(lambda: memory().total_bytes)),
        Readings("torpor_host_swap_used_bytes", "Swap in use on the host.", one(lambda: memory().swap_used_bytes)),
    ):  # fmt: skip
        telemetry.add(readings)


def register_guard(telemetry: Telemetry, guard: Guard, fleet: Fleet) -> None:
    """Add what the guard of the door counts. Addresses are no labels: strangers could make as many as they like (`/v1/host` names the
    heaviest)."""
    families: tuple[tuple[str, str, Callable[[], float], Literal["gauge", "counter"]], ...] = (
        ("torpor_door_connections", "Sessions of clients in all computes.", fleet.total, "gauge"),
        ("torpor_door_addresses", "Addresses (IPv6: /64 networks) that have sessions.", fleet.addresses, "gauge"),
        ("torpor_door_pending_addresses", "Addresses that are logging in.", lambda: len(guard.pending), "gauge"),
        ("torpor_door_entering", "Connections that are proven and have no session yet.", lambda: guard.entering_overall, "gauge"),
        ("torpor_door_failures_evicted_total", "Failed logins forgotten for lack of room.", lambda: guard.failures.evicted, "counter"),
    )
    for name, help, value, type in families:
        telemetry.add(Readings(name, help, _reading(value), type=type))


def _reading(value: Callable[[], float]) -> Callable[[], Iterable[Reading]]:
    return lambda: [((), value())]


def register_shares(telemetry: Telemetry, scaling: Scaling, fleet: Fleet) -> None:
    """Add what awake databases may use, and how often that was decided anew."""

    def live(value: Callable[[Live], float | None]) -> Callable[[], Iterable[Reading]]:
        def readings() -> Iterable[Reading]:
            for compute in fleet.in_tier(Tier.AWAKE):
                known = scaling.live(compute)
                if known is not None and (figure := value(known)) is not None:
                    yield (compute.database.label,), figure

        return readings

    for family in (
        Readings(
            "torpor_database_cpu_ceiling", "Processors that awake databases may use now; those without a ceiling are left out.",
            live(lambda known: known.ceiling), ("database",),
        ),
        Readings(
            "torpor_database_memory_ceiling_bytes", "Memory that awake databases keep when the host is short of it.",
            live(lambda known: known.memory.ceiling), ("database",),
        ),
        Readings(
            "torpor_scale_decisions_total", "Decisions on ceilings since Torpor started, by what was decided on and why.",
            lambda: ((key, count) for key, count in scaling.decided.items()), ("kind", "reason"), "counter",
        ),
        Readings(
            "torpor_out_of_memory_total", "Processes of databases that the kernel ended for want of memory, since Torpor started.",
            lambda: [((), scaling.killed)], type="counter",
        ),
    ):  # fmt: skip
        telemetry.add(family)


def register_pool(telemetry: Telemetry, volumes: Volumes) -> None:
    """Add the room of the pool, and how full that is: 0 for room, up to 3 when nothing runs any more."""
    for family in (
        Readings("torpor_pool_free_bytes", "Bytes that are free in the pool.", lambda: [((), look(volumes.root).free_bytes)]),
        Readings("torpor_pool_total_bytes", "Bytes that the pool has.", lambda: [((), look(volumes.root).total_bytes)]),
        Readings("torpor_pool_full", "0: room, 1: read-only, 2: writers are ended, 3: nothing runs.", lambda: [((), int(volumes.level))]),
    ):
        telemetry.add(family)
