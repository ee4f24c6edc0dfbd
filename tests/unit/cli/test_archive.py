"""`torpor archive` against the twin: what it asks, and what it prints."""

from dataclasses import replace

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin, view
from torpor.api import examples
from torpor.cli.show import lines
from torpor.model.jobs import JobError, JobId, JobState, JobView
from torpor.model.sleep import Tier

RUNNING = JobView(JobId("jk3v5q2mzab7w"), "archive", "shop", JobState.RUNNING, NOW, None, 10, 20, "bytes", "reading back")


def test_it_waits_for_the_end(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    done = replace(RUNNING, state=JobState.DONE, result={"size_bytes": str(167 << 20), "stored_bytes": str(23 << 20)})
    running.jobs[RUNNING.id] = [RUNNING, done]
    result = torpor("archive", "shop")
    assert (result.code, result.out) == (0, "shop is archived: 167 MB, which take 23 MB in the store\n")
    assert ("POST", "/v1/databases/shop/archive") in [request[:2] for request in running.requests]
    running.jobs[RUNNING.id] = [RUNNING, done]
    assert torpor("archive", "shop", "--json").json["result"]["stored_bytes"] == str(23 << 20)


def test_it_need_not_wait(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    running.jobs[RUNNING.id] = [RUNNING]
    assert torpor("archive", "shop", "--no-wait").out == "job jk3v5q2mzab7w archives shop\n"


def test_what_hinders_it_is_told(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    error = JobError("database_in_use", "shop has 2 open connections", "close them first: they don't survive this", "55006")
    running.jobs[RUNNING.id] = [RUNNING, replace(RUNNING, state=JobState.FAILED, error=error)]
    result = torpor("archive", "shop")
    assert result.code != 0
    assert "shop has 2 open connections" in result.err
    assert "close them first" in result.err


def test_it_is_shown() -> None:
    detail = replace(examples.DETAIL, database=replace(examples.DATABASE, tier=Tier.ARCHIVED), archived_bytes=23 << 20)
    shown = "\n".join(lines(detail, NOW))
    assert "tier         archived" in shown
    assert "volume       archived: 23 MB in the store" in shown
