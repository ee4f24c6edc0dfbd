"""What is decided about a copy: which way it is taken, whether it is whole, which log it needs. PostgreSQL only pretends to run."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.fleet import House, Sleeper
from torpor.base.clock import SystemClock
from torpor.compute import snapshot as module
from torpor.compute.lifecycle import ComputeState
from torpor.compute.snapshot import LogSpan, Snapshot, snapshot
from torpor.model.errors import Conflict, ShuttingDown
from torpor.model.sleep import Tier
from torpor.storage import copying
from torpor.storage.copying import Selection

ME = os.geteuid()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, SystemClock())
    yield made
    await made.close()


@pytest.fixture
def compute(house: House) -> Sleeper:
    """One with something like a cluster."""
    made = house.add_sleeper(1)
    data = house.volumes.data(made.database.id)
    for name in ("base", "pg_wal", "pg_tblspc", "pg_replslot/theirs", "pg_subtrans"):
        (data / name).mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    (data / "backup_label").write_text("of a start that was cut off")
    (data / "postmaster.pid").write_text("1\n")
    (data / "pg_wal/000000010000000000000001").write_text("log")
    (data / "pg_replslot/theirs/state").write_text("slot")
    return made


def below(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*")]


def after_the_copy(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something while a copy is taken, when all files have been read."""
    real = copying.copy_tree

    async def disturbed(source: Path, target: Path, uid: int, selection: Selection) -> None:
        await real(source, target, uid, selection)
        act()

    monkeypatch.setattr(module, "copy_tree", disturbed)


@pytest.mark.parametrize("state", [ComputeState.STOPPED, ComputeState.FROZEN, ComputeState.PAGED])
async def test_a_sleeper_is_copied_as_it_is(house: House, compute: Sleeper, tmp_path: Path, state: ComputeState) -> None:
    if state is not ComputeState.STOPPED:
        house.show(compute, state)
    taken = await snapshot(compute, house.volumes, tmp_path / "copy", ME)
    assert taken == Snapshot(compute.tier)
    files = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert files == {"PG_VERSION", "backup_label", "pg_wal/000000010000000000000001"}, "all of its log, none of its slots"
    assert (tmp_path / "copy/pg_replslot").is_dir()


async def test_a_sleeper_that_moved_is_not_believed(
    house: House, compute: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it looks again as it did before."""
    backups: list[list[str]] = []

    async def in_backup_mode(compute: Sleeper, volumes: object, data: Path, uid: int) -> Snapshot:
        backups.append(below(data))
        os.mkdir(data / "pg_tblspc")
        return Snapshot(Tier.AWAKE)

    async def wake(reason: object, detail: str) -> None:
        return None

    monkeypatch.setattr(module, "_in_backup_mode", in_backup_mode)
    monkeypatch.setattr(compute, "wake", wake)

    def come_and_go() -> None:
        compute.moves += 1  # what a start and a stop leave

    after_the_copy(monkeypatch, come_and_go)
    assert await snapshot(compute, house.volumes, tmp_path / "copy", ME) == Snapshot(Tier.AWAKE)
    assert backups == [["pg_wal"]], "nothing of the first copy is left"


async def test_one_that_is_paged_out_meanwhile_stays_whole(
    house: House, compute: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.show(compute, ComputeState.FROZEN)
    before = compute.moves
    after_the_copy(monkeypatch, lambda: house.show(compute, ComputeState.PAGED))
    assert (await snapshot(compute, house.volumes, tmp_path / "copy", ME)).tier is Tier.FROZEN
    assert compute.moves == before


async def test_one_that_is_removed_meanwhile(house: House, compute: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files go while they are read: what was read of them is nothing."""
    house.catalog.add_database(compute.database)
    discards: list[asyncio.Task[None]] = []
    after_the_copy(monkeypatch, lambda: discards.append(asyncio.ensure_future(compute.discard())))
    real = module.__dict__["copy_tree"]

    async def and_wait(source: Path, target: Path, uid: int, selection: Selection) -> None:
        await real(source, target, uid, selection)
        await asyncio.gather(*discards)

    monkeypatch.setattr(module, "copy_tree", and_wait)
    with pytest.raises(ShuttingDown):
        await snapshot(compute, house.volumes, tmp_path / "copy", ME)


async def test_tablespaces_stay_inside(house: House, compute: Sleeper, tmp_path: Path) -> None:
    """A copy never writes to the files of what it was copied from."""
    data = house.volumes.data(compute.database.id)
    (data / "more").mkdir()
    (data / "pg_tblspc/1").symlink_to(data / "more")
    (data / "pg_tblspc/2").symlink_to("/data/more")
    await snapshot(compute, house.volumes, tmp_path / "copy", ME)
    assert (tmp_path / "copy/pg_tblspc/1").resolve() == tmp_path / "copy/more"
    assert os.readlink(tmp_path / "copy/pg_tblspc/2") == "/data/more"
    (data / "pg_tblspc/3").symlink_to("/somewhere/else")
    with pytest.raises(Conflict, match="tablespace outside"):
        await snapshot(compute, house.volumes, tmp_path / "again", ME)


def test_the_log_that_a_copy_needs() -> None:
    mb = 1 << 20
    span = LogSpan(1, 5 * mb + 100, 7 * mb, mb)
    assert list(span.files()) == ["000000010000000000000005", "000000010000000000000006"]
    assert list(LogSpan(3, 0xFFF * mb, 0x1000 * mb + 1, mb).files()) == ["000000030000000000000FFF", "000000030000000100000000"]
