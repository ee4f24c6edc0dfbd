"""How a stopped compute comes to run: what to launch, the steps in order with their times, and what a failure is called.

Concurrency: `start` belongs to the task that changes the compute's state. Safe to cancel: what was launched is the postmaster's to bury.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torpor.base.clock import Clock
from torpor.base.processes import boot_id
from torpor.compute import logfile
from torpor.compute.launch import LaunchPlan
from torpor.compute.postmaster import Postmaster, VolumeInUse
from torpor.compute.shares import server_options
from torpor.compute.surroundings import Surroundings
from torpor.model.database import ComputeRecord, Database, Step
from torpor.model.errors import (
    BinariesMissing,
    ComputeStartFailed,
    HistoryError,
    HostError,
    PoolFull,
    ShuttingDown,
    StartTimeout,
    TorporError,
    Unavailable,
)
from torpor.model.names import DatabaseId
from torpor.model.size import Size
from torpor.storage.room import FULL_HINT, PoolLevel

_RECOVERY_PATIENCE_S = 3600.0  # crash recovery of a big volume; clients are told to come back long before
_START_SLOT_S = 2.0


class Steps:
    """Times the steps of a start, one after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = self._last = clock.monotonic()
        self._steps: list[Step] = []

    def done(self, name: str) -> None:
        """The step that has just ended."""
        now = self._clock.monotonic()
        self._steps.append(Step(name, (now - self._last) * 1000))
        self._last = now

    @property
    def taken(self) -> tuple[Step, ...]:
        """All so far."""
        return tuple(self._steps)

    @property
    def elapsed_ms(self) -> float:
        """Since the beginning."""
        return (self._clock.monotonic() - self._began) * 1000


async def plan_launch(database: Database, size: Size, around: Surroundings, log: Path, elsewhere: Path | None = None) -> LaunchPlan:
    """What to launch, on the database's volume, or on a cluster that lies `elsewhere`.

    Raises HostError for what the host lacks, Unavailable without the volume, PoolFull without room to write to it.
    """
    data = elsewhere or around.volumes.data(database.id)
    if not data.is_dir():
        raise Unavailable("its volume is missing")
    if database.superuser and not around.sandbox.level.holds_superusers:
        raise Unavailable(f"its owner is a superuser, which the sandbox level {around.sandbox.level} doesn't hold")
    if around.volumes.level is PoolLevel.OUT:
        raise PoolFull("the storage pool is full, and nothing is started until there is room again", FULL_HINT)
    if elsewhere is None:
        await around.volumes.limit(database.id, size.disk_bytes)
    haste = around.volumes.hasty.get(database.id) if elsewhere is None else None
    return LaunchPlan(
        bindir=around.binaries(database.major).bindir,
        data=data,
        uid=database.uid,
        library=around.library,
        configuration=around.configuration(database.major),
        log=log,
        options=server_options(size, around.size),
        level=around.sandbox.level,
        root=await around.sandbox.root(database.major),
        filter=around.sandbox.filter,
        haste=haste.reader if haste is not None else None,
    )


async def start(
    postmaster: Postmaster,
    plan: LaunchPlan,
    id: DatabaseId,
    around: Surroundings,
    slot: contextlib.AsyncExitStack,
    steps: Steps,
    on_exit: Callable[[], None],
) -> None:
    """Until PostgreSQL accepts connections. Raises TorporError or OSError; then something may run that has to be buried.

    Gives the `slot` back early when it takes long: a start that recovers for minutes must not hold up the others.
    """
    await postmaster.clear_remains(plan.data)
    if around.writes is not None:  # only now that nothing runs any more which has the file mapped
        plan = replace(plan, writes=around.writes.prepare(id))
    steps.done("prepare")
    postmaster.launch(plan)
    steps.done("spawn")
    await postmaster.enter_tree()
    steps.done("enter")
    if not await postmaster.wait_ready(_START_SLOT_S, on_exit):
        await slot.aclose()
        if not await postmaster.wait_ready(_RECOVERY_PATIENCE_S, on_exit):
            raise ComputeStartFailed(f"it was not ready after {_RECOVERY_PATIENCE_S:.0f} s")
    process = postmaster.process
    assert process is not None
    # Only now is its pid known. One that was killed before this line has no client yet, and is ended as a stray by the next Torpor.
    around.catalog.record_compute(ComputeRecord(id, process.pid, process.start_ticks, boot_id()))
    steps.done("ready")


def failure_of(error: BaseException, label: str, log: Path) -> TorporError:
    """What those who wait for the start are told."""
    if isinstance(error, asyncio.CancelledError):
        return ShuttingDown(f"the start of database {label} was given up, as it is to be stopped")
    if isinstance(error, BinariesMissing | PoolFull | StartTimeout | HistoryError):
        return error
    if isinstance(error, ComputeStartFailed) and not isinstance(error, VolumeInUse):
        words = logfile.last_words(log)
    else:
        words = error.message if isinstance(error, HostError) else str(error)
    return ComputeStartFailed(f"database {label} can't start: {words}", f"the whole story: `torpor logs {label}`")
