"""Wires the restore drills, for `house`. No concurrency of its own."""

from torpor.base.clock import Clock
from torpor.base.tasks import TaskOwner
from torpor.base.telemetry import Readings, Telemetry
from torpor.catalog.catalog import Catalog
from torpor.catalog.drills import DrillRecords
from torpor.compute.fleet import Fleet
from torpor.compute.surroundings import Surroundings
from torpor.control.drills import Drills
from torpor.control.history import Histories
from torpor.control.jobs import Jobs
from torpor.control.restore import Restores
from torpor.model.drills import DrillResult


def make_drills(
    catalog: Catalog,
    restores: Restores | None,
    histories: Histories | None,
    fleet: Fleet,
    around: Surroundings,
    jobs: Jobs,
    every_s: float | None,
    clock: Clock,
    tasks: TaskOwner,
    telemetry: Telemetry,
) -> Drills | None:
    """None without histories: then there is nothing to restore."""
    if histories is None or restores is None:
        return None
    drills = Drills(DrillRecords(catalog.connection), restores, histories, fleet, around, jobs, every_s, clock, tasks)
    histories.last_drill = drills.last
    for family in (
        Readings(
            "torpor_drills_total", "Restore drills since Torpor started, by what became of them.",
            lambda: (((str(result),), drills.counted[result]) for result in DrillResult), ("result",), "counter",
        ),
        Readings("torpor_drills_failing", "Databases whose last restore drill failed.", lambda: [((), drills.failing)]),
    ):  # fmt: skip
        telemetry.add(family)
    return drills
