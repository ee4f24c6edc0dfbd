"""Puts the pool together as the settings say. Concurrency: none, at start only."""

import os

from torpor.compute.census import Census
from torpor.compute.fleet import Fleet
from torpor.door.guard.guard import Guard
from torpor.door.relays import default_workers
from torpor.gateway.pool.pools import Pools
from torpor.gateway.pool.values import Limits
from torpor.model.access import address_key
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
        workers=settings.pool_workers or default_workers(),
        max_clients=settings.pool_max_clients,
        # The relay workers' user: neither root's nor any compute's processes can be reached from there.
        uid=settings.uid_base - 1 if os.geteuid() == 0 else 0,
        check_wake=lambda host, database: guard.check_wake(address_key(host) if host else "", database),
    )
