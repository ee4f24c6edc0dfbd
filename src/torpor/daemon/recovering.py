"""Wires what brings databases back from the store alone: their cards, kept up to date from all places where what is on them changes."""

from collections.abc import Callable, Mapping

from torpor.catalog.archived import ArchivedRecords
from torpor.catalog.catalog import Catalog
from torpor.catalog.histories import HistoryRecords
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.control.access import AccessControl
from torpor.control.archiving import Archiving
from torpor.control.branches import Branches
from torpor.control.cards import Cards
from torpor.control.claims import Claims
from torpor.control.history import Histories
from torpor.control.jobs import Jobs
from torpor.control.provisioning import Provisioner
from torpor.control.recovery import Recovery
from torpor.control.restore import Restores
from torpor.control.workspaces import Workspaces
from torpor.model.access import ListScope, ScopeKey
from torpor.model.database import Database
from torpor.model.names import DatabaseId
from torpor.storage.archive.archive import Archive


def make_recovery(
    archive: Archive,
    histories: Histories,
    archiving: Archiving,
    restores: Restores,
    branches: Branches,
    workspaces: Workspaces,
    access: AccessControl,
    catalog: Catalog,
    fleet: Fleet,
    provisioner: Provisioner,
    around: Surroundings,
    majors: Callable[[], Mapping[int, object]],
    allows_superusers: bool,
    expires: Callable[[Database], None],
    jobs: Jobs,
    claims: Claims,
) -> Recovery:
    """The use cases on databases that are in the store and not here, with the cards of those that are here."""
    cards = Cards(
        archive.cards,
        fleet,
        HistoryRecords(catalog.connection),
        ArchivedRecords(catalog.connection),
        workspaces.name,
        lambda id: access.show((ListScope.DATABASE, id)),
        around.size,
        around.clock,
        around.tasks,
    )

    def changed(key: ScopeKey) -> None:
        if key[0] is ListScope.DATABASE:
            cards.touch(DatabaseId(key[1]))

    fleet.on_update, access.on_change = cards.touch, changed
    histories.cards = archiving.cards = cards
    return Recovery(
        archive,
        cards,
        histories,
        restores,
        branches,
        workspaces,
        access,
        catalog,
        fleet,
        provisioner,
        around,
        majors,
        allows_superusers,
        expires,
        jobs,
        claims,
    )
