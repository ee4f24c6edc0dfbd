"""Long operations: their states, what is recorded of them, who sees them, and what watching them costs."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.base.clock import SystemClock
from torpor.catalog.audit import AuditRecords
from torpor.catalog.catalog import Catalog
from torpor.control import jobs as jobs_module
from torpor.control.audit import Audit
from torpor.control.jobs import Jobs, Progress
from torpor.model.audit import AuditFilter
from torpor.model.database import Database, DatabaseState
from torpor.model.errors import Conflict, JobNotFound, ShuttingDown, TooManyJobs
from torpor.model.jobs import JobState, JobView
from torpor.model.names import DatabaseId
from torpor.model.workspace import WorkspaceId

MINE, THEIRS = WorkspaceId("wmine"), WorkspaceId("wtheirs")
SHOP = Database(DatabaseId("dshop"), "shop", DatabaseState.READY, 18, 0, 0.0, workspace=MINE)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    catalog = Catalog.open(tmp_path / "catalog.sqlite")
    yield Audit(AuditRecords(catalog.connection), SystemClock(), tmp_path / "audit")
    catalog.close()


@pytest.fixture
async def jobs(audit: Audit) -> AsyncIterator[Jobs]:
    jobs = Jobs(audit, SystemClock())
    yield jobs
    await jobs.stop()


def recorded(audit: Audit) -> list[tuple[str, str, str, str, str]]:
    records = audit.page(AuditFilter(), 1000, after=0).records
    return [(one.actor, one.action, one.target, str(one.result), one.detail) for one in records]


async def endless(_: Progress) -> None:
    await asyncio.Event().wait()


async def nothing(_: Progress) -> None:
    pass


async def test_a_job_from_its_begin_to_its_end(jobs: Jobs, audit: Audit) -> None:
    go = asyncio.Event()

    async def work(progress: Progress) -> Mapping[str, str]:
        progress(5, 10, "bytes", "copying\x1b[2J")
        await go.wait()
        return {"database": "shop-try"}

    begun = jobs.start("branch", SHOP, work, "host")
    assert (begun.kind, begun.database, begun.state, begun.id[0]) == ("branch", "shop", JobState.RUNNING, "j")
    await asyncio.sleep(0)
    half = jobs.get(begun.id, MINE)
    assert (half.done, half.total, half.unit, half.note) == (5, 10, "bytes", "copying?[2J")
    go.set()
    ended = await jobs.wait(begun.id)
    assert (ended.state, ended.done, ended.result, ended.error) == (JobState.DONE, 10, {"database": "shop-try"}, None)
    assert ended.ended_at is not None and ended.ended_at >= ended.began_at
    assert recorded(audit) == [
        ("host", "job.branch", "shop", "begun", begun.id),
        ("host", "job.branch", "shop", "done", begun.id),
    ]


async def test_a_failure_says_why(jobs: Jobs, audit: Audit) -> None:
    async def work(_: Progress) -> None:
        raise Conflict("it is busy", "wait")

    ended = await jobs.wait(jobs.start("restore", SHOP, work).id)
    assert ended.state is JobState.FAILED and ended.error is not None
    assert (ended.error.kind, ended.error.message, ended.error.hint, ended.error.sqlstate) == ("conflict", "it is busy", "wait", "55000")
    assert recorded(audit)[-1][2:] == ("shop", "failed", f"{ended.id}; conflict")


async def test_a_fault_of_ours_tells_nothing_of_the_inside(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(_: Progress) -> None:
        raise RuntimeError("secret inside")

    ended = await jobs.wait(jobs.start("restore", SHOP, work).id)
    assert ended.error is not None and ended.error.kind == "internal_error" and "secret" not in str(ended)
    assert "secret inside" in capsys.readouterr().err


async def test_cancelling_waits_for_the_cleaning_up_and_is_done_once(jobs: Jobs, audit: Audit) -> None:
    cleaned = []

    async def work(_: Progress) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    id = jobs.start("branch", SHOP, work).id
    await asyncio.sleep(0)
    twice = await asyncio.gather(jobs.cancel(id, MINE), jobs.cancel(id, None))
    assert [one.state for one in twice] == [JobState.CANCELLED] * 2 and cleaned == [True]
    assert (await jobs.cancel(id, MINE)) == twice[0]  # once more does nothing
    assert recorded(audit)[-1][3:] == ("refused", f"{id}; cancelled")


async def test_what_does_not_clean_up_in_time_is_shown_as_it_is(jobs: Jobs) -> None:
    go = asyncio.Event()

    async def work(_: Progress) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await go.wait()

    id = jobs.start("branch", SHOP, work).id
    await asyncio.sleep(0)
    view = await jobs.cancel(id, MINE, patience_s=0.01)
    assert (view.state, view.cancelling) == (JobState.RUNNING, True)
    go.set()
    assert (await jobs.wait(id)).state is JobState.CANCELLED


async def test_a_job_may_come_to_its_end_in_spite_of_being_cancelled(jobs: Jobs) -> None:
    async def work(_: Progress) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return  # too late to take it back

    id = jobs.start("restore", SHOP, work).id
    await asyncio.sleep(0)
    assert (await jobs.cancel(id, MINE)).state is JobState.DONE


async def test_one_that_is_cancelled_before_its_first_step_has_ended_too(jobs: Jobs) -> None:
    id = jobs.start("branch", SHOP, endless).id
    assert (await jobs.cancel(id, MINE)).state is JobState.CANCELLED


async def test_the_end_of_torpor_interrupts(jobs: Jobs, audit: Audit) -> None:
    running, fresh = jobs.start("branch", SHOP, endless), jobs.start("branch", SHOP, endless)
    await asyncio.sleep(0)
    await jobs.stop()
    assert {jobs.get(id, None).state for id in (running.id, fresh.id)} == {JobState.INTERRUPTED}
    assert recorded(audit)[-1][3] == "interrupted"
    with pytest.raises(ShuttingDown):
        jobs.start("branch", SHOP, endless)


async def test_after_a_kill_the_next_torpor_knows_what_was_going_on(jobs: Jobs, audit: Audit) -> None:
    done, cut = jobs.start("branch", SHOP, nothing), jobs.start("restore", SHOP, endless, "kabc")
    await jobs.wait(done.id)
    after = Jobs(audit, SystemClock())
    assert after.recall(audit.unfinished()) == 1
    assert audit.settle() == 1
    (known,) = after.list(MINE)
    assert (known.id, known.kind, known.database, known.state) == (cut.id, "restore", "shop", JobState.INTERRUPTED)
    assert after.list(THEIRS) == ()
    assert [event.state async for event in after.events(cut.id, MINE)] == [JobState.INTERRUPTED]


async def test_each_workspace_sees_its_own(jobs: Jobs) -> None:
    mine = jobs.start("branch", SHOP, endless)
    theirs = jobs.start("branch", replace(SHOP, name="store", workspace=THEIRS), endless)
    assert [one.id for one in jobs.list(MINE)] == [mine.id]
    assert [one.id for one in jobs.list(None)] == [theirs.id, mine.id]
    assert [one.id for one in jobs.list(None, "shop")] == [mine.id]
    for id, within in ((theirs.id, MINE), (mine.id, THEIRS), ("jnobody", None), ("", MINE)):
        with pytest.raises(JobNotFound):
            jobs.get(id, within)
        with pytest.raises(JobNotFound):
            await jobs.cancel(id, within)
        with pytest.raises(JobNotFound):
            await anext(jobs.events(id, within))
    assert jobs.get(theirs.id, THEIRS).state is JobState.RUNNING


async def test_memory_is_bounded(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT", 3)
    monkeypatch.setattr(jobs_module, "RUNNING_AT_ONCE_IN_WORKSPACE", 2)
    monkeypatch.setattr(jobs_module, "RUNNING_AT_ONCE", 3)
    runs = jobs.start("branch", SHOP, endless)
    for _ in range(10):
        await jobs.wait(jobs.start("branch", SHOP, nothing).id)
    assert len(jobs.list(None)) == 4 and jobs.get(runs.id, None).state is JobState.RUNNING
    jobs.start("branch", SHOP, endless)
    with pytest.raises(TooManyJobs):
        jobs.start("branch", SHOP, endless)
    other = replace(SHOP, workspace=THEIRS)
    jobs.start("branch", other, endless)
    with pytest.raises(TooManyJobs):
        jobs.start("branch", other, endless)


async def test_progress_from_threads(jobs: Jobs) -> None:
    async def work(progress: Progress) -> None:
        def count() -> None:
            for number in range(1001):
                progress(number, 1000, "bytes")

        await asyncio.to_thread(count)
        await asyncio.sleep(0)

    ended = await jobs.wait(jobs.start("restore", SHOP, work).id)
    assert (ended.done, ended.total) == (1000, 1000)


async def test_a_slow_watcher_misses_steps_but_not_the_end(jobs: Jobs) -> None:
    seen: list[JobView] = []
    go = asyncio.Event()

    async def work(progress: Progress) -> None:
        await go.wait()
        for number in range(10_000):
            progress(number, 10_000)

    id = jobs.start("restore", SHOP, work).id
    async for view in jobs.events(id, MINE):
        seen.append(view)
        go.set()
        await asyncio.sleep(0.01)
    assert seen[0].done == 0 and seen[-1].state is JobState.DONE
    assert len(seen) < 10
    assert [one.version for one in seen] == sorted({one.version for one in seen})
