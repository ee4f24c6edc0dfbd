"""What a start sets right, for every state that a killed Torpor can leave a database in. Computes are real processes, not PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.fleet import House, make_database, make_id
from torpor.base.clock import SystemClock
from torpor.base.processes import boot_id, start_ticks
from torpor.compute.warmpool import WarmPool
from torpor.control.provisioning import Provisioner
from torpor.control.reconcile import Findings, Reconciler
from torpor.model.database import ComputeRecord, DatabaseState, Role
from torpor.model.names import DatabaseId
from torpor.model.sleep import Tier

S = DatabaseState
PORT = 7432
ROLE = Role("ann", "SCRAM", True)


class Ruins:
    """A data directory as a killed Torpor leaves it, to be set right."""

    def __init__(self, house: House, pool_size: int = 4) -> None:
        self.house = house
        self.processes: list[subprocess.Popen[bytes]] = []

        async def template(major: int) -> Path:
            raise AssertionError("nothing is made")

        self.provisioner = Provisioner(house.catalog, house.volumes, house.fleet, template, house.clock, 310_000)
        self.pool = WarmPool(pool_size, 18, self.provisioner.make_warm, lambda: False, house.clock, house.tasks)

    def leave(
        self, n: int, state: DatabaseState, on_disk: bool = True, running: bool = False, recorded: bool = True, major: int = 18
    ) -> DatabaseId:
        database = make_database(n, state, major)
        self.house.catalog.add_database(database)
        if on_disk:
            self.house.volumes.data(database.id).mkdir(parents=True)
        if running:
            pid = self.run(database.id)
            if recorded:
                ticks = start_ticks(pid)
                assert ticks is not None
                self.house.catalog.record_compute(ComputeRecord(database.id, pid, ticks, boot_id()))
        return database.id

    def run(self, id: DatabaseId, status: str = "ready   ") -> int:
        """Something that passes for a postmaster on the volume: it works there, and its pid file says that it is ready."""
        data = self.house.volumes.data(id)
        (self.house.around.run / id).mkdir(exist_ok=True)
        process = subprocess.Popen(["sleep", "60"], cwd=data)
        self.processes.append(process)
        (data / "postmaster.pid").write_text(f"{process.pid}\n{data}\n0\n0\n.\n\n0\n{status}\n")
        return process.pid

    async def reconcile(self) -> Findings:
        house = self.house
        reconciler = Reconciler(house.catalog, house.volumes, house.trees, house.fleet, self.provisioner, self.pool, house.around.run)
        return await reconciler.reconcile(PORT)

    def rows(self) -> dict[DatabaseId, DatabaseState]:
        return {database.id: database.state for database in self.house.catalog.databases()}

    def alive(self) -> int:
        return sum(start_ticks(process.pid) is not None for process in self.processes)


@pytest.fixture
async def ruins(tmp_path: Path) -> AsyncIterator[Ruins]:
    # Sockets lie below it: pytest's own directories can have too long a path.
    house = House(tmp_path, SystemClock())
    made = Ruins(house)
    yield made
    await house.fleet.leave_all()
    await house.close()
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("on_disk", "running"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("state", [S.MAKING, S.CLAIMING, S.BRANCHING, S.DELETING])
async def test_what_was_under_way_is_taken_back_or_finished(ruins: Ruins, state: DatabaseState, on_disk: bool, running: bool) -> None:
    id = ruins.leave(1, state, on_disk, running)
    found = await ruins.reconcile()
    assert (found.databases, found.removed) == (0, 1)
    assert ruins.rows() == {}
    assert ruins.house.volumes.ids() == set()
    assert ruins.alive() == 0
    assert not (ruins.house.around.run / id).exists()
    assert ruins.house.fleet.counts() == dict.fromkeys(Tier, 0)


async def test_a_running_database_is_adopted(ruins: Ruins) -> None:
    id = ruins.leave(1, S.READY, running=True)
    ruins.house.catalog.save_roles(id, [ROLE])
    found = await ruins.reconcile()
    assert found == Findings(databases=1, adopted=1)
    assert ruins.house.fleet.compute("db1").tier is Tier.AWAKE
    assert ruins.alive() == 1
    assert ruins.house.catalog.roles(id) is not None, "nothing is known to have changed"


async def test_a_stopped_database_stays_stopped(ruins: Ruins) -> None:
    id = ruins.leave(1, S.READY)
    ruins.house.catalog.save_roles(id, [ROLE])
    assert await ruins.reconcile() == Findings(databases=1)
    compute = ruins.house.fleet.compute("db1")
    assert (compute.tier, compute.broken) == (Tier.STOPPED, "")
    assert ruins.house.catalog.roles(id) == {"ann": ROLE}


async def test_a_database_whose_volume_is_missing_is_kept_and_says_so(ruins: Ruins) -> None:
    id = ruins.leave(1, S.READY, on_disk=False)
    with capture_logs() as logs:
        assert await ruins.reconcile() == Findings(databases=1)
    assert ruins.rows() == {id: S.READY}
    assert "volume is missing" in ruins.house.fleet.compute("db1").broken
    assert [line["event"] for line in logs] == ["volume missing"]


@pytest.mark.parametrize("case", ["dead", "another process", "another boot", "not ready"])
async def test_a_compute_that_ended_or_is_another(ruins: Ruins, case: str) -> None:
    id = ruins.leave(1, S.READY, running=True)
    (record,) = ruins.house.catalog.computes()
    if case == "dead":
        ruins.processes[0].kill()
        ruins.processes[0].wait()
    elif case == "not ready":
        data = ruins.house.volumes.data(id)
        (data / "postmaster.pid").write_text((data / "postmaster.pid").read_text().replace("ready", "stopping"))
    else:
        ticks, boot = (record.start_ticks + 1, record.boot_id) if case == "another process" else (record.start_ticks, "x")
        ruins.house.catalog.record_compute(ComputeRecord(id, record.pid, ticks, boot))
    ruins.house.catalog.save_roles(id, [ROLE])
    found = await ruins.reconcile()
    assert (found.databases, found.adopted, found.crashed) == (1, 0, 1)
    assert ruins.house.fleet.compute("db1").tier is Tier.STOPPED
    assert ruins.house.catalog.computes() == []
    assert ruins.house.catalog.roles(id) is None, "roles may have changed since"
    assert ruins.alive() == 0, "two on one cluster would destroy it"
    assert not (ruins.house.volumes.data(id) / "postmaster.pid").exists()


async def test_a_compute_that_was_launched_and_not_yet_recorded_is_ended(ruins: Ruins) -> None:
    id = ruins.leave(1, S.READY, running=True, recorded=False)
    found = await ruins.reconcile()
    assert (found.adopted, found.strays) == (0, 1)
    assert ruins.alive() == 0
    assert ruins.rows() == {id: S.READY}


async def test_a_pid_file_that_names_a_stranger_harms_nobody(ruins: Ruins) -> None:
    id = ruins.leave(1, S.READY)
    stranger = start([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"])
    try:
        (ruins.house.volumes.data(id) / "postmaster.pid").write_text(f"{stranger.pid}\n")
        (ruins.house.around.run / id).mkdir()
        await ruins.reconcile()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.PIPE)


async def test_warm_computes_that_run_go_on_waiting(ruins: Ruins) -> None:
    kept = ruins.leave(1, S.WARM, running=True)
    ruins.leave(2, S.WARM)  # not running
    ruins.leave(3, S.WARM, on_disk=False)
    ruins.leave(4, S.WARM, running=True, major=17)
    found = await ruins.reconcile()
    assert (found.databases, found.adopted, found.removed) == (0, 2, 3)
    assert ruins.rows() == {kept: S.WARM}
    compute = ruins.pool.take(18)
    assert compute is not None
    assert compute.database.id == kept
    assert ruins.alive() == 1


async def test_warm_computes_beyond_the_size_of_the_pool_go(tmp_path: Path, ruins: Ruins) -> None:
    ruins.pool = WarmPool(2, 18, ruins.provisioner.make_warm, lambda: False, ruins.house.clock, ruins.house.tasks)
    for n in range(4):
        ruins.leave(n, S.WARM, running=True)
    found = await ruins.reconcile()
    assert (len(ruins.pool), found.removed, ruins.alive()) == (2, 2, 2)


async def test_volumes_that_nobody_knows_are_left_alone(ruins: Ruins) -> None:
    unknown = make_id(99)
    ruins.house.volumes.data(unknown).mkdir(parents=True)
    (ruins.house.volumes.root / f".making-{make_id(98)}").mkdir()
    with capture_logs() as logs:
        found = await ruins.reconcile()
    assert ruins.house.volumes.ids() == {unknown}
    assert found.removed == 1
    assert [line["event"] for line in logs] == ["unknown volume left alone"]


async def test_other_things_in_the_run_directory_are_not_ours(ruins: Ruins) -> None:
    (ruins.house.around.run / "something").mkdir()
    ruins.house.trees.left = ["not-an-id", "init.scope"]
    assert await ruins.reconcile() == Findings()
    assert os.listdir(ruins.house.around.run) == ["something"]


async def test_a_second_reconciliation_finds_nothing_to_do(tmp_path: Path, ruins: Ruins) -> None:
    for n, state in enumerate(S):
        ruins.leave(n, state)
    await ruins.reconcile()
    again = Ruins(House(tmp_path, SystemClock()))
    try:
        assert await again.reconcile() == Findings(databases=1)
    finally:
        await again.house.close()
