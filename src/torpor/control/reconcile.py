"""After any end of Torpor, orderly or not: makes the catalog, the disk and the process table agree again.

Runs once at start, before the door opens. What runs and belongs to a database is adopted with its connections; what half exists is
removed; what is gone is noted. Killing it in the middle is harmless: the next start does it again.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.base.cgroups import Trees
from torpor.base.logs import get_logger
from torpor.catalog.catalog import Catalog
from torpor.compute.fleet import Fleet
from torpor.compute.postmaster import Postmaster
from torpor.compute.warmpool import WarmPool
from torpor.control.provisioning import Provisioner
from torpor.model.database import DatabaseState
from torpor.model.names import DatabaseId, is_database_id
from torpor.model.sleep import Tier
from torpor.storage.volumes import Volumes

log = get_logger(__name__)


@dataclass(slots=True)
class Findings:
    """What was found and done."""

    databases: int = 0
    adopted: int = 0
    crashed: int = 0
    removed: int = 0
    strays: int = 0


class Reconciler:
    """One start's reconciliation."""

    def __init__(
        self,
        catalog: Catalog,
        volumes: Volumes,
        trees: Trees,
        fleet: Fleet,
        provisioner: Provisioner,
        warm_pool: WarmPool,
        run: Path,
        is_archived: Callable[[DatabaseId], bool] = lambda _id: False,
    ) -> None:
        """`is_archived` says of a database whether its volume is missing for that reason."""
        self._catalog = catalog
        self._volumes = volumes
        self._trees = trees
        self._fleet = fleet
        self._provisioner = provisioner
        self._warm_pool = warm_pool
        self._run = run
        self._is_archived = is_archived

    async def reconcile(self, door_port: int) -> Findings:
        """Set everything right. `door_port` tells clients' sockets from others in adopted backends."""
        found = Findings()
        databases = self._catalog.databases()
        for database in databases:
            self._fleet.add(database)
        found.databases = sum(database.state is DatabaseState.READY for database in databases)
        adopted = self._adopt(door_port, found)
        await self._end_strays(adopted, found)
        found.removed += await self._volumes.sweep()
        on_disk = self._volumes.ids()
        for database in databases:
            compute = self._fleet.by_id(database.id)
            match database.state:
                case DatabaseState.MAKING | DatabaseState.CLAIMING | DatabaseState.BRANCHING | DatabaseState.DELETING:
                    await self._provisioner.remove(compute)
                    found.removed += 1
                case DatabaseState.WARM if (
                    database.major == self._warm_pool.major
                    and len(self._warm_pool) < self._warm_pool.size
                    and database.id in on_disk
                    and compute.tier is not Tier.STOPPED
                ):
                    self._warm_pool.put(compute)
                case (
                    DatabaseState.WARM
                ):  # of a major that is not wanted now, too many, or not running: starting it costs what a new one does
                    await self._provisioner.remove(compute)
                    found.removed += 1
                case DatabaseState.READY:
                    if database.id not in on_disk and not self._is_archived(database.id):
                        compute.broken = "its volume is missing"
                        log.error("volume missing", database=database.label, volume=str(self._volumes.path(database.id)))
        for id in on_disk - {database.id for database in databases}:
            # A row is written before its volume and removed after it, so this is a catalog that was lost or replaced: touch nothing.
            log.error("unknown volume left alone", volume=str(self._volumes.path(id)))
        return found

    def _adopt(self, door_port: int, found: Findings) -> set[DatabaseId]:
        adopted = set()
        for record in self._catalog.computes():
            if self._fleet.adopt(record, door_port):
                adopted.add(record.database_id)
            else:
                # It did not end in order, so roles may have changed after they were last saved.
                self._catalog.forget_compute(record.database_id)
                self._catalog.forget_roles(record.database_id)
                found.crashed += 1
        found.adopted = len(adopted)
        return adopted

    async def _end_strays(self, adopted: set[DatabaseId], found: Findings) -> None:
        """Computes that were launched and not yet recorded, and what outlived its postmaster."""
        names = set(self._trees.names()) | set(os.listdir(self._run))
        for name in sorted(names):
            if is_database_id(name) and name not in adopted:
                id = DatabaseId(name)
                stray = Postmaster(self._trees.open(id), self._run / id / "door.sock", lambda _: None, lambda: None)
                await stray.clear_remains(self._volumes.data(id))
                await stray.bury()
                found.strays += 1
