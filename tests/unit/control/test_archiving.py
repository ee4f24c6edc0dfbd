"""Databases go to the store and come back, whole or not at all: by themselves, when somebody comes in between, and killed at every step."""

import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.shelving import DATABASE, Shelves, shelves
from torpor.compute.lifecycle import ComputeState
from torpor.control.archiving import ArchiveStep as A
from torpor.model.archived import ArchivedState
from torpor.model.database import DatabaseState
from torpor.model.errors import Conflict, HistoryUnreachable, Unavailable
from torpor.model.jobs import JobState
from torpor.model.sleep import Tier

GOING = (A.RECORDED, A.STOPPED, A.STORED, A.VERIFIED, A.COMMITTED, A.REMOVED)
COMING = (A.FETCHED, A.BACK, A.FORGOTTEN)


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Shelves]:
    """A house with a stopped database on the pool."""
    fill(tmp_path)
    async with shelves(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def killed() -> Iterator["Killer"]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.shelving"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Killer(process)
        assert process.stdin is not None
        process.stdin.close()


class Killer:
    """Has something done in another process, which is killed at a step."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def at(self, root: Path, action: str, step: str) -> int:
        """How it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(root, action, step, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def fill(root: Path) -> None:
    data = root / "volumes" / DATABASE.id / "data"
    (data / "pg_wal").mkdir(parents=True)
    (data / "base").mkdir(mode=0o700)
    for number in range(20):
        (data / "base" / str(number)).write_bytes(b"%d" % number * 5000)
    (data / "base" / "large").write_bytes(os.urandom(300_000))


def content(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): b"" if path.is_dir() else path.read_bytes() for path in data.rglob("*")}


def stored(root: Path) -> list[str]:
    """Objects in the store."""
    return [str(path) for path in (root / "history").rglob("*") if path.is_file()]


async def test_there_and_back(found: Shelves, tmp_path: Path) -> None:
    before = content(found.data)
    job = await found.archive()
    assert job.state is JobState.DONE
    assert job.result["size_bytes"] == "450000"
    assert (found.compute.tier, found.compute.state) == (Tier.ARCHIVED, ComputeState.STOPPED)
    assert found.house.fleet.counts()[Tier.ARCHIVED] == 1
    assert found.archiving.holds(DATABASE.id)
    assert found.archiving.stored_bytes(DATABASE.id) == int(job.result["stored_bytes"]) > 300_000
    assert not found.house.volumes.ids()
    with pytest.raises(Conflict, match="archived already"):
        found.archiving.archive(DATABASE.id, "test")
    await found.bring_back()
    assert content(found.data) == before
    assert found.data.stat().st_mode & 0o777 == 0o700
    assert found.compute.tier is Tier.STOPPED
    assert not found.archiving.holds(DATABASE.id)
    assert not stored(tmp_path)
    assert (await found.archive()).state is JobState.DONE


async def test_who_comes_in_between_wins(found: Shelves, tmp_path: Path) -> None:
    before = content(found.data)
    found.bucket.slow_s = 0.01
    job = found.archiving.archive(DATABASE.id, "test")
    await found.bucket.reached("put")
    found.compute.moves += 1  # as a wake does
    ended = await found.jobs.wait(job.id)
    assert (ended.state, ended.error and ended.error.kind) == (JobState.FAILED, "conflict")
    assert ended.error is not None
    assert "was woken, or removed" in ended.error.message
    assert content(found.data) == before
    assert found.compute.tier is Tier.STOPPED
    assert (stored(tmp_path), found.records.all()) == ([], [])


async def test_a_job_that_is_cancelled_leaves_nothing(found: Shelves, tmp_path: Path) -> None:
    found.bucket.slow_s = 0.01
    job = found.archiving.archive(DATABASE.id, "test")
    await found.bucket.reached("put")
    assert (await found.jobs.cancel(job.id, None, 60)).state is JobState.CANCELLED
    assert found.compute.tier is Tier.STOPPED
    assert (stored(tmp_path), found.records.all()) == ([], [])


async def test_what_isnt_in_the_history_yet_isnt_removed(found: Shelves) -> None:
    found.log_is_stored = False
    job = await found.archive()
    assert job.error is not None
    assert "isn't all in its history" in job.error.message
    assert found.data.exists()


async def test_a_damaged_copy_is_found_before_anything_is_removed(found: Shelves, tmp_path: Path) -> None:
    found.bucket.damage = lambda key, data: data[:-1] if "/chunks/" in key else data
    before = content(found.data)
    job = await found.archive()
    assert (job.state, job.error and job.error.kind) == (JobState.FAILED, "history_corrupt")
    assert content(found.data) == before
    assert not stored(tmp_path)


async def test_a_store_that_fails(found: Shelves, tmp_path: Path) -> None:
    before = content(found.data)
    found.bucket.failures = -1
    job = await found.archive()
    assert (job.state, job.error and job.error.kind) == (JobState.FAILED, "history_unreachable")
    assert content(found.data) == before
    assert [archived.state for archived in found.records.all()] == [ArchivedState.STORING]  # it is tried again to remove what is there
    found.bucket.failures = 0
    assert (await found.archive()).state is JobState.DONE
    found.bucket.failures = -1
    with pytest.raises(HistoryUnreachable, match="db1 is archived, and its store can't be reached, or refuses; the daemon's log says more"):
        await found.bring_back()
    assert found.compute.tier is Tier.ARCHIVED
    assert not list(found.house.volumes.root.glob("*d*"))
    found.bucket.failures = 0
    await found.bring_back()
    assert content(found.data) == before
    assert not stored(tmp_path)


async def test_what_is_archived_once_more_is_sealed_with_the_key_that_is_kept(found: Shelves) -> None:
    """A failure holds on to what it failed at, with the key of that time: nothing may be stored with that any more."""
    before = content(found.data)
    found.bucket.slow_s, found.bucket.failures, held = 0.01, -1, []
    job = found.archiving.archive(DATABASE.id, "test")
    await found.bucket.reached("")
    held.append(found.archiving._repository(DATABASE.id))
    assert (await found.jobs.wait(job.id)).state is JobState.FAILED
    found.bucket.slow_s, found.bucket.failures = 0.0, 0
    assert (await found.archive()).state is JobState.DONE
    held.clear()
    gc.collect()
    await found.bring_back()
    assert content(found.data) == before


async def test_the_key_goes_with_the_database(found: Shelves) -> None:
    await found.archive()
    found.house.catalog.set_state(DATABASE.id, DatabaseState.DELETING)
    assert found.records.all() == []
    assert found.house.catalog.connection.execute("SELECT database_id FROM doomed_histories").fetchall() == [(DATABASE.id,)]


async def test_without_a_store(found: Shelves) -> None:
    await found.archive()
    found.archiving._archive = None
    with pytest.raises(Unavailable, match="this Torpor has no store"):
        await found.bring_back()
    with pytest.raises(Conflict, match="no store"):
        found.archiving.archive(DATABASE.id, "test")


@pytest.mark.fault
@pytest.mark.parametrize("step", [*GOING, *COMING])
async def test_killed_at_each_step(killed: Killer, tmp_path: Path, step: A) -> None:
    fill(tmp_path)
    before = content(tmp_path / "volumes" / DATABASE.id / "data")
    action = "archive" if step in GOING else "bring_back"
    if action == "bring_back":
        async with shelves(tmp_path) as found:
            await found.archive()
    assert killed.at(tmp_path, action, step) == -9
    async with shelves(tmp_path) as found:
        await found.house.volumes.sweep()
        archived = found.compute.tier is Tier.ARCHIVED
        assert archived == (step is A.REMOVED)
        assert (found.house.volumes.ids() == set()) == archived
        if archived:
            await found.archiving.bring_back(DATABASE, _nothing)
        assert content(found.data) == before
        found.archiving.start()
        await found.settled()
        assert not stored(tmp_path)
        assert (await found.archive()).state is JobState.DONE
        await found.bring_back()
        assert content(found.data) == before


async def _nothing() -> None:
    pass
