"""`torpor recover` against the twin: what it asks, and what it prints."""

from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin, view
from torpor.api import examples
from torpor.cli.recover import hints
from torpor.cli.show import lines
from torpor.model.jobs import JobError, JobId, JobState, JobView
from torpor.model.recovery_views import RecoverableView

SHOP = examples.RECOVERABLE
OTHER = replace(SHOP, id="d" + "b" * 12, name="other", archived=True)
FOUND = examples.RECOVERABLES


def asked(twin: Twin) -> list[object]:
    return [body for method, path, _, body in twin.requests if (method, path) == ("POST", "/v1/recovery")]


def test_it_lists(torpor: Run, running: Twin) -> None:
    done = replace(SHOP, id="d" + "c" * 12, name="done", recovered_as="done-2")
    damaged = RecoverableView("d" + "e" * 12, "", trouble="its card is \x1b[2Jdamaged")
    running.recoverable = replace(FOUND, databases=(damaged, done, OTHER, SHOP), next="shop:d", foreign=2, behind=1)
    result = torpor("recover")
    rows = result.out.splitlines()
    assert rows[0].split() == ["NAME", "WORKSPACE", "ID", "SIZE", "FROM", "TO", "AGE"]
    assert "its card is" in rows[1]
    assert "\x1b" not in result.out
    assert rows[2].endswith("recovered as done-2")
    assert rows[3].endswith("archived")
    assert " 1.0 GB " in rows[4]
    assert "torpor recover NAME" in result.err
    assert [one["name"] for one in torpor("recover", "--json").json["databases"]] == ["", "done", "other", "shop"]


def test_what_is_said_beside() -> None:
    said = "\n".join(hints(replace(FOUND, databases=(), foreign=2, behind=1), []))
    for words in (
        "holds no database that isn't here",
        "3 more are this Torpor's own",
        "another master key than 9f86d0",
        "key_file",
        "newest card",
    ):
        assert words in said
    assert "torpor recover --all" not in said
    assert "torpor recover --all" in hints(FOUND, [SHOP])[-1]


def test_one(torpor: Run, running: Twin) -> None:
    result = torpor("recover", "shop", "--as", "shop-2", "--at", "2026-11-20 14:03:00+00")
    assert (result.code, result.out) == (0, "postgresql://owner@127.0.0.1:7432/shop-2\n")
    assert f"torpor recover --forget {SHOP.id}" in result.err
    assert asked(running) == [{"database": "shop", "name": "shop-2", "at": 1795183380.0}]
    assert torpor("recover", "shop", "--no-wait").out.startswith("job j")
    assert torpor("recover", "none").code != 0


def test_what_it_lacks_is_told(torpor: Run, running: Twin) -> None:
    job = JobView(JobId("j" + view("x", number=0).id[1:]), "recover", "shop", JobState.RUNNING, NOW)
    lacking = replace(job, state=JobState.DONE, result={"database": "shop", "from": SHOP.id, "lacks": "the log after 0/64"})
    running.jobs[job.id] = [job, lacking]
    assert "it lacks the log after 0/64" in torpor("recover", "shop").err


def test_all(torpor: Run, running: Twin) -> None:
    more = tuple(replace(SHOP, id=f"d{'ab'[n // 5]}{'abcde'[n % 5]}{'a' * 10}", name=f"db{n}") for n in range(9))
    running.recoverable = replace(FOUND, databases=(*more, OTHER, replace(SHOP, recovered_as="shop")))
    running.add(view("other", number=50))  # its name is taken
    result = torpor("recover", "--all", "--json")
    assert result.code != 0
    assert len(result.json["recovered"]) == 9
    assert result.json["failed"] == [{"database": "other", "kind": "database_exists", "message": "database 'other' exists already"}]
    assert "1 of 10 databases could not be brought back" in result.err
    assert [body["database"] for body in asked(running) if isinstance(body, dict)] == [one.id for one in (*more, OTHER)]


def test_a_job_that_fails_stops_no_other(torpor: Run, running: Twin) -> None:
    running.recoverable = replace(FOUND, databases=(SHOP, OTHER))
    job = JobView(JobId("j" + view("x", number=0).id[1:]), "recover", "shop", JobState.RUNNING, NOW)
    running.jobs[job.id] = [job, replace(job, state=JobState.FAILED, error=JobError("pool_full", "the storage pool is full", "", "53100"))]
    result = torpor("recover", "--all")
    assert result.code != 0
    assert "1 databases are back, 1 are not" in result.out
    assert "shop: " in result.err
    assert "the storage pool is full" in result.err


def test_one_that_was_recovered_is_shown_as_such(torpor: Run, running: Twin) -> None:
    made = replace(examples.DATABASE, parent=SHOP.id, branched_at=None)
    assert f"{SHOP.id}, on a machine that was lost" in "\n".join(lines(replace(examples.DETAIL, database=made, lineage=(SHOP.id,)), NOW))
    running.add(made)
    assert "BRANCH-OF" not in torpor("ls").out


def test_forget(torpor: Run, running: Twin) -> None:
    assert torpor("recover", "--forget", "shop", "--force").code == 0
    assert running.requests[-1][1:] == ("/v1/recovery/forget", {}, {"database": "shop", "force": True})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--all", "shop"),
        ("--all", "--as", "x"),
        ("--all", "--lsn", "0/0"),
        ("--all", "--no-wait"),
        ("--forget",),
        ("--as", "x"),
        ("shop", "--force"),
        ("shop", "--forget", "--as", "x"),
    ],
)
def test_what_makes_no_sense_is_refused(torpor: Run, running: Twin, arguments: tuple[str, ...]) -> None:
    result = torpor("recover", *arguments)
    assert (result.code, running.requests) == (2, [])
    assert "torpor recover --help" in result.err
