"""Puts the pool together as the settings say, and shows it in /metrics. Concurrency: at start, and callbacks from memory."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torpor.base.telemetry import Reading, Readings, Telemetry
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.door.guard.guard import Guard
from torpor.door.relays import default_workers
from torpor.gateway.pool.caches import Caches, no_caches
from torpor.gateway.pool.pools import Pools
from torpor.gateway.pool.stores import SharedStore
from torpor.gateway.pool.values import Limits
from torpor.model.access import address_key
from torpor.model.cache import NO_POLICY, CachePolicy, CacheView
from torpor.model.cachestore import parse_store
from torpor.model.names import DatabaseId
from torpor.model.pool import PoolMode, PoolView
from torpor.model.settings import Settings

_CLOSED_BEFORE_FREEZE = 0.6


def make_pools(settings: Settings, fleet: Fleet, around: Surroundings, guard: Guard, data_dir: Path) -> Pools:
    """The pools of all databases. No process is started before a client asks for it."""
    # A connection that is closed while its database sleeps would wake it: it must be closed before.
    idle_s = min(settings.pool_idle_s, _CLOSED_BEFORE_FREEZE * settings.freeze_after_s) if settings.freeze_after_s else settings.pool_idle_s
    limits = Limits(settings.pool_size, settings.pool_role_size, settings.pool_queue, settings.pool_wait_s, idle_s)

    def policy(id: DatabaseId) -> CachePolicy:
        compute = fleet.get(id)
        return compute.database.cache if compute is not None else NO_POLICY

    shared = SharedStore(parse_store(settings.cache_store), data_dir / "shared")
    caches = Caches(policy, around.writes.reader, shared) if around.writes is not None else no_caches()
    return Pools(
        fleet,
        around.census,
        limits,
        default=PoolMode(settings.pool),
        workers=settings.pool_workers or default_workers(),
        max_clients=settings.pool_max_clients,
        # The relay workers' user: neither root's nor any compute's processes can be reached from there.
        uid=settings.uid_base - 1 if os.geteuid() == 0 else 0,
        check_wake=lambda host, database: guard.check_wake(address_key(host) if host else "", database),
        caches=caches,
        cache_bytes=settings.cache_bytes,
        shared=shared,
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


def register_cached(telemetry: Telemetry, views: Callable[[], list[tuple[str, PoolView]]]) -> None:
    """Add the caches of databases whose pools have had clients. As `register_pooled`."""

    def each(value: Callable[[CacheView], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: (((name,), value(view.cache)) for name, view in views())

    def bypasses() -> Iterable[Reading]:
        return (((name, reason), number) for name, view in views() for reason, number in view.cache.bypasses.items())

    by = ("database",)
    for family in (
        Readings("torpor_cache_entries", "Results in the cache.", each(lambda c: c.entries), by),
        Readings("torpor_cache_bytes", "What they take, in bytes.", each(lambda c: c.bytes), by),
        Readings("torpor_cache_hits_total", "Statements that were answered from the cache.", each(lambda c: c.hits), by, "counter"),
        Readings("torpor_cache_stale_total", "Those answered by what was made anew meanwhile.", each(lambda c: c.stale), by, "counter"),
        Readings("torpor_cache_misses_total", "Statements whose result wasn't there.", each(lambda c: c.misses), by, "counter"),
        Readings("torpor_cache_bypasses_total", "Statements that the cache let pass.", bypasses, ("database", "reason"), "counter"),
        Readings("torpor_cache_fills_total", "Results that were put in.", each(lambda c: c.fills), by, "counter"),
        Readings("torpor_cache_evicted_total", "Results that others took the room of.", each(lambda c: c.evicted), by, "counter"),
        Readings("torpor_cache_purged_total", "Results that were purged.", each(lambda c: c.purged), by, "counter"),
        Readings("torpor_cache_shared_total", "Results that were found in the shared store.", each(lambda c: c.shared), by, "counter"),
        Readings("torpor_cache_skipped_total", "Times that the shared store gave no answer.", each(lambda c: c.skipped), by, "counter"),
    ):  # fmt: skip
        telemetry.add(family)
