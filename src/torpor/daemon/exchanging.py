"""Wires what ends with an exchange of volumes: restores in place, and major upgrades. Concurrency: as `house`."""

from torpor.catalog.catalog import Catalog
from torpor.catalog.rewinds import RewindRecords
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.compute.template import Templates
from torpor.control.branches import Branches
from torpor.control.claims import Claims
from torpor.control.databases import Databases
from torpor.control.history import Histories
from torpor.control.jobs import Jobs
from torpor.control.provisioning import Provisioner
from torpor.control.restore import Restores
from torpor.control.rewind import Rewinds
from torpor.control.upgrade import Upgrades


def make_exchanges(
    databases: Databases,
    branches: Branches,
    restores: Restores | None,
    histories: Histories | None,
    catalog: Catalog,
    fleet: Fleet,
    around: Surroundings,
    provisioner: Provisioner,
    templates: Templates,
    jobs: Jobs,
    claims: Claims,
) -> tuple[Rewinds, Upgrades]:
    """Both, upon each other."""
    records, volumes, clock = RewindRecords(catalog.connection), around.volumes, around.clock
    rewinds = Rewinds(
        databases, branches, restores, histories, records, catalog, fleet, volumes, provisioner, jobs, claims, clock
    )  # fmt: skip
    return rewinds, Upgrades(databases, branches, rewinds, fleet, provisioner, volumes, around, templates.blank, jobs, claims, clock)
