"""Puts the pool together as the settings say, and shows it in /metrics. Concurrency: at start, and callbacks from memory."""

import os
from collections.abc import Callable, Iterable

from torpor.base.telemetry import Reading, Readings, Telemetry
from torpor.compute.census import Census
from torpor.compute.fleet import Fleet
from torpor.door.guard.guard import Guard
from torpor.door.relays import default_workers
from torpor.gateway.pool.pools import Pools
from torpor.gateway.pool.values import Limits
from torpor.model.access import address_key
from torpor.model.pool import PoolMode, PoolView
from torpor.model.settings import Settings

_CLOSED_BEFORE_FREEZE = 0.6


def make_pools(settings: Settings, fleet: Fleet, census: Census, guard: Guard) -> Pools:
    """The pools of all databases. No process is started before a client asks for it."""
    # A connection that is closed while its database sleeps would wake it: it must be closed before.
    idle_s = min(settings.pool_idle_s, _CLOSED_BEFORE_FREEZE * settings.freeze_after_s) if settings.freeze_after_s else settings.pool_idle_s
    limits = Limits(settings.pool_size, settings.pool_role_size, settings.pool_queue, settings.pool_wait_s, idle_s)
    return Pools(
        fleet,
        census,
        limits,
        default=PoolMode(settings.pool),
        workers=settings.pool_workers or default_workers(),
        max_clients=settings.pool_max_clients,
        # The relay workers' user: neither root's nor any compute's processes can be reached from there.
        uid=settings.uid_base - 1 if os.geteuid() == 0 else 0,
        check_wake=lambda host, database: guard.check_wake(address_key(host) if host else "", database),
    )


def register_pooled(telemetry: Telemetry, views: Callable[[], list[tuple[str, PoolView]]]) -> None:
    """Add the pools that have clients. Figures are up to a second old; counters begin again when a worker is started anew."""

    def each(value: Callable[[PoolView], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: (((name,), value(view)) for name, view in views())

    by = ("database",)
    for family in (
        Readings("torpor_pooled_clients", "Pooled clients.", each(lambda v: v.clients), by),
        Readings("torpor_pooled_working", "Pooled clients that have a connection to PostgreSQL now.", each(lambda v: v.working), by),
        Readings("torpor_pooled_waiting", "Pooled clients that wait for a connection to PostgreSQL.", each(lambda v: v.waiting), by),
        Readings("torpor_pooled_pinned", "Pooled clients with a connection of their own.", each(lambda v: v.pinned), by),
        Readings("torpor_pooled_backends", "Connections to PostgreSQL of pools.", each(lambda v: v.backends), by),
        Readings("torpor_pooled_transactions_total", "Transactions of pooled clients.", each(lambda v: v.transactions), by, "counter"),
        Readings("torpor_pooled_waits_total", "Times that a client had to wait.", each(lambda v: v.waits), by, "counter"),
        Readings("torpor_pooled_wait_seconds_total", "How long they waited in all.", each(lambda v: v.waited_s), by, "counter"),
        Readings("torpor_pooled_discards_total", "Times that what was left was discarded.", each(lambda v: v.discards), by, "counter"),
    ):  # fmt: skip
        telemetry.add(family)
