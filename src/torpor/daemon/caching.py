"""Wires the cache of results: its use cases, its figures, and who tells it of volumes that were exchanged. Concurrency: as `house`."""

from torpor.base.telemetry import Telemetry
from torpor.catalog.catalog import Catalog
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.control.caching import Caching
from torpor.daemon.pooling import register_cached
from torpor.gateway.pool.pools import Pools
from torpor.storage.volumes import Volumes


def make_caching(catalog: Catalog, fleet: Fleet, pools: Pools, volumes: Volumes, around: Surroundings, telemetry: Telemetry) -> Caching:
    """The caches of all databases, as people and programs see them."""
    caching = Caching(catalog, fleet, pools, around.writes)
    volumes.exchanged = caching.contents_changed
    register_cached(telemetry, pools.views)
    return caching
