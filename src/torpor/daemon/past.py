"""Wires what keeps the past of databases and brings it back. Concurrency: as `house`."""

from torpor.base.clock import Clock
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.catalog.histories import HistoryRecords
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.control.branches import Branches
from torpor.control.databases import Databases
from torpor.control.history import Histories
from torpor.control.jobs import Jobs
from torpor.control.restore import Restores
from torpor.control.views import Viewer
from torpor.model.settings import Settings
from torpor.model.sleep import Tier
from torpor.storage.archive.archive import Archive
from torpor.storage.archive.retention import Retention
from torpor.storage.volumes import Volumes


def make_histories(
    settings: Settings,
    archive: Archive | None,
    catalog: Catalog,
    fleet: Fleet,
    volumes: Volumes,
    jobs: Jobs,
    clock: Clock,
    tasks: TaskOwner,
) -> Histories | None:
    """None where no store is set: then nothing is shipped."""
    if archive is None:
        return None
    return Histories(
        archive,
        HistoryRecords(catalog.connection),
        lambda: fleet.in_tier(Tier.AWAKE),
        fleet.get,
        catalog.knows_roles,
        volumes,
        jobs,
        Retention(*settings.history_retention),
        clock,
        tasks,
    )


def make_restores(
    databases: Databases,
    branches: Branches,
    histories: Histories | None,
    fleet: Fleet,
    around: Surroundings,
    viewer: Viewer,
    jobs: Jobs,
    clock: Clock,
) -> Restores | None:
    """None without histories: then there is nothing to restore from."""
    if histories is None:
        return None
    return Restores(databases, branches, histories, fleet, around, viewer, jobs, clock)
